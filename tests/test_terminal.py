"""Progress and warnings on standard error."""

import io
import logging
import re

import pytest
from rich.console import Console

from logo_local.console import terminal
from logo_local.errors import LogoError


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


def test_a_bar_leaves_room_for_what_ctrl_c_echoes(clock, monkeypatch):
    """Line 7: where ^C begins another line, the bar above it is never erased."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=50, color_system=None)
    monkeypatch.setattr(terminal, "err_console", lambda: console)
    work(clock, 9)
    (bar,) = {len(line) for line in re.split(r"[\r\n]|\x1b\[\S*?[A-Za-z]", text.getvalue()) if line}
    assert bar == 47


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


LONG = "there is no adapter of this name, nor one with a name that is close to what was asked"


@pytest.mark.parametrize(
    ("print_it", "first"),
    [
        (lambda: terminal.say(LONG), ""),
        (lambda: terminal.note(LONG), ""),
        (lambda: terminal.print_error(LogoError(LONG)), "error: "),
        (lambda: terminal.print_error(LogoError("no", problems=[LONG])), "error: no   "),
        (lambda: terminal.print_error(LogoError("no", hint=LONG)), "error: no hint: "),
    ],
)
def test_a_terminal_breaks_lines_between_words(screen, print_it, first):
    text = screen(is_terminal=True)
    print_it()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).splitlines()
    assert len(lines) == 2 + ("no" in first)
    assert max(map(len, lines)) <= 80
    assert " ".join(lines) == first + LONG


def test_a_word_longer_than_the_terminal_stays_whole(screen):
    text = screen(is_terminal=True)
    path = "/" + 30 * "long/"
    terminal.say(f"it is in {path}")
    assert text.getvalue() == f"it is in\n{path}\n"


def test_a_pipe_gets_errors_in_whole_lines(capsys):
    terminal.print_error(LogoError(LONG, problems=[LONG], hint=LONG))
    assert capsys.readouterr().err == f"error: {LONG}\n  {LONG}\nhint: {LONG}\n"


def test_work_after_the_first_gets_a_bar_of_its_own(screen, clock):
    text = screen(is_terminal=True)
    with terminal.ProgressBar() as progress:
        for stage in ("reading adapters", "reading generic prompts"):
            for done in range(4):
                clock[0] += 1
                progress(stage, done, 3)
            assert stage in text.getvalue()
            assert text.getvalue().endswith("\x1b[2K")  # gone before the next begins
