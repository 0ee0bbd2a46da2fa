"""The request queue: requests wait for an engine, and each engine answers one at a time.

Every engine has its own thread, a worker. All bookkeeping happens on the event loop; a worker only
takes a job, runs it, and hands each item back to the loop.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..completions import Engine
from ..prefix import common_prefix
from .failures import RequestError

Work = Callable[[Engine], Iterator[Any]]
_COMPARED = 65536  # characters of a prompt, to find the engine with the longest prefix
_REMEMBERED = 0.1  # weight of the last job in the average duration


def _never() -> bool:
    return False


@dataclass(frozen=True)
class _End:
    error: Exception | None = None


@dataclass(eq=False)
class Job:
    """One request: iterate over it to get the items of its work; an error ends the iteration.

    `key` is the beginning of the prompt: an engine that has just read it is preferred. `waited` is
    the time in the queue in seconds, set when the job starts.
    """

    work: Work
    key: str
    workers: Workers
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    queued_at: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    deadline: float = math.inf
    cancelled: bool = False

    def cancel(self) -> None:
        """Leave the queue, or stop the answer after the current token."""
        self.cancelled = True
        self.workers.forget(self)

    def should_stop(self) -> bool:
        """Called by the engine after every token."""
        return self.cancelled or time.monotonic() > self.deadline

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            item = await self.events.get()
            if isinstance(item, _End):
                error, item = item.error, None
                try:
                    if error is not None:
                        raise error
                finally:
                    del error  # avoid a cycle: this frame is in its traceback
                return
            yield item


class _Worker:
    """An engine and its thread."""

    def __init__(self, engine: Engine, workers: Workers, number: int) -> None:
        self.engine = engine
        self.last_key = ""
        self.jobs: list[Job] = []  # the running job, and jobs for this worker alone
        self._workers = workers
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=f"worker-{number}", daemon=True)

    def _run(self) -> None:
        while (job := self.inbox.get()) is not None:
            error: Exception | None = None
            try:
                self.engine.should_stop = job.should_stop
                if not job.cancelled:
                    for item in job.work(self.engine):
                        self._workers.hand_over(job, item)
            except BaseException as caught:  # a worker's thread must survive any error
                error = caught if isinstance(caught, Exception) else RuntimeError(repr(caught))
                # The frames contain prompts and tokens; the log needs only the lines.
                traceback.clear_frames(caught.__traceback__)
            # The job may have been cancelled after its end, and holds the request.
            self.engine.should_stop = _never
            self._workers.finished(self, job, _End(error))
            del job, error


class Running(Protocol):
    """Running requests that a server waits for when it stops."""

    seconds: float

    @property
    def n_running(self) -> int: ...  # noqa: D102
    def drain_soon(self) -> None: ...  # noqa: D102
    def stop(self, seconds: float | None = None) -> bool: ...  # noqa: D102


class Workers:
    """All engines and their queue. Created, used and closed on one event loop.

    At most `most_waiting` jobs wait; an answer may take `seconds` from its start, and then ends as
    if it had reached its maximum length.
    """

    def __init__(self, engines: Sequence[Engine], *, most_waiting: int, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.most_waiting, self.seconds = most_waiting, seconds
        self.waiting: deque[Job] = deque()
        self.closing = False
        self._average = 1.0  # seconds per job
        self._workers = [_Worker(engine, self, i) for i, engine in enumerate(engines)]
        self._idle = list(self._workers)  # longest idle first
        for worker in self._workers:
            worker.thread.start()

    @property
    def n_running(self) -> int:
        """The number of running jobs."""
        return len(self._workers) - len(self._idle)

    @property
    def engines(self) -> list[Engine]:
        """The engines; only for reading, because a worker may be running."""
        return [worker.engine for worker in self._workers]

    def status(self) -> str:
        """draining, busy (no engine is free) or ready."""
        if self.closing:
            return "draining"
        return "ready" if self._idle else "busy"

    def submit(self, work: Work, key: str = "") -> Job:
        """Add a job to the queue. RequestError 429 if it is full, 503 if the server is closing."""
        if self.closing:
            raise _closing()
        job = Job(work, key[:_COMPARED], self)
        if self._idle:
            worker = self._idle[0]
            if len(self._idle) > 1:  # the comparison is slow
                worker = max(self._idle, key=lambda one: common_prefix(one.last_key, key))
            self._give(worker, job)
        elif len(self.waiting) < self.most_waiting:
            self.waiting.append(job)
        else:
            seconds = math.ceil(self._average * (len(self.waiting) + 1) / len(self._workers))
            raise _too_many(f"{len(self.waiting)} requests are waiting already", seconds)
        return job

    def submit_to_all(self, work: Work) -> list[Job]:
        """One job for each engine, before the queue; each starts when its engine is free.

        RequestError 429 if another such job has not started yet, 503 if the server is closing.
        """
        if self.closing:
            raise _closing()
        if any(len(worker.jobs) > 1 for worker in self._workers):
            raise _too_many("this is waiting to be done already", 1)
        jobs = [Job(work, "", self) for _ in self._workers]
        for worker, job in zip(self._workers, jobs, strict=True):
            self._give(worker, job)
        return jobs

    def forget(self, job: Job) -> None:
        """Remove a cancelled job from the queue, if it is still there."""
        if job in self.waiting:
            self.waiting.remove(job)

    def drain(self, error: RequestError | None = None) -> None:
        """Accept no more jobs, and reject the queue; running jobs continue."""
        self.closing = True
        while self.waiting:
            self.waiting.popleft().events.put_nowait(_End(error or _closing()))

    def fail_soon(self, error: RequestError) -> None:
        """End all jobs with this error, from another thread. The engines are unusable then."""
        self._tell(self._fail, error)

    def _fail(self, error: RequestError) -> None:
        self.drain(error)
        for worker in self._workers:
            for job in worker.jobs:
                job.events.put_nowait(_End(error))

    def drain_soon(self) -> None:
        """`drain`, for a signal handler or another thread."""
        self._tell(self.drain)

    async def close(self) -> None:
        """As `stop`, without blocking the event loop."""
        self.drain()
        await asyncio.to_thread(self.stop)

    def stop(self, seconds: float | None = None) -> bool:
        """Stop running jobs, wait up to `seconds` for the threads; return whether all have ended.

        May be called twice. The engines stay open; the caller closes them.
        """
        self.closing = True
        for worker in self._workers:
            for job in list(worker.jobs):
                job.cancelled = True
            worker.inbox.put(None)
        for worker in self._workers:
            worker.thread.join(seconds)
        return not any(worker.thread.is_alive() for worker in self._workers)

    # Called from a worker's thread

    def hand_over(self, job: Job, item: Any) -> None:
        """Pass an item of a job to the loop."""
        self._tell(job.events.put_nowait, item)

    def finished(self, worker: _Worker, job: Job, end: _End) -> None:
        """Pass the end of a job to the loop, and return the worker."""
        self._tell(self._finish, worker, job, end)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits for the result
            self._loop.call_soon_threadsafe(function, *arguments)

    def _give(self, worker: _Worker, job: Job) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        now = time.monotonic()
        job.waited, job.deadline = now - job.queued_at, now + self.seconds
        if job.key:
            worker.last_key = job.key
        worker.jobs.append(job)
        worker.inbox.put(job)

    def _finish(self, worker: _Worker, job: Job, end: _End) -> None:
        job.events.put_nowait(end)
        if job.key:
            took = time.monotonic() - job.queued_at - job.waited
            self._average += _REMEMBERED * (took - self._average)
        worker.jobs.remove(job)
        if worker.jobs:
            return
        if self.waiting:
            self._give(worker, self.waiting.popleft())
        else:
            self._idle.append(worker)


def _too_many(why: str, seconds: int) -> RequestError:
    return RequestError(
        why,
        status=429,
        code="queue_full",
        hint=f"try again in {seconds} s",
        headers={"Retry-After": str(seconds)},
    )


def _closing() -> RequestError:
    return RequestError("the server is closing", status=503, code="closing")
