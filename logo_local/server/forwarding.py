"""`serve --upstream`: route a prompt here, and let a llama-server generate with that route.

The body is forwarded unchanged, except for logo-local's own fields and llama-server's field `lora`.
The upstream's answer is returned with the route added; its errors are returned unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from ..completions import Engine, has_chat_template
from ..request_model import RoutingChoice, as_lines, problems_of
from ..routing.route import kept
from . import handlers
from .clients import only
from .exchange import Asked, Exchange, LostError, while_there
from .failures import RequestError
from .schema import Routed
from .upstream import Upstream
from .upstreams import Upstreams, Wish, conversation_key
from .workers import Work, Workers

OURS = ("model", "lora", "logo")  # fields that are not forwarded
_ELSEWHERE = (502, 503)  # statuses after which another upstream is tried
_ATTEMPTS = 2  # broken connections per request, since the request may be the cause
_START = 512  # characters or tokens at the start of a prompt that identify its conversation
_BODY = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    summary="Create a chat completion on an upstream.",
    response_model=None,
    openapi_extra=_BODY,
)
async def chat_completions(request: Request) -> Response:  # noqa: D103
    body = await _body(request)
    return await _answer(request, body, _of_messages(body.get("messages")))


@router.post(
    "/v1/completions",
    summary="Create a completion on an upstream.",
    response_model=None,
    openapi_extra=_BODY,
)
async def completions(request: Request) -> Response:  # noqa: D103
    body = await _body(request)
    return await _answer(request, body, _of_prompt(body.get("prompt")))


async def opened(
    urls: Sequence[str], key: str | None, llm: Engine, *, most_waiting: int, seconds: float
) -> Upstreams | None:
    """The upstreams at `urls`, checked once, for an engine that routes; None without any."""
    if not urls:
        return None
    upstreams = Upstreams(
        urls,
        key=key,
        sizes={"n_embd": llm.base.n_embd, "n_vocab": llm.n_vocab()},
        names=lambda: llm.pool.adapters,
        most_waiting=most_waiting,
        seconds=seconds,
    )
    await upstreams.open()
    return upstreams


# Requests


@dataclass(frozen=True)
class _Prompt:
    """What to route, or why it cannot be routed; `conversation` identifies its start."""

    value: Any
    conversation: str
    problem: str = ""


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def _of_messages(messages: Any) -> _Prompt:
    """Messages as the router reads them, text only: images do not affect a route."""
    good = isinstance(messages, list) and messages
    if not good or not all(isinstance(one, dict) and "role" in one for one in messages):
        return _Prompt(None, conversation_key(messages), "messages must be a list of messages")
    plain = [{"role": _role(one["role"]), "content": _text(one.get("content"))} for one in messages]
    roles = [message["role"] for message in plain]
    n = roles.index("user") + 1 if "user" in roles else len(roles)
    return _Prompt(plain, conversation_key(plain[:n]))


def _role(role: Any) -> str:
    return "system" if role == "developer" else str(role)


def _text(content: Any) -> str:
    if isinstance(content, list):
        content = "".join(
            str(part["text"]) for part in content if isinstance(part, dict) and "text" in part
        )
    text = content if isinstance(content, str) else ""
    return text.encode("utf-8", "replace").decode()  # replaces lone surrogates


def _of_prompt(prompt: Any) -> _Prompt:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return _Prompt(_text(prompt), conversation_key(prompt[:_START]))
    if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
        return _Prompt(prompt, conversation_key(prompt[:_START]))
    problem = "to be routed, prompt must be one text, or a list of token ids"
    return _Prompt(None, conversation_key(str(prompt)[:_START]), problem)


def _own_fields(request: Request, body: Mapping[str, Any]) -> Routed:
    """logo-local's own fields, validated as by the local server."""
    try:
        own = Routed.model_validate({name: body[name] for name in OURS if name in body})
    except ValidationError as error:
        places = problems_of(error.errors())
        raise RequestError(
            "the request cannot be understood",
            param=next(iter(places), None),
            problems=as_lines(places),
        ) from None
    if request.app.state.any_model and not handlers.is_known(own.model):
        return own.model_copy(update={"model": handlers.AUTO})
    return own


async def _routed(request: Request, body: dict[str, Any], prompt: _Prompt) -> Asked:
    own = _own_fields(request, body)
    weights = handlers.weights_of(own)
    if weights is None and prompt.problem:
        raise RequestError(prompt.problem, hint='or set the weights: "lora": {"NAME": 1.0}')
    upstreams: Upstreams = request.app.state.upstreams
    workers: Workers = request.app.state.workers
    upstreams.check_open()
    routing = (own.logo or RoutingChoice()).routing(weights)
    job = workers.submit(_routing_work(prompt.value, routing), prompt.conversation)
    route, timings_ms = await only(job, request)
    if weights is None:
        tolerance = workers.engines[0].routing.keep_route
        route = kept(route, upstreams.last_route(prompt.conversation), tolerance)
    keep_model = "model" in body and not handlers.is_known(str(body["model"]))
    left_out = [name for name in OURS if name != "model" or not keep_model]
    return Asked(
        {name: value for name, value in body.items() if name not in left_out},
        str(body.get("model") or own.model),
        prompt.conversation,
        route,
        weights is not None,
        timings_ms,
        job,
    )


def _routing_work(prompt: Any, routing: Any) -> Work:
    """Yields the route and its timings. Given weights are not scored."""

    def work(llm: Engine) -> Iterator[Any]:
        text = prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            if not has_chat_template(llm):  # the upstream may still have one
                text = prompt[-1]["content"]
        elif isinstance(prompt, list) and (max(prompt) >= llm.n_vocab() or min(prompt) < 0):
            raise RequestError(f"token ids are from 0 to {llm.n_vocab() - 1}", param="prompt")
        yield llm.route(text if text is not None else "", routing=routing), dict(llm.timings_ms)

    return work


# Responses


async def _answer(request: Request, body: dict[str, Any], prompt: _Prompt) -> Response:
    asked = await _routed(request, body, prompt)
    upstreams: Upstreams = request.app.state.upstreams
    wish = Wish(asked.conversation, frozenset(asked.route.names), all_of_them=asked.is_given)
    tried: set[Upstream] = set()
    n_broken = 0
    refused: Response | None = None
    while True:
        try:
            upstream = await while_there(upstreams.take(wish, tried), request)
        except RequestError:
            if refused is not None:
                return refused
            raise
        exchange = Exchange(request, upstreams, upstream, asked)
        try:
            response = await exchange.begin()
        except LostError as lost:
            upstreams.is_out(upstream, str(lost))
            tried.add(upstream)
            n_broken += lost.had_begun
            if n_broken >= _ATTEMPTS:
                raise RequestError(
                    f"{n_broken} upstreams failed while they answered this",
                    status=502,
                    code="upstream_failed",
                ) from None
            continue
        if response.status_code in _ELSEWHERE:
            upstreams.is_out(upstream, f"it returned status {response.status_code}")
            tried.add(upstream)
            refused = response
            continue
        return response
