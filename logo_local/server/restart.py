"""Start the server again after an RPC server was lost.

llama.cpp aborts the process that has lost an RPC server. Instead, the process executes the program
again, with the same arguments, process id and listening socket, and so frees everything. Until the
RPC servers answer and the model is loaded, requests get status 503.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import uvicorn
from starlette.responses import JSONResponse

from ..console.abort import Ending
from ..console.terminal import print_error, say
from ..errors import LogoError, RpcError
from ..rpc import checked, parse_server
from .failures import RequestError
from .middleware import AccessMiddleware, Receive, Rules, Scope, Send
from .uvicorn_config import uvicorn_config

SOCKET_VARIABLE = "_LOGO_LOCAL_SOCKET"  # the file descriptor of the listening socket
INTERVAL = 2.0  # seconds between two attempts to reach the RPC servers
_RETRY_AFTER = {"Retry-After": "5"}  # seconds
_FIRST_FILE = 3  # after standard input, output and error


def is_possible() -> bool:
    """Whether a process can be replaced by another program: not on Windows."""
    return os.name == "posix"


def inherited_socket() -> socket.socket | None:
    """The listening socket of the program before a restart; None at the first start."""
    number = os.environ.pop(SOCKET_VARIABLE, None)
    return None if number is None else socket.socket(fileno=int(number))


def pause() -> bool:
    """Wait before a restart: a server that ends when it is used must not keep this machine busy."""
    time.sleep(INTERVAL)
    return True


def restarting(
    bound: socket.socket, before: Callable[[], bool] = pause
) -> Callable[[LogoError], None]:
    """A handler for `rpc.at_loss` that executes the program again, with the socket `bound`.

    The process ends instead if the reason is not an RPC server, or if `before`, which is called
    first, returns False. Create it while standard output and error are not redirected.
    """
    ending = Ending()

    def handle(error: LogoError) -> None:
        if not isinstance(error, RpcError):
            ending(error)
        ending.restore()
        print_error(error)
        say("Requests get status 503 until the RPC servers answer")
        if not before():
            os._exit(1)
        _execute(bound)

    return handle


def _execute(bound: socket.socket) -> NoReturn:
    """Replace this process. Closes all other files: an open connection keeps an RPC server busy."""
    for number in map(int, os.listdir("/dev/fd")):
        if number >= _FIRST_FILE:
            with suppress(OSError):  # the one of listdir
                os.set_inheritable(number, number == bound.fileno())
    os.environ[SOCKET_VARIABLE] = str(bound.fileno())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def wait_for(servers: Sequence[str], *, public: bool) -> None:
    """Return when all RPC servers accept connections."""
    while True:
        with suppress(RpcError):
            checked([parse_server(server) for server in servers], public=public)
            return
        time.sleep(INTERVAL)


@contextmanager
def unavailable(bound: socket.socket, rules: Rules) -> Iterator[None]:
    """Within this block, a thread answers all requests at the socket with status 503."""
    server = uvicorn.Server(uvicorn_config(AccessMiddleware(_answer, rules), lifespan="off"))
    copy = bound.dup()  # uvicorn closes its sockets
    thread = threading.Thread(target=server.run, kwargs={"sockets": [copy]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    body: dict[str, Any] = {"status": "unavailable", "running": 0, "waiting": 0}
    if scope["path"] != "/health":
        body = lost().body
    await JSONResponse(body, 503, headers=_RETRY_AFTER)(scope, receive, send)


def lost() -> RequestError:
    """The error for requests that cannot be answered, because an RPC server was lost."""
    return RequestError(
        "a machine that runs a part of the model does not answer",
        status=503,
        code="rpc_server_lost",
        hint="try again later: the server continues when the machine answers",
        headers=_RETRY_AFTER,
    )
