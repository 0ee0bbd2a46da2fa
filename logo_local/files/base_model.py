"""The metadata of a base model that is needed to check, convert and probe adapters.

All of it is read from the header of the GGUF file: no weights are read, and neither Hugging
Face's config nor llama.cpp is needed. This module does not deal with adapters.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np

from ..errors import ModelError
from .gguf_bounds import LFS_HINT, LFS_POINTER, kind_by_start, printable
from .header_reader import HeaderReader
from .model_checks import problems_of_keys, problems_of_tensors

Stored: TypeAlias = tuple[str, int, str]  # name, number of dimensions, ggml type

_MOST_ITEMS = 1024  # limit for number arrays that are read: at most one number per block


class _ModelReader(HeaderReader):
    """gguf's reader, which skips the arrays of a vocabulary.

    The original creates an array object for every item: seconds for 100,000 tokens. `twice` is
    a duplicate token, `without_token` a byte without a token, otherwise None. llama.cpp ends the
    process on the first, and on the second if it tokenises with sentencepiece.
    """

    twice: bytes | None = None
    without_token: int | None = None

    def _push_field(self, field: Any, skip_sum: bool = False) -> int:
        if field.name == "tokenizer.ggml.tokens" and field.types[:1] == [gguf.GGUFValueType.ARRAY]:
            start = int(field.offset) + 8 + len(field.parts[1]) + 4  # after the name and the type
            inner, length = struct.unpack("<IQ", self.data[start : start + 12].tobytes())
            if inner == gguf.GGUFValueType.STRING:
                seen: set[bytes] = set()
                for token in self.data.strings(start + 12, length):
                    if token in seen and token:
                        self.twice = token
                    seen.add(token)
                missing = (n for n in range(256) if not {b"<0x%02X>" % n, bytes([n])} & seen)
                self.without_token = next(missing, None)
        return int(super()._push_field(field, skip_sum))

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        inner, length = struct.unpack("<IQ", self.data[orig_offs : orig_offs + 12].tobytes())
        number = self.gguf_scalar_to_np.get(inner)
        if number is not None and length > _MOST_ITEMS:
            return 12 + length * np.dtype(number).itemsize, [], [], [gguf.GGUFValueType.ARRAY]
        if inner != gguf.GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        end = self.data.after_strings(orig_offs + 12, length)
        return end - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], list[Stored]]:
    """The keys of one file without most tokenizer keys, the shapes of its tensors, and how they
    are stored.
    """
    if not path.is_file():
        raise ModelError(
            f"no model file at {path}",
            hint="give the path of a .gguf model file, or the word demo for the demo model",
        )
    try:
        _refuse_other_kinds(path)
        reader = _ModelReader(path)
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.")  # not kept, see _ModelReader
            or name in ("tokenizer.ggml.model", "tokenizer.chat_template")
        }
        shapes = {t.name: _shape(t) for t in reader.tensors}
        if reader.twice is not None:
            token = printable(reader.twice.decode("utf-8", "replace"))
            raise _unusable(path, [f"tokenizer.ggml.tokens has the token {token!r} twice"])
        if reader.without_token is not None and fields.get("tokenizer.ggml.model") == "llama":
            problem = (
                f"tokenizer.ggml.tokens has no token for the byte 0x{reader.without_token:02X}"
            )
            raise _unusable(path, [problem])
        stored = [(t.name, len(t.shape), t.tensor_type.name) for t in reader.tensors]
    except ModelError:
        raise
    except Exception as error:  # the reader may raise anything on damaged bytes
        raise ModelError(
            f"{path} cannot be read as a GGUF file: {error}",
            hint="the file may be damaged or only half downloaded: compare its size or "
            "sha256 with its source",
        ) from error
    return fields, shapes, stored


def _unusable(path: Path, problems: list[str]) -> ModelError:
    return ModelError(
        f"{path} cannot be used",
        problems=problems,
        hint="the file may be damaged, or made by another program: convert the model again with "
        "llama.cpp's convert_hf_to_gguf.py",
    )


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as file:
        kind = kind_by_start(file.read(24))
    if kind:
        hint = LFS_HINT if kind == LFS_POINTER else "give a .gguf model file"
        raise ModelError(f"{path} cannot be read as a GGUF file: {kind}", hint=hint)


def _shape(tensor: Any) -> tuple[int, ...]:
    """The numpy shape; some files store the one layer with a single output as a vector."""
    shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
    is_vector = tensor.name.endswith(".ffn_gate_inp_shexp.weight") and len(shape) == 1
    return (1, *shape) if is_vector else shape


def _other_parts(path: Path, fields: Mapping[str, Any]) -> list[Path]:
    """The files that follow `path` if the model is split (name-00001-of-00003.gguf)."""
    count = fields.get("split.count", 0)
    if type(count) is not int or not 0 <= count <= 65535:
        raise ModelError(f"{path} cannot be used: split.count is {str(count)[:40]!r}")
    if count < 2:
        return []
    if not path.name.endswith(ending := f"-00001-of-{count:05}.gguf"):
        raise ModelError(
            f"{path} is a part of a model in {count} files, and not the first",
            hint=f"give the one whose name ends in {ending}",
        )
    stem = path.name.removesuffix(ending)
    return [path.with_name(f"{stem}-{n:05}-of-{count:05}.gguf") for n in range(2, count + 1)]


@dataclass(frozen=True)
class BaseModel:
    """The shape of a base model.

    `tensors` maps each GGUF tensor name to its shape in numpy order (rows first). A linear layer
    `y = W x` has shape (d_out, d_in), also with a single output; a stack of experts has shape
    (n_expert, d_out, d_in).
    """

    path: Path
    architecture: str
    name: str
    n_blocks: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_expert: int
    n_ctx_train: int
    tensors: Mapping[str, tuple[int, ...]] = field(repr=False)
    n_rotary: int = 0  # rows of a head that are rotated; 0 if the file does not say
    has_mrope: bool = False  # rotated by several positions (time, height, width)
    chat_template: str = field(default="", repr=False)

    @classmethod
    def read(cls, path: str | Path) -> BaseModel:
        """Read the header of the GGUF file at `path`.

        If the model is split into several files, `path` is the first, and the others must be in the
        same folder. Raises ModelError if a file is missing, is not a GGUF model, or lacks a key
        that every model has. Does not check the weights.
        """
        path = Path(path)
        fields, tensors, stored = _read_header(path)
        for other in _other_parts(path, fields):
            _, more, stored_there = _read_header(other)
            tensors |= more
            stored += stored_there
        if fields.get("general.type", "model") != "model":
            raise ModelError(
                f"{path} is not a model: its general.type is {fields['general.type']!r}",
                hint="adapters go into the folder that --adapters names",
            )
        base = cls._from_fields(path, fields, tensors)
        problems = problems_of_tensors(stored)
        if problems:
            raise _unusable(path, problems)
        return base

    @classmethod
    def _from_fields(
        cls, path: Path, fields: Mapping[str, object], tensors: Mapping[str, tuple[int, ...]]
    ) -> BaseModel:
        arch = str(fields.get("general.architecture", ""))[:64]
        needed = ("block_count", "embedding_length", "attention.head_count")
        missing = [f"{arch}.{key}" for key in needed if f"{arch}.{key}" not in fields]
        if not arch or missing:
            raise ModelError(
                f"{path} does not say what every model says",
                problems=[f"no key {key}" for key in missing or ["general.architecture"]],
                hint="convert the model again with llama.cpp's convert_hf_to_gguf.py",
            )

        problems = problems_of_keys(arch, fields)
        if problems:
            raise _unusable(path, problems)

        def number(key: str, default: int = 0) -> int:
            value = fields.get(f"{arch}.{key}", default)
            if isinstance(value, list):  # some families give one value per block
                value = max(value, default=default)
            return int(value)  # type: ignore[call-overload, no-any-return]

        n_head = number("attention.head_count")
        return cls(
            path=path,
            architecture=arch,
            name=str(fields.get("general.name", path.stem)),
            n_blocks=number("block_count"),
            n_embd=number("embedding_length"),
            n_head=n_head,
            n_head_kv=number("attention.head_count_kv", n_head),
            n_expert=number("expert_count"),
            n_ctx_train=number("context_length", 4096),
            tensors=tensors,
            n_rotary=number("rope.dimension_count"),
            has_mrope=f"{arch}.rope.dimension_sections" in fields,
            chat_template=str(fields.get("tokenizer.chat_template", "")),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the shape of this model, not its weights.

        A converted adapter depends on the base only through this shape: files made for one
        quantisation of a model fit all of them.
        """
        shape = {
            "architecture": self.architecture,
            "heads": [self.n_head, self.n_head_kv, self.n_expert, self.n_blocks],
            "tensors": {name: self.tensors[name] for name in sorted(self.tensors)},
        }
        if self.has_mrope:  # some architectures order their rows by it
            shape["rotary"] = [self.n_rotary]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]
