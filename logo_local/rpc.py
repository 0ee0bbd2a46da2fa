"""Run a model on other machines: the RPC servers of llama.cpp.

A server lends the devices of its machine. They are registered once per process, and every model
that is loaded afterwards can place layers on them. llama.cpp aborts the process when it loses a
server, and waits without a time limit for one that has another client. So addresses are checked
before llama.cpp gets them, and `at_loss` reports which server was lost. llama_cpp is imported on
first use.
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import logging
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from .errors import LogoError, NativeError, RpcError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
_ATTEMPTS, _ATTEMPT_SECONDS = 3, 0.3  # to find a lost server
_WAIT_SECONDS = 5.0  # before a message says that a server has another client
_FILES = "/dev/fd"  # the open files of this process; missing on Windows
_HOST_AND_PORT = re.compile(r"([^\s:/@\[\]]+):([0-9]{1,5})")
_START = "start ggml-rpc-server there, with --host and --port (docs/several-machines.md)"

_connecting = ""  # the endpoint that llama.cpp connects to at the moment


class RpcServer(NamedTuple):
    """The address of an RPC server as the user wrote it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


_connected: dict[str, RpcServer] = {}  # by endpoint: the servers whose devices are registered


def parse_server(text: str) -> RpcServer:
    """The server of "HOST:PORT". Raises ValueError for anything else; IPv6 is not supported."""
    match = _HOST_AND_PORT.fullmatch(text.strip())
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"{text!r} is not an RPC server: write it like 192.168.0.11:50052")
    return RpcServer(match[1].lower(), int(match[2]))


def use_rpc_servers(servers: str | Iterable[str], *, public: bool = False) -> list[str]:
    """Register the devices of RPC servers for all models that this process loads afterwards.

    `servers` are "HOST:PORT" each, as a list or separated by commas; the result is their numeric
    addresses. The connections are neither encrypted nor authenticated, so that addresses outside
    of private networks need `public`. Waits, with a warning, for a server that has another client.
    llama.cpp aborts the process when a server is lost later, see `at_loss`. Not thread-safe.

    Raises RpcError, naming all servers that cannot be used, or NativeError if this build of
    llama-cpp-python has no RPC or does not list the devices.
    """
    import llama_cpp

    texts = servers.split(",") if isinstance(servers, str) else list(servers)
    try:
        parsed = [parse_server(text) for text in texts]
    except ValueError as error:
        raise RpcError(str(error)) from None
    if not llama_cpp.llama_supports_rpc():
        raise NativeError(
            "this build of llama-cpp-python has no RPC", hint=f"build it: {build_command()}"
        )
    endpoints = checked(parsed, public=public)
    for server, endpoint in zip(parsed, endpoints, strict=True):
        if endpoint not in _connected:
            _connect(server, endpoint)
    return endpoints


def build_command() -> str:
    """The command that builds the installed version of llama-cpp-python with RPC.

    pip's cache does not distinguish builds of the same version, so it must not be used.
    """
    try:
        version = f"=={importlib.metadata.version('llama-cpp-python')}"
    except importlib.metadata.PackageNotFoundError:
        version = "~=0.3.36"
    return (
        f'CMAKE_ARGS="-DGGML_RPC=ON" {sys.executable or "python"} -m pip install --no-cache-dir '
        f"--force-reinstall --no-deps --no-binary llama-cpp-python llama-cpp-python{version}"
    )


# Addresses


def endpoint_of(server: RpcServer, *, public: bool) -> str:
    """The numeric address of a server, "192.168.0.11:50052".

    llama.cpp gets this one, so that a name cannot resolve to another address afterwards. Raises
    ValueError if the name is unknown, or if the address is public and `public` is False.
    """
    try:
        found = socket.getaddrinfo(server.host, server.port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ValueError(f"the name cannot be resolved: {reason}") from None
    address = str(found[0][4][0])
    if ipaddress.ip_address(address).is_global and not public:
        named = "" if address == server.host else f"{address} "
        raise ValueError(f"the address {named}is outside of private networks")
    return f"{address}:{server.port}"


def unreachable(endpoint: str) -> str:
    """Why nothing at this numeric address accepts a TCP connection; "" if something does.

    Nothing is sent: a server that has another client reads it later, and ends when it answers a
    client that is gone.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:.0f} seconds"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def checked(servers: Sequence[RpcServer], *, public: bool) -> list[str]:
    """The endpoints of servers that accept connections; RpcError with all that do not."""
    problems, wrong_address = [], False
    with ThreadPoolExecutor(max_workers=max(len(servers), 1)) as threads:
        found = list(threads.map(lambda server: _check(server, public), servers))
    for server, (_, problem, refused) in zip(servers, found, strict=True):
        wrong_address |= refused
        if problem:
            problems.append(f"{server}: {problem}")
    if problems:
        raise RpcError(
            "RPC servers cannot be used",
            problems=problems,
            hint="prompts and weights are sent without encryption: use a private network or a VPN, "
            "or allow it with --rpc-public"
            if wrong_address
            else f"check the addresses, or {_START}",
        )
    return [endpoint for endpoint, _, _ in found]


def _check(server: RpcServer, public: bool) -> tuple[str, str, bool]:
    """The endpoint, the problem with it, and whether the problem is a public address."""
    try:
        endpoint = endpoint_of(server, public=public)
    except ValueError as error:
        return "", str(error), "outside" in str(error)
    return endpoint, "" if endpoint in _connected else unreachable(endpoint), False


# Connections


def _connect(server: RpcServer, endpoint: str) -> None:
    """Register one server, in a thread: Ctrl+C works while llama.cpp waits for an answer."""
    from .llama import rpc_devices

    global _connecting
    listed: list[int] = []
    thread = threading.Thread(
        target=lambda: listed.append(rpc_devices.add_rpc_server(endpoint)), daemon=True
    )
    _connecting = str(server)
    thread.start()
    thread.join(_WAIT_SECONDS)
    if thread.is_alive():
        prepare_connections([endpoint])
        log.warning("waiting for %s: it has another client, or it is no RPC server", server)
    while thread.is_alive():
        thread.join(0.1)
    _connecting = ""
    if not any(listed):
        raise NativeError(
            f"llama.cpp does not list the devices of the RPC server {server}",
            hint="nothing would run there; logo-local doctor checks the installation",
        )
    _connected[endpoint] = server


def prepare_connections(endpoints: Iterable[str] | None = None) -> int:
    """Set options on llama.cpp's connections to these RPC servers; returns their number.

    A machine without power or network does not close its connections, and llama.cpp would wait
    for it without a time limit, where Ctrl+C has no effect. With keepalive, the operating system
    lets llama.cpp fail within half a minute. And a server ends with SIGPIPE when it answers a
    client that has closed its connection; a reset, by the linger option, is an error that it
    survives.

    By default for all servers. Call it when a model is loaded, because llama.cpp connects again for
    every model. Has no effect on Windows.
    """
    if not os.path.isdir(_FILES):
        return 0
    addresses = (one.rpartition(":") for one in (_connected if endpoints is None else endpoints))
    peers = {(host, int(port)) for host, _, port in addresses}
    found = 0
    for number in map(int, os.listdir(_FILES)):
        with suppress(OSError):  # not a socket, or not connected
            connection = socket.socket(fileno=number)
            try:
                if connection.family == socket.AF_INET and connection.getpeername() in peers:
                    for level, option, value in _socket_options():
                        connection.setsockopt(level, option, value)
                    found += 1
            finally:
                connection.detach()  # it belongs to llama.cpp
    return found


def _socket_options() -> Iterator[tuple[int, int, int | bytes]]:
    """As (level, option, value), as far as the platform has them."""
    yield socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)  # on, 0 seconds: reset
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    for name, value in (
        ("TCP_KEEPIDLE", 10),  # seconds without data before the first check
        ("TCP_KEEPALIVE", 10),  # the same on macOS
        ("TCP_KEEPINTVL", 5),  # seconds between checks
        ("TCP_KEEPCNT", 4),  # unanswered checks
        ("TCP_USER_TIMEOUT", 30_000),  # milliseconds for data that is not acknowledged
    ):
        if hasattr(socket, name):
            yield socket.IPPROTO_TCP, getattr(socket, name), value


def at_loss(handle: Callable[[LogoError], object]) -> None:
    """Call `handle` when llama.cpp is about to abort the process, instead of printing a stack.

    The error is an RpcError if the reason is an RPC server. Called once, in any thread, while
    llama.cpp is inside of a call that cannot be continued: the handler must end or replace the
    process.
    """
    from .llama import rpc_devices

    once = threading.Lock()

    def aborted(message: str) -> None:
        if not once.acquire(blocking=False):
            threading.Event().wait()  # another thread ends the process
        handle(_reason(message))

    rpc_devices.at_abort(aborted)


def _reason(message: str) -> LogoError:
    """The error for llama.cpp's message, which starts with the file and line of its source."""
    file, _, text = message.partition(": ")
    if "ggml-rpc" not in file:
        return NativeError(
            f"llama.cpp cannot continue: {message.strip()}", hint="this is a bug; please report it"
        )
    if _connecting:
        return RpcError(
            f"{_connecting} is not an RPC server of the same version of llama.cpp",
            problems=[f"llama.cpp: {text.strip()}"],
            hint=_START,
        )
    problems = _lost_servers()
    return RpcError(
        "an RPC server no longer answers" if problems else "the connection to an RPC server ended",
        problems=problems or [f"{server} accepts connections" for server in _connected.values()],
        hint="start it again; its log says why it ended, for example for lack of memory",
    )


def _lost_servers() -> list[str]:
    """The servers that accept no connections, with reasons; asked again, as one may be ending."""
    for attempt in range(_ATTEMPTS):
        time.sleep(_ATTEMPT_SECONDS * bool(attempt))
        with ThreadPoolExecutor(max_workers=max(len(_connected), 1)) as threads:
            found = zip(_connected.values(), threads.map(unreachable, _connected), strict=True)
            if problems := [f"{server}: {problem}" for server, problem in found if problem]:
                return problems
    return []
