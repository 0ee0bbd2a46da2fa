"""Control tokens that are written out in messages, such as <|im_end|>.

llama.cpp reads a conversation as one text, in which they count whoever wrote them: a message that
holds <|im_end|> and <|im_start|>system becomes two, of which one is the system's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp


def control_tokens(vocab: Any) -> re.Pattern[str] | None:
    """What finds the texts of the control tokens of a vocabulary; None where there are none.

    Takes some 0.1 s for 250,000 tokens.
    """
    texts = [
        llama_cpp.llama_vocab_get_text(vocab, i).decode("utf-8", "replace")
        for i in range(llama_cpp.llama_vocab_n_tokens(vocab))
        if llama_cpp.llama_vocab_is_control(vocab, i)
    ]
    texts = sorted({text for text in texts if len(text) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def escaped(
    messages: Sequence[Mapping[str, Any]], tokens: re.Pattern[str]
) -> list[Mapping[str, Any]]:
    """The messages with a space behind the first character of each control token's text."""
    return [
        {**message, "content": escaped_text(message["content"], tokens)}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def escaped_text(text: str, tokens: re.Pattern[str]) -> str:
    """The same for one text; again where an escape has made another one."""
    while (done := tokens.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)) != text:
        text = done
    return text
