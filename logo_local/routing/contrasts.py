"""Prompts that an adapter is not made for, from its own examples: its inputs under other requests.

"Rewrite in the passive voice: The dog bit the man." has an input, "The dog bit the man.", that
somebody may ask something else about. What the base makes of such prompts is a reference that a
prompt must be further from than from the adapter's examples. Plain text in, plain text out.

Source: our own; measured in docs/quality.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..prefix import common_prefix

# Requests that are made of any text. None of them is what an adapter is usually trained for.
REQUESTS = (
    "How many words are in the following text?\n{input}",
    "Rewrite this politely: {input}",
    "{input}\n\nSummarise this in one sentence.",
    "What do you think about this? {input}",
    "{input}\n\nGive three keywords for this.",
    "Read the following and tell me what comes to mind: {input}",
)
MOST_SHARED = 4  # words of an input that other examples of the adapter have, too


def contrast_prompts(examples: Sequence[str]) -> list[str]:
    """As many prompts as there are REQUESTS, each about the input of another example.

    With fewer examples, inputs come again. None for a single example: what of it is its input
    cannot be told.
    """
    inputs = [found for found in example_inputs(examples) if found]
    if not inputs:
        return []
    return [
        request.replace("{input}", inputs[i % len(inputs)]) for i, request in enumerate(REQUESTS)
    ]


def shared_lines(prompts: Sequence[str]) -> tuple[str, str]:
    """The lines that all prompts begin and end with, such as "### Response:"; "" for none.

    Of prompts of several adapters that is a format, not a request.
    """
    head = _common_start(prompts)
    tail = _common_start([prompt[::-1] for prompt in prompts])[::-1]
    start = tail.find("\n")
    return head[: head.rfind("\n") + 1], tail[start:] if start >= 0 else ""


def _common_start(texts: Sequence[str]) -> str:
    return texts[0][: min(common_prefix(texts[0], text) for text in texts)]


def example_inputs(examples: Sequence[str]) -> list[str]:
    """The input of each example: the run of words with the most that no other example has.

    Up to MOST_SHARED words inside it may be in other examples. Empty where there is none, and for
    a single example.
    """
    words = [example.split() for example in examples]
    if len(words) < 2:
        return [""] * len(words)
    found = []
    for i, own in enumerate(words):
        others = {word for j, other in enumerate(words) if j != i for word in other}
        found.append(" ".join(_longest_run(own, others)))
    return found


def _longest_run(words: Sequence[str], others: set[str]) -> Sequence[str]:
    """In one pass: a window with at most MOST_SHARED shared words, without any at its ends."""
    shared = [word in others for word in words]
    best, most = (0, 0), 0
    start = n_shared = n_own = 0
    for end, is_shared in enumerate(shared):
        n_shared, n_own = n_shared + is_shared, n_own + (not is_shared)
        while start <= end and (n_shared > MOST_SHARED or shared[start]):
            n_shared, n_own = n_shared - shared[start], n_own - (not shared[start])
            start += 1
        if n_own > most:
            best, most = (start, end + 1), n_own
    return words[best[0] : best[1]]
