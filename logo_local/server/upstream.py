"""One llama-server: its adapters and model, and whether it can be used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2 as httpx

CHECK_SECONDS = 5.0
_TEST_SECONDS = 30.0
# Two texts that begin differently, for `_mixes_blends`.
_TEXTS = ("one two three four five six seven eight nine", "alpha beta gamma delta epsilon zeta eta")
_UNKNOWN_SLOTS = 64  # for a server without /props, such as a load balancer


@dataclass(eq=False)
class Upstream:
    """One llama-server. `ids` are those of its adapters, by name; `running` counts our requests.

    Its state is "up", "suspect" (a request failed; until the next check), or "down"; `why` is the
    reason if it is not up. `lost` is set while it cannot be reached.
    """

    url: str
    ids: Mapping[str, int] = field(default_factory=dict)
    n_slots: int = 1
    running: int = 0
    last_used: float = 0.0  # when a request was sent, by a monotonic clock
    state: Literal["up", "suspect", "down"] = "down"
    why: str = "not checked yet"
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    check_now: asyncio.Event = field(default_factory=asyncio.Event)
    misses: int = 0
    missing: frozenset[str] = frozenset()  # adapters already reported in the log
    was_up: bool = False  # at any time
    mixes_blends: bool = False  # see `_mixes_blends`

    @property
    def is_up(self) -> bool:
        """Whether requests are sent to it."""
        return self.state == "up"

    def scales(self, weights: Mapping[str, float]) -> list[dict[str, Any]]:
        """The field `lora` of a request: unlisted adapters have no effect, [] means the default.

        So an empty blend sets one adapter to 0. Empty only if the server has no adapters.
        """
        listed = [{"id": self.ids[name], "scale": weight} for name, weight in weights.items()]
        if not listed and self.ids:
            listed = [{"id": min(self.ids.values()), "scale": 0.0}]
        return listed

    async def check(self, http: httpx.AsyncClient, sizes: Mapping[str, int]) -> None:
        """Request its health and its adapters, and the model if it is not up.

        `sizes` as for `Upstreams`. Raises httpx.HTTPError if it cannot be reached, UnusableError
        if it must not be used.
        """
        health = await self._get(http, "/health")
        if health.status_code != 200:
            raise UnusableError(f"/health returned status {health.status_code}")
        try:
            await self._read_adapters(http)
        except httpx.TimeoutException:
            # llama-server answers this between two batches, which may take long. Its health it
            # always answers.
            if not (self.is_up and self.running):
                raise
        if not self.is_up:
            await self._read_model(http, sizes)
        if self.state == "down" and self.ids:
            self.mixes_blends = await self._mixes_blends(http)

    async def _get(self, http: httpx.AsyncClient, path: str) -> httpx.Response:
        return await http.get(self.url + path, timeout=CHECK_SECONDS)

    async def _json(self, http: httpx.AsyncClient, path: str) -> Any:
        """The JSON at a path; None if the path does not exist."""
        answer = await self._get(http, path)
        if answer.status_code in (401, 403):
            raise UnusableError(
                "it rejects the API key; set LOGO_LOCAL_UPSTREAM_KEY or upstream-key in config.toml"
            )
        if answer.status_code != 200:
            return None
        try:
            return answer.json()
        except (ValueError, RecursionError):
            return None

    async def _read_adapters(self, http: httpx.AsyncClient) -> None:
        """Read the ids of its adapters, which may change when a server restarts."""
        rows = await self._json(http, "/lora-adapters")
        try:
            found = [(_stem(row["path"]), int(row["id"])) for row in rows]
        except (TypeError, KeyError, ValueError):
            raise UnusableError(
                "it is not a llama-server: there is no list at /lora-adapters"
            ) from None
        ids: dict[str, int] = {}
        for name, number in found:
            ids.setdefault(name, number)
        self.ids = ids

    async def _read_model(self, http: httpx.AsyncClient, sizes: Mapping[str, int]) -> None:
        """Read how many requests it runs at once, and check that the base model is the same."""
        props = await self._json(http, "/props")
        slots = props.get("total_slots") if isinstance(props, dict) else None
        self.n_slots = slots if isinstance(slots, int) and slots > 0 else _UNKNOWN_SLOTS
        models = await self._json(http, "/v1/models")
        try:
            stated = models["data"][0]["meta"]
            others = [
                f"{name} is {stated[name]} there and {size} here"
                for name, size in sizes.items()
                if stated.get(name, size) != size
            ]
        except (TypeError, KeyError, IndexError, AttributeError):
            return
        if others:
            raise UnusableError(f"it has another base model: {', '.join(others)}")

    async def _mixes_blends(self, http: httpx.AsyncClient) -> bool:
        """Whether it uses cached prompts of one blend for those of another.

        llama-server keeps the keys and values of earlier prompts in memory (--cache-ram) and finds
        them by their tokens alone. A prompt that was read without an adapter is reused with one,
        unless the slot notices the change, which it compares with its own last request only. Three
        short requests test this. If the test is not possible, it counts as mixing.
        """
        number = min(self.ids.values())
        cached, n_tokens = 0, 0
        for text, scale in ((_TEXTS[0], 0.0), (_TEXTS[1], 1.0), (_TEXTS[0], 1.0)):
            body = {
                **{"prompt": text, "max_tokens": 1, "id_slot": 0},
                "lora": [{"id": number, "scale": scale}],
            }
            try:
                answer = await http.post(
                    f"{self.url}/v1/completions", json=body, timeout=_TEST_SECONDS
                )
                usage = answer.json()["usage"]
                cached = int(usage["prompt_tokens_details"]["cached_tokens"])
                n_tokens = int(usage["prompt_tokens"])
            except (ValueError, KeyError, TypeError, httpx.ReadTimeout):
                return True
        return 2 * cached > n_tokens  # all texts begin with the same token


class UnusableError(Exception):
    """An upstream responds, but cannot be used."""


def reason_of(error: BaseException) -> str:
    """The reason of a failed connection, without the request's content."""
    kinds = {
        httpx.ConnectTimeout: "it does not answer",
        httpx.ConnectError: "cannot connect",
        httpx.ReadError: "the connection broke",
        httpx.RemoteProtocolError: "the connection was closed",
    }
    return next(
        (text for kind, text in kinds.items() if isinstance(error, kind)), type(error).__name__
    )


def _stem(path: str) -> str:
    name = re.split(r"[\\/]", str(path))[-1]
    return name.removesuffix(".gguf")
