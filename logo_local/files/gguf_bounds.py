"""Open a GGUF file that may be damaged or hostile, in bounded time and memory.

gguf does the parsing. Its reader does not notice a read past the end of the file: an array that
claims 2**60 values in a file of a kilobyte keeps it busy until memory is used up. This module
adds the bounds, and the requirements of llama.cpp's ggml/src/gguf.cpp on the layout. It does not
deal with adapters, and raises only `GgufError` and OSError.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from .header_reader import HeaderReader

DAMAGED = "it may be damaged or only half downloaded: compare its size or sha256 with its source"

LFS_POINTER = "it is a git-lfs pointer, which stands for a file that was not downloaded"
LFS_HINT = "run git lfs pull in the repository that it comes from, or download the file itself"
GGLA = (
    "it is a GGLA file, llama.cpp's adapter format of 2023, which is no longer read: "
    "convert the PEFT adapter that it was made from"
)
# First bytes of other file formats.
_OPENINGS = {
    b"version https://git-lfs": LFS_POINTER,
    b"algg": GGLA,
    b"PK\x03\x04": "it looks like a PyTorch file (a zip with pickles), which is refused",
    b"\x80": "it looks like a Python pickle, which is refused",
    b"FUGG": "it looks like a big-endian GGUF file, which llama.cpp cannot read here",
}
# Seven for each tensor, so about 2,800 adapted weights. A header with more is not an adapter's,
# and reading it would take seconds and memory.
_MAX_HEADER_VALUES = 40_000
_MAX_VALUE_BYTES = 1 << 24
_MAX_NAME = 64  # GGML_MAX_NAME, with its final zero
_MAX_DIMS = 4
_START = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys
_SMALLEST_TENSOR_INFO = 8 + 4 + 4 + 8
_SMALLEST_KEY = 8 + 4 + 1


class GgufError(Exception):
    """The file is not a GGUF file, or its structure is broken; `problems` lists the places."""

    def __init__(self, problems: Sequence[str], *, hint: str = DAMAGED) -> None:
        super().__init__(*problems)
        self.problems = tuple(problems)
        self.hint = hint


class Findings:
    """Problems grouped by kind, so that the same problem in 28 modules is one line."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[str]] = {}

    def add(self, kind: str, text: str) -> None:
        """Add a problem; `kind` is never shown."""
        self._by_kind.setdefault(kind, []).append(text)

    @property
    def kinds(self) -> set[str]:
        """The kinds found so far."""
        return set(self._by_kind)

    def take(self, kinds: Iterable[str]) -> list[str]:
        """Remove these kinds and return their texts, one for each finding."""
        return [text for kind in kinds for text in self._by_kind.pop(kind, [])]

    def count(self, kinds: Iterable[str]) -> int:
        """The number of findings of these kinds."""
        return sum(len(self._by_kind.get(kind, ())) for kind in kinds)

    @property
    def lines(self) -> list[str]:
        """One line for each kind: the first example, and how many more there are."""
        return [
            texts[0] + (f" (and {len(texts) - 1} more like this)" if len(texts) > 1 else "")
            for texts in self._by_kind.values()
        ]


def open_adapter(path: Path) -> BoundedReader:
    """Parse the header of the GGUF file at `path`; tensor data is not read.

    The file is closed again. Raises GgufError with the problems, also if general.type is
    "model"; OSError if the file cannot be read or changes in the meantime.
    """
    if not path.is_file():
        path.stat()  # raises if the file is missing
        raise GgufError(["it is a folder" if path.is_dir() else "it is no regular file"], hint="")
    with path.open("rb") as file:
        _check_start(file.read(_START.size), path.stat().st_size)
    try:
        with np.errstate(all="raise"):  # a wrapped offset must be an error, not a warning
            return BoundedReader(path)
    except (GgufError, OSError):
        raise
    except RecursionError:
        raise GgufError(["its header is damaged: arrays in arrays in arrays"]) from None
    except Exception as error:  # gguf's reader may raise anything on damaged bytes
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise GgufError([f"its header is damaged: {printable(str(reason))}"]) from error


def kind_by_start(start: bytes) -> str:
    """The file format by the first 24 bytes; empty if unknown."""
    return next((kind for opening, kind in _OPENINGS.items() if start.startswith(opening)), "")


def _check_start(start: bytes, n_bytes: int) -> None:
    """Refuse files whose first 24 bytes show that they are not GGUF or cannot be complete."""
    if n_bytes == 0:
        raise GgufError(["the file is empty"])
    if start[:4] != b"GGUF"[: len(start)]:
        kind = kind_by_start(start)
        problem = "it is not a GGUF file" + (f": {kind}" if kind else "")
        raise GgufError([problem], hint=LFS_HINT if kind == LFS_POINTER else "")
    if len(start) < _START.size:
        raise GgufError([f"it is cut short: {n_bytes} bytes are no whole header"])
    _, version, n_tensors, n_keys = _START.unpack(start)
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0
        why = "it looks big-endian" if swapped else "llama.cpp reads 2 and 3"
        raise GgufError([f"GGUF version {version} is not supported: {why}"], hint="")
    if n_tensors * _SMALLEST_TENSOR_INFO + n_keys * _SMALLEST_KEY > n_bytes:
        raise GgufError(
            [
                f"its header announces {n_tensors:,} tensors and {n_keys:,} keys, "
                f"more than {n_bytes:,} bytes can hold: it is cut short or damaged"
            ]
        )


class BoundedReader(HeaderReader):
    """gguf's reader, which stops at the end of the file."""

    def __init__(self, path: Path) -> None:
        self._left = _MAX_HEADER_VALUES
        super().__init__(path)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        self._left -= 1
        n_bytes = np.dtype(dtype).itemsize * int(count)
        if self._left < 0 or _MAX_VALUE_BYTES < n_bytes <= len(self.data):
            raise GgufError(["its header holds far more than any adapter's"])
        end = int(offset) + n_bytes
        if end > len(self.data):
            raise GgufError(
                [
                    f"it is cut short or damaged: its header leads to byte {end:,}, "
                    f"the file has {len(self.data):,}"
                ]
            )
        return super()._get(int(offset), dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:  # the type of its elements, their number, they
            n = int(self._get(orig_offs + 4, np.uint64)[0])
            if n > self._left:
                raise GgufError([f"it is damaged: its header announces an array of {n:,} values"])
        return super()._get_field_parts(orig_offs, raw_type)

    def _push_field(self, field: Any, skip_sum: bool = False) -> int:
        # A model may have a vocabulary of 200,000 words: recognise it before reading that.
        if field.name == "general.type" and content(field) == "model":
            raise GgufError(
                ["it is a model, not an adapter"],
                hint="models are given by their own path, outside the folder of adapters",
            )
        if not field.name:
            raise GgufError(["its header is damaged: a key without a name"])
        return int(super()._push_field(field, skip_sum))

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        # The sizes are computed here with Python integers; numpy's would wrap.
        found = Findings()
        start, expected = int(start_offs), 0  # type: int, int | None
        for info in fields:
            expected = self._check_place(info, start, expected, found)
        if found.kinds:
            raise GgufError(found.lines)
        super()._build_tensors(start, fields)

    def _check_place(
        self, info: Any, start: int, expected: int | None, found: Findings
    ) -> int | None:
        """Check the position and size of a tensor; return the next offset, if known."""
        _, name_bytes, _, raw_dims, dtype, raw_offset = info.parts
        dims: list[int] = raw_dims.tolist()
        offset, alignment = int(raw_offset[0]), int(self.alignment)
        name = printable(str(bytes(name_bytes), encoding="utf-8"))
        if len(name_bytes) >= _MAX_NAME:
            found.add("name", f"the tensor name {name} is too long for llama.cpp")
        if len(dims) > _MAX_DIMS or math.prod(dims) >= 2**63 or any(d >= 2**63 for d in dims):
            text = " x ".join(map(str, dims[: _MAX_DIMS + 1]))
            found.add("dims", f"{name} has impossible dimensions: {len(dims)} of them, {text}")
            return None
        try:
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(dtype[0]))]
        except (KeyError, ValueError):
            found.add("type", f"{name} has the unknown tensor type {int(dtype[0])}")
            return None
        row = dims[0] if dims else 1
        if row % block:
            found.add("block", f"{name}: a row of {row} is no multiple of the block of {block}")
            return None
        n_bytes: int = math.prod(dims) // block * block_bytes
        end = start + offset + n_bytes
        if offset % alignment:
            found.add("align", f"the data of {name} is misaligned: offset {offset:,}")
        elif end > len(self.data):
            found.add(
                "end",
                f"it is cut short or damaged: the data of {name} ends at byte {end:,}, "
                f"the file at {len(self.data):,}",
            )
        elif expected is not None and offset != expected:
            found.add(
                "order",
                f"the data of {name} overlaps or leaves a gap: "
                f"offset {offset:,} where {expected:,} is expected",
            )
        return offset + -(-n_bytes // alignment) * alignment


def content(item: Any) -> Any:
    """The value of a header field; invalid UTF-8 bytes are escaped."""
    if item.types == [gguf.GGUFValueType.STRING]:
        return bytes(item.parts[-1]).decode(errors="backslashreplace")
    return item.contents()


def text_at(reader: HeaderReader, key: str) -> str:
    """The text of a header field; "" if it is missing or not text."""
    item = reader.fields.get(key)
    is_text = item is not None and item.types == [gguf.GGUFValueType.STRING]
    return str(content(item)) if is_text else ""


def first_line(text: str) -> str:
    """The first line that is not empty, made printable; "" if there is none."""
    return printable(next((line.strip() for line in text.splitlines() if line.strip()), ""))


def printable(text: str) -> str:
    """A text from the file for display: without control characters, and shortened."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else text[:197] + "..."
