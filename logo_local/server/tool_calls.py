"""Parse tool calls in an answer's text, in the formats of widely used chat templates.

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>    Hermes, Qwen
    {"name": ..., "parameters": {...}}                          Llama 3, the whole answer
    [TOOL_CALLS] [{"name": ..., "arguments": {...}}]            Mistral, with or without the mark

A text is a call only if it is complete JSON and names a tool of the request; all other text is
returned unchanged.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from typing import Any

_OPEN, _CLOSE, _MISTRAL = "<tool_call>", "</tool_call>", "[TOOL_CALLS]"


def calls_in(text: str, names: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """The text without its calls, and the calls in OpenAI's format; all text if there are none."""
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
    """The calls in a JSON text, one or a list; empty if any part is something else."""
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
    is_text = isinstance(arguments, str)  # some models write the arguments as a JSON string
    text = arguments if is_text else json.dumps(arguments, ensure_ascii=False)
    return call_of(value["name"], str(text))


def call_of(name: str, arguments: str) -> dict[str, Any]:
    """A call in OpenAI's format, with a new id."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class Holder:
    """Holds back the part of a streamed text that may become a call."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._said = False  # whether text was sent; after that bare JSON is not a call

    def feed(self, piece: str) -> str:
        """Add `piece`, and return the text that can be sent now."""
        self._held += piece
        if not self._said and self._held.lstrip()[:1] in ("", "{", "["):
            return ""
        at = self._held.find(_OPEN)
        if at < 0:  # a mark may begin at the end of the text
            at = len(self._held) - _overlap(self._held, _OPEN)
        out, self._held = self._held[:at], self._held[at:]
        self._said = self._said or bool(out.strip())
        return out

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls."""
        held, self._held = self._held, ""
        if self._said and not held.startswith(_OPEN):
            return held, []
        return calls_in(held, self._names)


def _overlap(text: str, mark: str) -> int:
    """The number of last characters of `text` that are the first of `mark`."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
