"""What of a conversation should be routed: `python tests/benchmarks/conversations.py`.

The bundled model, held-out prompts of every task in other wordings. Each is asked by itself, after
another task's prompt and its right answer, and after a system message that says nothing of the
task; it is routed by its own text and by all of the conversation. Prints a Markdown table: how
often the own adapter comes first, and the score of the answers. Prompts outside the pool, after a
prompt of it, show what routing the whole conversation, where nothing fits, does to them. Takes two
minutes.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict

import click
import numpy as np

from logo_local import LoGo, config
from logo_local.evaluation.metrics import measure

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def rows(limit: int, *, in_pool: bool = True) -> list[dict]:
    """The first prompts of each task, in a random order that is always the same."""
    found = []
    for path in sorted((config.demo_folder() / "eval").glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()[:limit]]
    found = [row for row in found if bool(row["adapter"]) == in_pool]
    random.Random(3).shuffle(found)
    return found


def asked(row: dict) -> dict:
    """The row's prompt as a message."""
    return {"role": "user", "content": row["context"]}


def conversations(row: dict, before: dict) -> dict[str, list[dict]]:
    """The prompt with nothing, with another turn, and with a system message before it."""
    turn = [asked(before), {"role": "assistant", "content": f" {before['completion']}"}]
    return {
        "by itself": [asked(row)],
        "after another task": [*turn, asked(row)],
        "after a system message": [SYSTEM, asked(row)],
        "after both": [SYSTEM, *turn, asked(row)],
    }


def score(llm: LoGo, messages: list[dict], row: dict, weights: dict[str, float]) -> float:
    """The task's own metric of the answer under `weights`."""
    with llm.under(weights):
        reply = llm.create_chat_completion(messages, temperature=0.0, max_tokens=48)
    answer = reply["choices"][0]["message"]["content"]
    return measure(answer, [row["completion"]])[row["metric"]]


@click.command()
@click.option("--limit", default=8, show_default=True, help="Prompts a task.")
def main(limit: int) -> None:
    """Print the table."""
    found: dict[tuple[str, str], list[tuple[bool, float]]] = defaultdict(list)
    all_rows = rows(limit)
    settings = {"n_threads": 1, "n_threads_batch": 1, "self_profile": "kept", "past": False}
    with LoGo("demo", **settings) as llm:
        outside: dict[tuple[str, str], list[float]] = defaultdict(list)
        for i, row in enumerate(rows(limit, in_pool=False)):
            messages = conversations(row, all_rows[i])["after another task"]
            for way, weights in (
                ("the base", {}),
                ("its last message only", llm.route(messages[-1:]).applied),
                ("all of it, where nothing fits that", llm.route(messages).applied),
            ):
                outside[row["group"], way].append(score(llm, messages, row, dict(weights)))
        for i, row in enumerate(all_rows):
            for name, messages in conversations(row, all_rows[i - 7]).items():
                routes = {
                    "its last message": llm.route(messages),
                    "all of it": llm.route(llm.tokens_of(messages)),
                }
                for way, route in routes.items():
                    first = route.names[:1] == (row["adapter"],)
                    value = score(llm, messages, row, dict(route.applied))
                    found[name, way].append((first, value))
                own = score(llm, messages, row, {row["adapter"]: 1.0})
                found[name, "(its own adapter)"].append((True, own))
    print(f"{len(all_rows)} prompts\n\n| asked | routed by | own adapter first | score |")
    print("|---|---|---|---|")
    for (name, way), pairs in found.items():
        first, value = np.mean(pairs, axis=0)
        print(f"| {name} | {way} | {first:.2f} | {value:.2f} |")
    print("\n| outside the pool, after a task of it | prompts | answered by | score |")
    print("|---|---|---|---|")
    for (group, way), values in outside.items():
        print(f"| {group} | {len(values)} | {way} | {np.mean(values):.2f} |")


if __name__ == "__main__":
    main()
