"""From what one pass has read to the scores of a whole pool: every one-pass signal by its name.

A `Scorer` belongs to one state of the pool. It says which places of the pass it wants read,
holds what is made of the adapters once (factors, norms, profiles), and computes the scores.
The formulas are in `signals` and `profiles`; nothing here knows of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ..files.adapter_file import AdapterFile
from ..files.base_model import BaseModel
from ..hidden_states import FloatArray, Place, Reading
from .index import RoutingIndex
from .profiles import Measure, Profile, embed
from .signals import (
    Scores,
    arrow,
    entropy,
    frobenius_norm,
    principal_direction,
    projection_output,
    relative_norm,
    softmax,
    spectr,
)
from .z_norms import ZNorms

# Profiles and z-norm read so many blocks, from the first to this share of the depth: later ones are
# about the answer. This, and the weights and bounds below, were chosen on the choosing set
# (docs/quality.md).
READ_BLOCKS, READ_DEPTH = 4, 0.6
# How sharply the largest is preferred; chosen on an earlier bundled model.
Z_TEMPERATURE = 0.05
PROFILE_TEMPERATURE = 0.02
LEAST_SHARE = 0.01
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
    the adapters wrote themselves. `z_norms` are of the same adapters, at `read_places`.
    """

    adapters: Mapping[str, AdapterFile]
    base: BaseModel
    index: RoutingIndex
    place: Place
    z_norms: ZNorms
    prompts: Mapping[str, Profile] | None = field(default=None, repr=False)
    samples: Mapping[str, Profile] = field(default_factory=dict, repr=False)
    _measures: dict[str, Measure | None] = field(default_factory=dict, repr=False)

    def fit(self, signal: str, reading: Reading) -> Fit:
        """The scores by adapter for a `resolved` signal, and how sure they are of a fit."""
        found = ONE_PASS[signal](self, reading)
        return found if isinstance(found, Fit) else Fit(found)

    def part(self, names: Collection[str]) -> Scorer:
        """The scorer of a smaller pool, with what is known of it."""
        adapters = {name: self.adapters[name] for name in names}
        return replace(
            self,
            adapters=adapters,
            index=RoutingIndex(self.index.target, adapters),
            z_norms=self.z_norms.part(names),
            prompts={n: p for n, p in (self.prompts or {}).items() if n in adapters},
            samples={n: p for n, p in self.samples.items() if n in adapters},
            _measures={},
        )

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
        """Whether `signal` wants to know what is usual; with the samples that are there now."""
        source = {"combined": "samples", "mixed": "any"}.get(self.resolved(signal))
        return signal == "z-norm" or (source is not None and bool(self._silent(source)))

    def add_samples(self, samples: Mapping[str, Profile]) -> None:
        """Take over self-profiles that were not there yet."""
        self.samples = {**self.samples, **samples}
        self._measures = {}

    # The paper's signals and their rivals: the last token at one place

    def _entropy(self, reading: Reading) -> Scores:
        h = reading[self.place][-1]  # (d_in,)
        return {
            name: entropy(projection_output(h, e.a, e.b, e.scaling))
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

    def _z_norm(self, reading: Reading) -> Scores:
        return _z_shares(self.z_norms.scores(reading))

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

    def _silent(self, source: str) -> list[str]:
        """The adapters without a profile in `source`."""
        measure = self._measure(source)
        known = set(measure.names) if measure is not None else set[str]()
        return [name for name in self.adapters if name not in known]

    def _combined(self, reading: Reading, source: str) -> Fit:
        """By profiles; where none is near, the adapters without any by their z-norms.

        z-norms have no say beside a profile that is near: on one set of adapters they helped, on
        another they harmed more (docs/quality.md).
        """
        fit = self._profile(reading, source)
        # Looked at for each prompt, so that all count among the past ones.
        z = self.z_norms.scores(reading, self._silent(source))
        if any(fit.scores.values()):
            return fit._replace(scores={**fit.scores, **dict.fromkeys(z, 0.0)})
        return fit._replace(scores={**fit.scores, **_z_shares(z)})


def _z_shares(z: Scores) -> Scores:
    """Shares of 1 by z-norms; an adapter that does less to a prompt than to any text has none."""
    return _only({name: value > 0 for name, value in z.items()}, sharpened(z, Z_TEMPERATURE))


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
        "norm": lambda scorer, reading: scorer.index.norms(reading[scorer.place][-1]),
        "entropy": Scorer._entropy,
        "relative": Scorer._relative,
        "arrow": Scorer._arrow,
        "spectr": Scorer._spectr,
        "z-norm": Scorer._z_norm,
        "profile": lambda scorer, reading: scorer._profile(reading, "prompts"),
        "self-profile": lambda scorer, reading: scorer._profile(reading, "samples"),
        "combined": lambda scorer, reading: scorer._combined(reading, "samples"),
        "mixed": lambda scorer, reading: scorer._combined(reading, "any"),
    }
)

# These read the last token at the paper's place; the others read whole prompts in several blocks.
AT_ONE_PLACE = frozenset({"norm", "entropy", "relative", "arrow", "spectr"})
NEED_PROFILES = frozenset({"profile", "self-profile", "combined", "auto"})
