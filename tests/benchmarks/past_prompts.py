"""What a user's own past prompts are worth: `python tests/benchmarks/past_prompts.py`.

The bundled model; z-norms compared with generic prompts, and then with what prompts of all tasks
(those to choose settings by, without answers) did to each adapter. Prints a Markdown table: how
often the own adapter comes first, and the score of its answers, on held-out prompts in other
wordings. Takes some minutes; writes nothing into your own folders.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from logo_local import LoGo, config
from logo_local.evaluation.metrics import measure

SIGNALS = ("z-norm", "combined")


def rows(folder: str, limit: int) -> Iterator[dict[str, Any]]:
    """The first rows of each task of the pool."""
    for path in sorted((config.demo_folder() / folder).glob("*.jsonl")):
        for line in path.read_text().splitlines()[:limit]:
            row = json.loads(line)
            if row["adapter"]:
                yield row


def message(row: dict[str, Any]) -> list[dict[str, str]]:
    """The row's prompt as a chat."""
    return [{"role": "user", "content": row["context"]}]


def measured(llm: LoGo, signal: str, limit: int) -> dict[str, tuple[float, float]]:
    """By group: how often the own adapter is first, and the score of the first one's answers."""
    found = defaultdict(list)
    for row in rows("eval", limit):
        scores = llm.signal_scores(message(row), [signal])[signal]
        first = max(scores, key=scores.__getitem__)
        weights = {first: 1.0} if scores[first] > 0 else {}
        with llm.under(weights):
            reply = llm.create_chat_completion(message(row), temperature=0.0, max_tokens=48)
        answer = reply["choices"][0]["message"]["content"]
        score = measure(answer, [row["completion"]])[row["metric"]]
        found[row["group"]].append((first == row["adapter"], score))
    return {group: tuple(np.mean(pairs, axis=0)) for group, pairs in sorted(found.items())}


@click.command()
@click.option("--limit", default=10, show_default=True, help="Prompts a task.")
@click.option("--past", default=20, show_default=True, help="Past prompts a task.")
def main(limit: int, past: int) -> None:
    """Print the table."""
    click.echo("| signal | compared with | group | own adapter first | score |")
    click.echo("|---|---|---|---|---|")
    for signal in SIGNALS:
        # Each in a home of its own: what is remembered is what the signal has a use for.
        with tempfile.TemporaryDirectory() as home:
            os.environ[config.HOME_VARIABLE] = home
            llm = LoGo("demo", signal=signal, n_threads=1, n_threads_batch=1)
            for against in ("generic prompts", "past prompts"):
                if against == "past prompts":
                    for row in rows("choose", past):
                        llm.create_chat_completion(message(row), max_tokens=1)
                for group, (first, score) in measured(llm, signal, limit).items():
                    click.echo(f"| {signal} | {against} | {group} | {first:.2f} | {score:.2f} |")
            llm.close()


if __name__ == "__main__":
    main()
