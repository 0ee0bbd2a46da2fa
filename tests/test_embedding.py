"""docs/embedding.md: its Python blocks run, and its JSON lines session can be replayed."""

import json
import multiprocessing
import re
import shutil
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from logo_local import config
from logo_local.commands import cli
from logo_local.jsonl.requests import KINDS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "embedding.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
SESSION = re.findall(r"^([<>]) (\{.*\})$", PAGE, re.M)
PRINTED = re.compile(r"^ *print\(.*\)  # (.*)$", re.M)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder; no network; one thread, because llama.cpp's threads spin."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(multiprocessing, "cpu_count", lambda: 1)
    return tmp_path


def test_the_page_has_blocks_and_a_session():
    assert len(BLOCKS) >= 10
    assert {direction for direction, _ in SESSION} == {"<", ">"}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_and_prints_its_comments(block, folder, capsys):
    exec(compile(block, "embedding.md", "exec"), {"__name__": "embedding"})
    printed = capsys.readouterr().out
    for expected in PRINTED.findall(block):
        before, found, printed = printed.partition(f"{expected}\n")
        assert found, f"{expected!r} is not in {before!r}"


def comparable(events):
    """The parts of the events that do not depend on the machine."""
    return [
        {
            **{k: e[k] for k in ("event", "id", "text", "kind", "problems") if k in e},
            "first": e["route"]["adapters"][0]["name"] if "route" in e else None,
            "fields": sorted(e),
        }
        for e in events
        if e["event"] != "progress"
    ]


def test_the_session_can_be_replayed(folder):
    names = ("passive-voice", "plural", "sentiment")
    (folder / "three").mkdir()
    for name in names:
        for ending in (".gguf", ".prompts.jsonl"):
            shutil.copy(config.demo_adapters() / f"{name}{ending}", folder / "three")
    sent = "".join(f"{line}\n" for direction, line in SESSION if direction == ">")
    shown = [json.loads(line) for direction, line in SESSION if direction == "<"]
    arguments = ["run", "demo", "--adapters", "three", "--jsonl", "--threads", "1"]
    done = CliRunner().invoke(cli.cli, arguments, input=sent, prog_name="logo-local")
    assert done.exit_code == 0, done.stderr
    came = [json.loads(line) for line in done.stdout.splitlines()]
    assert comparable(came) == comparable(shown)
    reasons = {e["id"]: e["finish_reason"] for e in came if e["event"] == "done"}
    assert reasons == {e["id"]: e["finish_reason"] for e in shown if e["event"] == "done"}


def test_the_page_names_every_request_and_event():
    for kind in KINDS.values():
        for name in kind.model_fields:
            assert f'"{name}"' in PAGE or f"`{name}`" in PAGE, name
    for event in ("progress", "ready", "route", "token", "done", "adapters", "rescan", "error"):
        assert f"| `{event}` |" in PAGE
