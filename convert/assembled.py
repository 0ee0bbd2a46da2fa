"""Several factors combined in one array, whose pieces are read when needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .layouts import RowOrder
from .peft_reader import Factor


@dataclass(frozen=True)
class Piece:
    """A matrix at position `at` of a larger array, times `scale`, with its rows in `order`.

    In a stack of matrices, the first number is the index of the matrix.
    """

    factor: Factor
    at: tuple[int, ...]
    scale: float = 1.0
    order: RowOrder | None = None

    def read(self) -> npt.NDArray[np.float32]:
        """Its values, scaled and reordered. Raises OSError if they cannot be read."""
        values = self.factor.read()
        if self.order is not None:
            values = self.order.apply(values)
        if self.scale != 1.0:
            values = (values.astype(np.float64) * self.scale).astype(np.float32)
        return values


@dataclass(frozen=True)
class Assembled:
    """A factor of shape `shape` that consists of `pieces`, and is zero elsewhere."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = field(repr=False)

    @property
    def dtype(self) -> str:
        """How the pieces are stored; F32 if they differ."""
        types = {piece.factor.dtype for piece in self.pieces}
        return types.pop() if len(types) == 1 else "F32"

    def read(self) -> npt.NDArray[np.float32]:
        """All values (shape `self.shape`), read from the files now. Raises OSError."""
        whole = np.zeros(self.shape, np.float32)  # self.shape
        for piece in self.pieces:
            values = piece.read()
            *outer, row, column = piece.at
            target = whole[tuple(outer)]
            target[row : row + values.shape[0], column : column + values.shape[1]] = values
        return whole
