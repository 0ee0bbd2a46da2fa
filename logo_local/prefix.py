"""The longest common prefix of two sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items, tokens or characters, `one` and `other` have in common from the start."""
    n = min(len(one), len(other))
    if one[:n] == other[:n]:
        return n
    # Also finds n for a tuple and a list: these are never equal, even with equal items.
    return next((i for i in range(n) if one[i] != other[i]), n)
