"""The files for measuring routing: JSON lines in the format of `logo-local eval`.

    choose/<task>.jsonl, report/<task>.jsonl    prompts with answers; `adapter` may be null
    .../everyday.jsonl                          everyday requests, which no adapter is made for
    .../look-alikes.jsonl                       inputs of the pool with other requests

The last two have no `completion`: they only test whether the base answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from .data import Task

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

PER_TASK = {"choose": 16, "report": 24}
LOOK_ALIKES = 5  # per task
SEED = 1
EXAMPLES, EXAMPLE_WORDINGS = 8, 4
LONGEST_EXAMPLE = 700  # maximum characters of an example prompt


def write_suite(
    tasks: Mapping[str, Task],
    pool: Collection[str],
    out: Path,
    context: Callable[[str], str] = lambda prompt: prompt,
) -> None:
    """Write all files to `out`. `context` converts a prompt to the model's input."""
    outside = tomllib.loads((Path(__file__).parent / "outside.toml").read_text("utf-8"))
    for group, n in PER_TASK.items():
        folder = out / group
        for task in tasks.values():
            in_pool = task.name in pool
            rows = [
                {
                    "context": context(exchange.prompt),
                    "completion": list(exchange.answers),
                    "adapter": task.name if in_pool else None,
                    "family": task.family,
                    "group": task.family if in_pool else "other tasks",
                    "metric": task.metric,
                }
                for exchange in task.exchanges(group, n, SEED)
            ]
            write_lines(folder / f"{task.name}.jsonl", rows)
        everyday = [
            {"context": context(prompt), "group": "everyday"}
            for prompt in outside["everyday"][group]
        ]
        write_lines(folder / "everyday.jsonl", everyday)
        look_alikes = [
            {"context": context(request.replace("{input}", given)), "group": "look-alikes"}
            for name in sorted(pool)
            for request, given in zip(
                outside["lookalike"][group], _inputs(tasks[name], group), strict=True
            )
        ]
        write_lines(folder / "look-alikes.jsonl", look_alikes)


def example_prompts(
    task: Task, n: int = EXAMPLES, wordings: int = EXAMPLE_WORDINGS, seed: int = 0
) -> list[str]:
    """`n` prompts of the task in the last `wordings` training wordings, without answers."""
    asked = task.wordings["train"][-wordings:]
    prompts = [
        task.exchange(exchange.item, asked[i % wordings]).prompt
        for i, exchange in enumerate(task.exchanges("train", 40 * n, seed))
    ]
    short = [prompt for prompt in prompts if len(prompt) <= LONGEST_EXAMPLE]
    # Alternate wordings, so that dropping long prompts keeps their proportions.
    by_wording = [[p for i, p in enumerate(short) if i % wordings == w] for w in range(wordings)]
    return [by_wording[i % wordings][i // wordings] for i in range(n)]


# Prompts of the demo, in plain English and reviewed; `report` items and wordings.
SHOWN = (
    *("passive-voice", "number-words", "sentiment", "plural"),
    *("larger-animal", "negation", "bbh-boolean-expressions", "bbh-sports-understanding"),
)


def demo_prompts(tasks: Mapping[str, Task], pool: Collection[str]) -> list[dict[str, Any]]:
    """One prompt for each task of SHOWN that is in the pool: its first `report` prompt."""
    shown = [tasks[name] for name in SHOWN if name in pool]
    firsts = [(task, task.exchanges("report", 1, SEED)[0]) for task in shown]
    return [
        {"context": e.prompt, "completion": list(e.answers), "adapter": t.name} for t, e in firsts
    ]


def write_example_prompts(task: Task, path: Path, context: Callable[[str], str]) -> None:
    """Write the example prompts of an adapter to the file for it."""
    write_lines(path, ({"context": context(prompt)} for prompt in example_prompts(task)))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` as JSON lines; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def _inputs(task: Task, group: str) -> list[str]:
    """The bare inputs of a few items, without instruction and choices."""
    return [
        " ".join(
            value
            for key, value in exchange.item.fields.items()
            if key not in ("source", "target", "choices", "options")
        )
        for exchange in task.exchanges(group, 2 * LOOK_ALIKES, SEED + 1)[:LOOK_ALIKES]
    ]
