"""RPC servers, as far as this can be tested with a llama.cpp without RPC; see test_rpc_build.py."""

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import click
import httpx2 as httpx
import llama_cpp
import pytest
from click.testing import CliRunner

from logo_local import rpc
from logo_local.commands import doctor
from logo_local.commands.cli import cli
from logo_local.console.abort import Ending
from logo_local.console.background import self_profiles_in_background
from logo_local.errors import NativeError, RpcError
from logo_local.fake import FakeLoGo
from logo_local.llama import rpc_devices
from logo_local.server import restart
from logo_local.server.middleware import Rules

PUBLIC = "93.184.215.14"


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def closed():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Nobody asks a name server for these names."""
    known = {"box.lan": "127.0.0.1", "example.org": PUBLIC}
    real = socket.getaddrinfo

    def lookup(host, *arguments, **options):
        if host == "nowhere.lan":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(known.get(host, host), *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.fixture
def with_rpc(monkeypatch):
    """with_rpc(listed): a llama.cpp with RPC that lists this many devices for each server."""
    monkeypatch.setattr(rpc, "_connected", {})
    monkeypatch.setattr(llama_cpp, "llama_supports_rpc", lambda: True)
    added = []

    def build(listed=1, seconds=0.0):
        def add(endpoint):
            added.append(endpoint)
            time.sleep(seconds)
            return listed

        monkeypatch.setattr(rpc_devices, "add_rpc_server", add)
        return added

    return build


# Addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.168.0.11:50052", "192.168.0.11", 50052),
        (" Box.LAN:1 ", "box.lan", 1),
        ("localhost:65535", "localhost", 65535),
    ],
)
def test_addresses(text, host, port):
    assert rpc.parse_server(text) == (host, port)
    assert str(rpc.parse_server(text)) == f"{host}:{port}"


@pytest.mark.parametrize(
    "text",
    [
        *("", "box.lan", "box.lan:", ":50052", "box.lan:0", "box.lan:65536", "a:b:1", "a b:1"),
        *("[::1]:50052", "http://box.lan:50052", "box.lan:50052/x", "me@box.lan:1", "box.lan:-1"),
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match=r"write it like 192\.168\.0\.11:50052"):
        rpc.parse_server(text)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.11", "169.254.1.1", "100.64.0.7"]
)
def test_private_addresses_are_allowed(address):
    """The last ones are link-local and those of VPNs such as Tailscale."""
    assert rpc.endpoint_of(rpc.RpcServer(address, 1), public=False) == f"{address}:1"


@pytest.mark.parametrize("host", [PUBLIC, "example.org", "8.8.8.8", "172.32.0.1"])
def test_public_addresses_only_if_they_are_allowed(host):
    """Also behind a name, and llama.cpp gets the address that was checked."""
    server = rpc.RpcServer(host, 50052)
    with pytest.raises(ValueError, match="outside of private networks"):
        rpc.endpoint_of(server, public=False)
    assert re.fullmatch(r"[0-9.]+:50052", rpc.endpoint_of(server, public=True))


def test_servers_that_cannot_be_used_are_all_named(listening, closed):
    names = [listening, closed, "nowhere.lan:1", "example.org:2"]
    with pytest.raises(RpcError) as caught:
        rpc.checked([rpc.parse_server(name) for name in names], public=False)
    assert caught.value.problems == (
        f"{closed}: Connection refused",
        "nowhere.lan:1: the name cannot be resolved: Name or service not known",
        f"example.org:2: the address {PUBLIC} is outside of private networks",
    )
    assert "--rpc-public" in caught.value.hint


def test_a_server_that_does_not_answer_in_time(monkeypatch):
    """A machine that is switched off: nothing refuses the connection."""

    def connect(_address, timeout):
        raise TimeoutError(f"timed out after {timeout}")

    monkeypatch.setattr(socket, "create_connection", connect)
    assert rpc.unreachable("10.0.0.1:50052") == "no answer within 3 seconds"


# Connections


def test_a_build_without_rpc():
    with pytest.raises(NativeError) as caught:
        rpc.use_rpc_servers("127.0.0.1:50052")
    assert "has no RPC" in str(caught.value)
    assert "-DGGML_RPC=ON" in caught.value.hint
    # pip's cache would give this build to other environments, and other builds to this one
    assert "--no-cache-dir" in caught.value.hint
    assert f"llama-cpp-python=={llama_cpp.__version__}" in caught.value.hint
    assert rpc_devices.add_rpc_server("127.0.0.1:50052") == 0


def test_servers_are_connected_once_by_their_checked_addresses(with_rpc, listening):
    added = with_rpc()
    port = listening.partition(":")[2]
    names = [f"box.lan:{port}", listening]
    assert rpc.use_rpc_servers(names) == [listening, listening]
    assert rpc.use_rpc_servers(",".join(names)) == [listening, listening]
    assert added == [listening]


def test_devices_that_are_not_listed_are_an_error(with_rpc, listening):
    """Everything would run on this machine otherwise."""
    with_rpc(listed=0)
    with pytest.raises(NativeError, match="does not list the devices") as caught:
        rpc.use_rpc_servers(listening)
    assert listening in str(caught.value)


def test_a_server_with_another_client_is_waited_for(with_rpc, listening, monkeypatch, caplog):
    monkeypatch.setattr(rpc, "_WAIT_SECONDS", 0.05)
    with_rpc(seconds=0.3)
    assert rpc.use_rpc_servers(listening) == [listening]
    assert [record.message for record in caplog.records] == [
        f"waiting for {listening}: it has another client, or it is no RPC server"
    ]


def test_connections_are_checked_by_the_operating_system(monkeypatch, listening):
    """Only those to RPC servers."""
    monkeypatch.setattr(rpc, "_connected", {listening: rpc.parse_server(listening)})
    port = int(listening.partition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port)) as ours,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as other,
    ):
        assert rpc.prepare_connections() == 1
        options = [c.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for c in (ours, other)]
        assert options == [1, 0]
        linger = ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert struct.unpack("ii", linger) == (1, 0)


def test_an_address_that_is_none(with_rpc):
    assert with_rpc() == []
    with pytest.raises(RpcError, match="'box' is not an RPC server"):
        rpc.use_rpc_servers(["box"])


# What llama.cpp says before it aborts

LOST = "/llama.cpp/ggml/src/ggml-rpc/ggml-rpc.cpp:566: Remote RPC server crashed or returned ..."


@pytest.fixture
def reported(monkeypatch):
    """reported(message): the errors that a handler gets when llama.cpp aborts with `message`."""

    def report(message):
        found, set_by = [], []
        monkeypatch.setattr(rpc_devices, "at_abort", set_by.append)
        rpc.at_loss(found.append)
        set_by[0](message)
        return found[0]

    return report


def test_the_lost_server_is_named(reported, monkeypatch, listening, closed):
    servers = {
        listening: rpc.parse_server(listening),
        closed: rpc.parse_server(f"box.lan:{closed.partition(':')[2]}"),
    }
    monkeypatch.setattr(rpc, "_connected", servers)
    error = reported(LOST)
    assert isinstance(error, RpcError)
    assert error.message == "an RPC server no longer answers"
    assert error.problems == (f"{servers[closed]}: Connection refused",)


def test_a_server_that_is_back_already(reported, monkeypatch, listening):
    monkeypatch.setattr(rpc, "_connected", {listening: rpc.parse_server(listening)})
    error = reported(LOST)
    assert error.message == "the connection to an RPC server ended"
    assert error.problems == (f"{listening} accepts connections",)


def test_an_abort_while_connecting(reported, monkeypatch):
    monkeypatch.setattr(rpc, "_connecting", "box.lan:80")
    error = reported("/x/ggml-rpc.cpp:550: RPC handshake failed for 127.0.0.1:80\n")
    assert error.message.startswith("box.lan:80 is not an RPC server of the same version")
    assert error.problems == ("llama.cpp: RPC handshake failed for 127.0.0.1:80",)


def test_an_abort_for_another_reason(reported):
    error = reported("/llama.cpp/ggml/src/ggml.c:1: GGML_ASSERT(x) failed")
    assert isinstance(error, NativeError)
    assert "GGML_ASSERT(x) failed" in error.message


ABORTS = """
import ctypes, os, sys
from logo_local import rpc
from logo_local.console.abort import Ending
from logo_local.llama import rpc_devices
print("some text", end="")
rpc.at_loss(Ending())
sys.stderr = open(os.devnull, "w")  # as llama_cpp does while it loads a model
os.dup2(sys.stderr.fileno(), 2)
lib = rpc_devices.libllama
lib.ggml_abort.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p]
lib.ggml_abort(b"ggml-rpc.cpp", 1, b"Remote RPC server crashed")
"""


def test_an_abort_of_llama_cpp_ends_with_an_error_and_exit_code_1():
    """The real ggml_abort; without the handler it prints a stack and ends with SIGABRT."""
    command = [sys.executable, "-c", ABORTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "some text")
    lines = done.stderr.splitlines()
    assert lines[0] == "error: the connection to an RPC server ended"
    assert lines[-1].startswith("hint: start it again")
    assert len(lines) == 2


# The command line


def run(*arguments, env=None):
    llm = FakeLoGo({"a": 1.0})
    result = CliRunner().invoke(cli, [*arguments], obj=llm.opened, env=env)
    return result, getattr(llm, "settings", {})


@pytest.mark.parametrize("command", ["run", "score"])
def test_the_servers_reach_the_engine(command):
    """The engine places all layers on devices, unless an option says otherwise."""
    servers = "192.168.0.11:50052, BOX.lan:1,192.168.0.11:50052"
    result, settings = run(command, "demo", "hi", "--rpc", servers)
    assert result.exit_code == 0, result.output
    assert settings["rpc"] == ("192.168.0.11:50052", "box.lan:1")
    assert (settings["rpc_public"], settings["n_gpu_layers"]) == (False, None)
    assert isinstance(settings["on_loss"], Ending)
    _, settings = run(command, "demo", "hi", "--rpc", servers, "-ngl", "5", "--rpc-public")
    assert (settings["rpc_public"], settings["n_gpu_layers"]) == (True, 5)
    _, settings = run(command, "demo", "hi")
    assert "rpc" not in settings


def test_the_servers_from_the_environment_and_the_config_file(tmp_path):
    _, settings = run("run", "demo", "hi", env={"LOGO_LOCAL_RPC": "10.0.0.1:1,10.0.0.2:1"})
    assert settings["rpc"] == ("10.0.0.1:1", "10.0.0.2:1")
    (tmp_path / "config.toml").write_text('rpc = "10.0.0.1:1,10.0.0.2:1"\n')
    _, settings = run("run", "demo", "hi", env={"LOGO_LOCAL_HOME": str(tmp_path)})
    assert settings["rpc"] == ("10.0.0.1:1", "10.0.0.2:1")
    (tmp_path / "config.toml").write_text('rpc = "10.0.0.1"\n')
    result, _ = run("run", "demo", "hi", env={"LOGO_LOCAL_HOME": str(tmp_path)})
    assert result.exit_code == 1
    assert "write it like 192.168.0.11:50052" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "demo", "hi", "--rpc", "10.0.0.1"), "'10.0.0.1' is not an RPC server"),
        (("run", "demo", "hi", "--rpc", "10.0.0.1:1,"), "'' is not an RPC server"),
        (("run", "demo", "hi", "--rpc", "[::1]:1"), "is not an RPC server"),
        (
            ("serve", "demo", "--port", "0", "--rpc", "10.0.0.1:1", "--parallel", "2"),
            "leave out --parallel",
        ),
    ],
)
def test_wrong_usage(arguments, words):
    result, _ = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())


def test_without_rpc_the_command_says_how_to_build_it():
    """No traceback, and nothing runs on this machine instead."""
    result = CliRunner().invoke(cli, ["run", "demo", "hi", "--rpc", "127.0.0.1:1"])
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "error: this build of llama-cpp-python has no RPC" in said
    assert "-DGGML_RPC=ON" in said


def test_no_second_process_loads_the_model(capsys):
    """Self-profiles are not generated in the background: the model does not fit on this machine."""
    llm = FakeLoGo({"a": 1.0, "b": 1.0})
    llm.missing = ["b"]
    llm.without_profile = lambda: llm.missing
    with self_profiles_in_background(
        llm, {"rpc": ("10.0.0.1:1",), "self_profile": "kept"}
    ) as state:
        assert state() == ""
    assert "b has no example prompts" in capsys.readouterr().err


def test_doctor(monkeypatch):
    found = {finding.name: finding for finding in doctor.examine()}["rpc"]
    assert (found.ok, found.essential) == (True, False)
    assert found.value.startswith("no")
    assert found.hint == rpc.build_command()
    monkeypatch.setattr(llama_cpp, "llama_supports_rpc", lambda: True)
    found = {finding.name: finding for finding in doctor.examine()}["rpc"]
    assert found.value.startswith("yes")
    assert found.hint == ""


def test_options_are_on_all_commands_that_open_a_model():
    for name in ("run", "score", "serve", "bench", "eval"):
        options = {p.name for p in cli.commands[name].params if isinstance(p, click.Option)}
        assert {"rpc", "rpc_public"} <= options, name


# The restart of a server


@pytest.fixture
def stand_in():
    """A client of a server whose engine is lost."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        rules = Rules(api_key="secret", origins=("https://app.example",))
        with restart.unavailable(bound, rules), httpx.Client(base_url=url, timeout=20) as client:
            yield client
        assert bound.fileno() != -1  # the server listens there afterwards


def test_requests_get_503_while_the_engine_is_lost(stand_in):
    right = {"authorization": "Bearer secret"}
    answer = stand_in.post("/v1/chat/completions", json={"messages": []}, headers=right)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "rpc_server_lost")
    assert stand_in.get("/v1/models", headers=right).status_code == 503
    found = stand_in.get("/health")
    assert (found.status_code, found.headers["retry-after"]) == (503, "5")
    assert found.json() == {"status": "unavailable", "running": 0, "waiting": 0}


def test_access_is_checked_while_the_engine_is_lost(stand_in):
    assert stand_in.get("/v1/models").status_code == 401
    assert stand_in.get("/health", headers={"host": "evil.example"}).status_code == 403
    assert stand_in.get("/health", headers={"origin": "https://evil.example"}).status_code == 403
    answer = stand_in.get("/health", headers={"origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


PROGRAM = """
import os, socket, sys, time
from pathlib import Path
from logo_local import rpc
from logo_local.errors import RpcError
from logo_local.fake import FakeLoGo
from logo_local.server import http, restart
from logo_local.server.middleware import Rules

folder = Path(sys.argv[1])
handlers = []
rpc.at_loss = handlers.append
restart.INTERVAL = 0.2

def lost():
    handlers[0](RpcError("an RPC server no longer answers", problems=["box.lan:1: no"]))

def answer(prompt, route):
    if "lost" in prompt:
        (folder / "leak").touch()
        leaked = os.open(folder / "leak", os.O_RDONLY)
        os.set_inheritable(leaked, True)  # as the connections of llama.cpp
        lost()
    return f"pid {os.getpid()} files {len(os.listdir('/dev/fd'))}"

inherited = restart.inherited_socket()
with inherited or socket.create_server(("127.0.0.1", 0)) as bound:
    if inherited is None:
        print(bound.getsockname()[1], flush=True)
    else:
        with restart.unavailable(bound, Rules()):
            while not (folder / "back").exists():
                time.sleep(0.05)
    http.listen([FakeLoGo({"a": 1.0}, answer)], bound, restarts=True)
"""


@pytest.fixture
def server(tmp_path):
    """A server with a fake engine that is lost by a prompt, and back when a file exists."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    with httpx.Client(base_url=url, timeout=60) as client:
        yield process, client
    process.kill()
    process.communicate()


def ask(client, text, **asked):
    body = {"messages": [{"role": "user", "content": text}], **asked}
    return client.post("/v1/chat/completions", json=body)


def content(answer):
    return answer.json()["choices"][0]["message"]["content"]


def status(client):
    """The status in /health; "" if the restart cut the connection."""
    try:
        return client.get("/health").json()["status"]
    except httpx.TransportError:
        return ""


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_starts_again_with_the_same_process_and_socket(server, tmp_path):
    process, client = server
    before = content(ask(client, "hi"))
    assert before.startswith(f"pid {process.pid} ")
    for _ in range(2):  # the second time, the socket was inherited
        (tmp_path / "back").unlink(missing_ok=True)
        refused = ask(client, "lost")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "rpc_server_lost"
        until(lambda: status(client) == "unavailable")
        assert ask(client, "hi").status_code == 503
        (tmp_path / "back").touch()
        until(lambda: status(client) == "ready")
        assert content(ask(client, "hi")) == before  # no file was left open
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    said = process.stderr.read()
    assert said.count("error: an RPC server no longer answers") == 2
    assert said.count("Requests get status 503 until the RPC servers answer") == 2


def test_a_stream_ends_with_an_error(server):
    _, client = server
    answer = ask(client, "lost", stream=True)
    assert answer.json()["error"]["code"] == "rpc_server_lost"


def test_a_server_that_is_shutting_down_does_not_start_again(server):
    """SIGTERM during the pause before the restart."""
    process, client = server
    assert ask(client, "lost").status_code == 503
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 1
    assert process.stderr.read().splitlines()[-1].startswith("Requests get status 503")


def test_the_socket_is_not_inherited_by_other_processes(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as bound:
        monkeypatch.setenv(restart.SOCKET_VARIABLE, str(os.dup(bound.fileno())))
        with restart.inherited_socket() as found:
            assert found.getsockname() == bound.getsockname()
        assert restart.SOCKET_VARIABLE not in os.environ
    assert restart.inherited_socket() is None


def test_waiting_until_all_servers_answer(monkeypatch, listening):
    monkeypatch.setattr(restart, "INTERVAL", 0.0)
    tried = []

    def checked(servers, public):
        tried.append([str(server) for server in servers])
        if len(tried) < 3:
            raise RpcError("RPC servers cannot be used")

    monkeypatch.setattr(restart, "checked", checked)
    restart.wait_for(["box.lan:1", listening], public=False)
    assert tried == [["box.lan:1", listening]] * 3
