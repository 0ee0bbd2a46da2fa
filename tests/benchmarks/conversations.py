"""Routes in conversations, beside pasted texts, and for requests in other languages.

    python tests/benchmarks/conversations.py --data FOLDER

FOLDER holds the public data sets (models/README.md). The kinds are in
models/recipe/conversations.toml, 20 items each, with the demo's model and adapters. `--group
choose` has the items that the rule for conversations was chosen on. Routes only; a route is right
if the task's own adapter comes first, or, after a change of subject, if the base answers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import click

sys.path.append(str(Path(__file__).parents[2]))

from examples import interval
from logo_local import LoGo
from models.recipe.data import Task, read_tasks

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

PER_KIND = 20
RECIPE = Path(__file__).parents[2] / "models" / "recipe"
# Messages, and the adapter that is expected; "" is the base.
Case = tuple[list[dict[str, str]], str]


def said(*texts: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    roles = cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def shown(item: Any) -> str:
    """The bare input of an item."""
    left_out = ("source", "target", "choices", "options")
    return " ".join(value for key, value in item.fields.items() if key not in left_out)


class Cases:
    """The items of one `group`, "choose" or "report"."""

    def __init__(self, group: str, tasks: dict[str, Task]) -> None:
        kinds = tomllib.loads((RECIPE / "conversations.toml").read_text("utf-8"))
        outside = tomllib.loads((RECIPE / "outside.toml").read_text("utf-8"))
        self.group, self.tasks, self.kinds = group, tasks, kinds[group]
        self.everyday = outside["everyday"][group]
        self.documents, self.languages = kinds["documents"], kinds["other-language"]

    def of(self, kind: str) -> Iterator[Case]:
        """Items of one kind, over the tasks in turn."""
        wordings, pasted = cycle(self.kinds[kind]), cycle(self.documents)
        asked = cycle(self.everyday)
        names = list(self.tasks)
        for at, name in enumerate(cycle(names)):
            first, second = self._exchanges(name, kind)
            wording = next(wordings)
            text = wording.replace("{input}", shown(second.item)).replace("{prompt}", first.prompt)
            before = (first.prompt, first.answers[0])
            if kind == "other-task":
                other = self._exchanges(names[(at + len(names) // 2) % len(names)], kind)[0]
                before = (other.prompt, other.answers[0])
            elif kind == "after-chat":
                before = (next(asked), "I hope this helps. Is there anything else?")
            if kind.startswith("document"):
                yield said(text.replace("{document}", next(pasted))), name
            else:
                yield said(*before, text), "" if kind == "new-subject" else name

    def in_other_languages(self) -> Iterator[Case]:
        """A request for each of some tasks, in each of its wordings."""
        for i in cycle(range(2)):
            for name, wordings in self.languages.items():
                exchange = self.tasks[name].exchanges("report", 2, seed=7)[i]
                yield said(wordings[i].replace("{input}", shown(exchange.item))), name

    def _exchanges(self, name: str, kind: str) -> list[Any]:
        return self.tasks[name].exchanges(self.group, 2, seed=Random(kind).randrange(99))


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--group", type=click.Choice(["choose", "report"]), default="report")
@click.option("--show", is_flag=True, help="Show what is not right.")
def main(data: Path, group: str, show: bool) -> None:
    """Print the table."""
    with LoGo("demo", n_threads=1, n_threads_batch=1, n_ctx=2048) as llm:
        cases = Cases(group, {n: t for n, t in read_tasks(data).items() if n in llm.pool.names})
        items = {kind: cases.of(kind) for kind in cases.kinds}
        if group == "report":
            items["other-language"] = cases.in_other_languages()
        print("| kind | right | answered by the base |\n|---|---|---|")
        for kind, of_kind in items.items():
            right, refused = [], []
            for messages, expected in islice(of_kind, PER_KIND):
                route = llm.route(messages)
                right.append((route.names[0] if route.names else "") == expected)
                refused.append(route.is_base)
                if show and not right[-1]:
                    last = messages[-1]["content"][:60]
                    print(f"{kind}: {last!r}, {expected or 'base'}: {route.names[:1]}")
            print(f"| {kind} | {interval(right)} | {sum(refused) / len(refused):.2f} |", flush=True)


if __name__ == "__main__":
    main()
