"""What an adapter is for, as vectors: the base model's hidden state over its example texts.

A profile is made of texts: prompts that somebody gave as examples, or samples that the adapter
itself was made to write (a self-profile). The nearest profile is found after everything that
prompts of one adapter differ in anyway has been scaled down (the shrunk within-class covariance of
Fisher's linear discriminant). Whether it is near enough is a second question: the prompt must also
lie nearer to the profile than to two references, general requests and the adapter's own inputs
under other requests (`contrasts`). Plain numpy without I/O; needs no answers and no training.

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
# A prompt matches an adapter whose profile has many texts from this share of the way on: 0 is a
# reference, 1 the profile's centre. The centre of few texts lies further from new ones, so that n
# of them need n / (n + FEW) of it. Chosen on the choosing set (docs/quality.md).
LEAST_MATCH, FEW = 0.55, 2
# Further away than this, in typical distances, a prompt matches nothing: it may lie between the
# references and a profile only because it has to do with neither.
FARTHEST = 1.5
FOLDS = 4
MOST_DEVIATIONS = 1024  # texts that the covariance is estimated from; more cost time, not quality


def embed(parts: Sequence[FloatArray]) -> FloatArray:
    """One vector (sum of the widths,) for one text: each part (d,) of length 1, one after another.

    Parts are hidden states, or means of them; each counts the same, whatever its scale.
    """
    return np.concatenate([part / max(float(np.linalg.norm(part)), 1e-12) for part in parts])


@dataclass(frozen=True)
class Profile:
    """The texts of one adapter as vectors (n, F) float32, each made by `embed`.

    `source` is "prompts" or "samples". `contrasts` (m, F) are its inputs under other requests, if
    there are any. `gain` is how many nats a token the adapter's own samples
    are likelier under it than under the base: near zero says that the samples are the base's.
    None for given prompts.
    """

    vectors: FloatArray = field(repr=False)
    source: str = "prompts"
    gain: float | None = None
    contrasts: FloatArray | None = field(default=None, repr=False)

    @property
    def is_informative(self) -> bool:
        """Whether the texts say anything about the adapter."""
        return self.gain is None or LEAST_GAIN <= self.gain <= MOST_GAIN


def least_match(n_texts: int) -> float:
    """The match from which on a prompt fits a profile of `n_texts` texts."""
    return LEAST_MATCH * n_texts / (n_texts + FEW)


@dataclass(frozen=True)
class Measure:
    """How a text lies to each of several profiles; made by `fit`.

    `names` (N,) belong to the rows of `centres` (N, F), the profiles' whitened means. `typical`
    is the mean distance of a profile's own texts when they have no part in the measure: the unit
    in which "near" is meant. `least` (N,) is the match from which on a text fits.
    """

    names: tuple[str, ...]
    centres: FloatArray = field(repr=False)
    typical: float
    least: FloatArray
    _whitening: _Whitening = field(repr=False)
    _references: tuple[FloatArray, ...] = field(default=(), repr=False)  # each (N, F), whitened
    _general: FloatArray | None = field(default=None, repr=False)  # (G, F), whitened

    @classmethod
    def fit(
        cls,
        profiles: Mapping[str, Profile],
        shrinkage: float = SHRINKAGE,
        *,
        general: FloatArray | None = None,
    ) -> Measure:
        """The measure for one profile or more, each of at least one text.

        `general` (G, F) are vectors of requests that no adapter is made for. Without them, and
        without contrasts, every text matches.
        """
        vectors = [profile.vectors for profile in profiles.values()]  # each (n_i, F)
        centres, whitening = _fit(vectors, shrinkage)
        references, whitened = [], None
        if general is not None:
            whitened = whitening(general)
            centre = whitening(general.mean(axis=0))  # (F,)
            references.append(np.broadcast_to(centre, centres.shape))
            # An adapter without contrasts has this reference only.
            contrasts = [p.contrasts for p in profiles.values()]
            rows = [centre if c is None else whitening(c.mean(axis=0)) for c in contrasts]
            references.append(np.stack(rows))
        return cls(
            tuple(profiles),
            centres,
            _typical(vectors, centres, shrinkage),
            np.array([least_match(len(v)) for v in vectors], dtype=np.float32),
            whitening,
            tuple(references),
            whitened,
        )

    def distances(self, x: FloatArray) -> FloatArray:
        """The distances (N,) >= 0 of a text's vector (F,) from the profiles, whitened."""
        found: FloatArray = np.linalg.norm(self._whitening(x) - self.centres, axis=1)  # (N,)
        return found

    def matches(self, x: FloatArray) -> FloatArray:
        """How far (N,) a text's vector (F,) lies on the way from the references to each profile.

        0 and less are a reference, 1 is the profile's centre; the smallest over the references. At
        most 0 where the profile is further away than FARTHEST, or than one of the general requests.
        The scale is the same for every model and pool. 1 where there is no reference.
        """
        z = self._whitening(x)  # (F,)
        found = np.ones(len(self.names), dtype=np.float32)  # (N,)
        for reference in self._references:  # (N, F)
            way = self.centres - reference  # (N, F)
            length = np.maximum(np.einsum("nf,nf->n", way, way), 1e-12)
            found = np.minimum(found, np.einsum("nf,nf->n", z - reference, way) / length)
        if self._general is not None:
            nearest = np.linalg.norm(z - self._general, axis=1).min()
            most = min(float(nearest), FARTHEST * self.typical)
            further = np.linalg.norm(z - self.centres, axis=1) > most  # (N,)
            found = np.where(further, np.minimum(found, 0), found)
        return np.asarray(found, dtype=np.float32)

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
    """The mean distance of texts from the centre of their profile's other texts, in folds.

    The whitening must not have seen the texts it is applied to, since it shrinks just the
    directions in which those differ: it is fitted on other profiles, or, of a lone one, on its
    other texts.
    Where there is nothing to leave out, half the distance between two profiles stands for it, or,
    for a lone one, infinity: anything may be near.
    """
    several = [of_one for of_one in vectors if len(of_one) > 1]
    found: list[float] = []
    for fold in range(FOLDS):
        if len(several) > 1:
            held_out, others = several[fold::FOLDS], list(several)
            del others[fold::FOLDS]
            others = others or several
            whitening = _fit(others, shrinkage)[1]
            for v in held_out:
                alone = len(v) / (len(v) - 1)  # from the mean of all to that of the others
                deviations = whitening(v) - whitening(v.mean(axis=0))  # (n, F)
                found += (alone * np.linalg.norm(deviations, axis=1)).tolist()
        elif several and len(several[0]) > 2:
            left_out = several[0][fold::FOLDS]
            kept = np.delete(several[0], np.s_[fold::FOLDS], axis=0)
            if len(kept) > 1 and len(left_out):
                means, whitening = _fit([kept], shrinkage)
                found += np.linalg.norm(whitening(left_out) - means[0], axis=1).tolist()
    if found:
        return max(float(np.mean(found)), 1e-6)
    apart = np.linalg.norm(np.diff(centres, axis=0), axis=1)  # (N - 1,)
    # Profiles of one and the same text say no more than a lone one.
    return float(apart.mean()) / 2 if apart.any() else float("inf")
