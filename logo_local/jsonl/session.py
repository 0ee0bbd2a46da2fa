"""An engine behind two pipes: requests as JSON lines in, events as JSON lines out.

For apps in any language: `logo-local run MODEL --adapters DIR --jsonl`. The protocol is in
docs/embedding.md. This module has the request loop and the events; `requests` parses the lines.
It does not use files or processes: the caller passes a reader and a writer.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

from .. import __version__
from ..completions import (
    Engine,
    Prompt,
    Sampling,
    as_prompt,
    create,
    has_chat_template,
    piece_of,
)
from ..console import report
from ..errors import LogoError
from ..request_model import plain_messages
from ..routing.route import Route
from .requests import (
    AnswerLine,
    CancelLine,
    Line,
    Request,
    RequestError,
    RouteLine,
    lines_of,
    parse,
)

log = logging.getLogger(__name__)

PROTOCOL = 1  # incremented for changes that clients must know
CANCELLED = "cancelled"
_NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0}

Read = Callable[[int], bytes]
Write = Callable[[bytes], object]


@dataclass
class _Job:
    """A request that waits or runs."""

    request: Request
    cancelled: bool = False


@dataclass(frozen=True)
class _Failure:
    """An invalid line, at its place in the queue."""

    error: RequestError


class Events:
    """Writes events, each as a line of UTF-8. `write` is called once per line, and flushes."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def __call__(self, event: str, **fields: Any) -> None:
        """Write `event` with these fields, without those that are None."""
        given = {name: value for name, value in fields.items() if value is not None}
        line = json.dumps({"event": event, **given}, ensure_ascii=False, allow_nan=False)
        # A file name that is not UTF-8 contains lone surrogates, which JSON must escape.
        self._write(line.encode("utf-8", "backslashreplace") + b"\n")

    def progress(self, stage: str, done: int, total: int) -> None:
        """The progress callback of `LoGo`: reading, converting, indexing and profiling."""
        self("progress", stage=stage, done=done, total=total)

    def error(self, error: LogoError, **fields: Any) -> None:
        """Write an error with its message, problems, hint, and class name."""
        self(
            "error",
            **fields,
            kind=type(error).__name__,
            message=error.message,
            problems=list(error.problems),
            hint=error.hint,
        )


class Session:
    """Answers requests, one after the other, until the input ends or `stop` is called.

    `sampling` are the defaults for requests. The engine runs only in the thread that calls `run`;
    another thread reads, so that an answer can be cancelled while it is generated.
    """

    def __init__(self, llm: Engine, events: Events, sampling: Sampling) -> None:
        self._llm, self._events, self._sampling = llm, events, sampling
        self._queue: SimpleQueue[_Job | _Failure | None] = SimpleQueue()
        self._open: dict[str | int, _Job] = {}  # by id: waiting and running requests
        self._lock = threading.Lock()  # of `_open`, which both threads change
        self._stopping = False
        self._do: Mapping[str, Callable[[_Job], None]] = {
            "prompt": self._answer,
            "messages": self._answer,
            "route": self._route,
            "adapters": self._adapters,
            "rescan": self._rescan,
        }

    def run(self, read: Read) -> None:
        """Write that the engine is ready, and answer requests.

        `read(n)` waits for input and returns at most n bytes of it, b"" at its end. Raises the
        errors of the writer; failures of the engine become events.
        """
        base = self._llm.base
        self._events(
            "ready",
            protocol=PROTOCOL,
            version=__version__,
            model={"path": str(base.path), "architecture": base.architecture, "name": base.name},
            chat_template=has_chat_template(self._llm),
            adapters=list(self._llm.pool.names),
        )
        # A daemon: it may wait for input forever, and must not delay the exit.
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()
        while (item := self._queue.get()) is not None:
            self._handle(item)
        while not self._queue.empty():  # after `stop`
            if (item := self._queue.get()) is not None:
                self._handle(item)

    def stop(self) -> None:
        """Stop after the current token, and cancel waiting requests. Safe in a signal handler."""
        self._stopping = True
        self._queue.put(None)

    # Called in the reading thread

    def _listen(self, read: Read) -> None:
        try:
            for line in lines_of(read):
                self._take(line)
        except OSError as error:
            log.warning("the input ended: %s", error)
        finally:
            self._queue.put(None)

    def _take(self, line: Line) -> None:
        try:
            request = parse(line)
            if request.kind == "cancel":
                self._cancel(request)
            else:
                self._enqueue(request)
        except RequestError as error:
            self._queue.put(_Failure(error))

    def _enqueue(self, request: Request) -> None:
        job = _Job(request)
        if request.id is not None:
            with self._lock:
                if request.id in self._open:
                    raise RequestError(
                        f"line {request.line}: the id {request.id!r} is in use",
                        hint="give each request an id of its own, at least until its end",
                        line=request.line,
                    )
                self._open[request.id] = job
        self._queue.put(job)

    def _cancel(self, request: Request) -> None:
        assert isinstance(request.body, CancelLine)
        target = request.body.cancel
        with self._lock:
            job = self._open.get(target)
        if job is None:
            raise RequestError(
                f"line {request.line}: no request {target!r} waits or runs",
                hint="it may have ended just now",
                line=request.line,
            )
        job.cancelled = True

    # Called in the engine's thread

    def _handle(self, item: _Job | _Failure) -> None:
        if isinstance(item, _Failure):
            self._events.error(item.error, id=item.error.id, line=item.error.line)
            return
        request = item.request
        try:
            self._do[request.kind](item)
        except LogoError as error:
            self._finish(request)
            self._events.error(error, id=request.id)
        except Exception as error:  # a bug, or a chat template error: continue with the others
            log.warning("a request failed: %s: %s", type(error).__name__, error)
            self._finish(request)
            self._events("error", id=request.id, **_unexpected(error))

    def _finish(self, request: Request) -> None:
        """Free the id before the client can see the end of the request."""
        if request.id is not None:
            with self._lock:
                self._open.pop(request.id, None)

    def _done(self, job: _Job, reason: str, **fields: Any) -> None:
        self._finish(job.request)
        self._events("done", id=job.request.id, finish_reason=reason, **fields)

    def _is_cancelled(self, job: _Job) -> bool:
        return job.cancelled or self._stopping

    def _answer(self, job: _Job) -> None:
        request, reason = job.request, ""
        if self._is_cancelled(job):
            self._done(job, CANCELLED, usage=_NO_TOKENS, timings_ms={})
            return
        prompt = self._prompt(request)
        assert isinstance(request.body, AnswerLine)
        options = {**self._sampling.options(), **request.body.sampling(), "stream": True}
        if routing := request.body.routing(request.body.lora):
            options["routing"] = routing
        with self._telling_the_route(request):
            self._llm.should_stop = partial(self._is_cancelled, job)
            for chunk in create(self._llm, prompt, options):
                if piece := piece_of(chunk):
                    self._events("token", id=request.id, text=piece)
                reason = chunk["choices"][0].get("finish_reason") or reason
            if reason == "length" and self._is_cancelled(job):
                reason = CANCELLED
        usage, timings = dict(self._llm.usage), dict(self._llm.timings_ms)
        self._done(job, reason, usage=usage, timings_ms=report.rounded(timings))

    def _route(self, job: _Job) -> None:
        request = job.request
        if self._is_cancelled(job):
            self._done(job, CANCELLED, timings_ms={})
            return
        assert isinstance(request.body, RouteLine)
        prompt = self._prompt(request)
        self._tell_route(request, self._llm.route(prompt, routing=request.body.routing()))
        self._done(job, "route", timings_ms=report.rounded(self._llm.timings_ms))

    def _adapters(self, job: _Job) -> None:
        pool = self._llm.pool
        self._finish(job.request)
        self._events(
            "adapters",
            id=job.request.id,
            adapters=[{"name": a.name, "n_bytes": a.n_bytes} for a in pool.adapters.values()],
            left_out=[
                {"name": p.name, "path": str(p.path), "reason": p.reason, "hint": p.hint}
                for p in pool.problems
            ],
        )

    def _rescan(self, job: _Job) -> None:
        changes = self._llm.pool.rescan(progress=self._events.progress)
        self._finish(job.request)
        self._events("rescan", id=job.request.id, **changes.as_dict())

    def _prompt(self, request: Request) -> Prompt:
        given = getattr(request.body, request.kind)
        if isinstance(given, str):
            return as_prompt(self._llm, given, raw=getattr(request.body, "raw", False))
        if not has_chat_template(self._llm):
            raise RequestError(
                "the model has no chat template, which messages need",
                hint='send the text as "prompt"',
            )
        return plain_messages(given)

    @contextmanager
    def _telling_the_route(self, request: Request) -> Iterator[None]:
        """Within this block a route is written as soon as it is made, before the prompt is read."""
        self._llm.on_route = lambda route: self._tell_route(request, route)
        try:
            yield
        finally:
            self._llm.on_route = None

    def _tell_route(self, request: Request, route: Route) -> None:
        self._events("route", id=request.id, route=route.as_dict())


def _unexpected(error: Exception) -> dict[str, Any]:
    return {
        "kind": type(error).__name__,
        "message": " ".join(str(error).split()) or type(error).__name__,
        "problems": [],
        "hint": "this is a bug, or the model's chat template refuses these messages",
    }
