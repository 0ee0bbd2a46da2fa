"""Convert the engine's output to responses in OpenAI's format, with the route."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ..completions import Engine
from ..files.folder import kind_of
from .handlers import AUTO, BASE, ONE
from .tool_calls import Holder, call_of, calls_in


def finished(answer: dict[str, Any], model: str, waited: float) -> dict[str, Any]:
    """An answer, or a chunk of one, for the client: `model` is the name in the request.

    llama_cpp puts the name of the model file there, which clients should not see. `waited` is the
    time in the queue in seconds.
    """
    answer["model"] = model
    if "timings_ms" in answer.get("logo", {}):
        answer["logo"]["timings_ms"]["wait"] = 1000 * waited
    answer.setdefault("created", int(time.time()))
    for choice in answer.get("choices", ()):
        choice.setdefault("logprobs", None)
        calls = choice.get("message", {}).get("tool_calls") or ()
        if any(_was_cut(call["function"]["arguments"]) for call in calls):
            choice["finish_reason"] = "length"
        for part in ("delta", "message"):
            if part in choice:  # llama_cpp adds the deprecated form of a call
                choice[part] = {
                    name: value
                    for name, value in choice[part].items()
                    if name != "function_call" and (value is not None or name == "content")
                }
                if part == "delta" and choice[part].get("content", "") is None:
                    del choice[part]["content"]
    return answer


def with_calls(answer: dict[str, Any], names: Collection[str], forced: str) -> dict[str, Any]:
    """A complete answer, with the calls of these tools parsed from its text.

    For a `forced` tool the text is the arguments.
    """
    for choice in answer.get("choices", ()):
        message = choice.get("message", {})
        if forced:
            message["tool_calls"] = [call_of(forced, message["content"] or "")]
            message["content"], choice["finish_reason"] = None, "tool_calls"
        if not names or message.get("tool_calls") or not message.get("content"):
            continue
        text, calls = calls_in(message["content"], names)
        if calls:
            message["content"], message["tool_calls"] = text or None, calls
            choice["finish_reason"] = "tool_calls"
    return answer


def _was_cut(arguments: str) -> bool:
    """Whether the arguments of a call are incomplete, which llama_cpp does not report."""
    try:
        json.loads(arguments)
    except ValueError:
        return True
    return False


class Stream:
    """Converts the chunks of one answer to OpenAI's format for streams.

    The id and name of a call are only in its first chunk, because clients concatenate chunks; the
    usage is a separate chunk, if requested.
    """

    def __init__(
        self, model: str, *, with_usage: bool, tools: Collection[str] = (), forced: str = ""
    ) -> None:
        self._model, self._with_usage, self._forced = model, with_usage, forced
        self._holder = Holder(tools) if tools else None  # if calls are optional
        self._arguments: str | None = None  # of the call, as received so far

    def chunks_of(self, chunk: dict[str, Any], waited: float) -> Iterator[dict[str, Any]]:
        """A chunk of llama_cpp's as one or two chunks; `waited` as for `finished`."""
        usage = chunk.pop("usage", None)
        chunk = finished(chunk, self._model, waited)
        if self._holder is not None:
            for choice in chunk["choices"]:
                self._look_for_calls(self._holder, choice)
        for choice in chunk["choices"] if self._forced else ():
            self._as_call(choice)
        for choice in chunk["choices"]:
            for call in choice.get("delta", {}).get("tool_calls", ()):
                if self._arguments is not None:
                    call.pop("id", None), call.pop("type", None), call["function"].pop("name", None)
                self._arguments = (self._arguments or "") + call["function"]["arguments"]
            if choice["finish_reason"] == "tool_calls" and _was_cut(self._arguments or ""):
                choice["finish_reason"] = "length"
        yield chunk
        if self._with_usage and usage is not None:
            rest = {k: v for k, v in chunk.items() if k != "logo"}
            yield {**rest, "choices": [], "usage": usage}

    def _as_call(self, choice: dict[str, Any]) -> None:
        """Change the text of a forced tool's arguments into a part of the call."""
        delta = choice.setdefault("delta", {})
        if text := delta.pop("content", ""):
            delta["tool_calls"] = [{"index": 0, **call_of(self._forced, text)}]
        if choice.get("finish_reason"):
            choice["finish_reason"] = "tool_calls"

    def _look_for_calls(self, holder: Holder, choice: dict[str, Any]) -> None:
        delta = choice.setdefault("delta", {})
        text = holder.feed(delta.get("content") or "")
        if choice.get("finish_reason"):
            rest, calls = holder.end()
            text += rest
            if calls:
                delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
                choice["finish_reason"] = "tool_calls"
        if text or "content" in delta:
            delta["content"] = text


def route_headers(route: Mapping[str, Any]) -> dict[str, str]:
    """Response headers about the route, for proxies and logs: adapters and a hash of the blend.

    `x-logo-route` is "NAME=WEIGHT, ...", with names percent-encoded, or "base". `x-logo-blend` is
    the same for answers with the same adapters and weights.
    """
    rows = [(row["name"], row["weight"]) for row in route["adapters"]]
    if not rows:
        return {"x-logo-route": "base", "x-logo-blend": "base"}
    text = ", ".join(f"{quote(name, safe='')}={weight:.4f}" for name, weight in rows)
    exact = json.dumps(sorted(rows)).encode()
    return {"x-logo-route": text, "x-logo-blend": hashlib.sha256(exact).hexdigest()[:16]}


def event(value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def models(llm: Engine, started: int) -> dict[str, Any]:
    """All names that a request may use as its model."""
    names = [AUTO, BASE, *(ONE + name for name in llm.pool.adapters)]
    return {"object": "list", "data": [model_card(name, started) for name in names]}


def model_card(name: str, started: int) -> dict[str, Any]:
    """One entry of the list of models."""
    return {"id": name, "object": "model", "created": started, "owned_by": "logo-local"}


def adapters(llm: Engine) -> dict[str, Any]:
    """The base model and the pool: each adapter, and skipped entries with reasons. No paths."""
    pool = llm.pool
    rows = []
    for adapter in pool.adapters.values():
        try:
            kind = kind_of(pool.origin(adapter.name))
        except Exception:  # removed in the meantime
            continue
        rows.append(
            {
                "name": adapter.name,
                "kind": kind,
                "rank": adapter.rank_text,
                "lora_alpha": adapter.lora_alpha,
                "modules": len(adapter.modules),
                "n_bytes": adapter.n_bytes,
            }
        )
    problems = [
        {"name": problem.name, "file": os.path.basename(problem.path), "reason": problem.reason}
        for problem in pool.problems
    ]
    base = {"name": llm.base.path.stem, "architecture": llm.base.architecture}
    return {"base": base, "adapters": rows, "problems": problems}


def embeddings(vectors: Sequence[Any], n_tokens: int, model: str) -> dict[str, Any]:
    """Vectors in OpenAI's format."""
    rows = [
        {"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": rows, "model": model, "usage": usage}
