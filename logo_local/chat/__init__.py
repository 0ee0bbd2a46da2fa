"""A conversation on a terminal: lines in, streamed answers out, and what was blended.

Answers go to standard output, everything else to standard error. `session` has the turns,
`commands` what begins with a slash, `settings` what /set can change, `transcript` the files of
/save and /load, `lines` and `reading` where the lines come from, and `editor` the one that knows
prompt_toolkit. None of them knows llama_cpp: they ask an engine (`ask.Engine`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from ..ask import Engine, Sampling, has_chat_template
from .session import Session

__all__ = ["chat", "is_terminal"]


def chat(
    llm: Engine,
    sampling: Sampling,
    *,
    system: str | None = None,
    explain: bool = False,
    raw: bool = False,
    suggestions: Sequence[str] = (),
    background: Callable[[], str] = str,
    read: Callable[[str], str] | None = None,
) -> None:
    """Talk until /bye or the end of input.

    With a chat template the conversation so far, after `system`, is part of each prompt; without
    one, or with `raw`, each line is completed by itself. `explain` shows the scores after each
    answer, `suggestions` are prompts to try that are shown first,
    `background` says what is done meanwhile. `read` is given the prompt and
    returns the next line; it raises EOFError at the end, and KeyboardInterrupt for Ctrl+C. The
    default is an editor on the terminal.
    """
    raw = raw or not has_chat_template(llm)
    session = Session(
        llm,
        sampling,
        system=system,
        explain=explain,
        raw=raw,
        suggestions=suggestions,
        background=background,
    )
    if read is None:
        from .reading import reader

        read = reader(session.complete)
    try:
        session.run(read)
    finally:
        session.stop_reading()


def is_terminal() -> bool:
    """Whether somebody sits at the other end of standard input."""
    return sys.stdin is not None and sys.stdin.isatty()  # None where it was closed
