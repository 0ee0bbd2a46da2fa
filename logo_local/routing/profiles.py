"""Adapter profiles: the base model's hidden states over an adapter's example texts.

The texts are example prompts, or samples that the adapter generated (a self-profile). Vectors are
whitened before they are compared, which scales down the differences between prompts of the same
adapter (the shrunk within-class covariance of Fisher's linear discriminant). A prompt matches the
nearest profile only if it is also nearer to it than to two references: general requests, and the
adapter's own inputs with other requests (`contrasts`). Plain numpy without I/O; needs no answers
and no training.

Source: our own, on nearest class means. We found no publication of self-profiles. LORAUTER
(arXiv 2601.21795) routes by text embeddings of labelled samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..hidden_states import FloatArray
from .whitening import SHRINKAGE, IntArray, Whitening

BoolArray: TypeAlias = npt.NDArray[np.bool_]

# In nats per token. Below the minimum, an adapter's samples are like the base model's. Above the
# maximum they are not language: the adapter was trained without a loss on prompts.
LEAST_GAIN, MOST_GAIN = 0.05, 3.0
# A prompt matches an adapter from this position on: 0 is a reference, 1 the centre of the examples.
# Examples in few wordings have a centre further away from new wordings, so w wordings need only
# w / (w + FEW) of it, constant above MOST_WORDINGS. Chosen on the choosing set.
LEAST_MATCH, FEW, MOST_WORDINGS = 0.57, 2, 4
# Beyond this, in typical distances, a prompt matches nothing: it may be between the references
# and a profile without being related to either.
FARTHEST = 1.5
# A message continues a conversation with an adapter whose profile is nearer than every general
# request by this, in typical distances. Chosen on the choosing set.
LEAST_GAP = 0.15
FOLDS = 4
MOST_TYPICAL = 64  # profiles used to measure the typical distance


def embed(parts: Sequence[FloatArray]) -> FloatArray:
    """One vector (sum of the widths,) for one text: the parts (d,), each scaled to length 1.

    Parts are hidden states or means of them; each has equal weight, regardless of its scale.
    """
    return np.concatenate([part / max(float(np.linalg.norm(part)), 1e-12) for part in parts])


@dataclass(frozen=True)
class Profile:
    """The texts of one adapter as vectors (n, F) float32, each computed by `embed`.

    `source` is "prompts" or "samples". `contrasts` are its inputs with other requests: one array
    (m, F) per kind of input, one row per request; may be empty. `gain` is the mean log-likelihood
    gain of the samples under the adapter over the base, in nats per token; near zero means that
    the base would generate the same. None for example prompts. `wordings` is the number of wordings
    of the texts; 0 means one per text.
    """

    vectors: FloatArray = field(repr=False)
    source: str = "prompts"
    gain: float | None = None
    contrasts: Sequence[FloatArray] = field(default=(), repr=False)
    wordings: int = 0

    @property
    def least_match(self) -> float:
        """The lowest match at which a prompt fits."""
        wordings = min(self.wordings or len(self.vectors), MOST_WORDINGS)
        return LEAST_MATCH * wordings / (wordings + FEW)

    @property
    def is_informative(self) -> bool:
        """Whether the texts are specific to the adapter."""
        return self.gain is None or LEAST_GAIN <= self.gain <= MOST_GAIN


@dataclass(frozen=True)
class Points:
    """Whitened points, prepared for comparison with vectors that are not whitened.

    `towards` (N, F) are the points whitened twice, `squares` (N,) the squared lengths of those
    whitened once. With the length of a whitened text, one product gives its distances.
    """

    towards: FloatArray = field(repr=False)
    squares: FloatArray = field(repr=False)

    @classmethod
    def of(cls, points: FloatArray, whitening: Whitening) -> Points:
        """From points (N, F) that are not whitened."""
        return cls(*whitening.twice(points))

    def distances(self, x: FloatArray, square: float) -> FloatArray:
        """The distances (N,) of a text's vector (F,) whose whitened length is sqrt(`square`)."""
        found = square - 2 * (self.towards @ x) + self.squares
        return np.asarray(np.sqrt(np.maximum(found, 0)), dtype=np.float32)


class Distances(NamedTuple):
    """The distances (N,) of a text from the `profiles`, and from the nearest of other texts.

    `general` is that of the nearest general request, `continuation` that of the nearest message
    which continues any conversation. Infinity if there are none.
    """

    profiles: FloatArray
    general: float
    continuation: float = math.inf


@dataclass(frozen=True)
class Measure:
    """Measures distances and matches of a text to several profiles; created by `fit`.

    `names` (N,) belong to the rows of `centres`, the profiles' whitened means. `typical` is the
    mean distance of a profile's own held-out texts: the unit of nearness. `least` (N,) is the
    lowest match at which a text fits. Each text costs one product with up to MOST_DEVIATIONS
    vectors, one with the centres, and some with references.
    """

    names: tuple[str, ...]
    centres: Points
    typical: float
    least: FloatArray
    _whitening: Whitening = field(repr=False)
    _general: Points | None = field(default=None, repr=False)
    _continuations: Points | None = field(default=None, repr=False)
    _references: References | None = field(default=None, repr=False)

    @classmethod
    def fit(
        cls,
        profiles: Mapping[str, Profile],
        shrinkage: float = SHRINKAGE,
        *,
        general: FloatArray | None = None,
        continuations: FloatArray | None = None,
    ) -> Measure:
        """The measure for one profile or more, each of at least one text.

        `general` (G, F) are vectors of requests that no adapter is trained for. Without them, every
        text matches. `continuations` (C, F) are vectors of messages that continue a conversation.
        """
        vectors = [profile.vectors for profile in profiles.values()]  # each (n_i, F)
        whitening = Whitening.fit(vectors, shrinkage)
        means = np.stack([rows.mean(axis=0) for rows in vectors])  # (N, F)
        points, references = None, None
        if general is not None:
            points = Points.of(general, whitening)
            references = References.fit([*profiles.values()], general, shrinkage)
        return cls(
            tuple(profiles),
            Points.of(means, whitening),
            _typical(vectors, whitening(means[:MOST_TYPICAL]), shrinkage),
            np.array([p.least_match for p in profiles.values()], dtype=np.float32),
            whitening,
            points,
            None if continuations is None else Points.of(continuations, whitening),
            references,
        )

    def compare(self, x: FloatArray) -> Distances:
        """The distances of a text's vector (F,) from the profiles and from other texts."""
        square = self._whitening.square(x)
        others = (
            math.inf if points is None else float(points.distances(x, square).min())
            for points in (self._general, self._continuations)
        )
        return Distances(self.centres.distances(x, square), *others)

    def distances(self, x: FloatArray) -> FloatArray:
        """The distances (N,) >= 0 of a text's vector (F,) from the profiles, whitened."""
        return self.compare(x).profiles

    def matches(
        self,
        x: FloatArray,
        which: Sequence[int] | IntArray | None = None,
        measured: Distances | None = None,
    ) -> FloatArray:
        """The position (N,) of a text's vector (F,) between the references and each profile.

        0 or less is a reference, 1 is the profile's centre. At most 0 if the profile is further
        away than FARTHEST or than one of the general requests. The scale is the same for every
        model and pool. 1 if there are no references. `which` restricts the result to the profiles
        at these positions, in this order. `measured` is computed if it is not given.
        """
        chosen = np.arange(len(self.names)) if which is None else np.asarray(which, dtype=int)
        if self._references is None:
            return np.ones(len(chosen), dtype=np.float32)
        found = self._references.positions(x, chosen)
        distances, general, _ = measured or self.compare(x)
        further = distances[chosen] > min(general, FARTHEST * self.typical)
        return np.where(further, np.minimum(found, 0), found).astype(np.float32)

    def continues(self, x: FloatArray, measured: Distances | None = None) -> BoolArray:
        """Whether (N,) a message can continue a conversation with each adapter.

        It can if it is clearly nearer to the profile, or not further from a continuation, than from
        every general request.
        """
        distances, general, continuation = measured or self.compare(x)
        clearly = distances + LEAST_GAP * self.typical <= general
        return np.asarray(clearly | (continuation <= general))

    def nearness(self, x: FloatArray, measured: Distances | None = None) -> FloatArray:
        """-distance / typical distance (N,): about -1 for a text like the profile's texts."""
        near: FloatArray = -(measured or self.compare(x)).profiles / np.float32(
            self.typical
        )  # (N,)
        return near


@dataclass(frozen=True)
class References:
    """References for each adapter: a matching prompt must be nearer to its profile than to these.

    They are general requests, and the adapter's contrasts of each kind. `ways` (1 + K, N, F) are
    the vectors from each reference to the adapter's centre, whitened twice and divided by their
    squared lengths. A text's product with one, minus its `starts` (1 + K, N), is the text's
    position on it. The whitening is also fitted on different inputs of the same request, so the
    position depends on the request.
    """

    ways: FloatArray = field(repr=False)
    starts: FloatArray = field(repr=False)

    @classmethod
    def fit(
        cls, profiles: Sequence[Profile], general: FloatArray, shrinkage: float = SHRINKAGE
    ) -> References:
        """The references of profiles; `general` (G, F) are vectors of general requests."""
        n_kinds = max((len(profile.contrasts) for profile in profiles), default=0)
        groups = [profile.vectors for profile in profiles]
        for kind in range(n_kinds):
            known = [p.contrasts[kind] for p in profiles if len(p.contrasts) > kind]  # each (m, F)
            if len(known) > 1:
                groups += [np.stack(rows) for rows in zip(*known, strict=True)]
        whitening = Whitening.fit(groups, shrinkage)
        centre = general.mean(axis=0)  # (F,)
        ends = np.stack([profile.vectors.mean(axis=0) for profile in profiles])  # (N, F)
        ways, starts = [], []
        for kind in range(-1, n_kinds):
            means = [
                p.contrasts[kind].mean(axis=0) if 0 <= kind < len(p.contrasts) else centre
                for p in profiles
            ]
            begin = np.stack(means)  # (N, F)
            way, squares = whitening.twice(ends - begin)
            way /= np.maximum(squares, 1e-12)[:, None]
            starts.append(np.einsum("nf,nf->n", begin, way))
            ways.append(way)
        return cls(np.stack(ways), np.stack(starts))

    def positions(self, x: FloatArray, which: IntArray) -> FloatArray:
        """The position (n,) of a text's vector (F,) between references, 0, and centres `which`, 1.

        The mean over the kinds of contrasts, or the position from the general requests if that
        is smaller.
        """
        found = self.ways[:, which] @ x - self.starts[:, which]  # (1 + K, n)
        general, contrasts = found[0], found[1:]
        smaller = np.minimum(general, contrasts.mean(axis=0)) if len(contrasts) else general
        return np.asarray(smaller, dtype=np.float32)


def _typical(vectors: Sequence[FloatArray], centres: FloatArray, shrinkage: float) -> float:
    """The mean distance of texts from the centre of their profile's other texts, in folds.

    The whitening shrinks the directions in which its training texts differ, so it is fitted on
    other profiles than the measured one; for a single profile, on that profile's other texts.
    If no texts can be held out, the result is half the distance between two profiles, or infinity
    for a single profile: anything may be near.
    """
    several = [of_one for of_one in vectors if len(of_one) > 1]
    if len(several) > MOST_TYPICAL:
        several = [several[i] for i in np.linspace(0, len(several) - 1, MOST_TYPICAL).astype(int)]
    found: list[float] = []
    for fold in range(FOLDS):
        if len(several) > 1:
            held_out, others = several[fold::FOLDS], list(several)
            del others[fold::FOLDS]
            others = others or several
            whitening = Whitening.fit(others, shrinkage)
            for v in held_out:
                alone = len(v) / (len(v) - 1)  # corrects for the mean including the text itself
                deviations = whitening(v) - whitening(v.mean(axis=0))  # (n, F)
                found += (alone * np.linalg.norm(deviations, axis=1)).tolist()
        elif several and len(several[0]) > 2:
            left_out = several[0][fold::FOLDS]
            kept = np.delete(several[0], np.s_[fold::FOLDS], axis=0)
            if len(kept) > 1 and len(left_out):
                whitening = Whitening.fit([kept], shrinkage)
                centre = whitening(kept.mean(axis=0))  # (F,)
                found += np.linalg.norm(whitening(left_out) - centre, axis=1).tolist()
    if found:
        return max(float(np.mean(found)), 1e-6)
    apart = np.linalg.norm(np.diff(centres, axis=0), axis=1)  # (N - 1,)
    # Profiles of the same text give no more information than a single one.
    return float(apart.mean()) / 2 if apart.any() else float("inf")
