"""The types of prompts, and the messages of a conversation that are routed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[int] | Sequence[Message]"

MOST_MESSAGES = 4  # the user's last messages; earlier ones have no effect on the route


def are_messages(prompt: Any) -> bool:
    """Whether `prompt` is a list of chat messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def conversation_parts(prompt: Any) -> list[Sequence[Message]]:
    """The user's last messages in a conversation, each alone, the latest first.

    Empty for other prompts, and for a conversation whose last user message is missing or empty.
    """
    if not are_messages(prompt) or len(prompt) < 2:
        return []
    from_user = [message for message in prompt if message.get("role") == "user"]
    if not from_user or not from_user[-1].get("content"):
        return []
    return [[one] for one in from_user[: -1 - MOST_MESSAGES : -1] if one.get("content")]
