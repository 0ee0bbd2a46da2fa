"""From what one pass has read to the scores of a whole pool: every one-pass signal by its name.

A `Scorer` belongs to one state of the pool. It says which places of the pass it wants read,
holds what is made of the adapters once (factors, norms, profiles), and computes the scores.
The formulas are in `signals` and `profiles`; nothing here knows of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .adapter_file import AdapterFile
from .base_model import BaseModel
from .index import RoutingIndex
from .native import Place
from .past import PastNorms
from .profiles import Measure, Profile, embed
from .signals import (
    FloatArray,
    arrow,
    entropy,
    frobenius_norm,
    log_rms_norms,
    norm,
    principal_direction,
    projection_output,
    reduced,
    relative_norm,
    softmax,
    spectr,
)

Reading = Mapping[Place, FloatArray]  # what one pass has read: place -> (n_tokens, d_in)
Scores = dict[str, float]

READ_BLOCKS = 4  # how many blocks profiles and z-norm read, from the first to the last
# The projections that z-norm compares: those through which a prompt's tokens act on an answer.
# They receive what attn_q receives, so that one reading serves both.
Z_KINDS = ("attn_k", "attn_v")
# How sharply the largest is preferred; by measurement on the choosing set (docs/quality.md).
Z_TEMPERATURE = 0.05
PROFILE_TEMPERATURE = 0.02
COMBINED_TEMPERATURE = 0.1
SAMPLES_WEIGHT = 0.3  # of a self-profile beside z-norm
# With given prompts: an adapter takes part up to this many times the usual distance of its own.
FARTHEST = 1.55


def read_places(base: BaseModel) -> tuple[Place, ...]:
    """Where profiles and z-norm read: the input of attention in a few evenly spaced blocks."""
    last = base.n_blocks - 1
    blocks = sorted({round(i * last / (READ_BLOCKS - 1)) for i in range(READ_BLOCKS)})
    places = []
    for block in blocks:
        kinds = ("attn_q", "attn_qkv", "attn_q_a", "attn_k", "ffn_up")
        names = [f"blk.{block}.{kind}.weight" for kind in kinds]
        places += [Place(name) for name in names if name in base.tensors][:1]
    return tuple(places)


class _Stack(NamedTuple):
    """All modules at one place: their `reduced` matrices (sum of ranks, d_in) one below the other.

    `owners` are the numbers of the adapters that they belong to, `starts` their first rows.
    """

    owners: list[int]
    matrices: FloatArray
    starts: list[int]


@dataclass
class Scorer:
    """All one-pass signals for one pool.

    `index` has the factors at the target that the paper's signals read, at `place`. `prompts`
    are the profiles of adapters for which somebody gave examples, `samples` those from texts that
    the adapters wrote themselves. `generic` are readings of texts that belong to no adapter,
    which say what is usual; `past` says the same of the user's own prompts, once there are enough.
    """

    adapters: Mapping[str, AdapterFile]
    base: BaseModel
    index: RoutingIndex
    place: Place
    prompts: Mapping[str, Profile] | None = field(default=None, repr=False)
    samples: Mapping[str, Profile] = field(default_factory=dict, repr=False)
    generic: Sequence[Reading] = field(default=(), repr=False)
    past: PastNorms | None = field(default=None, repr=False)
    _latest: FloatArray | None = field(default=None, repr=False)
    _measures: dict[str, Measure | None] = field(default_factory=dict, repr=False)

    def scores(self, signal: str, reading: Reading) -> Scores:
        """The scores >= 0 by adapter, for a `resolved` signal.

        Adapters about which the signal can say nothing are absent.
        """
        return ONE_PASS[signal](self, reading)

    def resolved(self, signal: str) -> str:
        """What "auto" stands for, the best for the pool at hand as measured (docs/quality.md):
        "profile" where every adapter has given prompts, else "mixed"; other signals themselves.
        """
        if signal != "auto":
            return signal
        return "profile" if self._all_have_prompts else "mixed"

    def places(self, signal: str) -> tuple[Place, ...]:
        """Where the pass has to be read for `signal`."""
        return (self.place,) if signal in AT_ONE_PLACE else read_places(self.base)

    def wants_samples(self, signal: str) -> list[str]:
        """The adapters whose self-profile `signal` wants: for "auto", those without prompts."""
        if signal in ("self-profile", "combined"):
            return list(self.adapters)
        given = self.prompts or {}
        return [name for name in self.adapters if name not in given] if signal == "auto" else []

    def wants_generic(self, signal: str) -> bool:
        """Whether `signal` wants readings of generic texts."""
        return signal in ("z-norm", "combined") or self.resolved(signal) == "mixed"

    def add_samples(self, samples: Mapping[str, Profile]) -> None:
        """Take over self-profiles that were not there yet."""
        self.samples = {**self.samples, **samples}
        self._measures = {}

    @property
    def _all_have_prompts(self) -> bool:
        return set(self.prompts or ()) == set(self.adapters)

    # The paper's signals and their rivals: the last token at one place

    def _of_output(self, reading: Reading, measure: Callable[[FloatArray], float]) -> Scores:
        h = reading[self.place][-1]  # (d_in,)
        return {
            name: measure(projection_output(h, e.a, e.b, e.scaling))
            for name, e in self.index.entries.items()
        }

    def _relative(self, reading: Reading) -> Scores:
        h = reading[self.place][-1]  # (d_in,)
        return {
            name: relative_norm(
                projection_output(h, e.a, e.b, e.scaling), h, self._product_norms[name]
            )
            for name, e in self.index.entries.items()
        }

    def _spectr(self, reading: Reading) -> Scores:
        h = reading[self.place][-1]  # (d_in,)
        return {name: spectr(h, e.a, e.b) for name, e in self.index.entries.items()}

    def _arrow(self, reading: Reading) -> Scores:
        h = reading[self.place][-1]  # (d_in,)
        return {name: arrow(h, v) for name, v in self._directions.items()}

    @cached_property
    def _product_norms(self) -> dict[str, float]:
        return {name: frobenius_norm(e.a, e.b, e.scaling) for name, e in self.index.entries.items()}

    @cached_property
    def _directions(self) -> dict[str, FloatArray]:
        return {name: principal_direction(e.a, e.b) for name, e in self.index.entries.items()}

    # Norms over all tokens and several places, against what is usual for each adapter

    def z_norms(self, reading: Reading) -> Scores:
        """The mean over places of each adapter's standardised log norm, of any sign.

        0 is what the adapter does to any text: to those of `generic`, or of `past`.
        """
        if not self._stacks:
            return {}  # no adapter touches any place that is read
        mean, deviation = self._usual()  # (n_modules,) each
        self._latest = self._norms(reading)  # (n_modules,)
        z = (self._latest - mean) / deviation  # (n_modules,)
        owners = self._owners  # (n_modules,)
        counts = np.bincount(owners, minlength=len(self.adapters))  # (N,)
        sums = np.bincount(owners, weights=z, minlength=len(self.adapters))  # (N,)
        found = zip(self.adapters, sums.tolist(), counts.tolist(), strict=True)
        return {name: total / count for name, total, count in found if count}

    def _z_norm(self, reading: Reading) -> Scores:
        z = self.z_norms(reading)
        return _only({name: value > 0 for name, value in z.items()}, sharpened(z, Z_TEMPERATURE))

    def _norms(self, reading: Reading) -> FloatArray:
        """The log norms (n_modules,) of all modules, in the order of the stacks."""
        return np.concatenate(
            [
                log_rms_norms(reading[place], stack.matrices, stack.starts)
                for place, stack in self._stacks.items()
            ]
        )

    @cached_property
    def _stacks(self) -> dict[Place, _Stack]:
        stacks = {}
        for place in read_places(self.base):
            prefix = place.target.rpartition(".weight")[0].rpartition(".")[0]
            owners, matrices = [], []
            for i, adapter in enumerate(self.adapters.values()):
                targets = [f"{prefix}.{kind}.weight" for kind in Z_KINDS]
                adapted = [target for target in targets if target in adapter.modules]
                # An adapter without keys and values is judged by what it has at this place.
                for target in adapted or [place.target] * (place.target in adapter.modules):
                    owners.append(i)
                    matrices.append(reduced(*adapter.factors(target), adapter.scaling(target)))
            if matrices:
                starts = np.cumsum([0, *(len(matrix) for matrix in matrices[:-1])])
                stacks[place] = _Stack(owners, np.concatenate(matrices), starts.tolist())
        return stacks

    @cached_property
    def _owners(self) -> npt.NDArray[np.intp]:
        """The number (n_modules,) of the adapter that each module belongs to."""
        return np.array([i for stack in self._stacks.values() for i in stack.owners])

    @cached_property
    def _usual_of_generic(self) -> tuple[FloatArray, FloatArray]:
        norms = np.stack([self._norms(one) for one in self.generic])  # (n_texts, n_modules)
        return norms.mean(axis=0), norms.std(axis=0)

    def _usual(self) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation (n_modules,) of the log norms: over the user's own prompts
        for each adapter that has met enough of them, else over the generic texts.
        """
        mean, deviation = (moment.copy() for moment in self._usual_of_generic)
        for adapter, of_one in self._modules_of if self.past else ():
            found = self.past.usual(adapter_key(adapter), len(of_one)) if self.past else None
            if found is not None:
                mean[of_one], deviation[of_one] = found
        return mean, deviation + np.float32(1e-6)

    @cached_property
    def _modules_of(self) -> list[tuple[AdapterFile, npt.NDArray[np.intp]]]:
        """Each adapter with the numbers of its modules, where it has any at the places."""
        found = [np.flatnonzero(self._owners == i) for i in range(len(self.adapters))]
        return [(a, m) for a, m in zip(self.adapters.values(), found, strict=True) if len(m)]

    def remember(self) -> None:
        """Count the prompt whose z-norms were made last among the user's own, if any were made."""
        if self.past is not None and self._latest is not None:
            latest, self._latest = self._latest, None
            self.past.add({adapter_key(a): latest[of_one] for a, of_one in self._modules_of})

    # Profiles

    def vector(self, reading: Reading) -> FloatArray:
        """The text's vector, as `profiles.embed` makes it."""
        return embed([reading[place] for place in read_places(self.base)])

    def _measure(self, source: str) -> Measure | None:
        """For "prompts", "samples", or "any", where prompts go before samples."""
        if source not in self._measures:
            prompts = self.prompts or {}
            telling = {n: p for n, p in self.samples.items() if p.tells}
            kept = {"prompts": prompts, "samples": telling}.get(source, {**telling, **prompts})
            self._measures[source] = Measure.fit(kept) if kept else None
        return self._measures[source]

    def _nearness(self, reading: Reading, source: str) -> Scores:
        measure = self._measure(source)
        if measure is None:
            return {}
        found = measure.nearness(self.vector(reading))  # (N,)
        return dict(zip(measure.names, found.tolist(), strict=True))

    def _profile(self, reading: Reading, source: str) -> Scores:
        near = self._nearness(reading, source)
        fits = {name: value >= -FARTHEST for name, value in near.items()}
        return _only(fits, sharpened(near, PROFILE_TEMPERATURE))

    def _combined(self, reading: Reading, *, use_prompts: bool) -> Scores:
        """Profiles and z-norms together, each standardised over the pool.

        An adapter with given prompts is judged by these alone, one whose samples say nothing by
        its norms alone. Without given prompts, one that does less to this prompt than to any
        text does not fit.
        """
        near = self._nearness(reading, "any" if use_prompts else "samples")
        z = self.z_norms(reading)
        given = set(self.prompts or ()) if use_prompts else set[str]()
        by_profile, by_norm = _standardised(near), _standardised(z)
        values, fits = {}, {}
        for name in dict.fromkeys([*by_profile, *by_norm]):
            if name in given:
                values[name], fits[name] = by_profile[name], near[name] >= -FARTHEST
            else:
                fits[name] = z.get(name, 1.0) > 0
                values[name] = by_norm.get(name, 0.0) + SAMPLES_WEIGHT * by_profile.get(name, 0.0)
        return _only(fits, sharpened(values, COMBINED_TEMPERATURE))


def adapter_key(adapter: AdapterFile) -> str:
    """What an adapter's past is known by: cheap to make, and another one for a changed file."""
    return f"{adapter.name} {adapter.n_bytes} {adapter.mtime_ns}"


def _standardised(values: Scores) -> Scores:
    if len(values) < 2:
        return dict.fromkeys(values, 0.0)
    array = np.array(list(values.values()))  # (n,)
    return dict(zip(values, ((array - array.mean()) / (array.std() + 1e-9)).tolist(), strict=True))


def _only(fits: Mapping[str, bool], scores: Scores) -> Scores:
    """`scores` with zero for each adapter that does not fit."""
    return {name: score if fits[name] else 0.0 for name, score in scores.items()}


def sharpened(values: Scores, temperature: float) -> Scores:
    """Shares of 1 by softmax(values / temperature), which prefer the largest."""
    if not values:
        return {}
    shares = softmax(np.array(list(values.values()), dtype=np.float32), temperature)
    return dict(zip(values, shares.tolist(), strict=True))


ONE_PASS: Mapping[str, Callable[[Scorer, Reading], Scores]] = MappingProxyType(
    {
        "norm": lambda scorer, reading: scorer._of_output(reading, norm),
        "entropy": lambda scorer, reading: scorer._of_output(reading, entropy),
        "relative": Scorer._relative,
        "arrow": Scorer._arrow,
        "spectr": Scorer._spectr,
        "z-norm": Scorer._z_norm,
        "profile": lambda scorer, reading: scorer._profile(reading, "prompts"),
        "self-profile": lambda scorer, reading: scorer._profile(reading, "samples"),
        "combined": lambda scorer, reading: scorer._combined(reading, use_prompts=False),
        "mixed": lambda scorer, reading: scorer._combined(reading, use_prompts=True),
    }
)

# These read the last token at the paper's place; the others read whole prompts in several blocks.
AT_ONE_PLACE = frozenset({"norm", "entropy", "relative", "arrow", "spectr"})
NEED_PROFILES = frozenset({"profile", "self-profile", "combined", "auto"})
