"""Parse requests in JSON lines: bytes to lines, lines to requests. Pure, and strict.

A request with an unknown or invalid field is refused, with all its problems, so that a misspelt
option is not silently ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, ValidationError, model_validator

from ..errors import LogoError
from ..files.text_file import is_encodable
from ..request_model import (
    LORA_WITHOUT_ROUTE,
    Body,
    Messages,
    RoutingChoice,
    SamplingChoice,
    Text,
    Weights,
    as_lines,
    problems_of,
)

MAX_LINE = 16 * 2**20  # bytes
_AT_ONCE = 2**16  # bytes

Id: TypeAlias = str | int


def _be_true(value: bool) -> bool:
    if not value:
        raise ValueError("Input should be true")
    return value


Yes = Annotated[bool, AfterValidator(_be_true)]  # Literal[True] would accept 1


class AnswerLine(SamplingChoice, RoutingChoice):
    """What both kinds of questions may have."""

    id: Id
    lora: Weights | None = None

    @model_validator(mode="after")
    def _one_way(self) -> AnswerLine:
        if self.lora is not None and (self.signal is not None or self.top_k is not None):
            raise ValueError(LORA_WITHOUT_ROUTE)
        return self


class PromptLine(AnswerLine):
    """A prompt to answer."""

    prompt: Text
    raw: bool = False


class MessagesLine(AnswerLine):
    """A conversation to answer."""

    messages: Messages


class RouteLine(RoutingChoice):
    """A prompt or a conversation to route."""

    id: Id
    route: Text | Messages
    raw: bool = False


class CancelLine(Body):
    """The id of a request to cancel."""

    cancel: Id


class AdaptersLine(Body):
    """List the adapters."""

    id: Id | None = None
    adapters: Yes


class RescanLine(Body):
    """Check the folder."""

    id: Id | None = None
    rescan: Yes


# By the field that determines the kind of a request.
KINDS: Mapping[str, type[Body]] = {
    "prompt": PromptLine,
    "messages": MessagesLine,
    "route": RouteLine,
    "cancel": CancelLine,
    "adapters": AdaptersLine,
    "rescan": RescanLine,
}


class RequestError(LogoError):
    """An invalid request: its `line` number, from 1, and its `id`, if it has one."""

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
    """A line's number, from 1, and its bytes; None if it is longer than MAX_LINE."""

    number: int
    data: bytes | None


@dataclass(frozen=True)
class Request:
    """One request: its `kind` is a key of `KINDS`, whose value is the type of `body`."""

    kind: str
    line: int
    body: Body

    @property
    def id(self) -> Id | None:
        """The request's id, if it has one."""
        found: Id | None = getattr(self.body, "id", None)
        return found


def lines_of(read: Callable[[int], bytes]) -> Iterator[Line]:
    """The lines of what `read(n)` returns, at most n bytes at a time, until it returns b"".

    Empty lines are counted and skipped. The content of a line that is too long is dropped.
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
    """The request in a line. Raises RequestError with all its problems."""
    where = f"line {line.number}"
    found = _object(line, where)
    kinds = [kind for kind in KINDS if kind in found]
    if len(kinds) != 1:
        which = f"{' and '.join(kinds)} together" if kinds else "none of them"
        raise RequestError(
            f"{where}: a request has one of {', '.join(KINDS)}, and this one has {which}",
            hint='a question looks like this: {"id": 1, "prompt": "..."}',
            line=line.number,
            id=_known_id(found),
        )
    kind = kinds[0]
    allowed = [name for name in KINDS[kind].model_fields if name != kind]
    try:
        body = KINDS[kind].model_validate(found)
    except ValidationError as error:
        found_errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestError(
            f"{where}: this request cannot be used",
            problems=as_lines(problems_of(found_errors)),
            hint=f"beside {kind} there may be: {', '.join(allowed)}" if allowed else "",
            line=line.number,
            id=_known_id(found),
        ) from None
    return Request(kind, line.number, body)


def _known_id(found: Mapping[str, Any]) -> Id | None:
    """The id of an invalid request, if it is a valid id."""
    given = found.get("id")
    is_id = isinstance(given, str | int) and not isinstance(given, bool)
    return given if is_id and is_encodable(str(given)) else None


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
