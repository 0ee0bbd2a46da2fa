"""Servers that have to end, and what requests leave behind in memory."""

import asyncio
import gc
import signal
import socket
import subprocess
import sys
import time
import weakref

import pytest

from logo_local.errors import PromptError
from logo_local.fake import FakeLoGo
from logo_local.server.app import create_app
from logo_local.server.workers import Workers

SERVER = """
import signal, socket, sys, threading, time
from logo_local.fake import FakeLoGo
from logo_local.server import http

def stuck():
    time.sleep(1000)  # as a call into llama.cpp that nothing interrupts
    return "never"

answers = {"long": lambda prompt, route: "word " * 20_000, "stuck": [[stuck]]}[sys.argv[1]]
http._LINGER = 1.0
bound = socket.create_server(("127.0.0.1", 0))
print(bound.getsockname()[1], flush=True)
http.listen([FakeLoGo({"a": 1.0}, answers)], bound)
"""
BODY = b'{"messages":[{"role":"user","content":"hi"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: " + str(len(BODY)).encode() + b"\r\n\r\n" + BODY
)


@pytest.fixture
def server():
    running = []

    def start(kind):
        command = [sys.executable, "-c", SERVER, kind]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_clients_that_do_not_read_do_not_keep_the_server(server):
    process, port = server("long")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(REQUEST * 60)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 130)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_an_engine_that_is_stuck(server, sent):
    process, port = server("stuck")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(REQUEST)
        time.sleep(1)
        process.send_signal(sent)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(sent)
        assert process.wait(60) in (0, 130)


class Big:
    """Stands for a prompt of megabytes and its tokens."""


def test_a_job_that_fails_leaves_nothing_in_memory():
    """Without a collection of cycles, which may be a long time away."""
    kept = []

    def refuse(_engine):
        big = Big()
        kept.append(weakref.ref(big))
        raise PromptError("it does not fit")
        yield

    async def run():
        workers = Workers([FakeLoGo({"a": 1.0})], most_waiting=1, seconds=60)
        with pytest.raises(PromptError):
            async for _ in workers.submit(refuse):
                pass
        alive = kept[0]() is not None
        await workers.close()
        return alive

    gc.disable()
    try:
        assert asyncio.run(run()) is False
    finally:
        gc.enable()


def test_a_body_that_is_too_large_is_answered_before_the_connection_ends():
    """The client must be able to read the refusal while it still sends."""
    from serving import serving

    with serving(create_app([FakeLoGo({"a": 1.0})])) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        n = 4 * 1024 * 1024 + 1
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            f"content-type: application/json\r\ncontent-length: {n}\r\n\r\n"
        )
        for _ in range(5):
            with socket.create_connection((host, int(port))) as client:
                client.sendall(head.encode() + bytes(n))
                assert client.recv(65536).startswith(b"HTTP/1.1 413")
