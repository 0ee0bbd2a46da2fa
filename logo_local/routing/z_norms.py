"""Z-norms: each adapter's effect on a prompt relative to other texts, for a whole pool at once.

An adapter's log norm at a module is ln of the root mean square, over the tokens of the prompt, of
the norm of its output. The z-norm is the mean, over its modules, of the log norm's distance from
the baseline in standard deviations. Formulas are in `signals`, statistics in `baselines`.

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

# The projections that are compared. All have the same input as attn_q, so one reading is enough.
KINDS = ("attn_q", "attn_k", "attn_v")


class _Modules(NamedTuple):
    """The stacked modules at one place, and the numbers of their adapters."""

    owners: list[int]
    stack: Stack


class ZNorms:
    """The z-norms of `adapters` at `places`; every call takes the readings at these places.

    `generic` holds the baselines of generic texts; `past` those of the user's own prompts, which
    replace them once there are enough. Matrices are computed on first use and cached in `folder`.
    Not thread-safe.
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
        """A copy for some of the adapters; it does not store past prompts."""
        adapters = {name: self._adapters[name] for name in names}
        return ZNorms(adapters, self._places, self._generic)

    def scores(self, reading: Reading, names: Collection[str] | None = None) -> Scores:
        """The z-norms of all adapters, or of `names`; of any sign, 0 at the baseline.

        Adapters that do not act at the places, and `unmeasured` ones, are absent.
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
        """Add the last scored prompt to the user's past prompts, once."""
        if self._past is not None and self._latest:
            self._past.add(self._by_key(self._latest))
            self._latest = {}

    @cached_property
    def unmeasured(self) -> tuple[str, ...]:
        """The adapters that act at the places and have no baseline in `generic` yet."""
        return tuple(
            name
            for name, modules in self._modules_of.items()
            if self._generic.moments(self._keys[name], len(modules)) is None
        )

    def measure(self, readings: Iterable[Reading]) -> None:
        """Add generic texts, at least `baselines.ENOUGH`, for all `unmeasured` adapters.

        All texts or none are added, so an interrupted call does not count texts twice.
        """
        names = self.unmeasured
        measured = Baselines()
        for reading in readings:
            measured.add(self._by_key(self._norms(reading, names)))
        self._generic.take(measured)
        del self.unmeasured  # a cached property: computed again on next access

    def _norms(
        self, reading: Reading, names: Collection[str] | None = None
    ) -> dict[str, FloatArray]:
        """The log norms (n_modules,) by name, of all adapters or of `names`."""
        if (names is not None and not names) or not self._stacks:
            return {}  # no adapter is wanted (no stacks are built then), or none acts at a place
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
                # An adapter without any of these uses its module at this place.
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
    """The key of an adapter's statistics: cheap to compute, and different for a changed file."""
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
