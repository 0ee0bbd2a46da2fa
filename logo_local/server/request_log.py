"""One log line per request: time, path, status, duration. No prompts, no keys, no queries."""

from __future__ import annotations

import logging
import sys
import time

from ..files.gguf_bounds import printable
from .middleware import App, Message, Receive, Scope, Send

log = logging.getLogger(__name__)


class Logged:
    """The outermost ASGI middleware, which logs each request when its response has ended."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            took = 1000 * (time.monotonic() - started)
            path = printable(scope["path"])
            log.info("%s %s %s %.0f ms", scope["method"], path, status or "no answer", took)


def show() -> None:
    """Write the lines to standard error, with the time of day in front."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
