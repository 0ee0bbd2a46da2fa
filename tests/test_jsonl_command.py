"""`run --jsonl` as a process: its streams, its end, and what it does before there is an engine."""

import json
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from logo_local.commands import cli
from logo_local.errors import ModelError
from logo_local.fake import FakeLoGo

RUN = ("run", "m.gguf", "--adapters", "pool", "--jsonl")


def call(*arguments, stdin="", engine=None):
    fake = FakeLoGo({"a": 1.0}, ["answer"])
    given = {"input": stdin, "obj": engine or fake.opened, "prog_name": "logo-local"}
    return CliRunner().invoke(cli.cli, arguments, **given), fake


def events(text):
    return [json.loads(line) for line in text.splitlines()]


def test_requests_in_events_out():
    done, fake = call(*RUN, "--max-tokens=7", "--temp=0.5", stdin='{"id": 1, "prompt": "hi"}\n')
    assert (done.exit_code, done.stderr) == (0, "")
    assert [e["event"] for e in events(done.stdout)] == ["ready", "route", "token", "done"]
    assert fake.history[0].options == {
        **{"max_tokens": 7, "temperature": 0.5, "repeat_penalty": 1.1, "stream": True}
    }
    assert fake.closed


def test_progress_comes_before_ready():
    def opened(*arguments, progress, **settings):
        progress("reading adapters", 1, 2)
        return FakeLoGo({"a": 1.0})

    done, _ = call(*RUN, engine=opened)
    first, second = events(done.stdout)
    assert first == {"event": "progress", "stage": "reading adapters", "done": 1, "total": 2}
    assert second["event"] == "ready"


def test_a_model_that_cannot_be_opened_is_an_event_and_a_failure():
    def opened(*_arguments, **_settings):
        raise ModelError("no model", problems=["none at all"], hint="bring one")

    done, _ = call(*RUN, engine=opened)
    assert done.exit_code == 1
    assert events(done.stdout) == [
        {
            "event": "error",
            "kind": "ModelError",
            "message": "no model",
            "problems": ["none at all"],
            "hint": "bring one",
        }
    ]
    assert done.stderr == "error: no model\n  none at all\nhint: bring one\n"


@pytest.mark.parametrize("beside", ["--json", "--explain", "--raw", "a prompt"])
def test_what_it_does_not_go_with(beside):
    done, _ = call(*RUN, beside)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --jsonl does not go with {beside}\nhint: ")


# The process itself: an engine that prints, answers for ever, and stands in for a model

PROGRAM = """
import os
from logo_local.commands import cli
from logo_local.fake import FakeLoGo

class Chatty(FakeLoGo):
    def create_chat_completion(self, messages, **options):
        print("printed by Python")
        os.system("echo printed by another")
        for_ever = messages[0]["content"] == "for ever"
        self._answers = [["one ", *["two "] * (10_000_000 if for_ever else 1), "three "]]
        return super().create_chat_completion(messages, **options)

cli.cli(obj=Chatty({"a": 1.0}).opened)
"""


@pytest.fixture
def process():
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROGRAM, *RUN]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield process
        process.kill()


def send(process, **request):
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()


def until(process, event):
    """The events up to the next of this name."""
    seen = []
    while not seen or seen[-1]["event"] != event:
        seen.append(json.loads(process.stdout.readline()))
    return seen


def test_only_events_are_on_standard_output(process):
    out, err = process.communicate(b'{"id": 1, "prompt": "hi"}\n', timeout=60)
    assert [e["event"] for e in events(out)][:3] == ["ready", "route", "token"]
    assert sorted(err.splitlines()) == [b"printed by Python", b"printed by another"]
    assert process.returncode == 0


def test_cancelling_while_an_answer_runs(process):
    send(process, id=1, prompt="for ever")
    until(process, "token")
    send(process, cancel=1)
    assert until(process, "done")[-1]["finish_reason"] == "cancelled"
    send(process, id=2, prompt="short")
    assert until(process, "done")[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("busy", [True, False])
def test_sigterm_ends_it_in_order(process, busy):
    until(process, "ready")
    if busy:
        send(process, id=1, prompt="for ever")
        until(process, "token")
    process.send_signal(signal.SIGTERM)
    out, err = process.stdout.read(), process.stderr.read()  # behind what `until` has read
    assert process.wait(60) == 0
    assert (b"Traceback" in err, b"Fatal" in err) == (False, False)
    assert [e["finish_reason"] for e in events(out) if e["event"] == "done"] == ["cancelled"] * busy


def test_a_reader_that_goes_away_ends_it_quietly(process):
    send(process, id=1, prompt="for ever")
    until(process, "token")
    process.stdout.close()
    assert process.wait(60) == 1
    assert b"Traceback" not in process.stderr.read()
