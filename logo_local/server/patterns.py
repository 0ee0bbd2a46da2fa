"""How much work a regular expression of a schema makes for llama.cpp's grammars.

llama.cpp keeps every way in which a text can go on, and tries each of them for every token of the
vocabulary. A part that may be empty within a repetition multiplies the ways at each repetition:
`(a?){1000}` stops the engine for minutes a token, and nothing can interrupt it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST = 10**9  # more is not counted
_COUNT = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}", re.ASCII)
_DEPTH = 50


@dataclass(frozen=True)
class Cost:
    """Ways in which a part can be gone through, the sum of its counts, whether it can be empty."""

    ways: int = 1
    total: int = 0
    may_be_empty: bool = False


def cost_of(pattern: str) -> Cost:
    """The cost of `pattern`, at most `MOST` ways. ValueError for what cannot be read."""
    cost, end = _alternatives(pattern, 0, 0)
    if end != len(pattern):
        raise ValueError("a bracket is closed that was not opened")
    return cost


def _alternatives(text: str, at: int, depth: int) -> tuple[Cost, int]:
    if depth > _DEPTH:
        raise ValueError("it is nested too deeply")
    found = []
    while True:
        cost, at = _sequence(text, at, depth)
        found.append(cost)
        if at == len(text) or text[at] != "|":
            break
        at += 1
    ways = min(MOST, sum(cost.ways for cost in found))
    empty = any(cost.may_be_empty for cost in found)
    return Cost(ways, sum(cost.total for cost in found), empty), at


def _sequence(text: str, at: int, depth: int) -> tuple[Cost, int]:
    whole = Cost(may_be_empty=True)
    while at < len(text) and text[at] not in "|)":
        part, at = _atom(text, at, depth)
        part, at = _repeated(part, text, at)
        whole = Cost(
            min(MOST, whole.ways * part.ways),
            whole.total + part.total,
            whole.may_be_empty and part.may_be_empty,
        )
    return whole, at


def _atom(text: str, at: int, depth: int) -> tuple[Cost, int]:
    one = text[at]
    if one == "(":
        inner = re.compile(r"\((\?:)?").match(text, at)
        assert inner is not None
        cost, at = _alternatives(text, inner.end(), depth + 1)
        if at == len(text):
            raise ValueError("a bracket is not closed")
        return cost, at + 1
    if one == "[":
        end = at + 1 + text[at + 1 :].startswith("^")
        while end < len(text) and text[end] != "]":
            end += 2 if text[end] == "\\" else 1
        if end >= len(text):
            raise ValueError("a bracket is not closed")
        return Cost(), end + 1
    if one in "^$":
        return Cost(may_be_empty=True), at + 1
    return Cost(), at + (2 if one == "\\" else 1)


def _repeated(part: Cost, text: str, at: int) -> tuple[Cost, int]:
    """`part` with the quantifiers that follow it."""
    while at < len(text) and text[at] in "*+?{":
        if text[at] == "{":
            count = _COUNT.match(text, at)
            if count is None or not (count[1] or count[3]):
                raise ValueError(f"it has the count {text[at : at + 12]!r}")
            least = int(count[1] or 0)
            most = int(count[3]) if count[3] else None if count[2] else least
            at = count.end()
        else:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[text[at]]
            at += 1
        part = _times(part, least, most)
    return part, at


def _times(part: Cost, least: int, most: int | None) -> Cost:
    """`part` at least `least` and at most `most` times; without an end where `most` is None."""
    n = max(least, 1) if most is None else most
    ways = part.ways
    if part.may_be_empty and n > 1:
        ways = MOST if ways > 1 and n > 30 else ways ** min(n, 30)  # each may be there or not
    elif ways > 1:
        ways *= max(n, 1)
    choices = 2 if most is None else most - least + 1
    total = part.total * max(n, 1) + (0 if (least, most) in ((0, None), (1, None), (0, 1)) else n)
    return Cost(min(MOST, ways * max(choices, 1)), total, part.may_be_empty or least == 0)
