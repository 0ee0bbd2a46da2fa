"""What an adapter is for, as vectors: the base model's hidden state over its example texts.

A profile is made of texts: prompts that somebody gave as examples, or samples that the adapter
itself was made to write (a self-profile). A prompt fits the adapter whose profile is nearest,
after everything that prompts of one adapter differ in anyway has been scaled down (the shrunk
within-class covariance of Fisher's linear discriminant). Plain numpy without I/O; needs no
answers and no training.

Source: our own; nearest class means are old, "ask the adapter what it was trained on" was found
in no publication. LORAUTER (arXiv 2601.21795) routes by text embeddings of labelled samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..hidden_states import FloatArray

# How much of the average variance is added to every direction: 8 prompts an adapter say little
# about any single one. Chosen on the suite's choosing set (docs/quality.md).
SHRINKAGE = 1.0
# In nats a token: below the one, an adapter's samples are no other than the base's, and above the
# other they are no language any more, as an adapter writes that never saw a prompt in its loss.
LEAST_GAIN, MOST_GAIN = 0.05, 3.0
FOLDS = 4
MOST_DEVIATIONS = 1024  # texts that the covariance is estimated from; more cost time, not quality


def embed(means: Sequence[FloatArray]) -> FloatArray:
    """One vector (sum of the widths,) for one text: each block's mean over tokens, of length 1.

    `means` holds one mean (d,) for each block that is read. Each block counts the same, whatever
    its scale. Does not look at the order of the tokens beyond what the model made of it.
    """
    return np.concatenate([mean / max(float(np.linalg.norm(mean)), 1e-12) for mean in means])


@dataclass(frozen=True)
class Profile:
    """The texts of one adapter as vectors (n, F) float32, each made by `embed`.

    `source` is "prompts" or "samples". `gain` is how many nats a token the adapter's own samples
    are likelier under it than under the base: near zero says that the samples are the base's.
    None for given prompts.
    """

    vectors: FloatArray = field(repr=False)
    source: str = "prompts"
    gain: float | None = None

    @property
    def is_informative(self) -> bool:
        """Whether the texts say anything about the adapter."""
        return self.gain is None or LEAST_GAIN <= self.gain <= MOST_GAIN


@dataclass(frozen=True)
class Measure:
    """How far a text is from each of several profiles; made by `fit`, asked by `distances`.

    `names` (N,) belong to the rows of `centres` (N, F), the profiles' whitened means. `typical`
    is the mean distance of a profile's own texts when they have no part in the measure: the unit
    in which "near" is meant.
    """

    names: tuple[str, ...]
    centres: FloatArray = field(repr=False)
    typical: float
    _whitening: _Whitening = field(repr=False)

    @classmethod
    def fit(cls, profiles: Mapping[str, Profile], shrinkage: float = SHRINKAGE) -> Measure:
        """The measure for one profile or more, each of at least one text."""
        vectors = [profile.vectors for profile in profiles.values()]  # each (n_i, F)
        centres, whitening = _fit(vectors, shrinkage)
        return cls(tuple(profiles), centres, _typical(vectors, centres, shrinkage), whitening)

    def distances(self, x: FloatArray) -> FloatArray:
        """The distances (N,) >= 0 of a text's vector (F,) from the profiles, whitened."""
        found: FloatArray = np.linalg.norm(self._whitening(x) - self.centres, axis=1)  # (N,)
        return found

    def nearness(self, x: FloatArray) -> FloatArray:
        """-distance / typical distance (N,): about -1 for a text like the profile's own."""
        near: FloatArray = -self.distances(x) / np.float32(self.typical)  # (N,)
        return near


@dataclass(frozen=True)
class _Whitening:
    """x -> C^(-1/2) x with C = V diag(v) V^T + floor I, of which only V (r, F) is ever formed."""

    directions: FloatArray
    shrink: FloatArray
    floor: float

    def __call__(self, x: FloatArray) -> FloatArray:
        along = (x @ self.directions.T) * self.shrink  # (..., r)
        whitened: FloatArray = (x - along @ self.directions) / np.float32(np.sqrt(self.floor))
        return whitened


def _fit(vectors: Sequence[FloatArray], shrinkage: float) -> tuple[FloatArray, _Whitening]:
    """The whitened centres (N, F) of several profiles' texts, and the whitening."""
    means = np.stack([of_one.mean(axis=0) for of_one in vectors])  # (N, F)
    deviations = np.concatenate([v - mean for v, mean in zip(vectors, means, strict=True)])
    share = 1 - len(vectors) / len(deviations)  # what the means leave of the freedom
    if len(deviations) > MOST_DEVIATIONS:
        chosen = np.linspace(0, len(deviations) - 1, MOST_DEVIATIONS).astype(int)
        deviations = deviations[chosen]  # (n, F)
    freedom = max(len(deviations) * share, 1.0)
    variance = float((deviations**2).sum()) / freedom / deviations.shape[1]
    floor = shrinkage * variance + 1e-9
    squares, directions = _principal(deviations)  # (r,), (r, F)
    shrink = 1 - np.sqrt(floor / (squares / freedom + floor))  # (r,)
    whitening = _Whitening(directions, shrink.astype(np.float32), floor)
    return whitening(means), whitening


def _principal(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The squared singular values (r,) of `rows` (n, F) and their right vectors (r, F).

    From the small Gram matrix, which is many times faster than an SVD where F is a model's width
    times the blocks that are read. Directions without weight are left out.
    """
    wide = rows.shape[0] <= rows.shape[1]
    gram = (rows @ rows.T if wide else rows.T @ rows).astype(np.float64)
    squares, vectors = np.linalg.eigh(gram)  # ascending
    kept = squares > 1e-6 * max(float(squares[-1]), 1e-30)
    squares, vectors = squares[kept], vectors[:, kept]
    if wide:
        directions = (vectors / np.sqrt(squares)).T.astype(np.float32) @ rows  # (r, F)
    else:
        directions = vectors.T.astype(np.float32)  # (r, F)
    return squares, directions


def _typical(vectors: Sequence[FloatArray], centres: FloatArray, shrinkage: float) -> float:
    """The mean distance of texts from their profile's centre, made without them, in folds.

    Profiles of a single text are no measure of this: with nothing else, half the distance
    between two profiles stands for it, or, without any distance, infinity: anything may be near.
    """
    several = [of_one for of_one in vectors if len(of_one) > 1]
    found = []
    for fold in range(FOLDS if several else 0):
        kept = [np.delete(v, np.s_[fold::FOLDS], axis=0) for v in several]
        pairs = [(v[fold::FOLDS], k) for v, k in zip(several, kept, strict=True) if len(k)]
        if not pairs:
            continue
        means, whitening = _fit([k for _, k in pairs], shrinkage)
        for (left_out, _), mean in zip(pairs, means, strict=True):
            found += np.linalg.norm(whitening(left_out) - mean, axis=1).tolist()
    if found:
        return max(float(np.mean(found)), 1e-6)
    apart = np.linalg.norm(np.diff(centres, axis=0), axis=1)  # (N - 1,)
    # Profiles of one and the same text say no more than a lone one.
    return float(apart.mean()) / 2 if apart.any() else float("inf")
