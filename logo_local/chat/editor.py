"""The line editor of a chat on a terminal: history, completion, messages of several lines.

The only module that uses prompt_toolkit; imported when a chat begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from .. import config
from ..console.terminal import note
from .lines import MORE, Complete, is_open

_MOST_BYTES = 1 << 20  # of history; above this the older half is removed


class Editor:
    """Reads messages from the terminal at standard input, and draws on `screen`."""

    def __init__(self, screen: TextIO, complete: Complete) -> None:
        output = create_output(screen)
        if isinstance(output, Vt100_Output):
            # The cursor position is needed only for menus, which are not used, and a late reply of
            # the terminal would be read as typed text.
            output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            output=output,
            history=history(config.data_dir() / "chat_history"),
            completer=_Completer(complete),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            enable_suspend=True,
            enable_open_in_editor=True,
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=_keys(),
        )

    def read(self, prompt: str) -> str:
        """The next message; EOFError for Ctrl+D, KeyboardInterrupt for Ctrl+C on an empty line."""
        text = self._session.prompt(prompt)
        # Invalid UTF-8 bytes become surrogates, which no tokenizer accepts.
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _continuation(width: int, _line: int, wraps: int) -> str:
    """The prefix of a further line; only spaces if a long line is wrapped."""
    return " " * width if wraps else MORE


def _keys() -> KeyBindings:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # the history search has its own key bindings

    @keys.add("enter", filter=typing)
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c", filter=typing)
    def _clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


class _Completer(Completer):
    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        n_replaced, candidates = self._complete(document.text_before_cursor)
        for text in candidates:
            yield Completion(text, start_position=-n_replaced)


class _SafeHistory(FileHistory):
    """A history on disk; if the disk is full, the chat continues."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def history(path: Path) -> History:
    """The input history in the file at `path`, which only its owner can read.

    If it cannot be written, a warning is printed and the history is kept for this chat only.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))
        if path.stat().st_size > _MOST_BYTES:
            path.write_bytes(newer_half(path.read_bytes()))
    except OSError as error:
        note(f"The input history is not saved: {path}: {error.strerror}")
        return InMemoryHistory()
    return _SafeHistory(path)


def newer_half(content: bytes) -> bytes:
    """The newer entries of a history file, each complete: an entry begins with an empty line."""
    start = content.find(b"\n# ", len(content) // 2)
    return content[start:] if start >= 0 else b""
