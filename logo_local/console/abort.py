"""End the process with an error message when llama.cpp aborts it.

That happens inside of a call into llama.cpp: nothing can be unwound, and no cleanup code runs.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

from ..errors import LogoError
from .terminal import print_error


class Ending:
    """The streams and the terminal of the process as they are now, for its end.

    llama_cpp redirects standard output and error while it loads a model, and the line editor
    changes the terminal.
    """

    def __init__(self) -> None:
        self._streams: dict[int, int] = {}
        for number in (1, 2):
            with suppress(OSError):  # closed
                self._streams[number] = os.dup(number)
        self._terminal: list[Any] | None = None
        with suppress(ImportError):  # Windows
            import termios

            with suppress(termios.error):  # not a terminal
                self._terminal = termios.tcgetattr(0)

    def restore(self) -> None:
        """Restore streams and terminal."""
        for number, copy in self._streams.items():
            os.dup2(copy, number)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        if self._terminal is not None:
            import termios

            with suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._terminal)
        if sys.stdout is not None and sys.stdout.isatty():
            sys.stdout.write("\n")  # an answer may have stopped in the middle of a line
            sys.stdout.flush()

    def __call__(self, error: LogoError) -> NoReturn:
        """Print the error, and end the process with exit code 1."""
        try:
            self.restore()
            print_error(error)
            if sys.stdout is not None:
                sys.stdout.flush()
        finally:
            os._exit(1)
