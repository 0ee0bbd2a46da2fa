"""Read lines from the terminal, with the editor if possible."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

from .lines import Complete


def reader(complete: Complete) -> Callable[[str], str]:
    """A function that reads from the terminal at standard input: the editor if it can draw."""
    screens = (s for s in (sys.stdout, sys.stderr) if s is not None and s.isatty())
    screen = next(screens, None)
    if screen is None or os.environ.get("TERM") in ("dumb", "unknown"):
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        return partial(_plain, screen)
    from .editor import Editor

    return Editor(screen, complete).read


def _plain(screen: TextIO | None, prompt: str) -> str:
    """A line of standard input; the prompt is only for a screen."""
    if screen is not None:
        screen.write(prompt)
        screen.flush()
    line = sys.stdin.readline()
    if not line:
        if screen is not None:
            screen.write("\n")  # start the next output on its own line
        raise EOFError
    return line.removesuffix("\n")
