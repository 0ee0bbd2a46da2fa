"""What routing is worth on the bundled model: `python tests/benchmarks/demo_routing.py`.

Answers held-out prompts of every task by the base, the task's own adapter, the uniform mixture of
all adapters, and LoGo with each signal and several k; prints exact match and the share of prompts
whose own adapter has the highest score, as a Markdown table with 95% bootstrap intervals over
prompts. Greedy. On two CPU cores 40 prompts a task take some ten minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from logo_local import config
from logo_local.engine import LoGo
from logo_local.routing import Route, select


@dataclass
class Tally:
    """What one method got right, prompt by prompt; `first` is None where nothing is scored."""

    right: list[bool]
    first: list[bool] | None


def examples(limit: int) -> list[dict[str, Any]]:
    """The first `limit` held-out prompts of every task: context, completion, adapter."""
    folder = config.demo_folder() / "eval"
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()[:limit]
    ]


def answer(llm: LoGo, weights: dict[str, float], prompt: str) -> str:
    """The greedy answer to `prompt` under fixed weights."""
    with llm.under(weights):
        messages = [{"role": "user", "content": prompt}]
        reply = llm.create_chat_completion(messages, temperature=0.0, max_tokens=48)
    return str(reply["choices"][0]["message"]["content"]).strip()


def methods(
    llm: LoGo, scores: dict[str, dict[str, float]], own: str
) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """(method, weights, the adapter with the highest score) for one prompt."""
    names = llm.pool.names
    yield "base", {}, None
    yield "own adapter", {own: 1.0}, None
    yield "uniform mixture of all", dict.fromkeys(names, 1 / len(names)), None
    for signal, by_name in scores.items():
        for k in (1, 3, len(names)):
            route: Route = select(by_name, k)
            weights = dict(zip(route.names, route.weights, strict=True))
            yield f"{signal}, k = {k}", weights, route.names[0]


def interval(values: list[bool], rng: np.random.Generator) -> str:
    """The mean and its 95% bootstrap interval."""
    array = np.array(values, dtype=float)  # (n,)
    means = rng.choice(array, size=(2000, len(array))).mean(axis=1)  # (2000,)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{array.mean():.2f} ({low:.2f} to {high:.2f})"


@click.command()
@click.option("--limit", default=40, show_default=True, help="Prompts a task.")
@click.option("--threads", default=2, show_default=True)
def main(limit: int, threads: int) -> None:
    """Print the table."""
    data = examples(limit)
    settings: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads, "top_k": 999}
    engines = {
        "norm": LoGo("demo", signal="norm", **settings),
        "entropy": LoGo("demo", signal="entropy", **settings),
        "each (entropy)": LoGo("demo", probe="each", **settings),
    }
    llm = engines["norm"]
    tallies: dict[str, Tally] = {}
    started = time.perf_counter()
    for example in data:
        messages = [{"role": "user", "content": example["context"]}]
        scores = {name: dict(e.route(messages).all_scores) for name, e in engines.items()}
        for method, weights, first in methods(llm, scores, example["adapter"]):
            tally = tallies.setdefault(method, Tally([], None if first is None else []))
            given = answer(llm, weights, example["context"])
            tally.right.append(given == example["completion"].strip())
            if tally.first is not None:
                tally.first.append(first == example["adapter"])
    rng = np.random.default_rng(0)
    minutes = (time.perf_counter() - started) / 60
    click.echo(
        f"{len(data)} prompts of {len(llm.pool.names)} tasks, {minutes:.1f} minutes; chance that "
        f"the own adapter comes first: {1 / len(llm.pool.names):.3f}\n"
    )
    click.echo("| method | exact match | own adapter first |")
    click.echo("|---|---|---|")
    for method, tally in tallies.items():
        first_text = "" if tally.first is None else interval(tally.first, rng)
        click.echo(f"| {method} | {interval(tally.right, rng)} | {first_text} |")


if __name__ == "__main__":
    main()
