"""A chat on a terminal: reads lines, streams answers, and shows the blended adapters.

Answers go to standard output, everything else to standard error. `session` has the turns,
`commands` the slash commands, `settings` the options of /set, `transcript` the files of /save and
/load, `lines` and `reading` the input, and `editor` the only use of prompt_toolkit. None of them
uses llama_cpp: they call an engine (`completions.Engine`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from ..completions import Engine, Sampling, has_chat_template
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

    With a chat template, each prompt contains the conversation so far, after `system`; without
    one, or with `raw`, each line is completed separately. `explain` shows the scores after each
    answer, `suggestions` are example prompts that are shown first, `background` returns the
    status of background work. `read` gets the prompt and returns the next line; it raises
    EOFError at the end, and KeyboardInterrupt for Ctrl+C. The default is an editor on the
    terminal.
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
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()  # None if it was closed
