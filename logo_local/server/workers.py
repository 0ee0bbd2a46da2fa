"""Whose turn it is: requests wait in line for an engine, and each engine answers one at a time.

Every engine has a thread of its own, a worker. All bookkeeping happens on the event loop; a worker
only takes a job, runs it, and hands each item back to the loop.
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

from ..ask import Engine
from ..prefix import common_prefix
from .failures import RequestError

Work = Callable[[Engine], Iterator[Any]]
_COMPARED = 65536  # characters of a prompt, to find who has read its beginning
_REMEMBERED = 0.1  # how much the last job counts in the usual time of one


def _never() -> bool:
    return False


@dataclass(frozen=True)
class _End:
    error: Exception | None = None


@dataclass(eq=False)
class Job:
    """One request: iterate over it for what its work yields, in order; an error ends it.

    `key` is what the prompt begins with: an engine that has just read it is preferred. `waited`
    is the time in line in seconds, once it has begun.
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
        """Leave the line, or end the answer after the token that is being made."""
        self.cancelled = True
        self.workers.forget(self)

    def should_stop(self) -> bool:
        """What the engine asks after every token."""
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
                    del error  # this frame is in its traceback: a cycle, with all that it holds
                return
            yield item


class _Worker:
    """An engine and its thread."""

    def __init__(self, engine: Engine, workers: Workers, number: int) -> None:
        self.engine = engine
        self.last_key = ""
        self.jobs: list[Job] = []  # the one that runs, and what waits for this worker alone
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
            except BaseException as caught:  # whatever it is, others wait for this thread
                error = caught if isinstance(caught, Exception) else RuntimeError(repr(caught))
                # Prompts and their tokens are in the frames; the log needs lines only.
                traceback.clear_frames(caught.__traceback__)
            # The job may have been cancelled after its end, and holds the request.
            self.engine.should_stop = _never
            self._workers.finished(self, job, _End(error))
            del job, error


class Running(Protocol):
    """What a server waits for at its end: requests that run."""

    seconds: float

    @property
    def n_running(self) -> int: ...  # noqa: D102
    def drain_soon(self) -> None: ...  # noqa: D102
    def stop(self, seconds: float | None = None) -> bool: ...  # noqa: D102


class Workers:
    """All engines and the line before them. Made, used and closed on one event loop.

    At most `most_waiting` jobs wait; an answer may take `seconds` from when it is begun, after
    which it ends as if it had reached its longest.
    """

    def __init__(self, engines: Sequence[Engine], *, most_waiting: int, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.most_waiting, self.seconds = most_waiting, seconds
        self.waiting: deque[Job] = deque()
        self.closing = False
        self._average = 1.0  # seconds a job
        self._workers = [_Worker(engine, self, i) for i, engine in enumerate(engines)]
        self._idle = list(self._workers)  # longest idle first
        for worker in self._workers:
            worker.thread.start()

    @property
    def n_running(self) -> int:
        """How many jobs have an engine now."""
        return len(self._workers) - len(self._idle)

    @property
    def engines(self) -> list[Engine]:
        """The engines; only to be read from here, while a worker may be at work."""
        return [worker.engine for worker in self._workers]

    def status(self) -> str:
        """draining, busy (no engine is free) or ready."""
        if self.closing:
            return "draining"
        return "ready" if self._idle else "busy"

    def submit(self, work: Work, key: str = "") -> Job:
        """Stand in line. RequestError 429 where it is too long, 503 where the server is closing."""
        if self.closing:
            raise _closing()
        job = Job(work, key[:_COMPARED], self)
        if self._idle:
            worker = self._idle[0]
            if len(self._idle) > 1:  # the comparison takes its time
                worker = max(self._idle, key=lambda one: common_prefix(one.last_key, key))
            self._give(worker, job)
        elif len(self.waiting) < self.most_waiting:
            self.waiting.append(job)
        else:
            seconds = math.ceil(self._average * (len(self.waiting) + 1) / len(self._workers))
            raise _too_many(f"{len(self.waiting)} requests are waiting already", seconds)
        return job

    def submit_to_all(self, work: Work) -> list[Job]:
        """One job for each engine, ahead of the line; each begins when its engine is free.

        RequestError 429 where another such job has not begun yet, 503 where the server is closing.
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
        """Take a cancelled job out of the line, if it is still in it."""
        if job in self.waiting:
            self.waiting.remove(job)

    def drain(self) -> None:
        """Take nothing more, send away who waits; what runs goes on to its end."""
        self.closing = True
        while self.waiting:
            self.waiting.popleft().events.put_nowait(_End(_closing()))

    def drain_soon(self) -> None:
        """`drain`, for a signal handler or another thread."""
        self._tell(self.drain)

    async def close(self) -> None:
        """As `stop`, without holding up the event loop."""
        self.drain()
        await asyncio.to_thread(self.stop)

    def stop(self, seconds: float | None = None) -> bool:
        """End what runs, wait for the threads, at most so long, and say whether all have ended.

        May be called twice. The engines stay open: they are the caller's.
        """
        self.closing = True
        for worker in self._workers:
            for job in list(worker.jobs):
                job.cancelled = True
            worker.inbox.put(None)
        for worker in self._workers:
            worker.thread.join(seconds)
        return not any(worker.thread.is_alive() for worker in self._workers)

    # From a worker's thread

    def hand_over(self, job: Job, item: Any) -> None:
        """Give the loop what a job yields."""
        self._tell(job.events.put_nowait, item)

    def finished(self, worker: _Worker, job: Job, end: _End) -> None:
        """Give the loop a job's end, and the worker back."""
        self._tell(self._finish, worker, job, end)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody waits for this any more
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
