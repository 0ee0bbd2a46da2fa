"""Hidden states of the base model: where they are read, and what a reading of a prompt holds.

Shared by `llama.probe`, which reads them, and by `routing`, which computes scores from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]

# Of a long prompt so many rows are kept: enough for the norms of adapters, chosen by the cost.
MOST_ROWS = 64


@dataclass(frozen=True)
class Place:
    """Where a pass is read: the input of the weight `target`, a GGUF tensor name.

    With `residual`, the state before the block's normalisation instead of after it.
    """

    target: str
    residual: bool = False


class Hidden(NamedTuple):
    """What was read of one prompt at one place: the `mean` (d_in,) over its tokens, and `rows`.

    `rows` (m, d_in) are those of the tokens in `kept_positions`, the last token's at the end.
    """

    mean: FloatArray
    rows: FloatArray

    @property
    def last(self) -> FloatArray:
        """The last token's row (d_in,)."""
        last: FloatArray = self.rows[-1]
        return last

    @classmethod
    def of(cls, rows: FloatArray) -> Hidden:
        """The same of all rows (n_tokens, d_in) of a prompt."""
        mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        return cls(mean, rows[kept_positions(len(rows))])


Reading: TypeAlias = Mapping[Place, Hidden]


def kept_positions(n_tokens: int) -> list[int]:
    """The positions whose rows are kept of a prompt: at most MOST_ROWS evenly spaced, and the last.

    The distance between them is a power of two, so that a longer prompt needs no row of an earlier
    part that a shorter one did not need.
    """
    step = row_step(n_tokens)
    positions = list(range(0, n_tokens, step))
    return positions if positions[-1] == n_tokens - 1 else [*positions, n_tokens - 1]


def row_step(n_tokens: int) -> int:
    """The distance between kept rows: the smallest power of two that leaves at most MOST_ROWS."""
    step = 1
    while n_tokens > MOST_ROWS * step:
        step *= 2
    return step
