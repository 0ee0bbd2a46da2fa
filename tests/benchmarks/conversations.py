"""Routes in conversations, beside pasted texts, and for requests in other languages.

    python tests/benchmarks/conversations.py --data FOLDER

FOLDER holds the public data sets (models/README.md). The kinds are in
models/recipe/conversations.toml, 20 items each, with the demo's model and adapters. Routes only; a
route is right where the task's own adapter comes first, or, after a change of subject, where the
base answers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import click

from examples import interval
from logo_local import LoGo
from models.recipe.data import Task, read_tasks

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

PER_KIND = 20
KINDS = Path(__file__).parents[2] / "models" / "recipe" / "conversations.toml"
Case = tuple[
    list[dict[str, str]], str
]  # messages, and the adapter that is expected; "" is the base


def said(*texts: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    roles = cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def shown(item: Any) -> str:
    """The bare input of an item."""
    left_out = ("source", "target", "choices", "options")
    return " ".join(value for key, value in item.fields.items() if key not in left_out)


def cases(
    kind: str, texts: list[str], tasks: dict[str, Task], documents: list[str]
) -> Iterator[Case]:
    """Items of one kind, over the tasks in turn."""
    wordings, pasted = cycle(texts), cycle(documents)
    for task in cycle(tasks.values()):
        first, second = task.exchanges("report", 2, seed=Random(kind).randrange(99))
        wording = next(wordings)
        text = wording.replace("{input}", shown(second.item)).replace("{prompt}", first.prompt)
        if kind.startswith("document"):
            yield said(text.replace("{document}", next(pasted))), task.name
        else:
            expected = "" if kind == "new-subject" else task.name
            yield said(first.prompt, first.answers[0], text), expected


def in_other_languages(texts: dict[str, list[str]], tasks: dict[str, Task]) -> Iterator[Case]:
    """A request for each of some tasks, in each of its wordings."""
    for i in cycle(range(2)):
        for name, wordings in texts.items():
            exchange = tasks[name].exchanges("report", 2, seed=7)[i]
            yield said(wordings[i].replace("{input}", shown(exchange.item))), name


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
def main(data: Path) -> None:
    """Print the table."""
    kinds = tomllib.loads(KINDS.read_text("utf-8"))
    languages, documents = kinds.pop("other-language"), kinds.pop("documents")
    with LoGo("demo", n_threads=1, n_threads_batch=1, n_ctx=2048) as llm:
        tasks = {n: t for n, t in read_tasks(data).items() if n in llm.pool.names}
        items = {kind: cases(kind, texts, tasks, documents) for kind, texts in kinds.items()}
        items["other-language"] = in_other_languages(languages, tasks)
        print("| kind | right | answered by the base |\n|---|---|---|")
        for kind, of_kind in items.items():
            right, refused = [], []
            for messages, expected in islice(of_kind, PER_KIND):
                route = llm.route(messages)
                right.append((route.names[0] if route.names else "") == expected)
                refused.append(route.is_base)
            print(f"| {kind} | {interval(right)} | {sum(refused) / len(refused):.2f} |", flush=True)


if __name__ == "__main__":
    main()
