"""Servers that have to end, and what requests leave behind in memory."""

import asyncio
import gc
import json
import signal
import socket
import subprocess
import sys
import time
import weakref

import pytest
from fastapi.exceptions import RequestValidationError

from logo_local.errors import LogoError, PromptError
from logo_local.fake import FakeLoGo
from logo_local.request_model import Body
from logo_local.server.app import create_app
from logo_local.server.workers import Job, Workers

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


MESSAGE = {"role": "user", "content": "word " * 6000}
REFUSED = {
    "too long": ("/v1/chat/completions", {"messages": [MESSAGE]}),
    "too long, streamed": ("/v1/chat/completions", {"messages": [MESSAGE], "stream": True}),
    "too many tokens": ("/v1/completions", {"prompt": " word" * 6000}),
    "unknown field": ("/v1/chat/completions", {"messages": [MESSAGE], "x": 1}),
    "many fields": ("/v1/chat/completions", {f"field-{i}": 1 for i in range(500)}),
    "not JSON": ("/v1/chat/completions", None),
}


KEPT = (Body, Job, LogoError, RequestValidationError, json.JSONDecodeError)


@pytest.mark.parametrize(("path", "body"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request_leaves_nothing_to_the_collector(path, body):
    """Cycles of errors and frames held each body, 35 to 40 MB, until a collection came."""
    from starlette.testclient import TestClient

    llm = FakeLoGo({"a": 1.0})
    with TestClient(create_app([llm]), base_url="http://localhost") as client:

        def post():
            content = "{" + "x" * 9000 if body is None else json.dumps(body)
            assert client.post(path, content=content).status_code == 400

        post()  # what is imported and made once
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            post()
            gc.collect()
            left = [one for one in gc.garbage if isinstance(one, KEPT)]
            texts = [one for one in gc.garbage if isinstance(one, dict) and len(one) > 400]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert (left, texts) == ([], [])


def test_a_body_with_very_many_mistakes_is_answered():
    """A list of 800,000 texts where token ids were expected took minutes, all of the server's."""
    from starlette.testclient import TestClient

    with TestClient(create_app([FakeLoGo({"a": 1.0})]), base_url="http://localhost") as client:
        for body in ({"prompt": ["x"] * 500_000}, {f"f{i}": 1 for i in range(200_000)}):
            error = client.post("/v1/completions", json=body).json()["error"]
            assert len(error["problems"]) <= 3


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
