"""Scaling down what texts of one kind differ in anyway: a shrunk within-class covariance.

Source: Fisher's linear discriminant, with the covariance shrunk towards a multiple of the identity
since there are far fewer texts than dimensions. Plain numpy without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..hidden_states import FloatArray

# How much of the average variance is added to every direction: 8 prompts an adapter say little
# about any single one. Chosen on the suite's choosing set (docs/quality.md).
SHRINKAGE = 1.0
MOST_DEVIATIONS = 1024  # texts that the covariance is estimated from; more cost time, not quality


@dataclass(frozen=True)
class Whitening:
    """x -> C^(-1/2) x with C = V diag(v) V^T + floor I, of which only V (r, F) is ever formed."""

    directions: FloatArray
    shrink: FloatArray
    floor: float

    def __call__(self, x: FloatArray) -> FloatArray:
        """The whitened rows of `x` (..., F)."""
        along = (x @ self.directions.T) * self.shrink  # (..., r)
        whitened: FloatArray = (x - along @ self.directions) / np.float32(np.sqrt(self.floor))
        return whitened

    @classmethod
    def fit(cls, groups: Sequence[FloatArray], shrinkage: float = SHRINKAGE) -> Whitening:
        """The whitening by what differs within each of the `groups` (n_i, F)."""
        deviations = np.concatenate([rows - rows.mean(axis=0) for rows in groups])
        share = 1 - len(groups) / len(deviations)  # what the means leave of the freedom
        if len(deviations) > MOST_DEVIATIONS:
            chosen = np.linspace(0, len(deviations) - 1, MOST_DEVIATIONS).astype(int)
            deviations = deviations[chosen]  # (n, F)
        freedom = max(len(deviations) * share, 1.0)
        variance = float((deviations**2).sum()) / freedom / deviations.shape[1]
        floor = shrinkage * variance + 1e-9
        squares, directions = _principal(deviations)  # (r,), (r, F)
        shrink = 1 - np.sqrt(floor / (squares / freedom + floor))  # (r,)
        return cls(directions, shrink.astype(np.float32), floor)


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
