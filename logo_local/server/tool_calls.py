"""Calls of tools in an answer's text, in the forms that widely used chat templates ask for.

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>    Hermes, Qwen
    {"name": ..., "parameters": {...}}                          Llama 3, the whole answer
    [TOOL_CALLS] [{"name": ..., "arguments": {...}}]            Mistral, with or without the mark

A text counts as a call only where it is complete JSON and names a tool of the request; anything
else stays text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from typing import Any

_OPEN, _CLOSE, _MISTRAL = "<tool_call>", "</tool_call>", "[TOOL_CALLS]"


def calls_in(text: str, names: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """The text without its calls, and these as OpenAI has them; all of it where there are none."""
    if _OPEN in text:
        return _marked(text, names)
    bare = text.strip().removeprefix(_MISTRAL).strip()
    if bare[:1] in ("{", "["):
        calls = _calls(bare, names)
        if calls:
            return "", calls
    return text, []


def _marked(text: str, names: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    content, calls = [], []
    rest = text
    while _OPEN in rest:
        before, _, after = rest.partition(_OPEN)
        inside, close, following = after.partition(_CLOSE)
        found = _calls(inside.strip(), names)
        content.append(before if found else before + _OPEN + inside + close)
        calls += found
        rest = following
    content.append(rest)
    left = "".join(content)
    return (left.strip() if calls else text), calls


def _calls(text: str, names: Collection[str]) -> list[dict[str, Any]]:
    """The calls that a JSON text is, one or a list; none where any part is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    values = value if isinstance(value, list) else [value]
    calls = [_call(one, names) for one in values]
    return [call for call in calls if call] if all(calls) else []


def _call(value: Any, names: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("name") not in names:
        return {}
    arguments = value.get("arguments", value.get("parameters", {}))
    is_text = isinstance(arguments, str)  # some models write JSON within JSON
    text = arguments if is_text else json.dumps(arguments, ensure_ascii=False)
    return call_of(value["name"], str(text))


def call_of(name: str, arguments: str) -> dict[str, Any]:
    """A call as OpenAI has it, with an id of its own."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class Holder:
    """Holds back the part of a streamed text that may become a call."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._said = False  # whether text went out, behind which no bare JSON is a call

    def feed(self, piece: str) -> str:
        """The text that can go out now."""
        self._held += piece
        if not self._said and self._held.lstrip()[:1] in ("", "{", "["):
            return ""
        at = self._held.find(_OPEN)
        if at < 0:  # a mark may have begun at the end
            at = len(self._held) - _overlap(self._held, _OPEN)
        out, self._held = self._held[:at], self._held[at:]
        self._said = self._said or bool(out.strip())
        return out

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """What is left of the text, and the calls."""
        held, self._held = self._held, ""
        if self._said and not held.startswith(_OPEN):
            return held, []
        return calls_in(held, self._names)


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters of `text` are the first of `mark`."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
