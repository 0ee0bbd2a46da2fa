"""Where a chat's lines come from, and how several of them are one message.

Pure functions; `reading` reads from the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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


def read_message(read: Callable[[str], str], state: str = "") -> str:
    """The next message or command, asked for with `state` before the prompt; raises as `read`."""
    text = read(state + PROMPT)
    while is_open(text):
        text += "\n" + read(MORE)
    return unwrapped(text)
