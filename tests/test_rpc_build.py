"""Models on RPC servers, with a llama.cpp that is built with RPC (`make rpc-check`).

The servers are child processes on this machine, and only loopback addresses are used. Skipped
without such a build: the ordinary one has no RPC.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx2 as httpx
import pexpect
import pytest
import small_model

TESTS = Path(__file__).parent
PYTHON = os.environ.get("LOGO_LOCAL_RPC_PYTHON") or str(TESTS.parent / "build/rpc/bin/python")

pytestmark = pytest.mark.skipif(
    not Path(PYTHON).is_file(), reason="no llama.cpp with RPC: make rpc-check builds one"
)


@pytest.fixture
def environment(user_folder):
    variables = {"LOGO_LOCAL_HOME": str(user_folder), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    return {**os.environ, **variables, "PYTHONPATH": str(TESTS.parent)}


class Servers:
    """RPC servers on this machine; `start` returns an address, `kill` ends the server there."""

    def __init__(self, folder):
        self.folder, self.running = folder, {}

    def start(self, port=0):
        if not port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        address = f"127.0.0.1:{port}"
        with (self.folder / f"{port}.log").open("ab") as log:
            command = [PYTHON, str(TESTS / "rpc_server.py"), str(port)]
            self.running[address] = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return address
            except OSError:
                assert time.monotonic() < deadline
                assert self.running[address].poll() is None
                time.sleep(0.05)

    def kill(self, address):
        process = self.running.pop(address)
        process.kill()
        process.wait()


@pytest.fixture
def servers(tmp_path):
    found = Servers(tmp_path)
    yield found
    for address in list(found.running):
        found.kill(address)


@pytest.fixture
def program(environment):
    """program(*arguments): a process of the command line, killed afterwards if it still runs."""
    running = []

    def start(*arguments):
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        pipes["stdin"] = subprocess.PIPE if "--jsonl" in arguments else subprocess.DEVNULL
        command = [PYTHON, "-m", "logo_local", *arguments, "--threads", "1"]
        running.append(subprocess.Popen(command, **pipes, env=environment, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def one_line(text):
    return " ".join(text.split())


def answers(environment, *servers):
    command = [PYTHON, str(TESTS / "rpc_answers.py"), str(small_model.MODEL)]
    command += [str(small_model.ADAPTERS), ",".join(servers)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_routes_and_answers_are_those_of_this_machine(environment, servers):
    """With one and with two servers: norm and profile, stacked and scaled mixtures."""
    local = answers(environment)
    assert len({json.dumps(one["weights"]) for one in local}) > 4  # the cases differ
    first, second = servers.start(), servers.start()
    for remote in (answers(environment, first), answers(environment, first, second)):
        for here, there in zip(local, remote, strict=True):
            assert there["case"] == here["case"]
            assert there["weights"] == pytest.approx(here["weights"], abs=2e-3), here["case"]
            assert there["text"] == here["text"], here["case"]


def test_a_lost_server_ends_a_program_with_one_error(program, servers):
    """JSON lines: an event without a request, and the usual lines on standard error."""
    kept, lost = servers.start(), servers.start()
    process = program("run", *small_model.ARGS, "--jsonl", "--rpc", f"{kept},{lost}")
    request = json.dumps({"id": 1, "prompt": "Where does Lonu live?", "max_tokens": 4})
    process.stdin.write(f"{request}\n")
    process.stdin.flush()
    for line in process.stdout:
        if json.loads(line)["event"] in ("done", "answer", "end"):
            break
    servers.kill(lost)
    out, err = process.communicate(f"{request}\n", timeout=60)
    assert process.returncode == 1
    last = json.loads(out.splitlines()[-1])
    assert last["event"] == "error"
    assert "an RPC server no longer answers" in json.dumps(last)
    said = one_line(err)
    assert f"error: an RPC server no longer answers {lost}: Connection re" in said  # fused, set
    assert kept not in said.partition("error: ")[2]
    assert "libggml" not in err
    assert "neither encrypted nor authenticated" in said
    assert len(err.splitlines()) < 8


def test_a_lost_server_ends_a_chat_and_leaves_the_terminal_as_it_was(environment, servers):
    lost = servers.start()
    command = ["-m", "logo_local", "run", *small_model.ARGS, "--rpc", lost, "-t", "1"]
    chat = pexpect.spawn(PYTHON, command, env=environment, encoding="utf-8", timeout=60)
    try:
        chat.expect(">>>")
        chat.sendline("Where does Lonu live?")
        chat.expect("(recall-town|base alone)")
        chat.expect(">>>")
        servers.kill(lost)
        chat.sendline("Where does Vidri live?")
        chat.expect("error: .*an RPC server no longer answers")
        chat.expect(pexpect.EOF)
        chat.wait()
        assert chat.exitstatus == 1
    finally:
        chat.close(force=True)


def ask(address, **asked):
    body = {"messages": [{"role": "user", "content": "Where does Lonu live?"}], **asked}
    return httpx.post(f"{address}v1/chat/completions", json=body, timeout=60)


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def health(address):
    try:
        found = httpx.get(f"{address}health", timeout=60)
    except httpx.TransportError:  # cut by the restart
        return 0, ""
    return found.status_code, found.json()["status"]


LONG = {  # an answer that does not end by itself
    "stream": True,
    "temperature": 1.5,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "string", "minLength": 900, "maxLength": 950}},
    },
}


def test_a_server_continues_when_the_rpc_server_is_back(program, servers):
    """Same process and port. Meanwhile 503, also in the running stream; then the same answers."""
    kept, lost = servers.start(), servers.start()
    arguments = ("--port", "0", "--max-tokens", "5000", "--rpc", f"{kept},{lost}")
    process = program("serve", *small_model.ARGS, *arguments)
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"http://\S+", line):
            break
    address = found[0]
    before = ask(address, max_tokens=8).json()["choices"][0]["message"]["content"]
    body = {"messages": [{"role": "user", "content": "Go on"}], **LONG}
    with httpx.stream("POST", f"{address}v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        servers.kill(lost)
        rest = [line for line in lines if line]
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "rpc_server_lost"
    assert rest[-1] == "data: [DONE]"

    until(lambda: health(address) == (503, "unavailable"))
    refused = ask(address)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "rpc_server_lost"
    assert int(refused.headers["retry-after"]) > 0
    assert httpx.get(f"{address}v1/models", headers={"host": "evil.example"}).status_code == 403

    servers.start(int(lost.rpartition(":")[2]))
    until(lambda: health(address) == (200, "ready"))
    assert ask(address, max_tokens=8).json()["choices"][0]["message"]["content"] == before
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    said += process.stderr.readlines()
    text = one_line("".join(said))
    assert f"error: an RPC server no longer answers {lost}: Connection re" in text  # fused, set
    assert text.count(f"at {address}") == 2
    assert "libggml" not in text


def test_a_server_that_waits_for_an_rpc_server_can_be_stopped(program, servers):
    lost = servers.start()
    process = program("serve", *small_model.ARGS, "--port", "0", "--rpc", lost)
    address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
    servers.kill(lost)
    assert ask(address).status_code == 503
    until(lambda: health(address) == (503, "unavailable"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


def test_what_does_not_speak_rpc_is_named(program):
    """A service that closes the connection without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(60)
        address = f"127.0.0.1:{other.getsockname()[1]}"
        process = program("run", *small_model.ARGS, "--rpc", address, "hi")
        for _ in range(2):  # the check, and llama.cpp
            other.accept()[0].close()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"error: {address} is not an RPC server of the same version" in one_line(err)
    assert "libggml" not in err


def test_ctrl_c_while_another_client_uses_the_server(program):
    """Nothing answers: a message says so, and Ctrl+C ends the wait."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        process = program("run", *small_model.ARGS, "--rpc", address, "hi")
        assert f"waiting for {address}" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_missing_servers_are_all_named(program, servers):
    there = servers.start()
    process = program(
        *("run", *small_model.ARGS, "hi"),
        *("--rpc", f"127.0.0.1:1,{there},name.invalid:50052,8.8.8.8:50052"),
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "127.0.0.1:1: Connection refused" in err
    assert "name.invalid:50052: the name cannot be resolved" in err
    assert "8.8.8.8:50052: the address is outside of private networks" in err
    assert there not in err
    assert "--rpc-public" in err


def test_doctor_reports_rpc(environment):
    command = [PYTHON, "-m", "logo_local", "doctor", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    findings = {one["name"]: one for one in json.loads(done.stdout)}
    assert findings["rpc"]["value"].startswith("yes")
    assert findings["rpc"]["hint"] == ""
