"""Where a prompt comes from, and what is said before it is answered."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..ask import Engine
from .terminal import UsageError, say


def prompt_text(prompt: str | None) -> str:
    """The argument, or standard input up to its last line break."""
    if prompt is None:
        try:
            prompt = sys.stdin.read().rstrip("\r\n") if sys.stdin else ""
        except UnicodeDecodeError as error:
            raise UsageError("standard input is not text in UTF-8", "convert it first") from error
    if not prompt.strip():
        raise UsageError("the prompt is empty", "give it as an argument, or on standard input")
    return prompt


def announce_asking(llm: Engine, given: Mapping[str, Any]) -> None:
    """Say what the first prompt will wait for; what is done of it stays done."""
    missing = llm.without_profile() if given["self_profile"] is True else []
    if missing:
        n = len(missing)
        who = f"{n} adapters have" if n > 1 else "1 adapter has"
        say(
            f"{who} no example prompts: {'each' if n > 1 else 'it'} is asked once what it is for, "
            "which takes seconds to minutes (--no-self-profile leaves it out)",
            "dim",
        )
