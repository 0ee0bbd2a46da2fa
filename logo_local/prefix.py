"""The longest common prefix of two sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The number of items, tokens or characters, that `one` and `other` share at the start."""
    n = min(len(one), len(other))
    if one[:n] == other[:n]:
        return n
    # Slices of a tuple and a list are never equal, so the items are compared.
    return next((i for i in range(n) if one[i] != other[i]), n)
