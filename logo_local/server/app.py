"""The application: its routes, error handlers, and responses."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from .. import __version__
from ..completions import Engine, Sampling
from ..console import report
from ..errors import LogoError
from ..request_model import as_lines, problems_of
from . import answers, forwarding, handlers
from .clients import first_of, only, told
from .failures import RequestError
from .metrics import Counted, Metrics
from .middleware import PAGE, AccessMiddleware, Rules
from .request_log import Logged
from .schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ErrorBody,
    Generation,
    Routed,
    RouteRequest,
)
from .upstreams import Upstreams
from .workers import Job, Running, Work, Workers

_Routed = TypeVar("_Routed", bound=Routed)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in (
        (400, "The request says what cannot be done."),
        (401, "The API key is missing or wrong."),
        (403, "The Host or the Origin is not allowed."),
        (404, "There is no such model, adapter or address."),
        (408, "The body did not come in time."),
        (409, "An adapter cannot be used any more."),
        (413, "The body is too large."),
        (415, "The body is not JSON."),
        (429, "Too many are waiting; Retry-After says when to come back."),
        (431, "The headers are too large."),
        (503, "The server is closing."),
    )
}
# APIs of other products that clients try: OpenAI's Responses, Anthropic's, Ollama's.
_OTHER_APIS = ("/responses", "/messages", "/complete", "/api/chat", "/api/generate", "/api/tags")
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
# No other page may frame the page, and it connects only to this server. Text becomes HTML only
# through DOMPurify, which the "trusted types" policy enforces.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)


class _App(FastAPI):
    """Documents 400 for invalid requests, where FastAPI has 422, as OpenAI does."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return document


def create_app(
    engines: Sequence[Engine],
    *,
    rules: Rules | None = None,
    defaults: Sampling | None = None,
    most_waiting: int = 32,
    seconds: float = 600.0,
    any_model: bool = False,
    upstreams: Sequence[str] = (),
    upstream_key: str | None = None,
    on_start: Callable[[Running], None] | None = None,
) -> FastAPI:
    """An ASGI application that answers with these engines, one request each at a time.

    Up to `most_waiting` more requests wait in the queue; an answer may take `seconds`. The caller
    closes the engines after the application has ended. With `any_model` an unknown model name
    means auto. With `upstreams`, addresses of llama-servers, the engines only route, and these
    generate; `upstream_key` is sent to them. `on_start` gets what must be stopped with the server.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        limits: dict[str, Any] = {"most_waiting": most_waiting, "seconds": seconds}
        app.state.workers = workers = Workers(engines, **limits)
        app.state.metrics = Metrics(workers)
        behind = await forwarding.opened(upstreams, upstream_key, engines[0], **limits)
        app.state.upstreams = behind
        if behind is not None:
            app.state.metrics.watch(behind)
        for running in (workers, behind):
            if running is not None and on_start is not None:
                on_start(running)
        try:
            yield
        finally:
            if behind is not None:
                await behind.close()
            await workers.close()

    app = _App(
        title="logo-local",
        version=__version__,
        summary="LoRA adapters, selected and blended for every prompt.",
        lifespan=life,
        docs_url=None,  # its pages load scripts from the internet
        redoc_url=None,
    )
    app.state.defaults = defaults or Sampling(max_tokens=2048)
    app.state.started = int(time.time())
    app.state.any_model = any_model
    if upstreams:  # its routes have priority over those with the same paths
        app.include_router(forwarding.router, responses=_ERRORS)
    app.include_router(router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_address)
    app.add_exception_handler(LogoError, _failed)
    app.add_middleware(Counted)
    app.add_middleware(AccessMiddleware, rules=rules or Rules())
    app.add_middleware(Logged)
    return app


router = APIRouter(responses=_ERRORS)  # matched in this order: the most frequent come first


@router.post("/v1/chat/completions", summary="Create a chat completion.", response_model=None)
async def chat_completions(request: Request, body: ChatRequest) -> Response:  # noqa: D103
    defaults, known = request.app.state.defaults, _with_known_model(request, body)
    if body.tools is None and body.response_format is None:
        work = handlers.chat(known, defaults)
    else:  # converting a schema to a grammar may be slow: do not block other requests
        work = await asyncio.to_thread(handlers.chat, known, defaults)
    key = "".join(f"{m.content}\n" for m in body.messages)
    tools, forced = handlers.free_tools(body), handlers.forced_tool(body)
    return await _answer(request, body, work, key, tools, forced)


@router.post("/v1/completions", summary="Create a completion.", response_model=None)
async def completions(request: Request, body: CompletionRequest) -> Response:  # noqa: D103
    work = handlers.completion(_with_known_model(request, body), request.app.state.defaults)
    return await _answer(request, body, work, str(body.prompt))


@router.post("/v1/route", summary="Show the route for a prompt without an answer.")
async def route(request: Request, body: RouteRequest) -> dict[str, Any]:  # noqa: D103
    found, timings = await only(_submit(request, handlers.route(body)), request)
    return report.score_json(found, timings)


@router.post("/v1/embeddings", summary="Create embeddings with the base model.")
async def embeddings(request: Request, body: EmbeddingRequest) -> dict[str, Any]:  # noqa: D103
    vectors, n_tokens = await only(_submit(request, handlers.embedding(body)), request)
    request.app.state.metrics.tokens.labels("prompt").inc(n_tokens)
    return answers.embeddings(vectors, n_tokens, body.model)


@router.post("/v1/adapters/rescan", summary="Rescan the adapter folder.")
async def rescan(request: Request) -> dict[str, Any]:  # noqa: D103
    workers: Workers = request.app.state.workers
    found = [await only(job, request) for job in workers.submit_to_all(handlers.rescan)]
    return {**found[0].as_dict(), "n_adapters": len(workers.engines[0].pool.adapters)}


@router.get("/v1/adapters", summary="List the adapters and the files that were skipped.")
async def adapters(request: Request) -> dict[str, Any]:  # noqa: D103
    return answers.adapters(request.app.state.workers.engines[0])


@router.get("/v1/models", summary="List the model names.")
async def models(request: Request) -> dict[str, Any]:  # noqa: D103
    state = request.app.state
    return answers.models(state.workers.engines[0], state.started)


@router.get("/v1/models/{name}", summary="Get one model name.")
async def model(request: Request, name: str) -> dict[str, Any]:  # noqa: D103
    state = request.app.state
    for card in answers.models(state.workers.engines[0], state.started)["data"]:
        if card["id"] == name:
            return dict(card)
    raise RequestError(
        f"there is no model {name!r}",
        status=404,
        code="model_not_found",
        hint="/v1/models lists them",
    )


@router.get("/health", summary="Whether the server is ready, busy or draining.")
async def health(request: Request) -> Response:  # noqa: D103
    workers: Workers = request.app.state.workers
    upstreams: Upstreams | None = request.app.state.upstreams
    found: dict[str, Any] = {"status": workers.status()}
    found |= {"running": workers.n_running, "waiting": len(workers.waiting)}
    if upstreams is not None:
        found["status"] = "draining" if workers.closing else upstreams.status()
        found["running"] += upstreams.n_running
        found["waiting"] += upstreams.n_waiting
        found["upstreams"] = [
            {"url": one.url, "up": one.is_up, "running": one.running} for one in upstreams.all
        ]
    return JSONResponse(found, 200 if found["status"] in ("ready", "busy") else 503)


@router.get("/metrics", summary="Counts and times for Prometheus.", response_class=Response)
async def metrics(request: Request) -> Response:  # noqa: D103
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


async def page(request: Request) -> Response:
    """A file of the web page, from the package."""
    name = PAGE[request.url.path]
    content = (resources.files(__package__) / "page" / name).read_bytes()
    headers = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer"}
    return Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=headers)


for _path in PAGE:
    router.add_api_route(_path, page, include_in_schema=False)


def _with_known_model(request: Request, body: _Routed) -> _Routed:
    """`body`, with model auto if its model is unknown and the server allows that."""
    if not request.app.state.any_model or handlers.is_known(body.model):
        return body
    return body.model_copy(update={"model": handlers.AUTO})


def _submit(request: Request, work: Work, key: str = "") -> Job:
    workers: Workers = request.app.state.workers
    return workers.submit(work, key)


async def _answer(
    request: Request,
    body: Generation,
    work: Work,
    prompt: str,
    tools: Collection[str] = (),
    forced: str = "",
) -> Response:
    """The complete answer, or a stream; errors before the first token have an HTTP status.

    `tools` are the names of the tools that the model may call, `forced` is the name of the tool
    that must be called.
    """
    job = _submit(request, work, prompt)
    metrics: Metrics = request.app.state.metrics
    if not body.stream:
        answer = answers.with_calls(await only(job, request), tools, forced)
        metrics.answered(job, answer)
        headers = answers.route_headers(answer["logo"]["route"])
        return JSONResponse(answers.finished(answer, body.model, job.waited), headers=headers)
    items = job.__aiter__()
    first = await first_of(items, job, request)
    usage = body.stream_options is not None and body.stream_options.include_usage
    stream = answers.Stream(body.model, with_usage=usage, tools=tools, forced=forced)

    async def events() -> AsyncIterator[bytes]:
        chunk = first
        try:
            while chunk is not None:
                if chunk.get("usage"):
                    metrics.answered(job, chunk)
                for one in stream.chunks_of(chunk, job.waited):
                    yield answers.event(one)
                chunk = await anext(items, None)
        except Exception as error:
            yield answers.event(told(error).body)
        finally:
            job.cancel()  # no effect if it has ended
        yield answers.DONE

    headers = answers.route_headers(first["logo"]["route"]) if first is not None else {}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def _failed(_: Request, error: Exception) -> Response:
    return _response(told(error))


async def _invalid(request: Request, error: Exception) -> Response:
    """One response with all problems of a body; it does not repeat the body's content."""
    assert isinstance(error, RequestValidationError)
    places = problems_of(error.errors())
    _let_go(error)
    hint = ""
    if request.url.path == "/v1/embeddings" and any(p.startswith("input") for p in places):
        hint = (
            "send texts, not token ids: in LangChain's OpenAIEmbeddings "
            "check_embedding_ctx_length=False does that"
        )
    return _response(
        RequestError(
            "the request cannot be understood",
            param=next(iter(places), None),
            problems=as_lines(places)[:20],
            hint=hint,
        )
    )


def _let_go(error: BaseException | None) -> None:
    """Free the frames in which an error was raised: FastAPI's hold the error and the body."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__, error = None, error.__cause__ or error.__context__


async def _no_such_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    code = "no_such_address" if status == 404 else "invalid_request"
    hint = _where_instead(request.url.path) if status == 404 else ""
    return _response(
        RequestError(str(error.detail), status=status, code=code, hint=hint, headers=error.headers)
    )


def _where_instead(path: str) -> str:
    """A hint for a client that requests an unknown `path`, if there is one."""
    under_v1 = {route.path for route in router.routes if isinstance(route, APIRoute)}
    if f"/v1{path}" in under_v1:
        return f"it is at /v1{path}: the client's base URL ends in /v1"
    if path.startswith("/v1/v1/") and path.removeprefix("/v1") in under_v1:
        return f"it is at {path.removeprefix('/v1')}: the client adds /v1 to its base URL itself"
    if path.endswith(_OTHER_APIS):
        return "this server has /v1/chat/completions and /v1/completions, OpenAI's older interface"
    return "the addresses are in /openapi.json"


def _response(error: RequestError) -> Response:
    return JSONResponse(error.body, error.status, headers=error.headers)
