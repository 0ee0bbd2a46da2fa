"""Whitening by the shrunk within-class covariance, which scales down variation within a class.

Source: Fisher's linear discriminant, with the covariance shrunk towards a multiple of the identity
because there are far fewer texts than dimensions. Plain numpy without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..hidden_states import FloatArray

IntArray: TypeAlias = npt.NDArray[np.intp]

# The multiple of the average variance that is added to every direction: 8 prompts per adapter do
# not determine single directions. Chosen on the suite's choosing set (docs/quality.md).
SHRINKAGE = 1.0
MOST_DEVIATIONS = 1024  # texts used to estimate the covariance; more do not improve quality


@dataclass(frozen=True)
class Whitening:
    """x -> C^(-1/2) x with C = V diag(v) V^T + floor I, of which only V (r, F) is computed."""

    directions: FloatArray
    shrink: FloatArray
    floor: float

    def __call__(self, x: FloatArray) -> FloatArray:
        """The whitened rows of `x` (..., F)."""
        along = (x @ self.directions.T) * self.shrink  # (..., r)
        whitened: FloatArray = (x - along @ self.directions) / np.float32(np.sqrt(self.floor))
        return whitened

    def square(self, x: FloatArray) -> float:
        """The squared length of the whitened `x` (F,), at half the cost of whitening it."""
        return float(self.twice(x[None], lengths_only=True)[1][0])

    def twice(self, x: FloatArray, *, lengths_only: bool = False) -> tuple[FloatArray, FloatArray]:
        """Rows (n, F) whitened twice, and the squared lengths (n,) of those whitened once.

        The product of a whitened text and a whitened row equals the product of the raw text and
        the row whitened twice.
        """
        along = x @ self.directions.T  # (n, r)
        shrunk = along * ((2 - self.shrink) * self.shrink)  # (n, r)
        squares = (np.einsum("nf,nf->n", x, x) - np.einsum("nr,nr->n", shrunk, along)) / self.floor
        rows = x if lengths_only else (x - shrunk @ self.directions) / np.float32(self.floor)
        return rows, np.asarray(squares, dtype=np.float32)

    @classmethod
    def fit(cls, groups: Sequence[FloatArray], shrinkage: float = SHRINKAGE) -> Whitening:
        """The whitening for the variation within each of the `groups` (n_i, F)."""
        n = sum(len(rows) for rows in groups)
        share = 1 - len(groups) / n  # degrees of freedom left after the means
        chosen = np.linspace(0, n - 1, min(n, MOST_DEVIATIONS)).astype(int)
        deviations = _deviations(groups, chosen)  # (m, F)
        freedom = max(len(deviations) * share, 1.0)
        variance = float((deviations**2).sum()) / freedom / deviations.shape[1]
        floor = shrinkage * variance + 1e-9
        squares, directions = _principal(deviations)  # (r,), (r, F)
        shrink = 1 - np.sqrt(floor / (squares / freedom + floor))  # (r,)
        return cls(directions, shrink.astype(np.float32), floor)


def _deviations(groups: Sequence[FloatArray], chosen: IntArray) -> FloatArray:
    """The `chosen` rows of all groups (n_i, F), concatenated, minus the mean of each group."""
    starts = np.cumsum([0, *(len(rows) for rows in groups)])  # (N + 1,)
    found = []
    for start, rows in zip(starts, groups, strict=False):
        inside = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
        if len(inside):
            found.append(rows[inside] - rows.mean(axis=0))
    return np.concatenate(found)


def _principal(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The squared singular values (r,) of `rows` (n, F) and their right vectors (r, F).

    Computed from the small Gram matrix, which is many times faster than an SVD when F is a model's
    width times the number of blocks. Directions with a negligible singular value are dropped.
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
