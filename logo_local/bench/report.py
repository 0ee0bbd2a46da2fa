"""Formats a benchmark as Markdown tables and as a figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..console.figures import figure_of, save
from .measure import Benchmark, Row

_RATIOS = {"prefill": "prompt", "decode": "token", "first_token": "first token"}


def markdown(found: Benchmark) -> str:
    """The setting, the mixtures by k, and the scoring times by the pool's size."""
    setting, base = found.setting, found.base
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    lines = [
        f"{setting['model']}, {setting['adapters']} adapters; {setting['prompt_tokens']} prompt "
        f"tokens, {setting['answer_tokens']} answer tokens, {setting['repeats']} repeats; "
        f"{' and '.join(str(n) for n in setting['threads'])} threads for answers and prompts; "
        f"{setting['machine']}; {versions}",
        "",
        f"The base: prompt {base.prefill:,.0f} ms, a token {base.decode:.1f} ms.",
        "",
        "| mixture | k | prompt / base | token / base | first token / base | new | other weights |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in found.rows]
    lines += ["", "| adapters | pass | scores | both / prompt of the base |", "|---|---|---|---|"]
    lines += [
        f"| {s.n:,} | {s.probe:,.1f} ms | {s.score:,.1f} ms | {s.over_base:.3f} |"
        for s in found.scoring
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    ratios = " | ".join(f"{row.over_base[name]:.2f}" for name in _RATIOS)
    made = f"{row.ms.mixture:,.1f} ms | {row.ms.weights:,.1f} ms"
    return f"| {row.way} | {row.k} | {ratios} | {made} |"


def draw(found: Benchmark, path: Path) -> None:
    """Draw the ratios against k, one panel for each, as an SVG file."""
    figure, panels = figure_of(11, 3.5, columns=3)
    for axes, (name, title) in zip(panels, _RATIOS.items(), strict=True):
        for way, rows in _by_way(found):
            ks = [row.k for row in rows]
            axes.plot(ks, [row.over_base[name] for row in rows], marker="o", label=way)
        axes.axhline(1, color="grey", linestyle=":")
        axes.set(xlabel="k", title=title, xticks=ks)
    panels[0].set_ylabel("over the base")
    panels[0].legend()
    save(figure, path)


def _by_way(found: Benchmark) -> Iterator[tuple[str, list[Row]]]:
    for way in dict.fromkeys(row.way for row in found.rows):
        yield way, [row for row in found.rows if row.way == way]
