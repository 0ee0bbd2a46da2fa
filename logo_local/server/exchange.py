"""One request to one upstream, and its response with the route added."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx2 as httpx
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ..routing.route import Route
from . import answers
from .clients import client_left
from .failures import RequestError
from .metrics import Metrics
from .upstream import Upstream, reason_of
from .upstreams import Upstreams, now
from .workers import Job

_PASSED = ("content-type", "retry-after")

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A routed request. `body` is sent to the upstream, after the route is added."""

    body: Mapping[str, Any]
    model: str
    conversation: str
    route: Route
    is_given: bool  # the client set the weights
    timings_ms: Mapping[str, float]
    job: Job


class LostError(Exception):
    """An upstream could not be reached, or the connection broke before its answer began."""

    def __init__(self, why: str, *, had_begun: bool) -> None:
        super().__init__(why)
        self.had_begun = had_begun


class Exchange:
    """One request to one upstream, which is given back to the queue at the end."""

    def __init__(
        self, request: Request, upstreams: Upstreams, upstream: Upstream, asked: Asked
    ) -> None:
        self.request, self.asked = request, asked
        self.upstreams, self.upstream = upstreams, upstream
        self.route = _covered(asked.route, upstream)
        self.started = now()
        self.deadline = self.started + upstreams.seconds
        self.answer: httpx.Response | None = None
        self.usage: dict[str, Any] = {}
        self.logo: dict[str, Any] = {}

    async def begin(self) -> Response:
        """The complete answer, or a stream whose first event has arrived.

        Raises LostError if nothing has arrived and another upstream may be tried.
        """
        streams = False
        try:
            first = await self._in_time(while_there(self._send(), self.request, self.upstream))
            streams = first is not None
            if first is not None:
                self._remember()
                events = self._events(*first)
                headers = answers.route_headers(self._route())
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            return self._whole()
        except httpx.HTTPError as error:
            begun = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            raise LostError(reason_of(error), had_begun=begun) from None
        except asyncio.TimeoutError:
            raise RequestError(
                "the upstream did not answer within the time limit", status=504, code="time_limit"
            ) from None
        finally:
            if not streams:
                await self._end()

    async def _send(self) -> tuple[list[bytes], AsyncIterator[bytes]] | None:
        """Send the request; return a stream's lines up to its first event, and the rest."""
        asked, upstream = self.asked, self.upstream
        body = dict(asked.body)
        if scales := upstream.scales(self.route.applied):
            body["lora"] = scales
        if upstream.mixes_blends:
            body["cache_prompt"] = False
        http, path = self.upstreams.http, self.request.url.path
        content = json.dumps(body, separators=(",", ":")).encode()
        headers = {"content-type": "application/json"}
        self.answer = await http.send(
            http.build_request("POST", upstream.url + path, content=content, headers=headers),
            stream=True,
        )
        kind = self.answer.headers.get("content-type", "")
        if self.answer.status_code != 200 or not kind.startswith("text/event-stream"):
            await self.answer.aread()
            return None
        lines = _lines(self.answer)
        begin: list[bytes] = []
        async for line in lines:
            begin.append(line)
            if line.startswith(b"data:"):
                return begin, lines
        raise httpx.RemoteProtocolError("the stream ended before its first event")

    def _whole(self) -> Response:
        """The upstream's answer with the route added, or its error unchanged."""
        assert self.answer is not None
        headers = {n: self.answer.headers[n] for n in _PASSED if n in self.answer.headers}
        content = self.answer.content
        if self.answer.status_code != 200:
            return Response(content, self.answer.status_code, headers)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            return Response(content, 200, headers)
        self._remember()
        self._look(answer)
        answer["model"], answer["logo"] = self.asked.model, self._logo(answer)
        self._count()
        return JSONResponse(answer, headers=answers.route_headers(self._route()))

    async def _events(
        self, begin: list[bytes], lines: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The upstream's events, with the route in the first and the last."""
        is_done = False
        try:
            try:
                for line in begin:
                    yield self._event(line)
                while line := await self._in_time(_next_of(lines)):
                    is_done = is_done or line.startswith(b"data: [DONE]")
                    yield self._event(line)
            except httpx.HTTPError as error:
                if not is_done:
                    self.upstreams.is_out(self.upstream, reason_of(error))
                    yield _failed(
                        "the upstream was lost in the middle of the answer", "upstream_lost"
                    )
            except asyncio.TimeoutError:
                yield _failed("the answer took longer than the time limit", "time_limit")
            else:
                if is_done:
                    self._count()
                else:
                    yield _failed("the upstream ended during the answer", "upstream_lost")
            if not is_done:
                yield answers.DONE
        finally:
            await self._end()

    def _event(self, line: bytes) -> bytes:
        """A line of the stream; in chunks with the model's name and the route."""
        if not line.startswith(b"data: {"):
            return line
        try:
            chunk = json.loads(line[6:])
        except (ValueError, RecursionError):
            return line
        if "choices" not in chunk:  # an error from the upstream
            return line
        chunk["model"] = self.asked.model
        self._look(chunk)
        if any(choice.get("finish_reason") for choice in chunk["choices"]):
            chunk["logo"] = self._logo(chunk)
        elif not self.logo:
            chunk["logo"] = {"route": self._route()}
        self.logo = self.logo | chunk.get("logo", {})
        return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n"

    def _look(self, answer: Mapping[str, Any]) -> None:
        usage = answer.get("usage")
        self.usage = usage if isinstance(usage, dict) else self.usage

    def _route(self) -> dict[str, Any]:
        return self.route.as_dict()

    def _logo(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The route and the timings: routing measured here, the rest as the upstream reports it."""
        timings = {name: self.asked.timings_ms.get(name, 0.0) for name in ("probe", "score")}
        stated = answer.get("timings")
        if isinstance(stated, dict):
            timings |= {
                name: float(stated[theirs])
                for name, theirs in (("prefill", "prompt_ms"), ("decode", "predicted_ms"))
                if isinstance(stated.get(theirs), int | float)
            }
        timings["wait"] = 1000 * self.asked.job.waited
        self.logo = {"route": self._route(), "timings_ms": timings}
        return self.logo

    def _remember(self) -> None:
        self.upstreams.remember(self.asked.conversation, self.upstream, self.route)

    def _count(self) -> None:
        metrics: Metrics = self.request.app.state.metrics
        metrics.answered(self.asked.job, {"logo": self.logo, "usage": self.usage})

    async def _in_time(self, awaited: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wait_for(awaited, max(0.001, self.deadline - now()))

    async def _end(self) -> None:
        self.upstreams.give_back(self.upstream, now() - self.started)
        if self.answer is not None:
            await self.answer.aclose()


def _covered(route: Route, upstream: Upstream) -> Route:
    """The route without adapters that the upstream lacks; the others share their weights."""
    missing = [name for name in route.names if name not in upstream.ids]
    if not missing:
        return replace(route, mixture="none" if route.is_base else "scales")
    rows = [
        row
        for row in zip(route.names, route.scores, route.weights, strict=True)
        if row[0] in upstream.ids
    ]
    total = sum(weight for _, _, weight in rows) or 1.0
    reason = f"{', '.join(missing)} not loaded by the upstream"
    return replace(
        route,
        names=tuple(name for name, _, _ in rows),
        scores=tuple(score for _, score, _ in rows),
        weights=tuple(weight / total for _, _, weight in rows),
        mixture="scales" if rows else "none",
        reason=f"{route.reason}; {reason}" if route.reason else reason,
    )


async def while_there(
    work: Coroutine[Any, Any, T], request: Request, upstream: Upstream | None = None
) -> T:
    """The result of `work`, unless the client disconnects or the upstream fails before that."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(client_left(request))
    others: list[asyncio.Future[Any]] = [left]
    if upstream is not None:
        others.append(asyncio.ensure_future(upstream.lost.wait()))
    try:
        await asyncio.wait((task, *others), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if left.done():
            raise RequestError("the client has disconnected", status=499, code="gone")
        raise httpx.ReadError("the upstream is out")
    finally:
        for one in (task, *others):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await one


async def _next_of(lines: AsyncIterator[bytes]) -> bytes:
    """The next line with its line break, or nothing."""
    async for line in lines:
        return line
    return b""


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream, split at line feeds only: JSON may contain other line breaks."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r") + b"\n"
    if rest:
        yield rest + b"\n"


def _failed(message: str, code: str) -> bytes:
    error = RequestError(message, status=502, code=code, hint="send the request again")
    return answers.event(error.body)
