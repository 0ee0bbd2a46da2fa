"""Where a chat's lines come from, and how several of them are one message.

Pure functions, and a reader for terminals that can do nothing (or for nobody who watches);
the one with history and completion is `editor`.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

PROMPT = ">>> "
MORE = "... "  # before the further lines of a message

# For the text before the cursor: how many characters at its end are replaced, and by what.
Complete = Callable[[str], tuple[int, list[str]]]

_QUOTES = '"""'
_OPENED = re.compile(r'\s*(/set\s+\S+\s+)?"""')


def is_open(text: str) -> bool:
    """Whether `text` begins a message with three quotation marks and does not end it."""
    begin = _OPENED.match(text)
    return begin is not None and not text[begin.end() :].rstrip().endswith(_QUOTES)


def unwrapped(text: str) -> str:
    """The message without white space around it; between three quotation marks it stays as it is.

    Only the line ends next to the marks belong to them.
    """
    begin = _OPENED.match(text)
    if begin is None or is_open(text):
        return text.strip()
    inner = text[begin.end() :].rstrip().removesuffix(_QUOTES)
    return (begin[1] or "") + inner.removeprefix("\n").removesuffix("\n")


def read_message(read: Callable[[str], str]) -> str:
    """The next message or command; raises what `read` raises."""
    text = read(PROMPT)
    while is_open(text):
        text += "\n" + read(MORE)
    return unwrapped(text)


def reader(complete: Complete) -> Callable[[str], str]:
    """What reads from the terminal at standard input: the editor where one can be drawn."""
    screens = (s for s in (sys.stdout, sys.stderr) if s is not None and s.isatty())
    screen = next(screens, None)
    if screen is None or os.environ.get("TERM") in ("dumb", "unknown"):
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        return partial(_plain, screen)
    from .editor import Editor

    return Editor(screen, complete).read


def _plain(screen: TextIO | None, prompt: str) -> str:
    """A line of standard input; the prompt is for a screen only."""
    if screen is not None:
        screen.write(prompt)
        screen.flush()
    line = sys.stdin.readline()
    if not line:
        if screen is not None:
            screen.write("\n")  # what comes next begins its own line
        raise EOFError
    return line.removesuffix("\n")
