"""What a line of JSON asks for: bytes to lines, lines to requests. Pure, and strict.

A request that is not understood whole is refused whole, with everything that is wrong in it: an
app's author shall not wonder why a misspelt option has no effect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import LogoError
from ..routing import registry

MAX_LINE = 16 * 2**20  # bytes
MAX_SEED = 2**32 - 2  # the last of 32 bits stands for a random one in llama.cpp
_AT_ONCE = 2**16  # bytes
ROLES = ("system", "user", "assistant")


class RequestError(LogoError):
    """A line that is no request: its number `line`, from 1, and its `id`, where it has one."""

    def __init__(
        self,
        message: str,
        *,
        problems: list[str] | None = None,
        hint: str = "",
        line: int | None = None,
        id: str | int | None = None,
    ) -> None:
        super().__init__(message, problems=problems or (), hint=hint)
        self.line, self.id = line, id


@dataclass(frozen=True)
class Line:
    """A line's number, from 1, and its bytes; None for one that is longer than MAX_LINE."""

    number: int
    data: bytes | None


@dataclass(frozen=True)
class Request:
    """One thing to do: its `kind` is a key of `KINDS`, and all `fields` are as they should be."""

    kind: str
    line: int
    id: str | int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sampling(self) -> dict[str, Any]:
        """What of it goes to llama_cpp, by the names that these options have there."""
        return {name: self.fields[name] for name in SAMPLING if name in self.fields}


def lines_of(read: Callable[[int], bytes]) -> Iterator[Line]:
    """The lines of what `read(n)` returns, at most n bytes at a time, until it returns none.

    Empty lines are counted and left out. Of a line that is too long nothing is kept.
    """
    number, kept, too_long = 1, bytearray(), False
    while piece := read(_AT_ONCE):
        *ends, rest = piece.split(b"\n")
        for end in ends:
            kept += end
            if too_long or len(kept) > MAX_LINE:
                yield Line(number, None)
            elif kept.strip():
                yield Line(number, bytes(kept))
            number, kept, too_long = number + 1, bytearray(), False
        kept += rest
        if len(kept) > MAX_LINE:
            kept, too_long = bytearray(), True
    if too_long:
        yield Line(number, None)
    elif kept.strip():
        yield Line(number, bytes(kept))


def parse(line: Line) -> Request:
    """The request in a line. Raises RequestError with all that is wrong in it."""
    where = f"line {line.number}"
    found = _object(line, where)
    given_id = found.get("id")
    known_id = None if _is_wrong(_id, given_id) else given_id
    kinds = [kind for kind in KINDS if kind in found]
    if len(kinds) != 1:
        which = f"{' and '.join(kinds)} together" if kinds else "none of them"
        raise RequestError(
            f"{where}: a request has one of {', '.join(KINDS)}, and this one has {which}",
            hint='a question looks like this: {"id": 1, "prompt": "..."}',
            line=line.number,
            id=known_id,
        )
    kind = kinds[0]
    may_have = KINDS[kind]
    problems = [
        f"{name} has no use beside {kind}" if name in CHECKS else f"unknown field {name!r}"
        for name in found
        if name not in may_have
    ]
    if kind in NEED_ID and "id" not in found:
        problems.append("id is missing, by which its events can be told from others")
    for name in may_have:
        if name in found:
            try:
                CHECKS[name](found[name])
            except ValueError as error:
                problems.append(f"{name} {error}")
    if "lora" in found and not {"signal", "top_k"}.isdisjoint(found):
        problems.append("signal and top_k have no effect beside lora, which is the whole route")
    if problems:
        raise RequestError(
            f"{where}: this request cannot be used",
            problems=problems,
            hint=f"beside {kind} there may be: {', '.join(n for n in may_have if n != kind)}",
            line=line.number,
            id=known_id,
        )
    fields = {name: value for name, value in found.items() if name != "id"}
    return Request(kind, line.number, given_id, fields)


def _object(line: Line, where: str) -> dict[str, Any]:
    """The JSON object in a line; RequestError for anything else."""

    def refuse(message: str, hint: str) -> RequestError:
        return RequestError(f"{where}: {message}", hint=hint, line=line.number)

    if line.data is None:
        raise refuse(f"it is longer than {MAX_LINE // 2**20} MiB", "send less at once")
    try:
        text = line.data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        raise refuse(f"it is not UTF-8: {error.reason}", "encode requests as UTF-8") from error
    except (ValueError, RecursionError) as error:
        message = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise refuse(f"it is not JSON: {message}", "each line is one JSON object") from error
    if not isinstance(value, dict):
        raise refuse(f"it is a JSON {_json_type(value)}", "each line is one JSON object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return found


def _json_type(value: object) -> str:
    names = {str: "string", bool: "boolean", list: "array", dict: "object", type(None): "null"}
    return names.get(type(value), "number")


# What a field may hold: each check raises ValueError with the end of a sentence that begins with
# the field's name.


def _is_wrong(check: Callable[[object], None], value: object) -> bool:
    try:
        check(value)
    except ValueError:
        return True
    return False


def _id(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"must be a string or an integer, not {_json_type(value)}")
    _encodable(value)


def _text(value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {_json_type(value)}")
    if not value.strip():
        raise ValueError("is empty")
    _encodable(value)


def _encodable(value: object) -> None:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None


def _messages(value: object) -> None:
    if not isinstance(value, list) or not value:
        raise ValueError("must be an array of messages, at least one")
    for at, message in enumerate(value, 1):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ValueError(f"number {at} must have role and content, and nothing else")
        if message["role"] not in ROLES:
            raise ValueError(f"number {at} has a role that is none of {', '.join(ROLES)}")
        try:
            _text(message["content"])
        except ValueError as error:
            raise ValueError(f"number {at} has a content that {error}") from error


def _text_or_messages(value: object) -> None:
    (_messages if isinstance(value, list) else _text)(value)


def _integer(least: int, most: int) -> Callable[[object], None]:
    def check(value: object) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= most:  # type: ignore[operator]
            raise ValueError(f"must be an integer from {least} to {most}")

    return check


def _number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {_json_type(value)}")
    if not abs(value) < 1e9:  # also of what JSON reads as infinite, like 1e999
        raise ValueError("is too large")


def _temperature(value: object) -> None:
    _number(value)
    if value < 0:  # type: ignore[operator]
        raise ValueError("must be 0 or more")


def _stop(value: object) -> None:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError("must be a string or an array of strings, none of them empty")
    for text in texts:
        _encodable(text)


def _signal(value: object) -> None:
    names = registry.names(everywhere=True)
    if value not in names:
        raise ValueError(f"must be one of {', '.join(names)}")


def _lora(value: object) -> None:
    if not isinstance(value, dict):
        raise ValueError("must be an object of adapters' names and their weights")
    for name, weight in value.items():
        try:
            _number(weight)
        except ValueError as error:
            raise ValueError(f"has a weight for {name!r} that {error}") from error


def _flag(value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_json_type(value)}")


def _true(value: object) -> None:
    if value is not True:
        raise ValueError("must be true")


_AT_MOST = 2**31 - 1  # what llama.cpp counts with

CHECKS: Mapping[str, Callable[[object], None]] = {
    "id": _id,
    "prompt": _text,
    "messages": _messages,
    "route": _text_or_messages,
    "cancel": _id,
    "adapters": _true,
    "rescan": _true,
    "max_tokens": _integer(1, _AT_MOST),
    "temperature": _temperature,
    "seed": _integer(1, MAX_SEED),
    "stop": _stop,
    "signal": _signal,
    "top_k": _integer(1, _AT_MOST),
    "lora": _lora,
    "raw": _flag,
}

SAMPLING = ("max_tokens", "temperature", "seed", "stop")
_ROUTING = ("signal", "top_k")

# What may stand in a request, by what makes it one.
KINDS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("id", "prompt", "raw", *SAMPLING, *_ROUTING, "lora"),
    "messages": ("id", "messages", *SAMPLING, *_ROUTING, "lora"),
    "route": ("id", "route", "raw", *_ROUTING),
    "cancel": ("cancel",),
    "adapters": ("id", "adapters"),
    "rescan": ("id", "rescan"),
}
NEED_ID = ("prompt", "messages", "route")
