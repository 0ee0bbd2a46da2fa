"""The prompts of an evaluation: JSON lines in the format of the LoGo authors' released code.

A line has `context` (the prompt) and `completion` (the answer, or a list of accepted ones). Without
`completion`, nothing is generated, and the result is whether the base model is chosen. Optional
keys: `adapter` (the adapter trained for the task; absent or null if there is none in the pool),
`group` (any label that splits the results, such as how the adapter was trained), `family` (of
the task; orders the plots) and `metric` (the metric of the task; exact match by default). Other
keys are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..files.text_file import read_text
from .metrics import METRICS, REFUSED

_MOST_PROBLEMS = 20
_HINT = 'a line looks like this: {"context": "2 + 2 =", "completion": "4", "adapter": "sums"}'


@dataclass(frozen=True)
class Example:
    """One prompt. `task` is its file's stem, `line` its line there, from 1.

    `answers` are the accepted ones, empty if only the route counts; `adapter` is None if the pool
    has no adapter for the task.
    """

    task: str
    line: int
    context: str
    answers: tuple[str, ...]
    adapter: str | None = None
    group: str | None = None
    family: str | None = None
    metric: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The key of the example in the data."""
        return self.task, self.line


def read_examples(
    files: Sequence[Path], names: Collection[str], limit: int | None = None
) -> list[Example]:
    """The first `limit` examples of each file, all by default; blank lines are skipped.

    `names` are the pool's adapters. Raises SettingsError with all problems in all files: files
    that are unreadable or empty, duplicate file names, invalid lines, and adapters that are not
    in the pool.
    """
    problems: list[str] = []
    examples: list[Example] = []
    seen: dict[str, Path] = {}
    for path in files:
        if path.stem in seen:
            problems.append(f"{path}: its name is that of {seen[path.stem]}, and names the task")
            continue
        seen[path.stem] = path
        found = list(_of_file(path, names, limit, problems))
        examples += found
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        rest = [f"and {more} more"] if more > 0 else []
        raise SettingsError(
            "the evaluation data cannot be used",
            problems=problems[:_MOST_PROBLEMS] + rest,
            hint=_HINT,
        )
    return examples


def _of_file(
    path: Path, names: Collection[str], limit: int | None, problems: list[str]
) -> Iterator[Example]:
    try:
        text = read_text(path)
    except OSError as error:
        problems.append(f"{path}: it cannot be read: {error.strerror}")
        return
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return
    # Not splitlines: a JSON string may contain other line separators unescaped.
    numbered = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        problems.append(f"{path}: it is empty")
    for number, line in numbered[:limit]:
        try:
            yield _example(path.stem, number, json.loads(line), names)
        except json.JSONDecodeError:
            problems.append(f"{path}, line {number}: it is not JSON")
        except ValueError as error:
            problems.append(f"{path}, line {number}: {error}")


def _example(task: str, number: int, row: Any, names: Collection[str]) -> Example:
    """Raises ValueError for an invalid row."""
    if not isinstance(row, dict):
        raise ValueError("it is not an object")
    context, completion = row.get("context"), row.get("completion")
    if not isinstance(context, str) or not context.strip():
        raise ValueError("context must be a text that is not empty")
    given = completion if isinstance(completion, list) else [completion]
    answers = tuple(answer for answer in given if isinstance(answer, str))
    only_routed = "completion" not in row
    if not only_routed and (not answers or len(answers) < len(given)):
        raise ValueError("completion must be a text, or a list of texts")
    labels = {key: row.get(key) for key in ("adapter", "group", "family", "metric")}
    for key, label in labels.items():
        if label is not None and not isinstance(label, str):
            raise ValueError(f"{key} must be a text, or null")
    if labels["metric"] is not None and labels["metric"] not in METRICS:
        raise ValueError(f"metric {labels['metric']} is none of {', '.join(METRICS)}")
    if only_routed:
        labels["metric"] = REFUSED
    if labels["adapter"] is not None and labels["adapter"] not in names:
        raise ValueError(
            f"adapter {labels['adapter']} is not in the pool; null says that there is none"
        )
    return Example(task, number, context, answers, **labels)
