"""The first token of a conversation's next answer, where blends change and come back.

`python tests/benchmarks/prompt_cache.py [--model FILE --adapters DIR]`; by default the demo. With
random weights (see random_model.py), `--given adapter-0000,adapter-0001` routes nothing. A
conversation of some length goes on with five messages: two for one adapter, one for another, then
one more for each. Beside it, message by message, the base alone has the same conversation in an
engine of its own. Medians of the ratios; "routed" is what a user waits for, with the pass that
chooses the adapters, "given" is without it. With one thread the times are processor time, so that
other programs do not count. "tokens" are those that are read for the answer, by the mixture and by
the base.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import click
import numpy as np

WORDS = re.findall(
    "[a-z]+",
    "the a my your river garden letter teacher window market summer kitchen doctor village paper "
    "walks reads opens finds keeps writes sees brings quickly often today again near under",
)
# Names of two adapters of the demo, and messages for them.
FIRST, OTHER = "passive-voice", "sentiment"
MESSAGES = {
    FIRST: (
        "Rewrite in the passive voice: The scientist helped the presidents.",
        "Transform to passive: The banker admired the managers.",
        "Rewrite in the passive voice: The lawyer saw the doctors.",
    ),
    OTHER: (
        "Label the opinion as positive or negative: Much of the cast is stiff or just plain bad.",
        "Label the opinion as positive or negative: A warm and funny film from start to end.",
    ),
}
TURNS = (
    ("a first blend, never there", FIRST, 0),
    ("same blend", FIRST, 1),
    ("another blend, never there", OTHER, 0),
    ("back to the first blend", FIRST, 2),
    ("back to the other blend", OTHER, 1),
)


def history(llm: Any, n_tokens: int, seed: int) -> list[dict[str, str]]:
    """A conversation of about so many tokens, another one for each seed."""
    rng = np.random.default_rng(seed)
    messages: list[dict[str, str]] = []
    while not messages or len(llm.tokens_of(messages)) < n_tokens:
        for role in ("user", "assistant"):
            words = " ".join(rng.choice(WORDS, 40))
            messages.append({"role": role, "content": f"{words}."})
    return messages


class Clock:
    """What is measured of an engine: its time, and the tokens that its context reads."""

    def __init__(self, llm: Any, threads: int) -> None:
        self.now = time.process_time if threads == 1 else time.perf_counter
        self.n_tokens = 0
        read = llm.eval

        def counted(tokens: Sequence[int]) -> None:
            self.n_tokens += len(tokens)
            read(tokens)

        llm.eval = counted


def answer(
    llm: Any, clock: Clock, messages: Sequence[dict[str, str]], **how: Any
) -> tuple[float, int, str, Any]:
    """Milliseconds to the first piece of text, the tokens read for it, all text, the route."""
    clock.n_tokens, n_read = 0, 0
    started, first, text, route = clock.now(), None, "", None
    chunks = llm.create_chat_completion(
        list(messages), stream=True, temperature=0.0, max_tokens=32, **how
    )
    for chunk in chunks:
        choice = chunk["choices"][0]
        piece = choice["delta"].get("content", "")
        if first is None and (piece or choice["finish_reason"]):
            first, n_read = (clock.now() - started) * 1000, clock.n_tokens
        text += piece
        route = chunk.get("logo", {}).get("route", route)
    assert first is not None
    return first, n_read, text or "-", route


def conversation(
    llm: tuple[Any, Clock],
    base: tuple[Any, Clock],
    n_tokens: int,
    seed: int,
    given: bool,
    found: dict[str, list[float]],
    names: dict[str, str],
) -> None:
    """One conversation, answered by `llm` and, beside it, by the base alone."""
    messages = history(base[0], n_tokens, seed)
    alone_how = {"routing": {"weights": {}}}
    theirs = list(messages)  # the base goes on from its own answers
    answer(*base, theirs[:-1], **alone_how)  # it has the conversation so far
    for what, name, which in TURNS:
        content = MESSAGES[name][which]
        message = {"role": "user", "content": content}
        messages.append(message)
        theirs.append(message)
        alone, n_alone, said, _ = answer(*base, theirs, **alone_how)
        theirs.append({"role": "assistant", "content": said})
        name = names.get(name, name)
        how = {"routing": {"weights": {name: 1.0}}} if given else {}
        ms, n_read, text, route = answer(*llm, messages, **how)
        answered_by = [adapter["name"] for adapter in route["adapters"]]
        if answered_by[:1] != [name]:
            raise SystemExit(f"{content!r} was answered by {answered_by}")
        messages.append({"role": "assistant", "content": text})
        found.setdefault(what, []).append(ms / alone)
        found.setdefault(f"{what}: ms", []).append(ms)
        found.setdefault(f"{what}: base", []).append(alone)
        found.setdefault(f"{what}: tokens", []).append(n_read)
        found.setdefault(f"{what}: base's", []).append(n_alone)


@click.command()
@click.option("--model", default="demo", show_default=True, help="The model.")
@click.option("--adapters", help="A folder with the demo's passive-voice and sentiment.")
@click.option(
    "--given", help="Two adapters, NAME,NAME: their weights are given, nothing is routed."
)
@click.option("--history", "lengths", multiple=True, type=int, help="Tokens [default: 500, 2000]")
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--cache-memory", default="auto", show_default=True)
def main(
    model: str,
    adapters: str | None,
    given: str | None,
    lengths: tuple[int, ...],
    repeats: int,
    threads: int,
    cache_memory: str,
) -> None:
    """Print a table for docs/benchmarks.md."""
    from logo_local import LoGo

    how = {"n_ctx": 4096, "n_threads": threads, "n_threads_batch": threads}
    memory = 0 if cache_memory == "0" else cache_memory
    for n_tokens in lengths or (500, 2000):
        print(f"\n{n_tokens} tokens of history, medians of {repeats} repeats\n")
        print("| message | tokens | routed / base | given / base | routed | given | base |")
        print("|---|---|---|---|---|---|---|")
        found: dict[bool, dict[str, list[float]]] = {True: {}} if given else {False: {}, True: {}}
        names = dict(zip((FIRST, OTHER), given.split(","), strict=True)) if given else {}
        with (
            LoGo(model, None, **how) as base,
            LoGo(model, adapters, top_k=1, cache_memory=memory, past=False, **how) as llm,
        ):
            ours, alone = Clock(llm, threads), Clock(base, threads)
            for name in () if given else (FIRST, OTHER):  # makes what is made once
                for message in MESSAGES[name][:1]:
                    answer(llm, ours, [{"role": "user", "content": message}])
            for i in range(repeats):
                for fixed in found:
                    both = (llm, ours), (base, alone)
                    conversation(*both, n_tokens, 2 * i + fixed, fixed, found[fixed], names)
        for what, *_ in TURNS:
            both = found.get(False), found[True]
            bases = median(ms for of in both if of for ms in of[f"{what}: base"])
            ratios = (f"{median(of[what]):.2f}" if of else "" for of in both)
            times = [f"{median(of[f'{what}: ms']):,.0f} ms" if of else "" for of in both]
            times.append(f"{bases:,.0f} ms")
            read = [median(found[True][f"{what}: {whose}"]) for whose in ("tokens", "base's")]
            tokens = " / ".join(f"{n:,.0f}" for n in read)
            print(f"| {' | '.join([what, tokens, *ratios, *times])} |", flush=True)


if __name__ == "__main__":
    main()
