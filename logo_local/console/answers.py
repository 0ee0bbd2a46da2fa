"""Stream an answer to standard output, with word wrap on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import click
from rich.cells import cell_len
from rich.console import Console

from .terminal import for_reader

_TAB = 8  # columns
_FENCE = "```"  # around code, whose lines are not wrapped


class WordWrap:
    """Wraps a text that arrives in pieces between words, at most `width()` columns wide.

    A word is held back until it is complete; scripts without spaces may be wrapped after any
    character. Code between fences, and words longer than a line, are left to the terminal.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0
        self._spaces, self._word = "", ""
        self._line = ""  # the unwrapped line, to find fences
        self._in_code = self._after_wide = False

    def feed(self, piece: str) -> str:
        """Add `piece`, and return the text that can be shown now."""
        return "".join(shown for character in piece for shown in self._take(character))

    def end(self) -> str:
        """Return the text that was held back."""
        return "".join(self._flush())

    def _take(self, character: str) -> Iterator[str]:
        if character == "\n":
            yield from self._flush()
            yield self._spaces + character
            if self._line.lstrip().startswith(_FENCE):
                self._in_code = not self._in_code
            self._column, self._spaces, self._line = 0, "", ""
            return
        self._line += character
        if self._in_code:
            yield character
        elif character in " \t":
            yield from self._flush()
            self._spaces += character
        else:
            if cell_len(character) > 1:
                yield from self._flush()
            self._word += character
            if cell_len(character) > 1 or cell_len(self._word) >= self._width():
                yield from self._flush()

    def _flush(self) -> Iterator[str]:
        if not self._word:
            return
        start = self._column
        for space in self._spaces:
            start += _TAB - start % _TAB if space == "\t" else 1
        n = cell_len(self._word)
        may_break = bool(self._spaces) or self._after_wide or cell_len(self._word[0]) > 1
        if self._column and start + n > self._width() and may_break:
            yield "\n" + self._word
            self._column = n
        else:
            yield self._spaces + self._word
            self._column = (start + n - 1) % self._width() + 1  # the terminal wrapped a longer word
        self._after_wide = cell_len(self._word[-1]) > 1
        self._spaces, self._word = "", ""


class AnswerStream:
    """Writes the pieces of an answer to standard output, each as soon as it can be shown."""

    def __init__(self) -> None:
        out = sys.stdout
        screen = Console(file=out) if out is not None and out.isatty() else None
        self._wrap = None if screen is None else WordWrap(lambda: screen.width)
        self._last = ""

    def write(self, piece: str) -> None:
        """Show `piece`; in a pipe it is unchanged."""
        shown = for_reader(piece)
        self._show(shown if self._wrap is None else self._wrap.feed(shown))

    def end(self) -> None:
        """Show the rest, and end the line if needed."""
        if self._wrap is not None:
            self._show(self._wrap.end())
        if self._last and not self._last.endswith("\n"):
            click.echo()
        self._last = ""

    def _show(self, text: str) -> None:
        if text:
            click.echo(text, nl=False, color=True)  # otherwise click would remove escape sequences
            self._last = text
