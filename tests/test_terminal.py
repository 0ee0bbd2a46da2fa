"""Progress and warnings on standard error."""

import io
import logging

import pytest
from rich.console import Console

from logo_local.commands import terminal


@pytest.fixture
def screen(monkeypatch):
    """screen(is_terminal) -> what standard error receives, as a text buffer."""

    def screen(is_terminal):
        text = io.StringIO()
        console = Console(file=text, force_terminal=is_terminal, width=80)
        monkeypatch.setattr(terminal, "err_console", lambda: console)
        return text

    return screen


@pytest.fixture
def clock(monkeypatch):
    """A list whose one number is the time."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def work(clock, seconds):
    with terminal.ProgressBar() as progress:
        for done in range(4):
            progress("indexing adapters", done, 3)
            clock[0] += seconds / 3


def test_quick_work_shows_no_bar(screen, clock):
    text = screen(is_terminal=True)
    work(clock, 0.9)
    assert text.getvalue() == ""


def test_slow_work_shows_a_bar_that_goes_away(screen, clock):
    text = screen(is_terminal=True)
    work(clock, 9)
    assert "indexing adapters" in text.getvalue()
    assert text.getvalue().endswith("\x1b[2K")  # the line is erased


def test_a_pipe_never_gets_a_bar(screen, clock):
    text = screen(is_terminal=False)
    work(clock, 9)
    assert text.getvalue().strip() == ""


def test_warnings_of_the_package_are_lines(capsys):
    log = logging.getLogger("logo_local.somewhere")
    with terminal.warnings_as_lines():
        log.warning("left out: %s", "[red]x[/red].gguf: broken")
        log.info("not shown")
    assert capsys.readouterr().err == "warning: left out: [red]x[/red].gguf: broken\n"


def test_long_lines_are_left_to_the_terminal(capsys):
    terminal.say("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1


def test_work_after_the_first_gets_a_bar_of_its_own(screen, clock):
    text = screen(is_terminal=True)
    with terminal.ProgressBar() as progress:
        for stage in ("reading adapters", "reading generic prompts"):
            for done in range(4):
                clock[0] += 1
                progress(stage, done, 3)
            assert stage in text.getvalue()
            assert text.getvalue().endswith("\x1b[2K")  # gone before the next begins
