"""The llama-servers of `serve --upstream`: their state, and which one gets the next request.

All of this runs on one event loop; only `drain_soon` may be called from other threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import httpx2 as httpx

from ..routing.route import Route
from .failures import RequestError
from .upstream import CHECK_SECONDS, UnusableError, Upstream, reason_of

log = logging.getLogger(__name__)

INTERVAL = 2.0  # seconds between two checks of an upstream
_MISSES = 2  # failed checks before an idle upstream counts as down
_SPARE = 2  # requests beyond an upstream's slots, so that a slot never waits for the next one
_CONVERSATIONS = 4096  # maximum number remembered
_NAMED = 5  # adapters per log line
_REMEMBERED = 0.1  # weight of the last request in the average duration


@dataclass(frozen=True)
class Wish:
    """The needs of a request: its `conversation`, a `conversation_key`, and its adapters.

    With `all_of_them`, an upstream must have all of the adapters.
    """

    conversation: str
    names: frozenset[str]
    all_of_them: bool = False


@dataclass(eq=False)
class _Waiting:
    wish: Wish
    tried: Collection[Upstream]
    place: asyncio.Future[Upstream]


class Upstreams:
    """All upstreams and their request queue.

    Each gets at most two more requests than it has slots; up to `most_waiting` requests wait.
    `sizes` are the base model's, with the names of llama-server's /v1/models (n_embd, n_vocab); an
    upstream with other sizes is not used. `names` returns the adapters of the pool. `key` is sent
    as a bearer token. An answer may take `seconds`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        key: str | None = None,
        sizes: Mapping[str, int] | None = None,
        names: Callable[[], Collection[str]] = tuple,
        most_waiting: int = 32,
        seconds: float = 600.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.all = [Upstream(url) for url in urls]
        self.seconds, self.most_waiting = seconds, most_waiting
        self.closing = False
        self._sizes, self._names, self._interval = sizes or {}, names, INTERVAL
        self._waiting: deque[_Waiting] = deque()
        self._average = 1.0  # seconds per request
        self._last: OrderedDict[str, tuple[Upstream, Route]] = OrderedDict()
        self._checks: list[asyncio.Task[None]] = []
        # One request per connection: an idle one would block a thread of llama-server, and might be
        # closed just when it is used. Proxy settings of the environment are for the internet.
        self.http = httpx.AsyncClient(
            headers={"connection": "close"} | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(None, connect=CHECK_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
        )

    # State of the upstreams

    async def open(self) -> None:
        """Check all upstreams once, and then regularly in the background."""
        await asyncio.gather(*(self._check(upstream) for upstream in self.all))
        for upstream in self.all:
            if not upstream.is_up:
                log.warning("upstream %s is not used: %s", upstream.url, upstream.why)
        self._checks = [asyncio.create_task(self._watch(upstream)) for upstream in self.all]

    async def close(self) -> None:
        """Stop the checks, and close all connections."""
        self.drain()
        for task in self._checks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.http.aclose()

    def is_out(self, upstream: Upstream, why: str) -> None:
        """A request failed: send no more until a check succeeds; the check is started now."""
        upstream.check_now.set()
        if upstream.is_up:
            self._leave(upstream, "suspect", why)

    def _leave(self, upstream: Upstream, state: Literal["suspect", "down"], why: str) -> None:
        if upstream.is_up:
            log.warning("upstream %s is out: %s", upstream.url, why)
        upstream.state, upstream.why, upstream.misses = state, why, 0
        self._serve()

    async def _watch(self, upstream: Upstream) -> None:
        while True:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(upstream.check_now.wait(), self._interval)
                upstream.check_now.clear()
                await asyncio.sleep(self._interval / 20)  # avoid a busy loop
            try:
                await self._check(upstream)
            except Exception:
                log.exception("the check of the upstream %s failed", upstream.url)

    async def _check(self, upstream: Upstream) -> None:
        """Request its health and its adapters."""
        try:
            await upstream.check(self.http, self._sizes)
        except httpx.TimeoutException:
            # All its request threads may be busy, which is not a failure.
            if upstream.is_up and upstream.running > upstream.n_slots:
                return
            upstream.misses += 1
            if not upstream.is_up or upstream.misses >= _MISSES:
                upstream.lost.set()
                self._leave(upstream, "down", "it does not answer")
        except httpx.HTTPError as error:
            upstream.lost.set()
            self._leave(upstream, "down", reason_of(error))
        except UnusableError as error:
            self._leave(upstream, "down", str(error))
        else:
            self._succeeded(upstream)

    def _succeeded(self, upstream: Upstream) -> None:
        upstream.misses = 0
        upstream.lost.clear()
        missing = frozenset(self._names()) - upstream.ids.keys()
        if missing - upstream.missing:
            log.warning(
                "upstream %s did not load %s; requests there are answered without them",
                upstream.url,
                _listed(missing),
            )
        upstream.missing = missing
        if not upstream.is_up:
            if upstream.mixes_blends and upstream.state == "down":
                log.warning(
                    "upstream %s reuses cached prompts of other adapters; its cache is not used "
                    "until you start it with --cache-ram 0",
                    upstream.url,
                )
            if upstream.was_up:
                log.warning("upstream %s is back", upstream.url)
            upstream.state, upstream.why, upstream.was_up = "up", "", True
            self._serve()

    # Assigning requests

    @property
    def n_running(self) -> int:
        """The number of requests that an upstream is processing."""
        return sum(upstream.running for upstream in self.all)

    @property
    def n_waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._waiting)

    def status(self) -> str:
        """draining, unavailable (none is up), busy (no slot is free) or ready."""
        if self.closing:
            return "draining"
        if all(one.state == "down" for one in self.all):
            return "unavailable"
        free = [one for one in self.all if one.is_up and one.running < one.n_slots]
        return "ready" if free else "busy"

    def check_open(self) -> None:
        """Raise the error of `take` for any request now, before a prompt is routed."""
        if self.closing:
            raise _closing()
        if all(one.state == "down" for one in self.all):
            raise self._none_up()
        if len(self._waiting) >= self.most_waiting:
            raise self._too_many()

    async def take(self, wish: Wish, tried: Collection[Upstream] = ()) -> Upstream:
        """An upstream for one request; `give_back` must follow.

        Prefers the last upstream of the conversation if it has a free slot, otherwise the least
        busy; never one of `tried`. RequestError 429 if too many wait, 503 if none is up, or if it
        would have to wait while the server closes, 409 if no upstream has all required adapters.
        """
        waiting = _Waiting(wish, tried, self._loop.create_future())
        self._waiting.append(waiting)
        self._serve()
        if len(self._waiting) > self.most_waiting and waiting in self._waiting:
            self._waiting.remove(waiting)
            raise self._too_many()
        try:
            return await waiting.place
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.place.done() and not waiting.place.cancelled():
                self.give_back(waiting.place.result())
            raise

    def give_back(self, upstream: Upstream, seconds: float | None = None) -> None:
        """End a request, after `seconds` if it was answered."""
        upstream.running -= 1
        if seconds is not None:
            self._average += _REMEMBERED * (seconds - self._average)
        self._serve()

    def last_route(self, conversation: str) -> Route | None:
        """The route of a conversation's last answer, if it is remembered."""
        found = self._last.get(conversation)
        return None if found is None else found[1]

    def remember(self, conversation: str, upstream: Upstream, route: Route) -> None:
        """Record that this upstream has the conversation in its prompt cache."""
        self._last[conversation] = upstream, route
        self._last.move_to_end(conversation)
        if len(self._last) > _CONVERSATIONS:
            self._last.popitem(last=False)

    def drain(self) -> None:
        """Accept no more requests, and reject the queue; running requests continue."""
        self.closing = True
        self._serve()

    def drain_soon(self) -> None:
        """`drain`, for a signal handler or another thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.drain)

    def stop(self, seconds: float | None = None) -> bool:
        """Does nothing: no work is left once the event loop has ended."""
        return True

    def _serve(self) -> None:
        """Assign upstreams to waiting requests, in the order of arrival."""
        for waiting in list(self._waiting):
            try:
                upstream = self._choice(waiting)
            except RequestError as error:
                self._waiting.remove(waiting)
                if not waiting.place.done():
                    waiting.place.set_exception(error)
                continue
            if upstream is None:
                continue
            self._waiting.remove(waiting)
            if not waiting.place.done():
                upstream.running += 1
                upstream.last_used = now()
                waiting.place.set_result(upstream)

    def _choice(self, waiting: _Waiting) -> Upstream | None:
        """The best upstream; None if the request has to wait."""
        chosen = self._best(waiting)
        if chosen is None and self.closing:
            raise _closing()
        return chosen

    def _best(self, waiting: _Waiting) -> Upstream | None:
        wish = waiting.wish
        open_to_it = [one for one in self.all if one.state != "down" and one not in waiting.tried]
        if not open_to_it:
            raise self._none_up()
        up = [one for one in open_to_it if one.is_up]
        if not up:
            return None  # the next check decides
        n_most = max(len(wish.names & one.ids.keys()) for one in up)
        if wish.all_of_them and n_most < len(wish.names):
            missing = wish.names - frozenset().union(*(one.ids.keys() for one in up))
            raise RequestError(
                f"no upstream that is up has loaded {_listed(missing or wish.names)}",
                status=409,
                code="adapter_unusable",
            )
        able = [one for one in up if len(wish.names & one.ids.keys()) == n_most]
        last, _ = self._last.get(wish.conversation, (None, None))
        if last in able and last is not None and last.running < last.n_slots:
            return last
        best = min(able, key=lambda one: (one.running / one.n_slots, one.last_used))
        return best if best.running < best.n_slots + _SPARE else None

    def _none_up(self) -> RequestError:
        return RequestError(
            "no upstream is up",
            status=503,
            code="no_upstream",
            hint="the server's log says why",
            headers={"Retry-After": str(math.ceil(self._interval))},
        )

    def _too_many(self) -> RequestError:
        n = len(self._waiting)
        slots = sum(one.n_slots for one in self.all if one.is_up) or 1
        seconds = math.ceil(self._average * (n + 1) / slots)
        return RequestError(
            f"{n} requests are waiting already",
            status=429,
            code="queue_full",
            hint=f"try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )


def conversation_key(start: Any) -> str:
    """A short key for all conversations that begin with `start`, a JSON value."""
    return hashlib.sha256(repr(start).encode("utf-8", "replace")).hexdigest()[:16]


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _closing() -> RequestError:
    return RequestError("the server is closing", status=503, code="closing")


def now() -> float:
    """Monotonic time in seconds, for durations."""
    return time.monotonic()
