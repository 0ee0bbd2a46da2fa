"""Parse the lines of a chat, of which several can form one message.

Pure functions; `reading` reads from the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable

PROMPT = ">>> "
MORE = "... "  # prompt of the further lines of a message

# For the text before the cursor: how many characters at its end to replace, and the replacements.
Complete = Callable[[str], tuple[int, list[str]]]

_QUOTES = '"""'
_OPENED = re.compile(r'\s*(/set\s+\S+\s+)?"""')


def is_open(text: str) -> bool:
    """Whether `text` begins a message with three quotation marks and does not end it."""
    begin = _OPENED.match(text)
    return begin is not None and not text[begin.end() :].rstrip().endswith(_QUOTES)


def unwrapped(text: str) -> str:
    """The message without surrounding white space; text in three quotation marks is unchanged.

    Only the line breaks next to the quotation marks are removed.
    """
    begin = _OPENED.match(text)
    if begin is None or is_open(text):
        return text.strip()
    inner = text[begin.end() :].rstrip().removesuffix(_QUOTES)
    return (begin[1] or "") + inner.removeprefix("\n").removesuffix("\n")


def read_message(read: Callable[[str], str], state: str = "") -> str:
    """Read the next message or command, with `state` before the prompt; raises as `read`."""
    text = read(state + PROMPT)
    while is_open(text):
        text += "\n" + read(MORE)
    return unwrapped(text)
