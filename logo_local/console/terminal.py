"""What the command line says beside its data, and the one place where errors become text.

Everything here goes to standard error: errors, warnings, hints, progress. Streams are looked up
when they are used, so that tests and redirections see what is written; a stream that was closed
(`2>&-`) is None, and what goes there is lost.
"""

from __future__ import annotations

import io
import json
import logging
import os
import stat
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..errors import LogoError
from ..files.text_file import is_encodable

# Tables for programs are never cut; rich would otherwise assume 80 columns.
_UNCUT = 10_000
# Columns that a bar leaves free: the terminal echoes ^C there, and would else begin another line.
_ECHO = 3
_SHOW_PROGRESS_AFTER = 1.0  # seconds


# -1 with --quiet, 1 with --verbose. Of the process, as its streams are.
_volume = 0


def set_volume(volume: int) -> None:
    """Say less (-1), as usual (0) or more (1) on standard error from now on."""
    global _volume
    _volume = volume


def is_quiet() -> bool:
    """Whether less is said than usual."""
    return _volume < 0


def is_verbose() -> bool:
    """Whether more is said than usual."""
    return _volume > 0


def err_console() -> Console:
    """Rich on standard error, without any guessing at what the text means."""
    return Console(file=sys.stderr or io.StringIO(), highlight=False, markup=False, emoji=False)


def out_console() -> Console:
    """The same on standard output, where a pipe gets every line whole."""
    width = None if sys.stdout is not None and sys.stdout.isatty() else _UNCUT
    return Console(
        file=sys.stdout or io.StringIO(), highlight=False, markup=False, emoji=False, width=width
    )


def say(text: str, style: str | None = None) -> None:
    """One line on standard error; a terminal may show it in `style`, and keeps words whole."""
    _print_words(text, style or "")


def print_json(value: object) -> None:
    """`value` as indented JSON on standard output."""
    click.echo(json.dumps(value, indent=2))


def note(text: str, style: str = "dim") -> None:
    """A remark beside a conversation, on standard error."""
    say(text, style)


def aside(text: str, style: str = "dim") -> None:
    """As `say`, for what --quiet leaves out: neither an answer to a command nor a warning."""
    if not is_quiet():
        say(text, style)


def _print_words(text: str, style: str = "", lead: str = "", lead_style: str = "") -> None:
    """`lead` and `text`; a terminal breaks between words, a pipe gets the line whole.

    A word longer than a line, a path perhaps, is left whole, so that it can be copied.
    """
    console, shown = err_console(), lead + text
    if console.is_terminal:
        shown = "\n".join(_wrapped(line, console.width) for line in visible(shown).split("\n"))
    styled = Text(shown, style)
    styled.stylize(lead_style, 0, len(lead))
    console.print(styled, soft_wrap=True)


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


# What a terminal would obey rather than show: C0 but for tab and line feed, DEL, C1, and what
# turns the direction of writing.
_UNSEEN = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_UNSEEN[0x7F] = "\N{SYMBOL FOR DELETE}"
_UNSEEN |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_UNSEEN |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def visible(text: str) -> str:
    """`text` with its control characters visible, so that a terminal shows them: ESC as ␛.

    Tabs and line feeds stay. Each character by itself: pieces of a stream can be given in turn.
    """
    return text.translate(_UNSEEN)


def for_reader(text: str) -> str:
    """What of an answer standard output gets: `visible` on a terminal, all as it is in a pipe."""
    return visible(text) if sys.stdout is not None and sys.stdout.isatty() else text


def print_error(error: LogoError) -> None:
    """`error:` line, one indented line for each problem, `hint:` line."""
    _print_failure(error.message, error.problems, error.hint)


def _print_failure(message: str, problems: tuple[str, ...] = (), hint: str = "") -> None:
    _print_words(_one_line(message), lead="error: ", lead_style="bold red")
    for problem in problems:
        _print_words(_one_line(problem), lead="  ")
    if hint:
        _print_words(_one_line(hint), lead="hint: ", lead_style="bold cyan")


def _one_line(text: str) -> str:
    return " ".join(text.split())


class UsageError(click.UsageError):
    """Wrong usage with a hint of its own."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def check_text(text: str, what: str) -> None:
    """Raise UsageError where an argument holds bytes that are not UTF-8."""
    if not is_encodable(text):
        raise UsageError(f"{what} is not text in UTF-8", "check the encoding of the terminal")


def is_piped() -> bool:
    """Whether something was piped or redirected to standard input: no terminal and no device."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no file of the system's: a test's stream
        return not sys.stdin.isatty()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


class ErrorsAsText(click.Command):
    """A click command that ends every failure as text and an exit code, never as a traceback.

    1 for what a user can put right, 2 for wrong usage, 130 for Ctrl+C.
    """

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command; with `standalone_mode` end the process."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character
        try:
            code = run(*args, standalone_mode=False, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()  # a reader that has gone away is noticed here at the latest
        except LogoError as error:
            print_error(error)
            code = 1
        except click.UsageError as error:
            code = self._wrong_usage(error)
        except click.ClickException as error:
            _print_failure(error.format_message())
            code = error.exit_code
        except click.Abort:
            code = 130
        except BrokenPipeError:
            code = _without_reader()
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            hint = "check the free disk space, and the permissions there"
            _print_failure(f"{name}{error.strerror or error}", hint=hint)
            code = 1
        sys.exit(code if isinstance(code, int) else 0)

    def _wrong_usage(self, error: click.UsageError) -> int:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message(), err=True)
            return 2
        hint = getattr(error, "hint", "") or _from_environment(error)
        if not hint:
            command = error.ctx.command_path if error.ctx else "logo-local"
            hint = f"{command} --help shows how it is used"
        _print_failure(error.format_message(), hint=hint)
        return 2


class CommandGroup(ErrorsAsText, click.Group):
    """A group of commands with that ending."""


def _from_environment(error: click.UsageError) -> str:
    """Where a bad value comes from, when nobody typed it."""
    parameter, ctx = getattr(error, "param", None), error.ctx
    if parameter is None or ctx is None:
        return ""
    source = ctx.get_parameter_source(parameter.name)
    if source is not ParameterSource.ENVIRONMENT:
        return ""
    return f"the value comes from the environment variable {parameter.envvar}"


def _without_reader() -> int:
    """Standard output was closed by its reader (`| head`): nothing to say, nothing to flush."""
    with suppress(Exception):
        sys.stdout.close()  # drops what is buffered, so that the interpreter's exit is quiet too
    return 1  # as click does


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            if is_verbose():
                say(record.getMessage(), "dim")
            return
        say(f"{record.levelname.lower()}: {record.getMessage()}", "yellow")


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Within this block the package's log warnings are `warning: ...` lines.

    With --verbose what is said at the level INFO is a line, too.
    """
    logger = logging.getLogger("logo_local")
    handler = _Warnings(logging.INFO)
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        logger.setLevel(level)


class ProgressBar:
    """A bar on standard error for work that takes longer than a second, on a terminal only.

    Call it with (stage, done, total). It goes away when a stage is done, and at the latest at the
    end of the context that it is used as; the engine may call it again after that.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._stages: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of `stage` are done."""
        if self._bar is None:
            waited = time.monotonic() - self._started
            if waited < _SHOW_PROGRESS_AFTER or done >= total:
                return
            console = err_console()
            console.width = max(console.width - _ECHO, 1)
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=True,
                disable=not console.is_terminal or is_quiet(),
            )
            self._bar.start()
        if stage not in self._stages:
            self._stages[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._stages[stage], completed=done, total=total)
        if done >= total:
            self._close()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._stages, self._started = None, {}, time.monotonic()
