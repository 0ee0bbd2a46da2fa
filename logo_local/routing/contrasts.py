"""Prompts that an adapter is not made for, from its own examples: its inputs under other requests.

"Rewrite in the passive voice: The dog bit the man." has an input, "The dog bit the man.", that
somebody may ask something else about. What the base makes of such prompts is a reference that a
prompt must be further from than from the adapter's examples. Plain text in, plain text out.

Source: our own; measured in docs/quality.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..prefix import common_prefix

# Requests that are made of any text, about the words that only one example has, and about all that
# is not in the wording. None of them is what an adapter is usually trained for.
REQUESTS = (
    "How many words are in the following text?\n{input}",
    "Rewrite this politely: {input}",
    "{input}\n\nSummarise this in one sentence.",
    "What do you think about this? {input}",
    "{input}\n\nGive three keywords for this.",
    "Read the following and tell me what comes to mind: {input}",
)
WHOLE_REQUESTS = (
    "Is this well written? {input}",
    "{input}\n\nTranslate this into Italian.",
    "Who would say something like this?\n{input}",
    "Make this longer: {input}",
)
MOST_SHARED = 4  # words of an input that other examples of the adapter have, too
LEAST_WORDING = 2  # words that two examples begin and end with, if they have the same wording


def contrast_prompts(examples: Sequence[str]) -> list[list[str]]:
    """A prompt for each of REQUESTS, and for each of WHOLE_REQUESTS, about inputs in turn.

    Empty for a single example: what of it is its input cannot be told.
    """
    kinds = ((REQUESTS, own_words(examples)), (WHOLE_REQUESTS, whole_inputs(examples)))
    found = []
    for requests, of_examples in kinds:
        inputs = [given for given in of_examples if given]
        if not inputs:
            return []
        found.append(
            [
                request.replace("{input}", inputs[i % len(inputs)])
                for i, request in enumerate(requests)
            ]
        )
    return found


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


def whole_inputs(examples: Sequence[str]) -> list[str]:
    """The input of each example: what is left between the words that it shares with another.

    That is the example with the most words in common at the start and the end. Its own words, as
    `own_words` finds them, where no other example has the same wording. Empty for a single example.
    """
    words = [re.findall(r"\S+\s*", example) for example in examples]
    bare = [[word.strip() for word in of_one] for of_one in words]
    found = []
    for i, narrow in enumerate(own_words(examples)):
        others = (other for j, other in enumerate(bare) if j != i)
        head, tail = max((_around(bare[i], other) for other in others), key=sum, default=(0, 0))
        whole = "".join(words[i][head : len(words[i]) - tail]).strip()
        found.append(whole if head + tail >= LEAST_WORDING else narrow)
    return found


def n_wordings(examples: Sequence[str]) -> int:
    """In how many wordings the examples are: those with LEAST_WORDING words around are in one."""
    words = [example.split() for example in examples]
    group = list(range(len(words)))
    for i, one in enumerate(words):
        for j in range(i):
            if group[j] != group[i] and sum(_around(one, words[j])) >= LEAST_WORDING:
                group = [group[j] if found == group[i] else found for found in group]
    return len(set(group))


def _around(one: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """How many words two examples begin with, and how many of the others they end with."""
    head = common_prefix(one, other)
    return head, common_prefix(one[head:][::-1], other[head:][::-1])


def own_words(examples: Sequence[str]) -> list[str]:
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
