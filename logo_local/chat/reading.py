"""Lines from the terminal: by the editor, or plainly where nothing can be drawn."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

from .lines import Complete


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
