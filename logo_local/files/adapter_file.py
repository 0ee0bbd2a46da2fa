"""Read a GGUF LoRA file and check it before llama.cpp loads it.

On some malformed adapters llama.cpp ends the whole process (a key with an unexpected type). On
others it zeroes or ignores parts, or only says "failed to load". So everything it relies on is
checked here first, and all problems are reported at once.

gguf does the parsing. This module adds the bounds that gguf's reader does not check, and the
checks against a base model. Nothing stays open or in memory after a call.
The rules follow llama.cpp's src/llama-adapter.cpp and ggml/src/gguf.cpp.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from ..errors import AdapterError
from .base_model import BaseModel
from .description import DESCRIPTION_KEY
from .gguf_bounds import (
    DAMAGED,
    BoundedReader,
    Findings,
    GgufError,
    content,
    first_line,
    open_adapter,
    printable,
    text_at,
)
from .other_base import made_for
from .stored_values import TENSOR_TYPES, FloatArray, StoredArray, TensorPlace, stored_at, values_at

log = logging.getLogger(__name__)

# The largest float16, the type in which llama.cpp keeps keys and values. A valid adapter changes
# a weight by less than 10; one with numbers above this limit gives infinities for any prompt.
LARGEST_CHANGE = 65504.0

# Why this runtime cannot run some files that the converter writes and other programs can run.
ALORA = (
    "it is an activated LoRA (aLoRA), which works from its invocation tokens on only; "
    "these are not supported"
)


@dataclass(frozen=True, slots=True)
class Module:
    """One adapted weight: y += scaling B A x, with A (rank, d_in) and B (d_out, rank).

    `dtype` is the ggml type of A ("F16"), or of both where they differ ("Q8_0/F16").
    `n_expert` is the number of experts of an expert weight, 0 for other weights.
    """

    rank: int
    d_in: int
    d_out: int
    dtype: str
    n_expert: int
    a: TensorPlace = field(repr=False)
    b: TensorPlace = field(repr=False)


@dataclass(frozen=True)
class AdapterFile:
    """A checked adapter that fits its base. Holds no weights and no open file.

    `modules` maps the GGUF name of each adapted weight of the base to its `Module`. Two objects
    are equal if they are the same, unchanged file.
    """

    name: str
    path: Path
    lora_alpha: float
    modules: Mapping[str, Module] = field(repr=False, compare=False)
    n_bytes: int
    mtime_ns: int
    data_start: int = field(default=0, repr=False)
    description: str = field(default="", repr=False, compare=False)

    @property
    def rank_text(self) -> str:
        """The rank as text: "8", or "4-16" where it differs by module."""
        ranks = {module.rank for module in self.modules.values()}
        return str(min(ranks)) if len(ranks) == 1 else f"{min(ranks)}-{max(ranks)}"

    def scaling(self, target: str) -> float:
        """lora_alpha / rank of the module at `target`; 1.0 where alpha is 0, as in llama.cpp."""
        return self.lora_alpha / self.modules[target].rank if self.lora_alpha else 1.0

    def check_unchanged(self) -> None:
        """Raise AdapterError if the file has changed since it was checked, or is missing."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise AdapterError(
                f"{self.path} cannot be read: {error.strerror}", hint="rescan the folder"
            ) from error
        if (stat.st_size, stat.st_mtime_ns) != (self.n_bytes, self.mtime_ns):
            raise AdapterError(
                f"{self.path} has changed since it was checked",
                hint="rescan the folder of adapters",
            )

    def factors(self, target: str) -> tuple[FloatArray, FloatArray]:
        """A (rank, d_in) and B (d_out, rank) at `target`, float32, without the scaling.

        Read from the file at each call. For a stack of experts, the first axis of both is the
        expert. For `token_embd.weight` the input is the one-hot token, so A is (rank, n_vocab).
        Raises KeyError for a weight that is not adapted, AdapterError if the file has changed
        since it was checked or cannot be read.
        """
        module = self.modules[target]
        try:
            with self.path.open("rb") as file:
                self.check_unchanged()
                a, b = (values_at(file, self.data_start, place) for place in (module.a, module.b))
        except OSError as error:
            raise AdapterError(
                f"{self.path} cannot be read: {error.strerror}", hint="rescan the folder"
            ) from error
        return (np.ascontiguousarray(a.T) if _is_embedding(target) else a), b

    def stored(self, file: BinaryIO, target: str, side: str) -> StoredArray:
        """A or B ("a", "b") at `target` in its own shape: float16 if stored so, otherwise float32.

        Reads from `file`, which the caller opened; does not check whether the file has changed
        since it was checked. Threads may share the file if `CAN_SHARE_FILES`.
        """
        module = self.modules[target]
        return stored_at(file, self.data_start, module.a if side == "a" else module.b)


def read_adapter(path: str | Path, base: BaseModel) -> AdapterFile:
    """Read the GGUF LoRA file at `path` and check that it fits `base`; its name is the stem.

    Checks the structure of the file, the type and value of every key that llama.cpp reads, the
    names, pairs, shapes, types and offsets of all tensors, that every number is finite, and that
    no update is too large to compute. Raises AdapterError with all problems found. Does not check
    the quality of the weights.
    """
    path = Path(path)
    found = Findings()
    try:
        stat = path.stat()
        reader = open_adapter(path)
        alpha = _check_keys(path, reader, base, found)
        modules = _check_tensors(reader, base, found)
        with path.open("rb") as file:
            _check_values(file, reader.data_offset, alpha, modules, found)
    except GgufError as error:
        raise AdapterError(_refused(path), problems=error.problems, hint=error.hint) from error
    except OSError as error:
        reason = f"it cannot be read: {error.strerror or error}"
        raise AdapterError(_refused(path), problems=[reason], hint="check permissions") from error
    if found.kinds:
        hint = _hint(found, base)  # before findings are removed
        lines, more = _summed_up(found, reader, base)
        raise AdapterError(_refused(path), problems=lines, hint=hint, details=more)
    size, mtime = stat.st_size, stat.st_mtime_ns
    said = first_line(text_at(reader, DESCRIPTION_KEY))
    return AdapterFile(path.stem, path, alpha, modules, size, mtime, reader.data_offset, said)


def _refused(path: Path) -> str:
    return f"{path.name} cannot be used as an adapter"


def _hint(found: Findings, base: BaseModel) -> str:
    if found.kinds & {"architecture", "not in base", "shape"}:
        return f"was it made for another base model? This one is {base.name}"
    if "too large" in found.kinds:
        return "the training run broke down, or the file is damaged; use an earlier checkpoint"
    return DAMAGED if "not finite" in found.kinds else ""


def _summed_up(
    found: Findings, reader: BoundedReader, base: BaseModel
) -> tuple[list[str], list[str]]:
    """The problems and their details. An adapter of another base is reported in one line."""
    layers = []
    for tensor in reader.tensors:
        target, _, side = tensor.name.rpartition(".")
        if side == "lora_a" and len(tensor.shape):
            layers.append((target, int(tensor.shape[0]), 0))
        elif side == "lora_b" and len(tensor.shape) > 1:
            layers.append((target, 0, int(tensor.shape[1])))
    named = printable(text_at(reader, "general.base_model.0.name"))
    line = made_for(base, layers, f"the file names {named}" if named else "")
    if not line or found.count(_OTHER_BASE) < 2:  # a single one has the better message
        return found.lines, []
    details = found.take([kind for kind in _MISFITS if kind in found.kinds])
    return [line, *found.lines], details


# Findings that show that the adapter is for another base, and the findings that follow from it.
_OTHER_BASE = frozenset({"architecture", "not in base", "shape"})
_MISFITS = ("architecture", "not in base", "shape", "no matrix", "tied")


# --- keys --------------------------------------------------------------------------------------

_STRING = [gguf.GGUFValueType.STRING]
_FLOAT32 = [gguf.GGUFValueType.FLOAT32]


def _check_keys(path: Path, reader: BoundedReader, base: BaseModel, found: Findings) -> float:
    """Check every key that llama.cpp reads; return lora_alpha."""
    expected = {
        "general.type": "adapter",
        "general.architecture": base.architecture,
        "adapter.type": "lora",
    }
    for key, wanted in expected.items():
        item = reader.fields.get(key)
        kind = "architecture" if key == "general.architecture" else key
        if item is None:
            found.add(kind, f"it has no key {key}, which must be {wanted!r}")
        elif item.types != _STRING:
            found.add(kind, f"{key} must be a string, not {_type_text(item)}")
        elif content(item) != wanted:
            whose = ", the base's" if kind == "architecture" else ""
            found.add(kind, f"{key} is {printable(repr(content(item)))}, not {wanted!r}{whose}")
    for key, item in reader.fields.items():
        if item.types[:1] == [gguf.GGUFValueType.ARRAY]:
            inner = int(item.parts[3][0])  # name length, name, type, inner type, ...
            if inner == gguf.GGUFValueType.ARRAY or inner not in set(gguf.GGUFValueType):
                found.add("array", f"{printable(key)} is an array of things llama.cpp refuses")
    if gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS in reader.fields:
        found.add("alora", ALORA)
    return _check_alpha(path, reader, found)


def _check_alpha(path: Path, reader: BoundedReader, found: Findings) -> float:
    key = "adapter.lora.alpha"
    item = reader.fields.get(key)
    if item is None:
        log.warning("%s has no %s: its scaling is 1, as in llama.cpp", path, key)
        return 0.0
    if item.types != _FLOAT32:
        found.add(key, f"{key} must be a 32-bit float, not {_type_text(item)}")
        return 0.0
    alpha = float(item.contents())
    if not math.isfinite(alpha):
        found.add(key, f"{key} is {alpha}")
    return alpha


def _type_text(item: Any) -> str:
    return " of ".join(kind.name.lower() for kind in item.types)


# --- tensors -----------------------------------------------------------------------------------


def _is_embedding(target: str) -> bool:
    # Here lora_a holds one row per token, and lora_b is not transposed: llama.cpp takes rows of A.
    return target.endswith("token_embd.weight")


def _check_tensors(reader: BoundedReader, base: BaseModel, found: Findings) -> dict[str, Module]:
    """Pair lora_a with lora_b, check each pair against the base, and return the valid ones."""
    pairs: dict[str, dict[str, Any]] = {}
    for tensor in reader.tensors:
        target, _, side = tensor.name.rpartition(".")
        name = printable(tensor.name)
        if side in ("lora_a", "lora_b"):
            pairs.setdefault(target, {})[side] = tensor
        elif tensor.name.endswith("_norm.weight"):
            found.add("norm", f"{name} is a whole norm weight, which llama.cpp would ignore")
        else:
            found.add("suffix", f"{name} is neither a .lora_a nor a .lora_b tensor")
        if tensor.tensor_type.name not in TENSOR_TYPES:
            found.add("type", f"{name} has the type {tensor.tensor_type.name}, which is not usable")
    if not pairs:
        found.add("empty", "it holds no LoRA tensors")
    modules = {}
    for target, pair in pairs.items():
        name = printable(target)
        if len(pair) < 2:
            (there,) = pair
            missing = "lora_b" if there == "lora_a" else "lora_a"
            found.add("pair", f"{name} has {there} but no {missing}")
        if target not in base.tensors:
            found.add("not in base", f"the base has no weight {name}")
        elif _is_embedding(target) and "output.weight" not in base.tensors:
            found.add(
                "tied",
                f"it adapts {target}, which this base also uses as its output: "
                "llama.cpp would end the process at the first token",
            )
        elif len(pair) == 2:
            module = _module(
                target,
                pair["lora_a"],
                pair["lora_b"],
                base.tensors[target],
                reader.data_offset,
                found,
            )
            if module is not None:
                modules[sys.intern(target)] = module  # one string for all adapters of a pool
    return modules


def _module(
    target: str, a: Any, b: Any, weight: tuple[int, ...], start: int, found: Findings
) -> Module | None:
    """Check the shapes of one pair against the base's `weight`, all in numpy order."""
    *stack, d_out, d_in = weight if len(weight) > 1 else (0, 0)
    if len(weight) != (3 if target.endswith("_exps.weight") else 2):
        found.add("no matrix", f"{target} is no matrix that llama.cpp adapts: {weight} in the base")
        return None
    shape_a, shape_b = _with_axes(a, len(weight)), _with_axes(b, len(weight))
    if _is_embedding(target):  # A (n_vocab, rank), B (n_embd, rank); W is (n_vocab, n_embd)
        d_in, d_out = d_out, d_in
        rank_a, fits_a, needs_a = shape_a[-1], shape_a[:-1] == (d_in,), f"({d_in}, rank)"
    else:
        rank_a = shape_a[-2]
        fits_a = (*shape_a[:-2], shape_a[-1]) == (*stack, d_in)
        needs_a = f"({''.join(f'{n}, ' for n in stack)}rank, {d_in})"
    rank_b, fits_b = shape_b[-1], shape_b[:-1] == (*stack, d_out)
    needs_b = f"({''.join(f'{n}, ' for n in stack)}{d_out}, rank)"
    if not (fits_a and fits_b):
        found.add(
            "shape",
            f"{target}: lora_a is {shape_a} and lora_b {shape_b}, "
            f"where the base needs {needs_a} and {needs_b}",
        )
    elif rank_a != rank_b:
        found.add("rank", f"{target}: lora_a has rank {rank_a}, lora_b rank {rank_b}")
    elif rank_a < 1:
        found.add("rank", f"{target} has rank 0")
    else:
        types = dict.fromkeys((a.tensor_type.name, b.tensor_type.name))
        return Module(
            rank=rank_a,
            d_in=d_in,
            d_out=d_out,
            dtype="/".join(types),
            n_expert=stack[0] if stack else 0,
            a=TensorPlace(int(a.data_offset) - start, a.n_bytes, a.tensor_type.name, shape_a),
            b=TensorPlace(int(b.data_offset) - start, b.n_bytes, b.tensor_type.name, shape_b),
        )
    return None


def _with_axes(tensor: Any, n: int) -> tuple[int, ...]:
    """The numpy shape, with `n` axes if possible: GGUF may drop or add outer axes of length 1."""
    shape = [int(d) for d in reversed(tensor.shape.tolist())]
    while len(shape) > n and shape[0] == 1:
        del shape[0]
    return (*[1] * (n - len(shape)), *shape)


# --- values ------------------------------------------------------------------------------------


def _check_values(
    file: BinaryIO, start: int, alpha: float, modules: Mapping[str, Module], found: Findings
) -> None:
    for target, module in modules.items():
        sides = {"lora_a": module.a, "lora_b": module.b}
        if not all(place.dtype in TENSOR_TYPES for place in sides.values()):
            continue
        values = {side: values_at(file, start, place) for side, place in sides.items()}
        counts = {
            side: v.size - int(np.count_nonzero(np.isfinite(v))) for side, v in values.items()
        }
        for side, n in counts.items():
            if n:
                found.add("not finite", f"{target}.{side} has {n:,} values that are NaN or inf")
        if not any(counts.values()):
            scaling = abs(alpha / module.rank) if alpha else 1.0
            largest = scaling * largest_change(values["lora_a"], values["lora_b"], target)
            if largest > LARGEST_CHANGE:
                found.add(
                    "too large",
                    f"{target} is changed by up to {largest:.2g}, more than a float16 can hold",
                )


def largest_change(a: FloatArray, b: FloatArray, target: str) -> float:
    """An upper bound of the magnitude of the entries of B A; shapes as in the file.

    Row i of B A is at most the sum over r of |B[i, r]| times the largest of |A[r]|.
    """
    inputs = -2 if _is_embedding(target) else -1
    largest_a = np.abs(a).max(axis=inputs).astype(np.float64)  # (..., rank)
    sums = np.abs(b).astype(np.float64) @ largest_a[..., None]  # (..., d_out, 1)
    return float(sums.max())
