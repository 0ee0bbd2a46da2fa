"""Types for hidden states of the base model: the places, and the data read for a prompt.

Shared by `llama.probe`, which reads them, and `routing`, which computes scores from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]

# Number of tokens at the start and at the end of the user's text that have a separate mean.
WINDOW = 16

# Maximum number of rows stored for a prompt: enough for adapter norms, limited by their cost.
MOST_ROWS = 64


@dataclass(frozen=True)
class Place:
    """A place where a pass is read: the input of the weight `target`, a GGUF tensor name.

    With `residual`, the state before the block's normalisation instead of after it.
    """

    target: str
    residual: bool = False


@dataclass(frozen=True)
class Framed:
    """A prompt's tokens; the user's text is `tokens[start:end]`.

    `form` is "chat" with the chat template around the text, else "raw". A raw prompt has a fixed
    suffix after the text, so that its last token is comparable with that of other prompts.
    """

    tokens: tuple[int, ...]
    start: int
    end: int
    form: str = "raw"

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Framed:
        """A prompt that consists only of the user's text."""
        return cls(tuple(tokens), 0, len(tokens))

    def positions(self) -> tuple[range, range]:
        """The first and the last WINDOW tokens of the text; these may overlap."""
        n = max(self.end - self.start, 1)
        first = range(self.start, self.start + min(WINDOW, n))
        last = range(max(self.start, self.end - WINDOW), max(self.end, self.start + 1))
        return first, last


class Hidden(NamedTuple):
    """The data read for one prompt at one place.

    `mean` (d_in,) is over all tokens, `rows` (m, d_in) are those of the tokens in `kept_positions`,
    the last token's row at the end. `first` and `final` (d_in,) are means over the first and the
    last WINDOW tokens of the user's text.
    """

    mean: FloatArray
    rows: FloatArray
    first: FloatArray
    final: FloatArray

    @property
    def last(self) -> FloatArray:
        """The last token's row (d_in,)."""
        last: FloatArray = self.rows[-1]
        return last

    @classmethod
    def of(cls, rows: FloatArray, prompt: Framed | None = None) -> Hidden:
        """From all rows (n_tokens, d_in) of a prompt. Without `prompt`, all tokens are the user's
        text.
        """
        first, last = (prompt or Framed.of(range(len(rows)))).positions()
        return cls(
            _mean(rows),
            rows[kept_positions(len(rows))],
            _mean(rows[first.start : first.stop]),
            _mean(rows[last.start : last.stop]),
        )


Reading: TypeAlias = Mapping[Place, Hidden]


def _mean(rows: FloatArray) -> FloatArray:
    mean: FloatArray = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def kept_positions(n_tokens: int) -> list[int]:
    """The positions whose rows are stored: at most MOST_ROWS evenly spaced, and the last.

    The distance between them is a power of two, so a longer prompt needs no row of an earlier
    part that a shorter one did not need.
    """
    step = row_step(n_tokens)
    positions = list(range(0, n_tokens, step))
    return positions if positions[-1] == n_tokens - 1 else [*positions, n_tokens - 1]


def row_step(n_tokens: int) -> int:
    """The distance between stored rows: the smallest power of two for at most MOST_ROWS."""
    step = 1
    while n_tokens > MOST_ROWS * step:
        step *= 2
    return step
