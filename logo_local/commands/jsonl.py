"""`logo-local run --jsonl`: the streams and signals of a process for a `session.Session`."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ..completions import Sampling
from ..console.abort import Ending
from ..console.opening import open_by_options
from ..console.terminal import UsageError
from ..errors import LogoError

if TYPE_CHECKING:
    from ..jsonl.session import Read, Session, Write

JSONL = click.option(
    "--jsonl",
    is_flag=True,
    help="Read requests from standard input and write events, as JSON lines.",
)
_ELSEWHERE = {"as_json": "--json", "explain": "--explain", "raw": "--raw"}  # or meaningless here


def answer_lines(
    ctx: click.Context,
    model: str,
    prompt: str | None,
    sampling: Sampling,
    given: Mapping[str, Any],
) -> None:
    """Open the engine for the options, and answer requests until the input ends, or SIGTERM.

    A failure to open it is an event, too. Raises UsageError if an option asks for another output
    format.
    """
    from ..jsonl.session import Events, Session  # imports pydantic, which is slow

    beside = [flag for name, flag in _ELSEWHERE.items() if given[name]]
    beside += ["a prompt"] if prompt is not None else []
    if beside:
        raise UsageError(
            f"--jsonl does not go with {', '.join(beside)}",
            "put prompts and their options into the requests: docs/embedding.md",
        )
    with _only_events() as write:
        events = Events(write)
        ending = Ending()

        def lost(error: LogoError) -> None:
            events.error(error)
            ending(error)

        try:
            llm = open_by_options(ctx, model, given, events.progress, on_loss=lost)
        except LogoError as error:
            events.error(error)
            raise
        session = Session(llm, events, sampling)
        with _at_sigterm(session):
            session.run(_standard_input())


@contextmanager
def _only_events() -> Iterator[Write]:
    """Within this block only the yielded function writes to standard output.

    All other output there, from Python or C code, goes to standard error.
    """
    if sys.stdout is None:
        raise UsageError("standard output is closed", "--jsonl writes events there")
    try:
        number = sys.stdout.fileno()
    except io.UnsupportedOperation:  # a stream without a file descriptor, which C code cannot use
        yield _flushing(sys.stdout.buffer)
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(number), "wb") as out, open(os.devnull, "wb") as nothing:
        os.dup2(sys.stderr.fileno() if sys.stderr else nothing.fileno(), number)
        try:
            yield _flushing(out)
        finally:
            sys.stdout.flush()
            os.dup2(out.fileno(), number)


def _flushing(stream: BinaryIO) -> Write:
    def write(line: bytes) -> None:
        stream.write(line)
        stream.flush()

    return write


def _standard_input() -> Read:
    """Reads available input. Unbuffered, because the buffer's lock would be held at exit."""
    if sys.stdin is None:
        return lambda _n: b""
    stream = sys.stdin.buffer
    read: Read = getattr(stream, "raw", stream).read
    return read


@contextmanager
def _at_sigterm(session: Session) -> Iterator[None]:
    """Within this block SIGTERM stops the session cleanly."""
    before = signal.signal(signal.SIGTERM, lambda *_: session.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
