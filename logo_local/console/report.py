"""Format routes, conversion plans and checks for people and for programs.

Pure functions: they take values and return text, rich renderables or JSON-ready dictionaries.
Nothing is printed here, and the output does not depend on whether there is a terminal.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..files.folder import kind_of
from ..files.gguf_bounds import printable
from ..routing.route import Route

if TYPE_CHECKING:
    from ..convert import Conversion
    from ..files.pool import Pool

BASE_ALONE = "base alone"
_SEPARATOR = " · "
_EIGHTHS = " ▏▎▍▌▋▊▉"
_MOST_ROWS = 20
_LONGEST_ABOUT = 100  # characters of a description in a list
_MOVED = 0.005  # smaller changes are not visible in two digits


def size_text(n_bytes: int) -> str:
    """A readable size: "512 B", "45.1 KB", "2.0 GB"; units are powers of 1024."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    power = next((p for p in (1, 2) if n_bytes < 1000 * 1024**p), 3)
    return f"{n_bytes / 1024**power:.1f} {'BKMG'[power]}B"


def blend_line(route: Route, width: int = 72) -> str:
    """The route in one line: "sort-words 0.42 · reverse 0.31 · +3", with the applied weights.

    The last part counts the selected adapters that do not fit into `width` columns; the first
    adapter is always shown, whatever its length.
    """
    if route.is_base:
        return BASE_ALONE
    parts = [f"{name} {weight:.2f}" for name, weight in route.applied.items()]
    for shown in range(len(parts), 0, -1):
        rest = [f"+{len(parts) - shown}"] if shown < len(parts) else []
        line = _SEPARATOR.join(parts[:shown] + rest)
        if len(line) <= width or shown == 1:
            break
    return line


def how_line(route: Route) -> str:
    """How the scores were computed: "norm · one-pass · blk.3.attn_q.weight"."""
    return _SEPARATOR.join(p for p in (route.signal, route.probe, route.target or "") if p)


def bar(share: float, width: int) -> str:
    """A bar for `share` (0 to 1) of `width` columns, in steps of an eighth of a column."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def columns(rows: Sequence[tuple[str, ...]], width: int = 80) -> str:
    """Terms and, last in each row, their description, side by side and wrapped.

    In a narrow terminal the description is below its terms, which are then not aligned.
    """
    terms = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*terms, strict=True)]
    left = sum(widths) + 2 * len(widths)
    lines = []
    for *cells, text in rows:
        if left + 24 <= width:
            start = "".join(f"{cell:<{n + 2}}" for cell, n in zip(cells, widths, strict=True))
            indent = " " * left
        else:
            lines.append(" ".join(cells))
            start = indent = "  "
        lines += textwrap.wrap(
            text,
            max(width - 1, 10),
            initial_indent=start,
            subsequent_indent=indent,
            break_long_words=False,  # do not break names and paths
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def route_changes(before: Route | None, now: Route) -> list[str]:
    """The changes since the last turn of a conversation, a line each for added, removed, changed.

    Compares the applied weight of each adapter. No lines without an earlier turn.
    """
    if before is None:
        return []
    then, applied = before.applied, now.applied
    moved = [name for name in applied if name in then and _moved(then[name], applied[name])]
    kinds = {
        "added": [f"{name} {applied[name]:.2f}" for name in applied if name not in then],
        "removed": [f"{name} {then[name]:.2f}" for name in then if name not in applied],
        "changed": [f"{name} {then[name]:.2f} → {applied[name]:.2f}" for name in moved],
    }
    lines = [f"{kind}: {_SEPARATOR.join(parts)}" for kind, parts in kinds.items() if parts]
    return lines or ["unchanged since the turn before"]


def _moved(then: float, now: float) -> bool:
    return abs(now - then) >= _MOVED


def adapters_table(pool: Pool, route: Route | None, width: int = 80) -> Table:
    """The pool's adapters by name: weight in the last `route`, rank, size, pinned or off.

    Rank and size are omitted in a narrow terminal.
    """
    applied = {} if route is None else route.applied
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("adapter", overflow="fold")
    table.add_column("weight", justify="right", no_wrap=True)
    wide = width >= 50
    for heading in ("rank", "size") if wide else ():
        table.add_column(heading, justify="right", no_wrap=True)
    if pool.pinned or pool.excluded:
        table.add_column("", no_wrap=True)
    for name, adapter in pool.adapters.items():
        cells = [name, f"{applied[name]:.2f}" if name in applied else ""]
        if wide:
            cells += [adapter.rank_text, size_text(adapter.n_bytes)]
        if pool.pinned or pool.excluded:
            state = "pinned" if name in pool.pinned else "off" if name in pool.excluded else ""
            cells.append(state)
        table.add_row(*map(Text, cells), style="" if name in pool.candidates else "dim")
    return table


def answer_line(timings_ms: Mapping[str, float], usage: Mapping[str, int]) -> str:
    """The speed of the last answer: "prompt 31 tokens in 120 ms · answer 57 at 44.1 tokens/s".

    The time of the first token belongs to the prompt; the rate is that of the other tokens.
    """
    prompt_ms = sum(timings_ms[phase] for phase in ("probe", "score", "mixture", "prefill"))
    line = f"prompt {usage['prompt_tokens']} tokens in {prompt_ms:.0f} ms"
    n, ms = usage["completion_tokens"], timings_ms["decode"]
    rate = f" at {(n - 1) / ms * 1000:.1f} tokens/s" if n > 1 and ms > 0 else ""
    return f"{line}{_SEPARATOR}answer {n} token{'s' * (n != 1)}{rate}"


def explain_table(route: Route, width: int = 80, *, bars: bool = True) -> Group:
    """Every adapter's score with a bar, and the weights of the selected; for `--explain`.

    Shows the highest twenty, unless they are 0, and all selected; the others are counted. In a
    narrow terminal names are cut, but numbers are not: weights need 30 columns, `bars` 40.
    """
    selected = dict(zip(route.names, route.weights, strict=True))
    ranked = sorted(route.all_scores.items(), key=lambda item: (-item[1], item[0]))
    shown = [
        (name, score)
        for i, (name, score) in enumerate(ranked)
        if (i < _MOST_ROWS and score > 0) or name in selected
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    weights, bars = width >= 30, bars and width >= 40
    bar_width = min(24, width // 4)
    scores = {name: f"{score:.4g}" for name, score in shown}
    widest = max([len("score"), *map(len, scores.values())])
    taken = 2 + widest + weights * (2 + len("weight")) + bars * (2 + bar_width)
    table.add_column("adapter", no_wrap=True)
    if weights:
        table.add_column("weight", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    if bars:
        table.add_column("", no_wrap=True)
    top = max((score for _, score in ranked), default=0.0)
    for name, score in shown:
        weight = f"{selected[name]:.2f}" if name in selected else ""
        share = score / top if top > 0 else 0.0
        cells = [Text(name), *([Text(weight)] if weights else []), Text(scores[name])]
        cells[0].truncate(max(width - taken, 4), overflow="ellipsis")
        if bars:
            cells.append(Text(bar(share, bar_width), style="cyan" if weight else "dim"))
        table.add_row(*cells, style="" if weight else "dim")
    lines: list[Text | Table] = [table] if shown else []
    if route.signal != Route.signal:  # a route given by the user has no scores
        lines.insert(0, Text(how_line(route), style="dim"))
    if rest := ranked[len(shown) :]:
        what = "more" if rest[0][1] > 0 else "with a score of 0"
        and_ = "and " if shown else ""
        lines.append(Text(f"{and_}{len(rest)} {what}", style="dim"))
    if route.is_base:
        lines.append(Text(BASE_ALONE))
    if route.reason:
        lines.append(Text(route.reason, style="dim"))
    return Group(*lines)


def score_lines(route: Route) -> list[str]:
    """The selected adapters, one per line: name, weight, score, in aligned columns."""
    longest = max((len(name) for name in route.names), default=0)
    return [
        f"{name:<{longest}}  {weight:.4f}  {score:.6g}"
        for name, weight, score in zip(route.names, route.weights, route.scores, strict=True)
    ]


def rounded(timings_ms: Mapping[str, float]) -> dict[str, float]:
    """Timings rounded to microseconds, for JSON."""
    return {phase: round(ms, 3) for phase, ms in timings_ms.items()}


def run_json(
    text: str,
    logo: Mapping[str, Any],
    usage: Mapping[str, int],
) -> dict[str, Any]:
    """The output of `run --json`; `logo` is the engine's part of a completion."""
    return {
        "text": text,
        "route": logo["route"],
        "usage": {key: usage[key] for key in ("prompt_tokens", "completion_tokens")},
        "timings_ms": rounded(logo["timings_ms"]),
    }


def score_json(route: Route, timings_ms: Mapping[str, float]) -> dict[str, Any]:
    """The output of `score --json`: the route, and the timings without decoding."""
    timings = {phase: ms for phase, ms in timings_ms.items() if phase != "decode"}
    return {"route": route.as_dict(), "timings_ms": rounded(timings)}


# Conversions


def plan_table(plan: Conversion) -> Table:
    """One row for each adapted layer: names, shapes, rank, scaling, changes to B."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("PEFT layer", overflow="fold")
    table.add_column("GGUF weight", overflow="fold")
    for heading in ("d_in", "d_out", "rank", "scaling"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("types", no_wrap=True)
    table.add_column("done to B", overflow="fold")
    for row in plan.rows:
        types = "/".join(dict.fromkeys(row.types))
        numbers = (row.d_in, row.d_out, row.rank, f"{row.scaling:.4g}")
        cells = (row.peft_name, row.target, *map(str, numbers), types, row.transform)
        table.add_row(*map(Text, cells))
    return table


def plan_line(plan: Conversion) -> str:
    """A conversion in one line: "out.gguf: rank 8, alpha 16, 21 modules, f16, 45.1 KB"."""
    parts = (
        f"rank {plan.rank_text}",
        f"alpha {plan.lora_alpha:g}",
        f"{len(plan.rows)} modules",
        plan.outtype,
        size_text(plan.n_bytes),
    )
    return f"{plan.out}: {', '.join(parts)}"


def plan_json(plan: Conversion) -> dict[str, Any]:
    """A conversion as JSON-ready values."""
    return {
        "source": str(plan.source),
        "out": str(plan.out),
        "name": plan.name,
        "architecture": plan.architecture,
        "outtype": plan.outtype,
        "lora_alpha": plan.lora_alpha,
        "n_bytes": plan.n_bytes,
        "notes": list(plan.notes),
        "modules": [
            {
                "peft": row.peft_name,
                "gguf": row.target,
                "d_in": row.d_in,
                "d_out": row.d_out,
                "rank": row.rank,
                "scaling": row.scaling,
                "types": list(row.types),
                "transform": row.transform,
            }
            for row in plan.rows
        ],
    }


# Checks


def check_json(pool: Pool) -> list[dict[str, Any]]:
    """Each entry of a pool's folder, by name: its properties, or why it does not fit."""
    rows: list[dict[str, Any]] = [
        {
            "name": adapter.name,
            "kind": kind_of(pool.origin(adapter.name)),
            "fits": True,
            "rank": adapter.rank_text,
            "lora_alpha": adapter.lora_alpha,
            "modules": len(adapter.modules),
            "n_bytes": adapter.n_bytes,
        }
        for adapter in pool.adapters.values()
    ]
    rows += [
        {
            "name": problem.name,
            "path": str(problem.path),
            "fits": False,
            "reason": problem.reason,
            "hint": problem.hint,
            "details": list(problem.details),
        }
        for problem in pool.problems
    ]
    return sorted(rows, key=lambda row: (row["name"], not row["fits"]))


def check_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `check_json` as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("adapter", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for heading in ("rank", "alpha", "modules", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fits", overflow="fold")
    for row in rows:
        if row["fits"]:
            alpha, size = f"{row['lora_alpha']:g}", size_text(row["n_bytes"])
            numbers = (row["rank"], alpha, str(row["modules"]), size)
            table.add_row(Text(row["name"]), row["kind"], *numbers, Text("yes", style="green"))
        else:
            reason = Text(f"no: {row['reason']}", style="red")
            name = printable(os.path.basename(row["path"]))
            table.add_row(Text(name), "", "", "", "", "", reason)
    return table


def listing_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `logo-local adapters`: name, whether it fits, examples, size, description.

    Without a description the first example prompt is shown; `fits` is None if it was not checked,
    and the column is then omitted unless an entry is unusable.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    with_fits = any(row["fits"] is not None for row in rows)
    table.add_column("adapter", overflow="fold")
    if with_fits:
        table.add_column("fits", no_wrap=True)
    for heading in ("examples", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("description", no_wrap=True, overflow="ellipsis")
    for row in rows:
        fits = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("")}[row["fits"]]
        about = Text(" ".join(row["description"].split()))
        if row["fits"] is False:
            about = Text(row["reason"], "red")
        elif not row["description"] and row["first_example"]:
            about = Text(f"e.g. {' '.join(row['first_example'].split())}", "dim")
        about.truncate(_LONGEST_ABOUT, overflow="ellipsis")
        examples = str(row["examples"]) if row["fits"] is not False else ""
        size = size_text(row["n_bytes"]) if row["n_bytes"] else ""
        cells = [Text(printable(row["name"])), *([fits] if with_fits else [])]
        table.add_row(*cells, examples, size, about)
    return table


def cache_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The parts of the cache: number of entries, size, unused share, and description."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("part", no_wrap=True)
    for heading in ("entries", "size", "unused"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("content")
    for row in rows:
        unused = size_text(row["unused_bytes"]) if row["unused"] else ""
        size = size_text(row["n_bytes"])
        table.add_row(row["name"], str(row["entries"]), size, unused, row["about"])
    return table
