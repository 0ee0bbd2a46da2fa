"""The summary of an evaluation: means over tasks with intervals, as a table and as JSON.

Pure functions of stored results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .data import Example
from .methods import BASE, BEST_SINGLE, OWN, place, single_of
from .metrics import METRICS, REFUSED, SCORE
from .store import Answered, Store

IN_POOL, OWN_OUT, OUT_OF_POOL = "in pool", "own adapter out", "out of pool"
_DRAWS = 2000


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means; the interval is None if no task has two prompts.

    Its upper end is None if the second mean may be zero.
    """

    value: float
    interval: tuple[float, float | None] | None


@dataclass(frozen=True)
class Result:
    """One method on one group of prompts, by the chosen metric.

    `mean` is the mean over tasks of each task's mean over prompts (`tasks`); `interval` its 95%
    bootstrap interval, None if no task has two prompts. `metrics` has such a mean for every
    metric. `own_first` is the share of prompts whose own adapter has the highest score. `of_own`
    and `of_base` are the ratios of the mean to that of the own adapter alone and of the base on
    the same prompts, with 95% intervals from the same draws of prompts. None if not applicable.
    """

    mean: float
    interval: tuple[float, float] | None
    tasks: Mapping[str, float]
    metrics: Mapping[str, float]
    own_first: float | None = None
    of_own: Ratio | None = None
    of_base: Ratio | None = None


@dataclass(frozen=True)
class Group:
    """Prompts that are reported together, and the results of each method."""

    n_prompts: int
    methods: Mapping[str, Result]


@dataclass(frozen=True)
class Summary:
    """All groups by name; `best_single` is the best adapter over all data, if evaluated.

    `label` is the displayed name of the metric.
    """

    metric: str
    label: str
    groups: Mapping[str, Group]
    best_single: str | None = None


def summarise(
    store: Store, examples: Sequence[Example], *, metric: str = SCORE, seed: int = 1
) -> Summary:
    """Means and intervals of everything stored for `examples`, by `metric`.

    SCORE is each task's own metric, by default exact match.
    """
    rows: dict[str, dict[str, list[tuple[Example, Answered]]]] = {}
    answers, best = _with_best_single(store, examples, metric)
    for example, answered in answers:
        for group in _groups_of(example, answered):
            rows.setdefault(group, {}).setdefault(answered.method, []).append((example, answered))
    groups = {}
    for group in sorted(rows, key=_order):
        own = rows.get(IN_POOL if group == OWN_OUT else group, {}).get(OWN, [])
        base = rows[group].get(BASE, [])
        groups[group] = Group(
            max(len(of_method) for of_method in rows[group].values()),
            {
                method: _result(rows[group][method], metric, own, base, seed, group != OWN_OUT)
                for method in sorted(rows[group], key=place)
            },
        )
    return Summary(metric, _label(metric, examples), groups, best)


def bootstrap(
    by_task: Mapping[str, Sequence[float]], seed: int, draws: int = _DRAWS
) -> tuple[float, float]:
    """The 95% bootstrap interval of the mean over tasks of each task's mean.

    Prompts are drawn with replacement within each task, but tasks are fixed: the interval
    describes the uncertainty for these tasks, not for others.
    """
    low, high = np.quantile(_drawn_means(by_task, seed, draws), (0.025, 0.975))
    return float(low), float(high)


def bootstrap_ratio(
    by_task: Mapping[str, Sequence[float]],
    over: Mapping[str, Sequence[float]],
    seed: int,
    draws: int = _DRAWS,
) -> tuple[float, float | None]:
    """The 95% interval of the ratio of two such means, with the same draws for both.

    Both have values of the same prompts in the same order. An infinite upper end is None.
    """
    means, others = _drawn_means(by_task, seed, draws), _drawn_means(over, seed, draws)
    # If both are 0, the ratio is 1.
    ratios = np.where(others > 0, means / np.maximum(others, 1e-12), np.where(means > 0, np.inf, 1))
    low, high = np.quantile(ratios, (0.025, 0.975), method="nearest")
    return float(low), float(high) if np.isfinite(high) else None


def _drawn_means(
    by_task: Mapping[str, Sequence[float]], seed: int, draws: int
) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    means: npt.NDArray[np.float64] = np.zeros(draws)
    for _, values in sorted(by_task.items()):
        of_task = np.asarray(values, dtype=np.float64)  # (n,)
        drawn = rng.integers(len(of_task), size=(draws, len(of_task)))
        means += of_task[drawn].mean(axis=1)  # (draws,)
    result: npt.NDArray[np.float64] = means / len(by_task)
    return result


def markdown(summary: Summary) -> str:
    """One Markdown table for each group of prompts, a row for each method."""
    parts = []
    for name, group in summary.groups.items():
        tasks = {task for result in group.methods.values() for task in result.tasks}
        outside = name.startswith(OUT_OF_POOL)
        headings = (
            *("method", summary.label),
            *(("of the base's",) if outside else ("own adapter first", "of the own adapter's")),
            METRICS[REFUSED],
        )
        lines = [
            f"### {name}: {_count(group.n_prompts, 'prompt')} of {_count(len(tasks), 'task')}",
            "",
            f"| {' | '.join(headings)} |",
            "|---" * len(headings) + "|",
        ]
        for method, result in group.methods.items():
            mean = _with_interval(result.mean, result.interval)
            own_first = "" if result.own_first is None else f"{result.own_first:.2f}"
            ratio = result.of_base if outside else result.of_own
            of = "" if ratio is None else _with_interval(ratio.value, ratio.interval)
            refused = f"{result.metrics[REFUSED]:.2f}"
            cells = (method, mean, of) if outside else (method, mean, own_first, of)
            cells = (*cells, refused)
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    if summary.best_single is not None:
        parts.append(f"The best single adapter over all prompts is {summary.best_single}.")
    return "\n\n".join(parts)


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary with every task and metric, as JSON-ready values."""
    return asdict(summary)


def _order(group: str) -> tuple[bool, bool, str]:
    return group.startswith(OUT_OF_POOL), group == OWN_OUT, group


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

    If the own adapter is excluded, it is the best of the others.
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
    own: Sequence[tuple[Example, Answered]],
    base: Sequence[tuple[Example, Answered]],
    seed: int,
    own_is_there: bool,
) -> Result:
    values = _by_task(rows, metric)
    hits = [answered.first == example.adapter for example, answered in rows if example.adapter]
    scored = own_is_there and any(answered.first is not None for _, answered in rows)
    return Result(
        mean=_mean_over_tasks(rows, metric),
        interval=bootstrap(values, seed) if max(map(len, values.values())) > 1 else None,
        tasks={task: float(np.mean(of_task)) for task, of_task in values.items()},
        metrics={name: _mean_over_tasks(rows, name) for name in METRICS},
        own_first=float(np.mean(hits)) if scored and hits else None,
        of_own=_ratio(rows, own, metric, seed),
        of_base=_ratio(rows, base, metric, seed),
    )


def _ratio(
    rows: Sequence[tuple[Example, Answered]],
    over: Sequence[tuple[Example, Answered]],
    metric: str,
    seed: int,
) -> Ratio | None:
    """None if `over` has no mean above zero, or not all of the prompts."""
    keys = {example.key for example, _ in rows}
    over = [row for row in over if row[0].key in keys]
    if len(over) < len(keys):
        return None
    below = _mean_over_tasks(over, metric)
    if below <= 0:
        return None
    values, others = _by_task(rows, metric), _by_task(over, metric)
    several = max(map(len, values.values())) > 1
    interval = bootstrap_ratio(values, others, seed) if several else None
    return Ratio(_mean_over_tasks(rows, metric) / below, interval)


def _with_interval(value: float, interval: tuple[float, float | None] | None) -> str:
    if interval is None:
        return f"{value:.2f}"
    low, high = interval
    return f"{value:.2f} ({low:.2f} {'or more' if high is None else f'to {high:.2f}'})"


def _by_task(rows: Sequence[tuple[Example, Answered]], metric: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for example, answered in sorted(rows, key=lambda row: row[0].key):
        values.setdefault(example.task, []).append(answered.metrics[_metric_of(example, metric)])
    return values


def _metric_of(example: Example, metric: str) -> str:
    return (example.metric or "em") if metric == SCORE else metric


def _label(metric: str, examples: Sequence[Example]) -> str:
    used = {_metric_of(example, metric) for example in examples} or {"em"}
    return METRICS[used.pop()] if len(used) == 1 else SCORE


def _mean_over_tasks(rows: Sequence[tuple[Example, Answered]], metric: str) -> float:
    means = [float(np.mean(of_task)) for of_task in _by_task(rows, metric).values()]
    return float(np.mean(means))


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
