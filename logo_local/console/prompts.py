"""Where a prompt comes from, and what is said before it is answered."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..ask import Engine
from ..files.text_file import decoded
from .terminal import UsageError, check_text, is_piped, say


def prompt_text(prompt: str | None) -> str:
    """Standard input up to its last line break where it is piped, then the argument."""
    piped = "" if prompt is not None and not is_piped() else _standard_input()
    if prompt is not None:
        check_text(prompt, "the prompt")
    parts = [part for part in (piped, prompt) if part and part.strip()]
    if not parts:
        raise UsageError("the prompt is empty", "give it as an argument, or on standard input")
    return "\n\n".join(parts)


def _standard_input() -> str:
    if sys.stdin is None:
        return ""
    try:
        return decoded(sys.stdin.buffer.read()).replace("\r\n", "\n").rstrip("\r\n")
    except ValueError as error:
        raise UsageError(f"standard input cannot be used: {error}", "pipe text in UTF-8") from error


def announce_self_profiles(llm: Engine, given: Mapping[str, Any]) -> None:
    """Say which adapters the router knows nothing of, or what the first prompt will wait for."""
    missing = llm.without_profile()
    if not missing:
        return
    n = len(missing)
    who = f"{n} adapters have" if n > 1 else f"{missing[0]} has"
    if given["self_profile"] is not True:
        say(
            f"{who} no example prompts and {'are' if n > 1 else 'is'} never selected; add some: "
            f"logo-local profile {missing[0] if n == 1 else 'NAME'} --prompts FILE",
            "dim",
        )
    else:
        say(
            f"{who} no example prompts: {'each' if n > 1 else 'it'} generates some first, "
            "which takes seconds to minutes (--no-self-profile skips it)",
            "dim",
        )
