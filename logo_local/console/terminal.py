"""Messages of the command line, and the only place where errors become text.

Everything here goes to standard error: errors, warnings, hints, progress. Streams are looked up
when they are used, so that tests and redirections work; a stream that was closed (`2>&-`) is None,
and output to it is dropped.
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

# Tables for programs are never cut; rich would assume 80 columns.
_UNCUT = 10_000
# Columns after a progress bar for the ^C that the terminal echoes; without them the line wraps.
_ECHO = 3
_SHOW_PROGRESS_AFTER = 1.0  # seconds


# -1 with --quiet, 1 with --verbose. Per process, like the streams.
_volume = 0


def set_volume(volume: int) -> None:
    """Print fewer (-1), the default (0) or more (1) messages on standard error from now on."""
    global _volume
    _volume = volume


def is_quiet() -> bool:
    """Whether --quiet is set."""
    return _volume < 0


def is_verbose() -> bool:
    """Whether --verbose is set."""
    return _volume > 0


def err_console() -> Console:
    """A rich console on standard error, without markup and highlighting."""
    return Console(file=sys.stderr or io.StringIO(), highlight=False, markup=False, emoji=False)


def out_console() -> Console:
    """The same on standard output; lines in a pipe are not wrapped."""
    width = None if sys.stdout is not None and sys.stdout.isatty() else _UNCUT
    return Console(
        file=sys.stdout or io.StringIO(), highlight=False, markup=False, emoji=False, width=width
    )


def say(text: str, style: str | None = None) -> None:
    """One line on standard error; in a terminal with `style`, and wrapped between words."""
    _print_words(text, style or "")


def print_json(value: object) -> None:
    """`value` as indented JSON on standard output."""
    click.echo(json.dumps(value, indent=2))


def note(text: str, style: str = "dim") -> None:
    """A remark during a conversation, on standard error."""
    say(text, style)


def aside(text: str, style: str = "dim") -> None:
    """As `say`, for messages that --quiet hides: neither results of a command nor warnings."""
    if not is_quiet():
        say(text, style)


def _print_words(text: str, style: str = "", lead: str = "", lead_style: str = "") -> None:
    """`lead` and `text`; wrapped between words in a terminal, one line in a pipe.

    A word longer than a line, such as a path, is not broken, so that it can be copied.
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


# Characters that a terminal would interpret: C0 except tab and line feed, DEL, C1, and those that
# change the direction of text.
_UNSEEN = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_UNSEEN[0x7F] = "\N{SYMBOL FOR DELETE}"
_UNSEEN |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_UNSEEN |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def visible(text: str) -> str:
    """`text` with visible control characters, which a terminal does not interpret: ESC as ␛.

    Tabs and line feeds are kept. Works per character: pieces of a stream can be passed in turn.
    """
    return text.translate(_UNSEEN)


def for_reader(text: str) -> str:
    """The text of an answer for standard output: `visible` on a terminal, unchanged in a pipe."""
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
    """A usage error with its own hint."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def check_text(text: str, what: str) -> None:
    """Raise UsageError if an argument contains bytes that are not UTF-8."""
    if not is_encodable(text):
        raise UsageError(f"{what} is not text in UTF-8", "check the encoding of the terminal")


def is_piped() -> bool:
    """Whether standard input is piped or redirected: not a terminal or another device."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # not a file descriptor, for example in a test
        return not sys.stdin.isatty()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


class ErrorsAsText(click.Command):
    """A click command whose failures end as text and an exit code, never as a traceback.

    1 for errors that the user can correct, 2 for wrong usage, 130 for Ctrl+C.
    """

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command; with `standalone_mode` end the process."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # for characters that the terminal lacks
        try:
            code = run(*args, standalone_mode=False, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()  # detects a closed reader at the latest here
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
    """A command group with the same error handling."""


def _from_environment(error: click.UsageError) -> str:
    """The source of an invalid value that was not typed on the command line."""
    parameter, ctx = getattr(error, "param", None), error.ctx
    if parameter is None or ctx is None:
        return ""
    source = ctx.get_parameter_source(parameter.name)
    if source is not ParameterSource.ENVIRONMENT:
        return ""
    return f"the value comes from the environment variable {parameter.envvar}"


def _without_reader() -> int:
    """Standard output was closed by its reader (`| head`): print and flush nothing."""
    with suppress(Exception):
        sys.stdout.close()  # drops buffered output, so that the interpreter exits silently
    return 1  # as in click


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            if is_verbose():
                say(record.getMessage(), "dim")
            return
        say(f"{record.levelname.lower()}: {record.getMessage()}", "yellow")


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Within this block, the package's log warnings are printed as `warning: ...` lines.

    With --verbose, messages of level INFO are printed too.
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

    Call it with (stage, done, total). It disappears when a stage is done, at the latest at the end
    of the `with` block; the engine may call it again after that.
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
