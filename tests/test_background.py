"""Asking adapters in a process of its own: what it leaves behind, and that it ends."""

import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from random_gguf import write_adapter

from logo_local.console import background
from logo_local.engine import LoGo

PROMPT = "alpha beta gamma"


@pytest.fixture(autouse=True)
def same_priority(monkeypatch):
    """What the process does to its own priority, the tests' process must not do to itself."""
    monkeypatch.setattr(background.os, "nice", lambda _more: None)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's folder of its own: what other tests left in the cache must not count."""
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    """A folder of two adapters, one of which has an example prompt."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    write_adapter(folder / "told.gguf", 1)
    write_adapter(folder / "silent.gguf", 2)
    (folder / "told.prompts.txt").write_text("alpha beta\n")
    return folder


def test_what_the_process_makes_is_there_for_the_engine(random_base, folder, home):
    with LoGo(random_base, folder, n_ctx=256, self_profile="kept") as llm:
        assert llm.without_profile() == ["silent"]
        before = llm.signal_scores(PROMPT, ["self-profile"])["self-profile"]
        background.main([str(random_base), str(folder), '{"signal": "auto"}'])
        assert llm.without_profile() == []
        assert llm.signal_scores(PROMPT, ["combined"])["combined"].keys() == {"silent", "told"}
        assert before == {}


def test_nobody_is_asked_where_it_would_change_nothing(random_base, folder, home):
    for settings in ({"self_profile": False}, {"signal": "profile"}, {"signal": "norm"}):
        with LoGo(random_base, folder, n_ctx=256, **settings) as llm:
            assert llm.without_profile() == []


def test_a_shortlist_begins_with_what_adapters_say(random_base, folder, home):
    with LoGo(random_base, folder, n_ctx=256, signal="shortlist") as llm:
        assert llm.without_profile() == ["silent"]


def test_the_state_counts_what_is_left(random_base, folder, home, monkeypatch):
    with LoGo(random_base, folder, n_ctx=256, self_profile="kept") as llm:
        monkeypatch.setattr(background, "making_self_profiles", lambda *_given: idle())
        with background.self_profiles_in_background(llm, {"signal": "auto"}) as state:
            assert state() == "generating example prompts, 1 adapter left"
            background.main([str(random_base), str(folder), '{"signal": "auto"}'])
            assert state() == ""
        with background.self_profiles_in_background(llm, {"signal": "auto"}) as state:
            assert state() == ""


def test_the_state_says_how_long_is_left(monkeypatch):
    left = ["a", "b", "c", "d"]
    llm = SimpleNamespace(
        without_profile=lambda: list(left),
        base=SimpleNamespace(path="m"),
        pool=SimpleNamespace(folder="f"),
    )
    monkeypatch.setattr(background, "making_self_profiles", lambda *_given: idle())
    clock = [100.0]
    monkeypatch.setattr(background.time, "monotonic", lambda: clock[0])
    with background.self_profiles_in_background(llm, {}) as state:
        assert state() == "generating example prompts, 4 adapters left"
        del left[0]
        clock[0] += 20
        assert state() == "generating example prompts, 3 adapters left, about 60 s"
        clock[0] += 40
        assert state() == "generating example prompts, 3 adapters left, about 3 min"


@contextmanager
def idle():
    yield SimpleNamespace(poll=lambda: None)


def test_the_process_ends_with_the_block(monkeypatch):
    started = []
    popen = subprocess.Popen

    def sleeping(command, **settings):
        assert command[:3] == [sys.executable, "-m", "logo_local.console.background"]
        assert command[3:] == ["model.gguf", "dir", '{"adapter_memory": 512}']
        started.append(popen([sys.executable, "-c", "import time; time.sleep(600)"], **settings))
        return started[-1]

    monkeypatch.setattr(background.subprocess, "Popen", sleeping)
    with background.making_self_profiles("model.gguf", "dir", {"adapter_memory": 512}):
        assert started[0].poll() is None
    assert started[0].poll() is not None


def test_the_module_runs_as_a_process(random_base, folder, home):
    with background.making_self_profiles(
        str(random_base), str(folder), {"signal": "auto"}
    ) as process:
        assert process.wait() == 0
    assert list((home / "cache" / "profiles").rglob("*.samples.json"))
