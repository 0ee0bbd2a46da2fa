"""Running the application on a socket until a signal ends it."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn

from ..ask import Engine
from .app import create_app
from .lanes import Lanes

_MAX_CONNECTIONS = 512
_PATIENCE = 1.0  # seconds, after the second Ctrl+C


class _Server(uvicorn.Server):
    """Sends away who stands in line as soon as a signal comes; answers being made go on."""

    def __init__(self, config: uvicorn.Config, made: Sequence[Lanes]) -> None:
        super().__init__(config)
        self.made = made

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl+C or SIGTERM; a second Ctrl+C does not wait for answers either."""
        for lanes in self.made:
            lanes.drain_soon()
        # The parent would raise the signal once more at the end, which would skip all that closes.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def listen(engines: Sequence[Engine], bound: socket.socket, **settings: Any) -> None:
    """Answer requests at the socket `bound` until SIGINT or SIGTERM. Settings: `create_app`'s."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each client that goes
    made: list[Lanes] = []
    config = uvicorn.Config(
        create_app(engines, on_start=made.append, **settings),
        http="h11",  # bounds headers that do not end
        limit_concurrency=_MAX_CONNECTIONS,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    server = _Server(config, made)
    try:
        server.run(sockets=[bound])
    finally:
        for lanes in made:
            if not lanes.stop(_PATIENCE if server.force_exit else None):
                os._exit(130)  # an engine is at work, and must not be freed under its thread
