"""Run the application on a socket until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn

from .. import rpc
from ..completions import Engine
from . import restart
from .app import create_app
from .uvicorn_config import uvicorn_config
from .workers import Running, Workers

_MAX_CONNECTIONS = 512
_PATIENCE = 1.0  # seconds, after the second signal
_LINGER = 10.0  # seconds for clients to read finished answers, after the first
_OVERTIME = 30.0  # seconds after the time limit of answers, if an engine does not stop


class _Server(uvicorn.Server):
    """Rejects queued requests as soon as a signal arrives; running answers continue."""

    def __init__(self, config: uvicorn.Config, made: Sequence[Running]) -> None:
        super().__init__(config)
        self.made = made

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle Ctrl+C or SIGTERM; after a second one, running answers are not awaited."""
        for running in self.made:
            running.drain_soon()
        # The parent would raise the signal again at the end, which would skip the cleanup.
        if self.should_exit and not self.force_exit:
            self.force_exit = True
            threading.Thread(target=_end_soon, daemon=True).start()
        self.should_exit = True

    def fail(self) -> bool:
        """End all requests with an error, from another thread; whether the server continues."""
        for running in self.made:
            if isinstance(running, Workers):
                running.fail_soon(restart.lost())
        restart.pause()  # clients read the errors
        return not self.should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As in the parent, but with a time limit for clients that do not read."""
        watching = asyncio.create_task(self._give_up())
        try:
            await super().shutdown(sockets)
        finally:
            watching.cancel()

    async def _give_up(self) -> None:
        """Close connections whose finished answers are not read, and finally exit."""
        limit = max((running.seconds for running in self.made), default=0.0) + _OVERTIME
        idle_since = started = time.monotonic()
        while not self.force_exit:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            if any(running.n_running for running in self.made):
                idle_since = now
            if now - idle_since > _LINGER:
                for connection in list(self.server_state.connections):
                    connection.transport.abort()
            if now - started > limit:
                self.force_exit = True
                threading.Thread(target=_end_soon, daemon=True).start()


def _end_soon() -> None:
    time.sleep(2 * _PATIENCE)
    os._exit(130)


def listen(
    engines: Sequence[Engine], bound: socket.socket, *, restarts: bool = False, **settings: Any
) -> None:
    """Serve at the socket `bound` until SIGINT or SIGTERM. Settings: those of `create_app`.

    With `restarts`, the program is started again if an RPC server is lost.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each client that disconnects
    made: list[Running] = []
    app = create_app(engines, on_start=made.append, **settings)
    config = uvicorn_config(app, lifespan="on", limit_concurrency=_MAX_CONNECTIONS)
    server = _Server(config, made)
    if restarts:
        rpc.at_loss(restart.restarting(bound, server.fail))
    try:
        server.run(sockets=[bound])
    finally:
        for running in made:
            if not running.stop(_PATIENCE if server.force_exit else None):
                os._exit(130)  # an engine must not be freed while it runs
