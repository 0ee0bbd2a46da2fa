"""A server in a thread, for tests that talk to it over a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn


@contextmanager
def serving(app, **settings) -> Iterator[str]:
    """Within this block the application answers at the address that the block is given."""
    # By its protocol asyncio knows TCP, and then does not hold back small packets for 40 ms.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    settings = {"http": "h11", "ws": "none", "log_config": None, "access_log": False} | settings
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        bound.close()
    assert not thread.is_alive()
