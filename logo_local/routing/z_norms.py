"""How much more an adapter does to a prompt than to other texts, for a whole pool at once.

An adapter's log norm at a module is ln of the root mean square, over tokens of the prompt, of the
length of what it adds there. A z-norm is the mean over its modules of how many standard deviations
that lies above its baseline. The formulas are in `signals`, the statistics in `baselines`.

Source: our own; SEQR (arXiv 2509.18093) standardises norms against calibration text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..files.adapter_file import AdapterFile
from ..hidden_states import FloatArray, Place, Reading
from .baselines import Baselines
from .index import stack_of
from .signals import Scores, log_rms_norms
from .stack_file import Stack

# The projections that are compared. All receive what attn_q receives: one reading serves.
KINDS = ("attn_q", "attn_k", "attn_v")


class _Modules(NamedTuple):
    """All modules at one place, one below the other, and the numbers of their adapters."""

    owners: list[int]
    stack: Stack


class ZNorms:
    """The z-norms of `adapters` at `places`, whose readings every call is given.

    `generic` holds the baselines of texts that belong to no adapter; `past` those of the user's own
    prompts, which count instead once there are enough. What is made of the
    adapters is made at the first use, and kept in `folder`. Not for two threads at once.
    """

    def __init__(
        self,
        adapters: Mapping[str, AdapterFile],
        places: Sequence[Place],
        generic: Baselines | None = None,
        past: Baselines | None = None,
        folder: Path | None = None,
    ) -> None:
        self._adapters, self._places, self._folder = adapters, tuple(places), folder
        self._generic = Baselines() if generic is None else generic
        self._past = past
        self._latest: dict[str, FloatArray] = {}  # the log norms of the last prompt, by name

    def part(self, names: Collection[str]) -> ZNorms:
        """The same for some of the adapters only; it remembers no past prompts."""
        adapters = {name: self._adapters[name] for name in names}
        return ZNorms(adapters, self._places, self._generic)

    def scores(self, reading: Reading, names: Collection[str] | None = None) -> Scores:
        """The z-norms of all adapters, or of `names`; of any sign, 0 at the baseline.

        Absent are adapters that touch none of the places, and those that are `unmeasured`.
        """
        self._latest = self._norms(reading, names)
        found = {}
        for name, norms in self._latest.items():
            baseline = self._baseline(name, len(norms))
            if baseline is not None:
                mean, deviation = baseline  # (n_modules,) each
                z = (norms - mean) / (deviation + np.float32(1e-6))  # (n_modules,)
                found[name] = float(z.mean())
        return found

    def _baseline(self, name: str, n_modules: int) -> tuple[FloatArray, FloatArray] | None:
        key = self._keys[name]
        by_past = self._past.moments(key, n_modules) if self._past is not None else None
        return by_past or self._generic.moments(key, n_modules)

    def remember(self) -> None:
        """Count the prompt that was scored last among the user's own, once."""
        if self._past is not None and self._latest:
            self._past.add(self._by_key(self._latest))
            self._latest = {}

    @cached_property
    def unmeasured(self) -> tuple[str, ...]:
        """The adapters that act at the places, and of which `generic` says nothing yet."""
        return tuple(
            name
            for name, modules in self._modules_of.items()
            if self._generic.moments(self._keys[name], len(modules)) is None
        )

    def measure(self, readings: Iterable[Reading]) -> None:
        """Count generic texts, at least `baselines.ENOUGH`, for all that are `unmeasured`.

        All of them or none: after Ctrl+C in between they would be counted again.
        """
        names = self.unmeasured
        measured = Baselines()
        for reading in readings:
            measured.add(self._by_key(self._norms(reading, names)))
        self._generic.take(measured)
        del self.unmeasured  # it is found again when it is asked for

    def _norms(
        self, reading: Reading, names: Collection[str] | None = None
    ) -> dict[str, FloatArray]:
        """The log norms (n_modules,) by name, of all adapters or of `names`."""
        if (names is not None and not names) or not self._stacks:
            return {}  # nobody is asked for, or nobody touches a place; the former makes nothing
        wanted = np.array([names is None or name in names for name in self._adapters])  # (N,)
        norms = np.concatenate(
            [
                _stack_norms(reading[place].rows, modules.stack, wanted[modules.owners])
                for place, modules in self._stacks.items()
            ]
        )  # (all modules,), NaN where not wanted
        return {
            name: norms[modules]
            for name, modules in self._modules_of.items()
            if names is None or name in names
        }

    def _by_key(self, norms: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return {self._keys[name]: values for name, values in norms.items()}

    @cached_property
    def _stacks(self) -> dict[Place, _Modules]:
        stacks = {}
        for place in self._places:
            prefix = place.target.rpartition(".weight")[0].rpartition(".")[0]
            owners, modules = [], []
            for i, adapter in enumerate(self._adapters.values()):
                targets = [f"{prefix}.{kind}.weight" for kind in KINDS]
                adapted = [target for target in targets if target in adapter.modules]
                # An adapter without any of these is judged by what it has at this place.
                for target in adapted or [place.target] * (place.target in adapter.modules):
                    owners.append(i)
                    modules.append((adapter, target))
            if modules:
                name = f"{prefix}.{'-'.join(KINDS)}"
                stacks[place] = _Modules(owners, stack_of(modules, name, self._folder))
        return stacks

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {name: adapter_key(adapter) for name, adapter in self._adapters.items()}

    @cached_property
    def _modules_of(self) -> dict[str, npt.NDArray[np.intp]]:
        """By name, the numbers (n_modules,) of an adapter's modules in the order of the stacks."""
        owners = np.array([i for s in self._stacks.values() for i in s.owners], dtype=int)
        found = [np.flatnonzero(owners == i) for i in range(len(self._adapters))]
        return {name: m for name, m in zip(self._adapters, found, strict=True) if len(m)}


def adapter_key(adapter: AdapterFile) -> str:
    """What an adapter's statistics are known by: cheap to make, another for a changed file."""
    return f"{adapter.name} {adapter.n_bytes} {adapter.mtime_ns}"


def _stack_norms(rows: FloatArray, stack: Stack, wanted: npt.NDArray[np.bool_]) -> FloatArray:
    """`log_rms_norms` of the stack's modules (n,), NaN where not `wanted` (n,)."""
    if wanted.all():
        return log_rms_norms(rows, stack.matrix, stack.starts)
    norms = np.full(len(wanted), np.nan, dtype=np.float32)  # (n,)
    parts = [stack.part(i) for i in np.flatnonzero(wanted)]
    if parts:
        starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        norms[wanted] = log_rms_norms(rows, np.concatenate(parts), starts.tolist())
    return norms
