"""From what one pass has read to the scores of a whole pool: every one-pass signal by its name.

A `Scorer` belongs to one state of the pool. It says which places of the pass it wants read,
holds what is made of the adapters once (factors, norms, profiles), and computes the scores.
The formulas are in `signals` and `profiles`; nothing here knows of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
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

# Profiles and z-norm read so many blocks, from the first to this share of the depth: later ones are
# about the answer. This, and the weights and bounds below, were chosen on the choosing set
# (docs/quality.md).
READ_BLOCKS, READ_DEPTH = 4, 0.6
# The projections that z-norm compares. All receive what attn_q receives: one reading serves.
Z_KINDS = ("attn_q", "attn_k", "attn_v")
# Of a long prompt so many tokens, evenly spaced, and of a large pool so many adapters, the nearest:
# chosen by their cost.
Z_TOKENS, Z_ADAPTERS = 64, 64
# How sharply the largest is preferred; chosen on an earlier bundled model.
Z_TEMPERATURE = 0.05
PROFILE_TEMPERATURE = 0.02
COMBINED_TEMPERATURE = 0.1
LEAST_SHARE = 0.01
Z_WEIGHT, Z_AMONG = 0.15, 8  # of z-norms beside nearness, among so many nearest
# In units of the usual distance of a profile's own texts: up to the one an adapter is applied in
# full, from the next on by half, beyond the last not at all.
SURE, UNSURE, FARTHEST = 1.5, 1.6, 2.1


def read_places(base: BaseModel) -> tuple[Place, ...]:
    """Where profiles and z-norm read: the input of attention in a few evenly spaced blocks."""
    last = round(READ_DEPTH * (base.n_blocks - 1))
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


class Fit(NamedTuple):
    """Scores >= 0 by adapter; absent are those about which a signal can say nothing.

    `strength` in [0.5, 1] is how sure the nearest profile is; 1 where no profile was asked.
    """

    scores: Scores
    strength: float = 1.0


@dataclass
class Scorer:
    """All one-pass signals for one pool.

    `index` has the factors at the target that the paper's signals read, at `place`. `prompts`
    are the profiles of adapters for which somebody gave examples, `samples` those from texts that
    the adapters wrote themselves. `generic` says what texts usually do to each adapter, texts that
    belong to none; `past` says the same of the user's own prompts, once there are enough.
    """

    adapters: Mapping[str, AdapterFile]
    base: BaseModel
    index: RoutingIndex
    place: Place
    prompts: Mapping[str, Profile] | None = field(default=None, repr=False)
    samples: Mapping[str, Profile] = field(default_factory=dict, repr=False)
    generic: PastNorms = field(default_factory=PastNorms, repr=False)
    past: PastNorms | None = field(default=None, repr=False)
    _latest: FloatArray | None = field(default=None, repr=False)
    _measures: dict[str, Measure | None] = field(default_factory=dict, repr=False)

    def fit(self, signal: str, reading: Reading) -> Fit:
        """The scores by adapter for a `resolved` signal, and how sure they are of a fit."""
        found = ONE_PASS[signal](self, reading)
        return found if isinstance(found, Fit) else Fit(found)

    def resolved(self, signal: str) -> str:
        """What "auto" stands for, the best as measured (docs/quality.md): "mixed"; other signals
        themselves.
        """
        return "mixed" if signal == "auto" else signal

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

    def z_norms(self, reading: Reading, names: Collection[str] | None = None) -> Scores:
        """The mean over places of each adapter's standardised log norm, of any sign.

        0 is what the adapter does to any text: to those of `generic`, or of `past`. With `names`,
        only these are looked at. Adapters that are `unmeasured` are absent.
        """
        if not self._stacks:
            return {}  # no adapter touches any place that is read
        mean, deviation = self._usual()  # (n_modules,) each
        self._latest = self._norms(reading, names)  # (n_modules,), NaN where not looked at
        z = (self._latest - mean) / deviation  # (n_modules,)
        seen = np.isfinite(z)
        owners, n = self._owners[seen], len(self.adapters)
        counts = np.bincount(owners, minlength=n)  # (N,)
        sums = np.bincount(owners, weights=z[seen], minlength=n)  # (N,)
        found = zip(self.adapters, sums.tolist(), counts.tolist(), strict=True)
        return {name: total / count for name, total, count in found if count}

    def _z_norm(self, reading: Reading) -> Scores:
        z = self.z_norms(reading)
        return _only({name: value > 0 for name, value in z.items()}, sharpened(z, Z_TEMPERATURE))

    def _norms(self, reading: Reading, names: Collection[str] | None = None) -> FloatArray:
        """The log norms (n_modules,) of all modules, or of those of `names`, else NaN."""
        wanted = np.array([names is None or name in names for name in self.adapters])  # (N,)
        return np.concatenate(
            [
                _stack_norms(_few(reading[place]), stack, wanted[stack.owners])
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
        return np.array([i for stack in self._stacks.values() for i in stack.owners], dtype=int)

    def _usual(self) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation (n_modules,) of the log norms: over the user's own prompts
        for each adapter that has met enough of them, else over generic texts; NaN without these.
        """
        mean = np.full(len(self._owners), np.nan, dtype=np.float32)  # (n_modules,)
        deviation = mean.copy()
        for adapter, of_one in self._modules_of:
            key = adapter_key(adapter)
            found = self.past.usual(key, len(of_one)) if self.past is not None else None
            found = found or self.generic.usual(key, len(of_one))
            if found is not None:
                mean[of_one], deviation[of_one] = found
        return mean, deviation + np.float32(1e-6)

    def unmeasured(self) -> list[str]:
        """The adapters of which `generic` says nothing yet, though they act where z-norm looks."""
        return [
            adapter.name
            for adapter, of_one in self._modules_of
            if self.generic.usual(adapter_key(adapter), len(of_one)) is None
        ]

    def measure(self, readings: Iterable[Reading]) -> None:
        """Count generic texts for all adapters that are `unmeasured`; at least `past.ENOUGH`."""
        names = self.unmeasured()
        for reading in readings:
            self.generic.add(self._by_key(self._norms(reading, names)))
        self.generic.save()

    def _by_key(self, norms: FloatArray) -> dict[str, FloatArray]:
        """The log norms (n_modules,) by adapter, of those that were looked at."""
        return {
            adapter_key(adapter): norms[of_one]
            for adapter, of_one in self._modules_of
            if np.isfinite(norms[of_one]).all()
        }

    @cached_property
    def _modules_of(self) -> list[tuple[AdapterFile, npt.NDArray[np.intp]]]:
        """Each adapter with the numbers of its modules, where it has any at the places."""
        found = [np.flatnonzero(self._owners == i) for i in range(len(self.adapters))]
        return [(a, m) for a, m in zip(self.adapters.values(), found, strict=True) if len(m)]

    def remember(self) -> None:
        """Count the prompt whose z-norms were made last among the user's own, if any were made."""
        if self.past is not None and self._latest is not None:
            self.past.add(self._by_key(self._latest))
            self._latest = None

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

    def _profile(self, reading: Reading, source: str) -> Fit:
        near = self._nearness(reading, source)
        return Fit(_only(_near_enough(near), sharpened(near, PROFILE_TEMPERATURE)), _strength(near))

    def _combined(self, reading: Reading, *, use_prompts: bool) -> Fit:
        """Profiles, with the z-norms' word among the nearest; z-norms alone where none is near.

        The profiles are given prompts, if `use_prompts`, and samples that tell. Where the nearest
        of them is too far, the adapters without any are judged by what they do to the prompt.
        """
        near = self._nearness(reading, "any" if use_prompts else "samples")
        ranked = sorted(near, key=lambda name: -near[name])
        silent = [name for name in self.adapters if name not in near]
        looked_at = {*silent, *ranked[: max(Z_ADAPTERS - len(silent), Z_AMONG)]}
        z = self.z_norms(reading, looked_at)
        if ranked and near[ranked[0]] >= -FARTHEST:
            few = _standardised({name: z[name] for name in ranked[:Z_AMONG] if name in z})
            values = {
                name: value + Z_WEIGHT * few.get(name, 0.0)
                for name, value in _standardised(near).items()
            }
            fits = _near_enough(near)
        else:
            values = {name: z[name] for name in silent if name in z}
            fits = {name: value > 0 for name, value in values.items()}
        scores = dict.fromkeys([*near, *(name for name in silent if name in z)], 0.0)
        scores |= _only(fits, sharpened(values, COMBINED_TEMPERATURE))
        return Fit(scores, _strength(near))


def _near_enough(near: Scores) -> dict[str, bool]:
    return {name: value >= -FARTHEST for name, value in near.items()}


def _strength(near: Scores) -> float:
    """From 1 down to 0.5 as the nearest profile is further away; 1 where none is near enough, for
    whatever is chosen then is not chosen by nearness.
    """
    nearest = -max(near.values(), default=-FARTHEST)
    if nearest >= FARTHEST:
        return 1.0
    return float(np.clip(1 - 0.5 * (nearest - SURE) / (UNSURE - SURE), 0.5, 1.0))


def _few(rows: FloatArray) -> FloatArray:
    """At most Z_TOKENS of the rows (n_tokens, d_in), evenly spaced, the last among them."""
    if len(rows) <= Z_TOKENS:
        return rows
    few: FloatArray = rows[np.linspace(0, len(rows) - 1, Z_TOKENS).astype(int)]
    return few


def _stack_norms(rows: FloatArray, stack: _Stack, wanted: npt.NDArray[np.bool_]) -> FloatArray:
    """`log_rms_norms` of the stack's modules (n,), NaN where not `wanted` (n,)."""
    if wanted.all():
        return log_rms_norms(rows, stack.matrices, stack.starts)
    norms = np.full(len(wanted), np.nan, dtype=np.float32)  # (n,)
    ends = [*stack.starts[1:], len(stack.matrices)]
    spans = [slice(stack.starts[i], ends[i]) for i in np.flatnonzero(wanted)]
    if spans:
        starts = np.cumsum([0, *(span.stop - span.start for span in spans[:-1])])
        matrices = np.concatenate([stack.matrices[span] for span in spans])
        norms[wanted] = log_rms_norms(rows, matrices, starts.tolist())
    return norms


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
    """Shares of 1 by softmax(values / temperature), which prefer the largest.

    A share below LEAST_SHARE is none: it would cost time in every token and change nothing.
    """
    if not values:
        return {}
    shares = softmax(np.array(list(values.values()), dtype=np.float32), temperature)  # (n,)
    shares[shares < LEAST_SHARE] = 0.0
    return dict(zip(values, shares.tolist(), strict=True))


ONE_PASS: Mapping[str, Callable[[Scorer, Reading], Scores | Fit]] = MappingProxyType(
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
