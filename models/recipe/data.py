"""The tasks: items from public data, our wordings, and the prompts made from them.

Items and wordings are split so that nothing used in training or selection is reported:

| group  | items                          | wordings of `wordings.toml` |
|--------|--------------------------------|-----------------------------|
| train  | the data's own training split  | `train`                     |
| choose | the first 40 % of the test split | `choose`                  |
| report | the rest of the test split     | `report`                    |
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

GROUPS = ("train", "choose", "report")
CHOOSE_SHARE = 0.4  # of the test items; the rest is for reporting
# Licences that forbid commercial use or redistribution: trained for the tables, never shipped.
NOT_SHIPPED = frozenset({"web-nlg", "sick", "anli", "captions-en-de"})


@dataclass(frozen=True)
class Item:
    """One input with its accepted answers; `fields` are the values for a wording's placeholders."""

    fields: Mapping[str, str]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Exchange:
    """A prompt as a user would type it, and the accepted answers; `item` is its source."""

    prompt: str
    answers: tuple[str, ...]
    item: Item


@dataclass(frozen=True)
class Task:
    """One data set: its name (also the adapter's), family, metric, items and wordings by group.

    `description` describes the task in one sentence.
    """

    name: str
    family: str
    metric: str
    source: str
    items: Mapping[str, tuple[Item, ...]]
    wordings: Mapping[str, tuple[str, ...]]
    description: str = ""

    @property
    def may_be_shipped(self) -> bool:
        """Whether the licence of the data allows distributing an adapter trained on it."""
        return self.name not in NOT_SHIPPED

    def exchanges(self, group: str, n: int, seed: int = 0) -> list[Exchange]:
        """`n` prompts of `group`: items in random order, cycling through the group's wordings.

        Items are repeated only if there are fewer than `n`.
        """
        rng = Random(f"{seed}/{self.name}/{group}")
        items = list(self.items[group])
        rng.shuffle(items)
        wordings = self.wordings[group]
        return [self.exchange(items[i % len(items)], wordings[i % len(wordings)]) for i in range(n)]

    def exchange(self, item: Item, wording: str) -> Exchange:
        """The prompt for `item` in `wording`."""
        return Exchange(fill(wording, item.fields), item.answers, item)


def fill(wording: str, fields: Mapping[str, str]) -> str:
    """`wording` with each {field} replaced; braces in field values stay unchanged."""
    return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], wording)


def read_tasks(data: Path) -> dict[str, Task]:
    """All tasks by name, from a folder with `tasks.json` and a `<name>.jsonl` for each.

    Raises FileNotFoundError for a missing file, KeyError for a task without wordings.
    """
    wordings = tomllib.loads((Path(__file__).parent / "wordings.toml").read_text("utf-8"))
    described = json.loads((data / "tasks.json").read_text("utf-8"))
    return {
        name: _read_task(name, about, data / f"{name}.jsonl", wordings)
        for name, about in described.items()
    }


def _read_task(
    name: str, about: Mapping[str, Any], path: Path, wordings: Mapping[str, Any]
) -> Task:
    own = wordings[name]
    asked = wordings[own["like"]] if "like" in own else own
    constant = {key: own[key] for key in ("source", "target") if key in own}
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    strip = [re.compile(pattern) for pattern in own.get("strip", ())]
    train, test = (
        [_item(row, constant, strip) for row in rows if row["split"] == split]
        for split in ("train", "test")
    )
    n_choose = round(CHOOSE_SHARE * len(test))
    return Task(
        name=name,
        family=about["family"],
        metric=about["metric"],
        source=about["source"],
        items={
            "train": tuple(train),
            "choose": tuple(test[:n_choose]),
            "report": tuple(test[n_choose:]),
        },
        wordings={group: tuple(asked[group]) for group in GROUPS},
        description=own["description"],
    )


def _item(
    row: Mapping[str, Any], constant: Mapping[str, str], strip: list[re.Pattern[str]]
) -> Item:
    fields = dict(constant)
    for name, value in row["fields"].items():
        if name == "options":
            fields["options"] = "; ".join(value)
            fields["choices"] = "\n".join(f"- {option}" for option in value)
        else:
            for pattern in strip:
                value = pattern.sub("", value)
            fields[name] = value.strip()
    return Item(fields, tuple(row["answers"]))
