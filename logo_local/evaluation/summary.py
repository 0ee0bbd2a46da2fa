"""What an evaluation found: means over tasks with intervals, as a table and as JSON.

Pure functions on what was stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .data import Example
from .methods import BASE, BEST_SINGLE, OWN, UNIFORM, single_of
from .metrics import METRICS
from .store import Answered, Store

IN_POOL, OWN_OUT, OUT_OF_POOL = "in pool", "own adapter out", "out of pool"
_DRAWS = 2000
_FIRST = (BASE, OWN, BEST_SINGLE, UNIFORM)  # then the others, as they were answered


@dataclass(frozen=True)
class Result:
    """One method on one group of prompts, by the chosen metric.

    `mean` is over tasks, of each task's mean over prompts (`tasks`); `interval` its 95% bootstrap
    interval, None where no task has two prompts to draw from. `metrics` has such a mean for every
    metric. `own_first` is the share of prompts whose own adapter has the highest score, `of_own`
    the mean over that of the own adapter alone on the same prompts; None where there is no such
    thing.
    """

    mean: float
    interval: tuple[float, float] | None
    tasks: Mapping[str, float]
    metrics: Mapping[str, float]
    own_first: float | None = None
    of_own: float | None = None


@dataclass(frozen=True)
class Group:
    """Prompts that are reported together, and what each method made of them."""

    n_prompts: int
    methods: Mapping[str, Result]


@dataclass(frozen=True)
class Summary:
    """All groups by name; `best_single` is the adapter best over all the data, if it was sought."""

    metric: str
    groups: Mapping[str, Group]
    best_single: str | None = None


def summarise(
    store: Store, examples: Sequence[Example], *, metric: str = "em", seed: int = 1
) -> Summary:
    """Means and intervals of everything stored for `examples`, by `metric`."""
    rows: dict[str, dict[str, list[tuple[Example, Answered]]]] = {}
    answers, best = _with_best_single(store, examples, metric)
    for example, answered in answers:
        for group in _groups_of(example, answered):
            rows.setdefault(group, {}).setdefault(answered.method, []).append((example, answered))
    groups = {}
    for group in sorted(rows, key=_order):
        own = rows.get(IN_POOL if group == OWN_OUT else group, {}).get(OWN, [])
        own_mean = _mean_over_tasks(own, metric) if own else 0.0
        groups[group] = Group(
            max(len(of_method) for of_method in rows[group].values()),
            {
                method: _result(rows[group][method], metric, own_mean, seed, group != OWN_OUT)
                for method in sorted(rows[group], key=_place)
            },
        )
    return Summary(metric, groups, best)


def bootstrap(
    by_task: Mapping[str, Sequence[float]], seed: int, draws: int = _DRAWS
) -> tuple[float, float]:
    """The 95% bootstrap interval of the mean over tasks of each task's mean.

    Prompts are drawn with replacement within each task; the tasks stay as they are, so that the
    interval says how sure the number is for these tasks, not for others.
    """
    rng = np.random.default_rng(seed)
    means: npt.NDArray[np.float64] = np.zeros(draws)
    for values in by_task.values():
        of_task = np.asarray(values, dtype=np.float64)  # (n,)
        drawn = rng.integers(len(of_task), size=(draws, len(of_task)))
        means += of_task[drawn].mean(axis=1)  # (draws,)
    low, high = np.quantile(means / len(by_task), (0.025, 0.975))
    return float(low), float(high)


def markdown(summary: Summary) -> str:
    """One Markdown table for each group of prompts, a row for each method."""
    parts = []
    for name, group in summary.groups.items():
        tasks = {task for result in group.methods.values() for task in result.tasks}
        lines = [
            f"### {name}: {_count(group.n_prompts, 'prompt')} of {_count(len(tasks), 'task')}",
            "",
            f"| method | {METRICS[summary.metric]} | own adapter first | of the own adapter's |",
            "|---|---|---|---|",
        ]
        for method, result in group.methods.items():
            mean = f"{result.mean:.2f}"
            if result.interval is not None:
                mean += " ({:.2f} to {:.2f})".format(*result.interval)
            own_first = "" if result.own_first is None else f"{result.own_first:.2f}"
            of_own = "" if result.of_own is None else f"{result.of_own:.2f}"
            cells = (method, mean, own_first, of_own)
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    if summary.best_single is not None:
        parts.append(f"The best single adapter over all prompts is {summary.best_single}.")
    return "\n\n".join(parts)


def as_json(summary: Summary) -> dict[str, Any]:
    """The same, with every task and metric, as JSON-ready values."""
    return asdict(summary)


def _order(group: str) -> tuple[bool, bool, str]:
    return group.startswith(OUT_OF_POOL), group == OWN_OUT, group


def _place(method: str) -> int:
    return _FIRST.index(method) if method in _FIRST else len(_FIRST)


def _groups_of(example: Example, answered: Answered) -> Iterator[str]:
    if answered.out:
        yield OWN_OUT
    else:
        where = OUT_OF_POOL if example.adapter is None else IN_POOL
        yield where
        if example.group is not None:
            yield f"{where}, {example.group}"


def _with_best_single(
    store: Store, examples: Sequence[Example], metric: str
) -> tuple[list[tuple[Example, Answered]], str | None]:
    """All answers, those of each single adapter replaced by those of the best.

    Where the own adapter is out, the best is that of the others.
    """
    by_key = {example.key: example for example in examples}
    answers: list[tuple[Example, Answered]] = []
    of_single: dict[str, list[tuple[Example, Answered]]] = {}
    for answered in store.answered.values():
        example = by_key.get((answered.task, answered.line))
        if example is not None:
            name = single_of(answered.method)
            where = answers if name is None else of_single.setdefault(name, [])
            where.append((example, answered))
    means = {name: _mean_over_tasks(rows, metric) for name, rows in of_single.items()}
    ranked = sorted(means, key=lambda name: (-means[name], name))
    if not ranked:
        return answers, None
    with_out = {(a.task, a.line) for _, a in answers if a.out}
    found = {
        (name, example.key): answered
        for name, rows in of_single.items()
        for example, answered in rows
    }
    for example in examples:
        for out in (False, True) if example.key in with_out else (False,):
            best = next((n for n in ranked if not (out and n == example.adapter)), None)
            alone = found.get((best, example.key)) if best is not None else None
            if alone is not None:
                answers.append((example, replace(alone, method=BEST_SINGLE, out=out)))
    return answers, ranked[0]


def _result(
    rows: Sequence[tuple[Example, Answered]],
    metric: str,
    own_mean: float,
    seed: int,
    own_is_there: bool,
) -> Result:
    values = _by_task(rows, metric)
    mean = _mean_over_tasks(rows, metric)
    hits = [answered.first == example.adapter for example, answered in rows if example.adapter]
    scored = own_is_there and any(answered.first is not None for _, answered in rows)
    return Result(
        mean=mean,
        interval=bootstrap(values, seed) if max(map(len, values.values())) > 1 else None,
        tasks={task: float(np.mean(of_task)) for task, of_task in values.items()},
        metrics={name: _mean_over_tasks(rows, name) for name in METRICS},
        own_first=float(np.mean(hits)) if scored and hits else None,
        of_own=mean / own_mean if own_mean > 0 else None,
    )


def _by_task(rows: Sequence[tuple[Example, Answered]], metric: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for example, answered in rows:
        values.setdefault(example.task, []).append(answered.metrics[metric])
    return values


def _mean_over_tasks(rows: Sequence[tuple[Example, Answered]], metric: str) -> float:
    means = [float(np.mean(of_task)) for of_task in _by_task(rows, metric).values()]
    return float(np.mean(means))


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
