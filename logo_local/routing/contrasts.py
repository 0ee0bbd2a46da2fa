"""Contrast prompts for an adapter: the inputs of its examples with other requests.

"Rewrite in the passive voice: The dog bit the man." has the input "The dog bit the man.",
which can occur with other requests. The hidden states of such prompts are a reference: a prompt
must be nearer to the adapter's examples than to them. Plain text in, plain text out.

Source: our own; measured in docs/quality.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..prefix import common_prefix

# Requests that apply to any text: about the words that only one example has, and about everything
# outside the wording. Adapters are rarely trained for any of them.
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
MOST_SHARED = 4  # words of an input that also occur in other examples of the adapter
LEAST_WORDING = 2  # words that two examples of the same wording begin and end with


def contrast_prompts(examples: Sequence[str]) -> list[list[str]]:
    """A prompt for each of REQUESTS, and for each of WHOLE_REQUESTS, about inputs in turn.

    Empty for a single example, because its input cannot be determined.
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

    If the prompts belong to several adapters, these lines are a format, not a request.
    """
    head = _common_start(prompts)
    tail = _common_start([prompt[::-1] for prompt in prompts])[::-1]
    start = tail.find("\n")
    return head[: head.rfind("\n") + 1], tail[start:] if start >= 0 else ""


def _common_start(texts: Sequence[str]) -> str:
    return texts[0][: min(common_prefix(texts[0], text) for text in texts)]


def whole_inputs(examples: Sequence[str]) -> list[str]:
    """The input of each example: the text between the words it shares with another example.

    That other example is the one with the most words in common at the start and the end. Where no
    other example has the same wording, `own_words` is used. Empty for a single example.
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
    """The number of wordings; examples that share LEAST_WORDING outer words have the same one."""
    words = [example.split() for example in examples]
    group = list(range(len(words)))
    for i, one in enumerate(words):
        for j in range(i):
            if group[j] != group[i] and sum(_around(one, words[j])) >= LEAST_WORDING:
                group = [group[j] if found == group[i] else found for found in group]
    return len(set(group))


def _around(one: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """How many words two examples share at the start, and how many of the rest at the end."""
    head = common_prefix(one, other)
    return head, common_prefix(one[head:][::-1], other[head:][::-1])


def own_words(examples: Sequence[str]) -> list[str]:
    """The input of each example: the run with the most words that no other example has.

    Up to MOST_SHARED words inside it may occur in other examples. Empty if there is no such run,
    and for a single example.
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
    """In one pass: a window with at most MOST_SHARED shared words, none of them at its ends."""
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
