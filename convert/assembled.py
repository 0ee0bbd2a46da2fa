"""Several factors in one array, which is read piece by piece when it is needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .layouts import RowOrder
from .peft_reader import Factor


@dataclass(frozen=True)
class Piece:
    """A matrix that begins `at` a place of a larger array, times `scale`, its rows in `order`.

    In a stack of matrices the first number is that of the matrix.
    """

    factor: Factor
    at: tuple[int, ...]
    scale: float = 1.0
    order: RowOrder | None = None

    def read(self) -> npt.NDArray[np.float32]:
        """Its numbers as they are put in. Raises OSError when they cannot be read."""
        values = self.factor.read()
        if self.order is not None:
            values = self.order.apply(values)
        if self.scale != 1.0:
            values = (values.astype(np.float64) * self.scale).astype(np.float32)
        return values


@dataclass(frozen=True)
class Assembled:
    """A factor of shape `shape` that is made of `pieces`, and zero where there is none."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = field(repr=False)

    @property
    def dtype(self) -> str:
        """How the pieces are stored; F32 where they differ."""
        types = {piece.factor.dtype for piece in self.pieces}
        return types.pop() if len(types) == 1 else "F32"

    def read(self) -> npt.NDArray[np.float32]:
        """All numbers (shape `self.shape`), read from the files now. Raises OSError."""
        whole = np.zeros(self.shape, np.float32)  # self.shape
        for piece in self.pieces:
            values = piece.read()
            *outer, row, column = piece.at
            target = whole[tuple(outer)]
            target[row : row + values.shape[0], column : column + values.shape[1]] = values
        return whole
