"""Combine several adapters exactly into one of a higher rank: the arithmetic, on arrays.

    sum_i f_i B_i A_i x = [B_1 .. B_k] [f_1 A_1; ..; f_k A_k] x      with f_i = weight_i scaling_i

Each factor is applied to A or B, whichever has fewer numbers at the weight, so that a change of
merge weights does not change the larger one. In a float16 stack f_i A_i, or f_i B_i, is rounded
once, to 11 bits; nothing else is rounded. Does not know llama.cpp.

Source: the identity is elementary; PEFT has it as the combination type "cat" (tuners/lora, 0.21).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .adapter_file import AdapterFile
from .stored_values import StoredArray

# llama.cpp multiplies 32 numbers at a time, on some CPUs 64, and the remainder one by one, which is
# slower than padding.
RANK_STEP = 32
Q8_0_BLOCK = 32


@dataclass(frozen=True)
class StackedModule:
    """The stack at one weight: A is `a_shape`, B is `b_shape`, both with `rank` along one axis.

    `a_axis` is the rank axis of A, counted from the end: -2, or -1 for an embedding. For B: -1.
    """

    rank: int
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    a_axis: int

    @property
    def scaled(self) -> str:
        """Which side includes the factors: "a" or "b", the smaller one."""
        return "a" if math.prod(self.a_shape) <= math.prod(self.b_shape) else "b"

    def n_bytes(self, dtype: str) -> int:
        """The size in bytes of A and B, stored as `dtype`."""
        n = math.prod(self.a_shape) + math.prod(self.b_shape)
        return {"f16": 2 * n, "f32": 4 * n, "q8_0": n // 32 * 34}[dtype]


def stacked_modules(
    adapters: Iterable[AdapterFile], step: int = RANK_STEP
) -> dict[str, StackedModule]:
    """The stack of `adapters` by weight, with ranks padded to a multiple of `step`."""
    ranks: dict[str, int] = {}
    modules = {}
    for adapter in adapters:
        for target, module in adapter.modules.items():
            ranks[target] = ranks.get(target, 0) + module.rank
            modules[target] = module
    stacks = {}
    for target, module in modules.items():
        rank = math.ceil(ranks[target] / step) * step
        axis = -1 if target.endswith("token_embd.weight") else -2
        a, b = list(module.a.shape), list(module.b.shape)
        a[axis] = b[-1] = rank
        stacks[target] = StackedModule(rank, tuple(a), tuple(b), axis)
    return stacks


def native_type(adapters: Iterable[AdapterFile]) -> str:
    """The type that holds the adapters without loss: "f16" if all are float16, else "f32"."""
    types = {module.dtype for adapter in adapters for module in adapter.modules.values()}
    return "f16" if types <= {"F16"} else "f32"


def storable_type(wanted: str, modules: Mapping[str, StackedModule], exact: str) -> str:
    """`wanted`, or `exact` if the rows of a stack do not fill the blocks of Q8_0."""
    rows = [n for m in modules.values() for n in (m.a_shape[-1], m.b_shape[-1])]
    return exact if wanted == "q8_0" and any(n % Q8_0_BLOCK for n in rows) else wanted


def common_factor(factors: Iterable[float]) -> float:
    """A power of two, at least 1; |factors| divided by it are at most 1.

    Adapters scaled by the quotients fit into float16 if they did before; llama.cpp multiplies by
    this power again. Mostly 1, so that changed weights rarely change it.
    """
    largest = max((abs(factor) for factor in factors), default=0.0)
    return 2.0 ** max(0, math.ceil(math.log2(largest))) if largest > 1 else 1.0


def put_a(
    stack: npt.NDArray[Any], axis: int, start: int, values: StoredArray, factor: float
) -> int:
    """Write factor * A at `start` along `axis` of the stack; return the next start.

    A factor outside [-1, 1] may exceed the range of float16: see `common_factor`.
    """
    end: int = start + values.shape[axis]
    part = stack[..., start:end, :] if axis == -2 else stack[..., start:end]
    if stack.dtype == values.dtype == np.float16:
        _scale_f16(values, factor, out=part)
    else:
        np.multiply(values, np.float32(factor), out=part, dtype=np.float32, casting="same_kind")
    return end


def put_b(stack: npt.NDArray[Any], start: int, values: StoredArray, factor: float) -> int:
    """Write factor * B at `start` along the last axis; return the next start."""
    rank: int = values.shape[-1]
    if stack.dtype != values.dtype or not stack.flags.c_contiguous:
        return put_a(stack, -1, start, values, factor)
    if values.dtype == np.float16:
        values = _scale_f16(values, factor)
    elif factor != 1.0:
        values = values * np.float32(factor)
    # One item of `rank` numbers for each row, which is several times faster.
    n_rows, width = math.prod(values.shape[:-1]), values.itemsize
    item = f"V{rank * width}"
    columns = np.ndarray(
        (n_rows,), item, buffer=stack, offset=start * width, strides=(stack.shape[-1] * width,)
    )
    columns[:] = np.ascontiguousarray(values).reshape(n_rows, rank).view(item)[:, 0]
    return start + rank


def _scale_f16(
    values: StoredArray, factor: float, out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """factor * values, all float16, into `out` if given."""
    if factor == 1.0 and out is None:
        return values
    if factor == 1.0:
        out[...] = values  # type: ignore[index]
        return values
    scaled = _products(factor)
    if out is None or not out.flags.c_contiguous:
        found: npt.NDArray[Any] = np.take(scaled, values.view(np.uint16), mode="clip")
        if out is not None:
            out[...] = found
        return found
    return np.take(scaled, values.view(np.uint16), out=out, mode="clip")


_SIGN, _FIRST_INFINITE = 0x8000, 0x7C00  # of float16's bits


@lru_cache(maxsize=64)  # of 128 KiB each
def _products(factor: float) -> npt.NDArray[np.float16]:
    """factor times each float16 number, indexed by its bits (65536,); |factor| <= 1.

    Looking products up is faster than numpy's float16 arithmetic. Infinities and NaN, which no
    checked adapter contains, give zero.
    """
    positive = np.arange(_FIRST_INFINITE, dtype=np.uint16).view(np.float16).astype(np.float32)
    products = np.zeros(1 << 16, np.float16)
    products[:_FIRST_INFINITE] = positive * np.float32(factor)
    products[_SIGN : _SIGN + _FIRST_INFINITE] = -products[:_FIRST_INFINITE]
    return products


def covers(have: Mapping[str, StackedModule], need: Mapping[str, StackedModule]) -> bool:
    """Whether `need` fits into the stack `have` at every weight."""
    return all(target in have and have[target].rank >= m.rank for target, m in need.items())


def total_bytes(modules: Mapping[str, StackedModule], dtype: str) -> int:
    """The size in bytes of a stack in memory."""
    return sum(module.n_bytes(dtype) for module in modules.values())
