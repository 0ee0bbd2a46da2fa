"""Figures of an evaluation, after figures 2 to 5 of LoGo, arXiv 2511.07129; as SVG files.

    scores-SIGNAL.svg      every adapter's mean score on every task
    similarity-SIGNAL.svg  mean weights of adapters against the similarity of their tasks
    ranks-SIGNAL.svg       how often an adapter is selected first, second, third
    quality.svg            the metric against k
    fusion-SIGNAL.svg      mixture against averaged parameters, if both were evaluated

Only prompts of the pool's own tasks, with all adapters available, are shown. matplotlib is
imported on first use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..console.figures import figure_of, save
from ..routing.route import select
from .data import Example
from .methods import BASE, OWN, UNIFORM, at_k, fused
from .store import Store
from .summary import IN_POOL, Result, Summary

FloatArray = npt.NDArray[np.float64]

_RANKS = 3  # selection counts are shown for the first three


@dataclass(frozen=True)
class ScoreTable:
    """Means over each task's prompts: `scores` and `weights` (n_adapters, n_tasks).

    `own` is, for each task, the index of its adapter; `families` are those of the tasks, "" if
    not set. Tasks are ordered by family, then name; adapters in the order of their tasks, those
    without one last.
    """

    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    families: tuple[str, ...]
    own: tuple[int, ...]
    scores: FloatArray
    weights: FloatArray


def score_table(
    store: Store, examples: Sequence[Example], signal: str, k: int
) -> ScoreTable | None:
    """Mean scores by `signal`, and mean weights at `k`; None if nothing was scored in pool."""
    columns: dict[str, list[tuple[Example, Mapping[str, float]]]] = {}
    for example in examples:
        scored = store.scored.get((*example.key, False))
        if example.adapter is not None and scored is not None and signal in scored.scores:
            columns.setdefault(example.task, []).append((example, scored.scores[signal]))
    if not columns:
        return None
    first = {task: rows[0][0] for task, rows in columns.items()}
    tasks = sorted(columns, key=lambda task: (first[task].family or "", task))
    owners = [str(first[task].adapter) for task in tasks]
    scored_names = {name for rows in columns.values() for _, scores in rows for name in scores}
    rest = sorted(scored_names - set(owners))
    adapters = (*dict.fromkeys(owners), *rest)
    scores = np.zeros((len(adapters), len(tasks)))
    weights = np.zeros_like(scores)
    for column, task in enumerate(tasks):
        for _, by_name in columns[task]:
            route = select(by_name, k)
            given = dict(zip(route.names, route.weights, strict=True))
            scores[:, column] += [by_name.get(name, 0.0) for name in adapters]
            weights[:, column] += [given.get(name, 0.0) for name in adapters]
        scores[:, column] /= len(columns[task])
        weights[:, column] /= len(columns[task])
    return ScoreTable(
        adapters,
        tuple(tasks),
        tuple(first[task].family or "" for task in tasks),
        tuple(adapters.index(owner) for owner in owners),
        scores,
        weights,
    )


def by_adapter(scores: FloatArray) -> FloatArray:
    """Each row (an adapter) scaled to [0, 1], so that large scores do not hide the others.

    A row of equal scores becomes zeros. (n_adapters, n_tasks) in and out.
    """
    low = scores.min(axis=1, keepdims=True)  # (n_adapters, 1)
    span = scores.max(axis=1, keepdims=True) - low
    result: FloatArray = (scores - low) / np.where(span > 0, span, 1.0)
    return result


def likeness(scores: FloatArray) -> FloatArray:
    """The cosine similarity of the mean scores of each pair of tasks, (n_tasks, n_tasks).

    Two tasks are similar for a signal if it gives all adapters similar scores on them. This is
    similarity as the signal sees it, because there is no external measure. The rows are normalised
    first; otherwise every cosine is near 1.
    """
    columns = by_adapter(scores)
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0, keepdims=True), 1e-12)
    result: FloatArray = columns.T @ columns
    return result


def selection_counts(
    store: Store, examples: Sequence[Example], signal: str, adapters: Sequence[str]
) -> npt.NDArray[np.int64]:
    """How often each of `adapters` has the highest, second and third score, (n_adapters, 3)."""
    counts = np.zeros((len(adapters), _RANKS), dtype=np.int64)
    row = {name: i for i, name in enumerate(adapters)}
    for example in examples:
        scored = store.scored.get((*example.key, False))
        if example.adapter is not None and scored is not None and signal in scored.scores:
            for rank, name in enumerate(select(scored.scores[signal], _RANKS).names):
                counts[row[name], rank] += 1
    return counts


def draw_all(
    folder: Path,
    store: Store,
    examples: Sequence[Example],
    summary: Summary,
    signals: Sequence[str],
    ks: Sequence[int],
) -> list[Path]:
    """Draw all available figures into `folder`, which is created; returns the files.

    Raises SettingsError if matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    methods = summary.groups[IN_POOL].methods if IN_POOL in summary.groups else {}
    label = summary.label
    drawn = {}
    for signal in signals:
        table = score_table(store, examples, signal, max(ks))
        if table is None:
            continue
        counts = selection_counts(store, examples, signal, table.adapters)
        drawn[f"scores-{signal}"] = _heat_map(table, signal)
        drawn[f"similarity-{signal}"] = _weights_by_likeness(table, signal, max(ks))
        drawn[f"ranks-{signal}"] = _ranks(table.adapters, counts, signal)
        if any(fused(at_k(signal, k)) in methods for k in ks):
            drawn[f"fusion-{signal}"] = _fusion(methods, signal, ks, label)
    if methods and signals:
        drawn["quality"] = _quality(methods, signals, ks, label)
    files = []
    for name, figure in drawn.items():
        files.append(folder / f"{name}.svg")
        save(figure, files[-1])
    return files


def _heat_map(table: ScoreTable, signal: str) -> Any:
    from matplotlib.patches import Rectangle

    n_adapters, n_tasks = table.scores.shape
    figure, axes = figure_of(3 + 0.3 * n_tasks, 2.5 + 0.25 * n_adapters)
    image = axes.imshow(by_adapter(table.scores), cmap="viridis", aspect="auto")
    axes.set_xticks(range(n_tasks), table.tasks, rotation=90)
    axes.set_yticks(range(n_adapters), table.adapters)
    for family in dict.fromkeys(filter(None, table.families)):
        columns = [i for i, name in enumerate(table.families) if name == family]
        rows = [table.own[i] for i in columns]
        corner = (min(columns) - 0.5, min(rows) - 0.5)
        size = (max(columns) - min(columns) + 1, max(rows) - min(rows) + 1)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="red", linewidth=2))
    axes.set(xlabel="task", ylabel="adapter", title=f"mean score, {signal}")
    figure.colorbar(image, label="from each adapter's lowest to its highest")
    return figure


def _weights_by_likeness(table: ScoreTable, signal: str, k: int) -> Any:
    alike = likeness(table.scores)
    figure, axes = figure_of(5, 4)
    n = len(table.tasks)
    pairs = [(i, j) for i in range(n) for j in range(n) if table.own[i] != table.own[j]]
    axes.scatter(
        [alike[i, j] for i, j in pairs],
        [table.weights[table.own[j], i] for i, j in pairs],
        label="another task's adapter",
        s=12,
    )
    own = [table.weights[table.own[i], i] for i in range(n)]
    axes.scatter([1.0] * n, own, label="the task's own", s=12, marker="x")
    axes.set(
        xlabel="likeness of the tasks (cosine of their mean scores)",
        ylabel=f"mean weight at k = {k}",
        title=signal,
    )
    axes.legend()
    return figure


def _ranks(adapters: Sequence[str], counts: npt.NDArray[np.int64], signal: str) -> Any:
    figure, axes = figure_of(6, 1.5 + 0.25 * len(adapters))
    left = np.zeros(len(adapters))
    for rank, name in enumerate(("first", "second", "third")):
        axes.barh(adapters, counts[:, rank], left=left, label=name)
        left += counts[:, rank]
    axes.invert_yaxis()
    axes.set(xlabel="prompts", title=f"selected by {signal}")
    axes.legend()
    return figure


def _quality(
    methods: Mapping[str, Result], signals: Sequence[str], ks: Sequence[int], label: str
) -> Any:
    figure, axes = figure_of(8, 5)
    for i, signal in enumerate((*signals, "random")):
        # There are only ten colours: further signals are dashed.
        _line(axes, methods, {k: at_k(signal, k) for k in ks}, signal, "-" if i < 10 else "--")
    for name, style in ((OWN, "-"), (UNIFORM, "--"), (BASE, ":")):
        if name in methods:
            axes.axhline(methods[name].mean, color="grey", linestyle=style, label=name)
    axes.set(xlabel="k", ylabel=label, xticks=list(ks))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _fusion(methods: Mapping[str, Result], signal: str, ks: Sequence[int], label: str) -> Any:
    figure, axes = figure_of(6, 4)
    _line(axes, methods, {k: at_k(signal, k) for k in ks}, "mixture of outputs")
    _line(axes, methods, {k: fused(at_k(signal, k)) for k in ks}, "averaged parameters")
    axes.set(xlabel="k", ylabel=label, xticks=list(ks), title=signal)
    axes.legend()
    return figure


def _line(
    axes: Any,
    methods: Mapping[str, Result],
    names: Mapping[int, str],
    label: str,
    style: str = "-",
) -> None:
    """A line through the means, with the intervals as a band."""
    known = [(k, methods[name]) for k, name in names.items() if name in methods]
    if not known:
        return
    ks = [k for k, _ in known]
    means = [result.mean for _, result in known]
    (line,) = axes.plot(ks, means, marker="o", linestyle=style, label=label)
    low, high = zip(*(result.interval or (result.mean,) * 2 for _, result in known), strict=True)
    axes.fill_between(ks, low, high, color=line.get_color(), alpha=0.15)
