"""`logo-local bench`: the options; the work is done in the package `bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..console.opening import open_by_options
from ..console.options import (
    ADAPTERS,
    ENGINE,
    FOLDER,
    JSON,
    MODEL,
    MODEL_ARGUMENT,
    SIGNAL,
    Several,
    options,
)
from ..console.prompts import named_model
from ..console.terminal import ProgressBar, say

if TYPE_CHECKING:
    from ..engine import LoGo


@click.command()
@MODEL_ARGUMENT
@options(MODEL, ADAPTERS, SIGNAL)
@click.option(
    "--top-k",
    "ks",
    type=Several(click.IntRange(1)),
    metavar="K,...",
    default="1,2,3,5,10,20",
    show_default=True,
    help="Numbers of adapters to blend.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Length of the prompt.",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(2),
    default=32,
    show_default=True,
    help="Number of tokens to generate.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of repetitions; medians are reported.",
)
@click.option("--plot", type=FOLDER, metavar="FILE", help="Draw the ratios into this SVG file.")
@options(*ENGINE, JSON)
@click.pass_context
def bench(ctx: click.Context, /, model: str | None, plot: Path | None, **given: Any) -> None:
    """Measure the cost of mixtures and routing on this machine.

    Figures are ratios to the base model alone, which is measured right before. The first adapters
    of the pool are blended. Reading example prompts and writing self-profiles is not measured.
    """
    from ..bench.measure import measure
    from ..bench.report import draw, markdown
    from ..console.figures import load

    model = named_model(ctx, model, given)
    if plot is not None:
        load()  # report a missing library before minutes of measuring
    given |= {"past": False, "seed": 1, "cache_memory": 0}  # prompts are read completely
    if given["self_profile"]:
        given["self_profile"] = "kept"
    llm = cast("LoGo", open_by_options(ctx, model, given, needs_adapters=True))
    with ProgressBar() as progress:
        names = ("ks", "prompt_tokens", "answer_tokens", "repeats")
        found = measure(llm, progress=progress, **{name: given[name] for name in names})
    if plot is not None:
        draw(found, plot)
        say(f"the figure is in {plot}", "dim")
    click.echo(json.dumps(found.as_dict(), indent=2) if given["as_json"] else markdown(found))
