"""The routing matrices of a pool: each adapter's A and B at the probed projection.

Built from validated adapter files; `scoring` computes the paper's scores from it. Matrices that
are slow to compute are cached in files. Independent of llama.cpp.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import PoolError, SettingsError
from ..files.adapter_file import AdapterFile
from ..files.base_model import BaseModel
from ..hidden_states import FloatArray
from .signals import Scores, frobenius_norm, principal_direction, reduced
from .stack_file import Stack, stacked

log = logging.getLogger(__name__)

# The paper reads q_proj; the fused projection contains it.
PREFERRED = ("attn_q", "attn_qkv")


def block_number(layer: int, base: BaseModel) -> int:
    """The block that `layer` names; negative numbers count from the end, -1 is the last.

    Raises SettingsError outside the model's blocks.
    """
    n = base.n_blocks
    if not -n <= layer < n:
        raise SettingsError(
            f"there is no layer {layer}: the model has {n} blocks",
            hint=f"layer is a number from {-n} to {n - 1}",
        )
    return layer % n


def choose_target(adapters: Mapping[str, AdapterFile], base: BaseModel, layer: int = -1) -> str:
    """The GGUF name of the weight in block `layer` whose input is probed.

    This is `attn_q`, as in the paper, unless more adapters of the pool change another projection
    of the block. Experts are never probed, because each token uses only some of them. Raises
    PoolError if no adapter changes any other weight of the block.
    """
    block = block_number(layer, base)
    prefix = f"blk.{block}."
    touched = [target for adapter in adapters.values() for target in adapter.modules]
    readable = [t for t in touched if t.startswith("blk.") and len(base.tensors[t]) == 2]
    counts = Counter(target for target in readable if target.startswith(prefix))
    if not counts:
        if any(target.startswith(prefix) for target in touched):
            message = f"adapters touch only the experts of block {block}, which cannot be probed"
        else:
            message = f"no adapter touches block {block}, whose input is read"
        hint = "; layer chooses another block, in Python and in logo-local eval" if readable else ""
        raise PoolError(message, hint=f"use --signal auto, or --signal each-entropy{hint}")

    def rank(target: str) -> tuple[int, int, str]:
        kind = target.removeprefix(prefix).removesuffix(".weight")
        preference = PREFERRED.index(kind) if kind in PREFERRED else len(PREFERRED)
        return (-counts[target], preference, target)

    return min(counts, key=rank)


@dataclass(frozen=True)
class Entry:
    """One adapter at the target: `a` (rank, d_in), `b` (d_out, rank), both float32."""

    a: FloatArray
    b: FloatArray
    scaling: float


@dataclass(frozen=True)
class RoutingIndex:
    """The data to score a pool at one target, computed on first use.

    `adapters` is the pool's own mapping object, so the engine can check that the index is current.
    `names` are the adapters that change the target; the others have no score. `folder` is the
    cache folder, or None.
    """

    target: str
    adapters: Mapping[str, AdapterFile]
    folder: Path | None = None

    @classmethod
    def build(
        cls, adapters: Mapping[str, AdapterFile], target: str, folder: Path | None = None
    ) -> RoutingIndex:
        """The index of `adapters` at `target`; adapters without it are logged."""
        for name, adapter in adapters.items():
            if target not in adapter.modules:
                log.warning(
                    "%s takes no part in routing: it does not adapt %s, which is probed",
                    name,
                    target,
                )
        return cls(target, adapters, folder)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The adapters that have a score, in the pool's order."""
        return tuple(name for name, one in self.adapters.items() if self.target in one.modules)

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """A and B at the target by name, read from the files; about 2 * rank * d * 4 bytes each."""
        entries = {}
        for name in self.names:
            adapter = self.adapters[name]
            a, b = adapter.factors(self.target)
            entries[name] = Entry(a, b, adapter.scaling(self.target))
        return entries

    @cached_property
    def product_norms(self) -> Mapping[str, float]:
        """||scaling B A||_F by name."""
        return {name: frobenius_norm(e.a, e.b, e.scaling) for name, e in self.entries.items()}

    @cached_property
    def directions(self) -> Mapping[str, FloatArray]:
        """The `principal_direction` (d_in,) of B A by name."""
        return {name: principal_direction(e.a, e.b) for name, e in self.entries.items()}

    def norms(self, h: FloatArray) -> Scores:
        """||o_i||_2 with o_i = scaling_i B_i A_i h for the hidden vector `h` (d_in,), by name.

        Computed as one product with all `reduced` matrices, which are cached in a file.
        """
        if not self.names:
            return {}
        squares = (self._stack.matrix @ h) ** 2  # (sum of ranks,)
        norms = np.sqrt(np.add.reduceat(squares, self._stack.starts))  # (N,)
        return dict(zip(self.names, norms.tolist(), strict=True))

    @cached_property
    def _stack(self) -> Stack:
        adapters = [self.adapters[name] for name in self.names]
        return stack_of([(adapter, self.target) for adapter in adapters], self.target, self.folder)


def stack_of(modules: Sequence[tuple[AdapterFile, str]], name: str, folder: Path | None) -> Stack:
    """The `reduced` matrices of these adapters' modules, cached in `folder` as `name`."""

    def make(i: int) -> FloatArray:
        adapter, target = modules[i]
        return reduced(*adapter.factors(target), adapter.scaling(target))

    ids = [f"{a.path}:{a.n_bytes}:{a.mtime_ns}:{target}" for a, target in modules]
    first, target = modules[0]
    path = None if folder is None else folder / f"{name}.stack"
    return stacked(path, ids, first.modules[target].d_in, make)
