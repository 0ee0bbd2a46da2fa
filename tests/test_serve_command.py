"""`logo-local serve` as a program: what it refuses to begin with, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2 as httpx
import pytest
import small_model
from click.testing import CliRunner
from fake_upstream import FakeUpstream, chunk
from serving import serving

from logo_local.commands.cli import cli
from logo_local.fake import FakeLoGo


def run(*arguments, env=None):
    llm = FakeLoGo({"a": 1.0})
    return CliRunner().invoke(cli, ["serve", *arguments], obj=llm.opened, env=env)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["demo", "--host", "0.0.0.0"], 2, "LOGO_LOCAL_API_KEY"),
        (["demo", "--host", "192.168.0.7"], 2, "an API key is required"),
        (["demo", "--host", "localhost.evil.example"], 2, "an API key is required"),
        (["demo", "--api-key", " "], 2, "visible ASCII"),
        (["demo", "--api-key", "key "], 2, "visible ASCII"),
        (["demo", "--api-key", "schlüssel"], 2, "visible ASCII"),
        (["demo", "--allow-origin", "*"], 2, "is not an origin"),
        (["demo", "--allow-origin", "example.org"], 2, "is not an origin"),
        (["demo", "--queue", "-1"], 2, "queue"),
        (["demo", "--port", "70000"], 2, "port"),
        (["demo", "--host", "203.0.113.1", "--api-key", "k"], 1, "cannot listen at 203.0.113.1"),
        (["model.gguf"], 2, "--adapters"),
    ],
)
def test_what_it_refuses_to_begin_with(arguments, code, words):
    result = run(*arguments, *(["--port", "0"] if "--port" not in arguments else []))
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())


def test_no_answer_depends_on_other_requests_or_on_files_elsewhere(monkeypatch):
    """Neither past prompts nor links out of the folder, and no waiting for self-profiles."""
    monkeypatch.setattr("logo_local.server.http.listen", lambda *_args, **_given: None)
    llm = FakeLoGo({"a": 1.0})
    assert CliRunner().invoke(cli, ["serve", "demo", "--port", "0"], obj=llm.opened).exit_code == 0
    settings = {name: llm.settings[name] for name in ("past", "links_out", "self_profile")}
    assert settings == {"past": False, "links_out": False, "self_profile": "kept"}


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("demo", "--port", str(port))
    assert result.exit_code == 1
    assert f"port {port}" in result.output
    assert "--port 0" in result.output


def test_the_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "logo_local.server.http", raising=False)
    result = run("demo", "--port", "0")
    assert result.exit_code == 1
    hint = " ".join(result.output.split()).partition("hint: ")[2]
    assert hint.startswith(f"{sys.executable} -m pip install 'fastapi")
    assert "uvicorn" in hint
    assert "logo-local" not in hint.replace(sys.executable, "")  # it may be on no index


def test_the_command_line_stays_light():
    """The server's packages take half a second to import: only `serve` may."""
    code = "import logo_local.commands.cli, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"fastapi", "uvicorn", "pydantic", "prometheus_client"} & set(loaded.stdout.split())


@pytest.fixture
def program(user_folder):
    """program(*arguments): a running server and its address; ended and checked afterwards."""
    running = []

    def start(*arguments):
        command = [sys.executable, "-m", "logo_local", "serve", *small_model.ARGS, "--port", "0"]
        process = subprocess.Popen(
            [*command, "--threads", "1", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LOGO_LOCAL_HOME": str(user_folder)},
        )
        running.append(process)
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                return process, found[0]
        raise AssertionError(f"it ended: {process.wait()}")

    yield start
    for process in running:
        process.kill()
        process.communicate()


def ask(address, into, **asked):
    body = {"messages": [{"role": "user", "content": "Write a letter to Anna."}], **asked}
    into.append(httpx.post(f"{address}v1/chat/completions", json=body, timeout=60))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_running_answer(program, sent):
    process, address = program("--max-tokens", "100000")
    body = {
        "messages": [{"role": "user", "content": "Go on"}],
        "model": "base",
        "stream": True,
        "temperature": 1.5,
        "response_format": {  # a text of a given length: the answer does not end before
            "type": "json_schema",
            "json_schema": {"schema": {"type": "string", "minLength": 900, "maxLength": 950}},
        },
    }
    waiting = []
    with httpx.stream("POST", f"{address}v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        late = threading.Thread(target=ask, args=(address, waiting))
        late.start()
        while httpx.get(f"{address}health", timeout=20).json()["waiting"] == 0 and late.is_alive():
            pass
        process.send_signal(sent)
        events = [line for line in lines if line]
    late.join()
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in [first, *events[:-1]]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert len(json.loads(text)) >= 900
    assert process.wait(30) == 0
    assert [one.status_code for one in waiting] == [503] or waiting[0].status_code == 200
    assert process.stdout.read() == ""
    assert "Traceback" not in process.stderr.read()


def test_a_second_ctrl_c_does_not_wait(program):
    process, address = program()
    grammar = {"type": "string", "minLength": 1000, "maxLength": 1000}
    body = {
        "messages": [{"role": "user", "content": "Go on"}],
        "temperature": 1.5,
        "stream": True,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"schema": {"type": "array", "items": grammar, "minItems": 9}},
        },
    }
    with httpx.stream("POST", f"{address}v1/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)


def test_two_engines_answer_at_once_and_alike(program):
    _, address = program("--parallel", "2")
    answers = []
    threads = [threading.Thread(target=ask, args=(address, answers)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1


def test_the_key_is_never_printed(program):
    process, address = program("--api-key", "very-secret-key")
    assert httpx.get(f"{address}v1/models", timeout=20).status_code == 401
    wrong = {"authorization": "Bearer other-secret"}
    assert httpx.get(f"{address}v1/models", headers=wrong, timeout=20).status_code == 401
    right = {"authorization": "Bearer very-secret-key"}
    assert httpx.get(f"{address}v1/models", headers=right, timeout=20).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert "secret" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--upstream", "localhost:8081"], "is not an address"),
        (["--upstream", "ftp://localhost"], "is not an address"),
        (["--upstream", "http://"], "is not an address"),
        (["--upstream", "http://a:1,"], "is not an address"),
        (["--upstream", "http://a/?key=secret"], "is not an address"),
        (["--upstream", "http://me:secret@a:1"], "an address cannot contain a password"),
        (["--upstream", "http://a:99999"], "this is not an address"),
        (["--upstream", "http://a:1", "--upstream-key", "secret"], "LOGO_LOCAL_UPSTREAM_KEY"),
    ],
)
def test_what_cannot_be_an_upstream(arguments, words):
    result = run("demo", "--port", "0", *arguments)
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert words in said
    assert "secret" not in said


def test_the_upstreams_and_their_key_reach_the_server(monkeypatch, tmp_path):
    """The key from the environment or the config file."""
    seen = []
    monkeypatch.setattr("logo_local.server.http.listen", lambda *_args, **given: seen.append(given))
    urls = "http://a:1/v1/, https://b/llama,http://a:1"
    result = run(
        *("demo", "--port", "0", "--upstream", urls, "--temp", "0.5"),
        env={"LOGO_LOCAL_UPSTREAM_KEY": "secret"},
    )
    assert result.exit_code == 0, result.output
    (tmp_path / "config.toml").write_text('upstream-key = "secret"\nupstream = "http://a:1"\n')
    other = run("demo", "--port", "0", env={"LOGO_LOCAL_HOME": str(tmp_path)})
    assert other.exit_code == 0, other.output
    assert [one["upstreams"] for one in seen] == [
        ("http://a:1", "https://b/llama"),
        ("http://a:1",),
    ]
    assert [one["upstream_key"] for one in seen] == ["secret", "secret"]
    assert "with --upstream, --temp has no effect" in " ".join(result.output.split())
    assert "secret" not in result.output + other.output


def test_a_server_before_an_upstream_as_a_program(program, monkeypatch):
    """Routes and forwards, finishes the running answer at SIGTERM, and keeps the key to itself."""
    monkeypatch.setenv("LOGO_LOCAL_UPSTREAM_KEY", "very-secret-key")
    upstream = FakeUpstream(
        loras=[f"/m/{path.name}" for path in small_model.ADAPTERS.glob("*.gguf")]
    )
    upstream.key, upstream.n_embd = "very-secret-key", None

    async def script(_):
        return upstream.stream([chunk(content="x")] * 10 + [chunk("stop")], seconds=0.1)

    upstream.script = script
    with serving(upstream.app) as url:
        process, address = program("--upstream", url, "-v")
        body = {"messages": [{"role": "user", "content": "Write a letter"}], "stream": True}
        with httpx.stream("POST", f"{address}v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) == 11
        assert process.wait(30) == 0
        said = process.stderr.read()
    assert "POST /v1/chat/completions 200" in said
    assert "secret" not in said
