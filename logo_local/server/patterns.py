"""Convert regular expressions of schemas to deterministic grammars.

llama.cpp tries every continuation of a pattern for each token of the vocabulary, and cannot be
interrupted: `(a?){1000}` or `(a|a)*` block an engine for minutes. Here a pattern becomes an
automaton in which each character leads to one state (Glushkov's construction, then sets of
positions), and each state becomes a rule. Patterns that need too many states are refused.

The rules match the contents of a JSON string, so quotes, backslashes and control characters are
excluded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

MOST_POSITIONS = 2000  # characters of a pattern after its repetitions are expanded
MOST_STATES = 2000
_MOST_STEPS = 300_000  # of the construction, about 0.3 s
_DEPTH = 50
_END = 0x10FFFF

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # of code points, first and last, sorted

_COUNT = re.compile(r"\{(\d{0,4})(?:(,)(\d{0,4}))?\}", re.ASCII)
_HEX = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")
_ALL: Ranges = ((0, _END),)
_NOT_IN_STRINGS: Ranges = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0))
_CONTROL = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}


def rules_of(pattern: str, name: str) -> dict[str, str]:
    """Grammar rules for llama.cpp by name, `name` first: a JSON string that matches `pattern`.

    The pattern begins with ^ and ends with $. ValueError for unsupported or too large patterns.
    """
    if not (pattern.startswith("^") and pattern.endswith("$") and len(pattern) > 1):
        raise ValueError("it must begin with ^ and end with $")
    states = _automaton(pattern[1:-1])
    if not states[0].is_final and not states[0].edges:
        raise ValueError("it matches nothing")
    rules = {name: f'"\\"" {name}-0'}
    for number, state in enumerate(states):
        ways = [f"[{_written(ranges)}] {name}-{to}" for to, ranges in state.edges.items()]
        if state.is_final:
            ways.append('"\\"" space')
        if ways:
            rules[f"{name}-{number}"] = " | ".join(ways)
    return rules


def _written(ranges: Ranges) -> str:
    return "".join(
        _character(first) if first == last else f"{_character(first)}-{_character(last)}"
        for first, last in ranges
    )


def _character(code: int) -> str:
    return f"\\U{code:08X}" if code > 0xFFFF else f"\\u{code:04X}"


# Sets of characters


def _union(*sets: Ranges) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(one for ranges in sets for one in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _without(ranges: Ranges) -> Ranges:
    found, at = [], 0
    for first, last in ranges:
        if at < first:
            found.append((at, first - 1))
        at = last + 1
    if at <= _END:
        found.append((at, _END))
    return tuple(found)


def _allowed(ranges: Ranges) -> Ranges:
    """Those that need no escape in a JSON string."""
    return _without(_union(_without(ranges), _NOT_IN_STRINGS))


# Positions: Glushkov's construction


@dataclass(frozen=True)
class _Part:
    """A part of a pattern: whether it can be empty, and its first and last positions as bits."""

    may_be_empty: bool
    first: int
    last: int


_EMPTY = _Part(True, 0, 0)


@dataclass
class _Positions:
    """The characters of a pattern, each with its possible successors."""

    text: str
    sets: list[Ranges] = field(default_factory=list)
    follow: list[int] = field(default_factory=list)
    steps: int = 0

    def alternatives(self, at: int, depth: int) -> tuple[_Part, int]:
        """The part from `at` up to a closing bracket, and the position of the bracket."""
        if depth > _DEPTH:
            raise ValueError("it is nested too deeply")
        whole: _Part | None = None
        while True:
            one, at = self._sequence(at, depth)
            whole = one if whole is None else _either(whole, one)
            if self.text[at : at + 1] != "|":
                return whole, at
            at += 1

    def _sequence(self, at: int, depth: int) -> tuple[_Part, int]:
        whole = _EMPTY
        while at < len(self.text) and self.text[at] not in "|)":
            start = at
            part, at = self._atom(at, depth)
            least, most, end = _count(self.text, at)
            if end > at:
                if self.text[end : end + 1] and self.text[end] in "*+?{":
                    raise ValueError("a count follows a count")
                part, at = self._repeated(part, start, depth, least, most), end
            whole = self._joined(whole, part)
        return whole, at

    def _repeated(self, part: _Part, start: int, depth: int, least: int, most: int | None) -> _Part:
        """`part`, whose text begins at `start`, repeated: each repetition is a copy."""
        if most == 0:
            return _EMPTY
        # If a part may be empty, fewer repetitions are valid too.
        whole, least = part, 0 if part.may_be_empty else least
        for number in range(1, max(least, 1) if most is None else most):
            copy, _ = self._atom(start, depth)
            if number < least:
                whole = self._joined(whole, copy)
            else:  # all later ones are omitted as well
                self._connect(part.last, copy.first)
                whole = _Part(whole.may_be_empty, whole.first, whole.last | copy.last)
            part = copy
        if most is None:  # repeat the last one
            self._connect(part.last, part.first)
        return _Part(True, whole.first, whole.last) if least == 0 else whole

    def _atom(self, at: int, depth: int) -> tuple[_Part, int]:
        self.count()
        one = self.text[at]
        if one == "(":
            inner = at + 3 if self.text.startswith("(?:", at) else at + 1
            if self.text[inner : inner + 1] == "?":
                raise ValueError("it has a group with (?")
            part, at = self.alternatives(inner, depth + 1)
            if at == len(self.text):
                raise ValueError("a bracket is not closed")
            return part, at + 1
        if one in "*+?{":
            raise ValueError("there is nothing that could be repeated")
        if one in "^$":
            raise ValueError("^ and $ are only possible at its ends")
        ranges, at = _character_set(self.text, at)
        return self._new(ranges), at

    def _new(self, ranges: Ranges) -> _Part:
        if len(self.sets) == MOST_POSITIONS:
            raise ValueError("it is too large with its counts written out")
        self.sets.append(_allowed(ranges))
        self.follow.append(0)
        bit = 1 << len(self.sets) - 1
        return _Part(False, bit, bit)

    def _joined(self, one: _Part, other: _Part) -> _Part:
        self._connect(one.last, other.first)
        return _Part(
            one.may_be_empty and other.may_be_empty,
            one.first | other.first if one.may_be_empty else one.first,
            one.last | other.last if other.may_be_empty else other.last,
        )

    def _connect(self, last: int, first: int) -> None:
        for position in _bits(last):
            self.count()
            self.follow[position] |= first

    def count(self, n: int = 1) -> None:
        """Count steps of the construction; ValueError if there are too many."""
        self.steps += n
        if self.steps > _MOST_STEPS:
            raise ValueError("it has too many ways to be matched")


def _either(one: _Part, other: _Part) -> _Part:
    return _Part(
        one.may_be_empty or other.may_be_empty, one.first | other.first, one.last | other.last
    )


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _count(text: str, at: int) -> tuple[int, int | None, int]:
    """The quantifier at `at`: minimum, maximum (None if unlimited), and its end."""
    simple: Mapping[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if text[at : at + 1] in simple and at < len(text):
        return *simple[text[at]], at + 1
    if text[at : at + 1] != "{":
        return 1, 1, at
    found = _COUNT.match(text, at)
    if found is None or not (found[1] or found[3]):
        raise ValueError(f"it has the count {text[at : at + 12]!r}")
    least = int(found[1] or 0)
    most = int(found[3]) if found[3] else None if found[2] else least
    if most is not None and most < least:
        raise ValueError(f"it has the count {found[0]!r}")
    return least, most, found.end()


def _character_set(text: str, at: int) -> tuple[Ranges, int]:
    if text[at] == ".":
        return _ALL, at + 1
    if text[at] != "[":
        return _escaped(text, at)
    negated = text.startswith("^", at + 1)
    at, found = at + 1 + negated, []
    while at < len(text) and text[at] != "]":
        one, at = _escaped(text, at)
        if text.startswith("-", at) and text[at + 1 : at + 2] not in ("", "]"):
            other, at = _escaped(text, at + 1)
            one = ((one[0][0], other[-1][1]),)
            if one[0][0] > one[0][1]:
                raise ValueError("a range of characters is the wrong way round")
        found.append(one)
    if at >= len(text):
        raise ValueError("a bracket is not closed")
    ranges = _union(*found)
    return (_without(ranges) if negated else ranges), at + 1


def _escaped(text: str, at: int) -> tuple[Ranges, int]:
    """The characters matched by the character or escape at `at`."""
    if text[at] != "\\":
        return ((ord(text[at]), ord(text[at])),), at + 1
    if at + 1 == len(text):
        raise ValueError("it ends with a backslash")
    if found := _HEX.match(text, at):
        code = int(found[1] or found[2], 16)
        return ((code, code),), found.end()
    letter = text[at + 1]
    classes = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
    if letter.lower() in classes:
        ranges = classes[letter.lower()]
        return (ranges if letter.islower() else _without(ranges)), at + 2
    if letter.isalnum() and letter not in _CONTROL:
        raise ValueError(f"it has the escape \\{letter}")
    code = _CONTROL.get(letter, ord(letter))
    return ((code, code),), at + 2


# States: sets of positions


@dataclass
class _State:
    is_final: bool
    edges: dict[int, Ranges] = field(default_factory=dict)  # by the state they lead to


def _automaton(text: str) -> list[_State]:
    """The states, the start first; edges only to states from which the end can be reached."""
    positions = _Positions(text)
    whole, end = positions.alternatives(0, 0)
    if end != len(text):
        raise ValueError("a bracket is closed that was not opened")
    start = (whole.first, whole.may_be_empty)
    numbers, states, todo = {start: 0}, [_State(start[1])], [start]
    for key in todo:  # `todo` grows in the loop
        edges: dict[int, list[tuple[int, int]]] = {}
        for first, last, reached in _intervals(positions, key[0]):
            following = 0
            for position in _bits(reached):
                positions.count()
                following |= positions.follow[position]
            new = (following, bool(reached & whole.last))
            if new not in numbers:
                if len(states) == MOST_STATES:
                    raise ValueError("it has too many ways to be matched")
                numbers[new] = len(states)
                states.append(_State(new[1]))
                todo.append(new)
            edges.setdefault(numbers[new], []).append((first, last))
        states[numbers[key]].edges = {to: _union(tuple(found)) for to, found in edges.items()}
    _keep_what_ends(states)
    return states


def _intervals(positions: _Positions, mask: int) -> list[tuple[int, int, int]]:
    """Disjoint ranges of characters, each with the positions of `mask` that it matches."""
    starts: dict[int, int] = {}  # positions that begin or end there: they change their bit
    for position in _bits(mask):
        positions.count(1 + len(positions.sets[position]))
        for first, last in positions.sets[position]:
            starts[first] = starts.get(first, 0) ^ 1 << position
            starts[last + 1] = starts.get(last + 1, 0) ^ 1 << position
    found, current = [], 0
    places = sorted(starts)
    for at, following in pairwise(places):
        current ^= starts[at]
        if current:
            found.append((at, following - 1, current))
    return found


def _keep_what_ends(states: list[_State]) -> None:
    """Remove the edges to states from which no end can be reached."""
    into: dict[int, list[int]] = {}
    for number, state in enumerate(states):
        for to in state.edges:
            into.setdefault(to, []).append(number)
    todo = [number for number, state in enumerate(states) if state.is_final]
    good = set(todo)
    for number in todo:  # `todo` grows in the loop
        for before in into.get(number, []):
            if before not in good:
                good.add(before)
                todo.append(before)
    for state in states:
        state.edges = {to: ranges for to, ranges in state.edges.items() if to in good}
