"""Access control for all requests: hosts, origins, keys, and size limits.

A plain ASGI middleware. A page on the internet can make a browser send requests to this machine: by
a name that resolves to it (DNS rebinding), which the Host header shows, or across origins, which
Origin shows. Bodies are read completely, with limits on size and time, before they are passed on.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from .failures import RequestError

MAX_BODY = 4 * 1024 * 1024  # bytes; a hundred thousand tokens are a tenth of it
MAX_HEADERS = 16 * 1024  # bytes, including the path
BODY_SECONDS = 30.0
MOST_DISCARDED, DISCARD_SECONDS = 64 * 1024 * 1024, 5.0  # of a body refused for its length
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# The files of the web page by their paths.
PAGE = {"/": "page.html"} | {
    f"/{name}": name
    for name in (
        *("page.css", "page.js", "markdown.js", "pool.js", "server.js", "storage.js"),
        *("vendor/marked.esm.js", "vendor/purify.min.js"),
    )
}
PUBLIC = ("/health", *PAGE)  # these contain nothing about models, prompts or users

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Rules:
    """Allowed hosts and origins, and the required key.

    With `any_address` the host may also be any IP address: only names can be rebound. `origins` may
    contain a star for a variable part: "vscode-webview://*".
    """

    hosts: Sequence[str] = LOOPBACK
    any_address: bool = False
    origins: Sequence[str] = ()
    api_key: str | None = None

    def allows_host(self, name: str) -> bool:
        """Whether the Host header may have this name."""
        return name in self.hosts or (self.any_address and _is_address(name))

    def allows_origin(self, origin: str) -> bool:
        """Whether a page of this origin may send requests."""
        return any(re.fullmatch(re.escape(o).replace(r"\*", "[^/]*"), origin) for o in self.origins)


class AccessMiddleware:
    """ASGI middleware that checks access."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app = app
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        origin = headers.get("origin", b"").decode("latin-1")
        foreign = bool(origin) and not _same_origin(origin, headers)
        send = _with_headers(send, origin if foreign and self.rules.allows_origin(origin) else "")
        try:
            self._check(scope, headers, origin if foreign else "")
            if foreign and _is_preflight(scope, headers):
                await _preflight(send, headers.get("access-control-request-headers", b""))
                return
            self._check_key(scope, headers)
            body = await _body(headers, receive)
            if scope["method"] == "POST" and b"content-type" not in dict(scope["headers"]):
                json_type = (b"content-type", b"application/json")  # the only possible type
                scope = {**scope, "headers": [*scope["headers"], json_type]}
        except RequestError as error:
            await _refuse(send, error, receive if error.status == 413 else None)
            return
        except _GoneError:
            return
        await self.app(scope, _replay(body, receive), send)

    def _check(self, scope: Scope, headers: dict[str, bytes], foreign_origin: str) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope["raw_path"] or b"") + len(scope["query_string"]) > MAX_HEADERS:
            raise RequestError(f"headers may have {MAX_HEADERS} bytes at most", status=431)
        host = headers.get("host", b"").decode("latin-1").lower()
        name = re.sub(r":\d*$", "", host)
        if not self.rules.allows_host(name):
            raise RequestError(
                f"this server is not meant to be called {name!r}",
                status=403,
                code="host_not_allowed",
                hint=f"where that is intended, start it with --allow-host {name or 'NAME'}",
            )
        if foreign_origin and not self.rules.allows_origin(foreign_origin):
            raise RequestError(
                f"pages from {foreign_origin} may not ask this server",
                status=403,
                code="origin_not_allowed",
                hint=f"where that is intended, start it with --allow-origin {foreign_origin}",
            )
        kind = headers.get("content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind not in (b"application/json", b""):
            raise RequestError(
                "the body must be JSON", status=415, hint="send Content-Type: application/json"
            )

    def _check_key(self, scope: Scope, headers: dict[str, bytes]) -> None:
        if self.rules.api_key is None or scope["path"] in PUBLIC:
            return
        kind, _, key = headers.get("authorization", b"").partition(b" ")
        expected = self.rules.api_key.encode()
        if kind.lower() != b"bearer" or not secrets.compare_digest(key.strip(), expected):
            raise RequestError(
                "the API key is missing or wrong",
                status=401,
                code="invalid_api_key",
                hint="send it as Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )


class _GoneError(Exception):
    """The client disconnected before its body was complete."""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _same_origin(origin: str, headers: dict[str, bytes]) -> bool:
    return origin.lower() == "http://" + headers.get("host", b"").decode("latin-1").lower()


async def _body(headers: dict[str, bytes], receive: Receive) -> bytes:
    length = headers.get("content-length", b"0")
    if not length.isdigit() or int(length[:18]) > MAX_BODY:
        raise _too_large()
    try:
        return await asyncio.wait_for(_read(receive), BODY_SECONDS)
    except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        raise RequestError("the body did not come in time", status=408, code="timeout") from None


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise _too_large()
        if not message.get("more_body"):
            return bytes(body)


def _too_large() -> RequestError:
    return RequestError(
        f"the body may have {MAX_BODY} bytes at most", status=413, code="body_too_large"
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body first."""
    there = [body]

    async def again() -> Message:
        if there:
            return {"type": "http.request", "body": there.pop(), "more_body": False}
        return await receive()

    return again


def _is_preflight(scope: Scope, headers: dict[str, bytes]) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _with_headers(send: Send, origin: str) -> Send:
    """`send` with the headers of every response; with CORS headers for other origins."""
    extra = [
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]
    if origin:
        extra = [
            *extra[:2],
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"retry-after"),
            (b"vary", b"origin"),
        ]

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *extra]
        await send(message)

    return with_headers


async def _preflight(send: Send, asked: bytes) -> None:
    # OpenAI's JavaScript client sends headers of its own; origin and key are checked anyway.
    allowed = asked if re.fullmatch(rb"[\w\-, ]{1,2000}", asked) else b"authorization, content-type"
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", allowed),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body"})


async def _refuse(send: Send, error: RequestError, receive: Receive | None = None) -> None:
    """Send the error; with `receive`, read the rest of the body before the connection closes.

    A connection that is closed with unread bytes is reset, and the response is lost.
    """
    body = json.dumps(error.body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": receive is not None})
    if receive is not None:
        with suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(_discard(receive), DISCARD_SECONDS)
        await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    """Read and drop the rest of a body, up to a limit."""
    n_bytes = 0
    while n_bytes < MOST_DISCARDED:
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return
