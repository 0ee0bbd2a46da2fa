"""`logo-local eval`: the options; the work is done in the package `evaluation`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..completions import Engine
from ..console.opening import open_by_options
from ..console.options import ADAPTERS, ENGINE, FOLDER, JSON, RAW, RESEARCH, Several, options
from ..console.terminal import ProgressBar, UsageError, say
from ..evaluation import metrics
from ..evaluation.data import Example, read_examples
from ..evaluation.methods import usable_ks
from ..evaluation.runner import Comparison
from ..evaluation.store import Store
from ..routing import registry
from ..routing.profile_store import weights_key

_SIGNALS = tuple(name for name in registry.names() if name != registry.AUTO)
# The engine options that affect scores or answers.
_ENGINE_SETTINGS = (
    *("probe", "layer", "tap", "self_profile"),
    *("mixture", "mixture_type", "prefill", "ctx_size"),
)


@click.command("eval")
@click.argument("model")
@click.argument("more", metavar="[FILE]...", nargs=-1, type=FOLDER)
@click.option(
    "--data",
    multiple=True,
    type=FOLDER,
    metavar="FILE...",
    help="Task files: JSON lines with context, completion and adapter.",
)
@options(ADAPTERS)
@click.option(
    "--metric",
    type=click.Choice((metrics.SCORE, *metrics.METRICS)),
    default=metrics.SCORE,
    show_default=True,
    help="Metric of the table; all are recorded. score: each task's own metric.",
)
@click.option(
    "--signals",
    type=Several(click.Choice(_SIGNALS)),
    metavar="NAME,...",
    help=f"Signals to compare: {', '.join(_SIGNALS)}  [default: all]",
)
@click.option(
    "--top-k",
    "ks",  # the engine's own top_k is separate and keeps its default
    type=Several(click.IntRange(1)),
    metavar="K,...",
    default="1,3,5,10,20",
    show_default=True,
    help="Numbers of adapters to blend; larger than the pool means all.",
)
@click.option(
    "--best-single",
    is_flag=True,
    help="Also find the best single adapter over all data; needs one answer per prompt and "
    "adapter.",
)
@click.option("--own-out", is_flag=True, help="Repeat everything without the prompt's own adapter.")
@click.option(
    "--fusion",
    is_flag=True,
    help="Also average parameters instead of outputs; doubles the cost of mixtures.",
)
@click.option("--limit", type=click.IntRange(1), help="Use only the first prompts of each file.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Maximum tokens per answer.",
)
@click.option(
    "--seed",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Seed for random adapters and intervals.",
)
@click.option(
    "--out", type=FOLDER, metavar="DIR", help="Store results in this folder, and resume from it."
)
@click.option("--plots", type=FOLDER, metavar="DIR", help="Draw SVG figures into this folder.")
@options(*ENGINE, *RESEARCH, RAW, JSON)
@click.pass_context
def evaluate(
    ctx: click.Context, /, model: str, more: tuple[Path, ...], data: tuple[Path, ...], **given: Any
) -> None:
    """Evaluate routing on prompts with known answers.

    Each file is one task. Its prompts are answered by the base model, by their own adapter, by
    uniform and random mixtures, by every signal at every k, and by the engine's default. Lines
    without adapter are outside of the pool; lines without completion only count who answers.
    Answers are greedy, and only their first line counts.

    The output is a Markdown table: means over tasks with 95% bootstrap intervals over prompts.
    """
    from ..console.figures import load as load_matplotlib
    from ..evaluation.fusion import Fusion
    from ..evaluation.plots import draw_all
    from ..evaluation.runner import evaluate as run
    from ..evaluation.summary import as_json, markdown, summarise

    files = (*data, *more)
    if not files:
        raise UsageError(
            "no data given", f"add --data FILE...: {ctx.command_path} {model} --data tasks/*.jsonl"
        )
    metrics.load()
    if given["plots"] is not None:
        load_matplotlib()  # report a missing library before hours of work
    given |= {"past": False, "cache_memory": 0}  # an evaluation must be reproducible
    llm = open_by_options(ctx, model, given, needs_adapters=True)
    examples = read_examples(files, llm.pool.names, given["limit"])
    comparison = Comparison(
        signals=given["signals"] or _SIGNALS,
        top_k=given["ks"],
        **{name: given[name] for name in ("max_tokens", "seed", "raw")},
        **{name: given[name] for name in ("best_single", "own_out", "fusion")},
    )
    ks, n_adapters = usable_ks(comparison.top_k, len(llm.pool.names)), len(llm.pool.names)
    with ExitStack() as stack:
        store, answer_fused = Store(), None
        if given["out"] is not None:
            made_with = _made_with(llm, examples, comparison, given)
            store = stack.enter_context(Store.open(given["out"], made_with))
        if comparison.fusion:

            def open_fused(folder: Path) -> Engine:
                # Nothing is routed there, so use the cheapest signal.
                cheap = {"adapters": folder, "signal": "norm", "probe": "one-pass", "top_k": 1}
                return open_by_options(ctx, str(llm.base.path), {**given, **cheap})

            fusion = Fusion(llm.pool.adapters, llm.base.architecture, open_fused)
            answer_fused = stack.enter_context(fusion).answer
        if max(comparison.top_k) > n_adapters:
            say(f"note: there are {n_adapters} adapters, and a larger k means all of them", "dim")
        progress = stack.enter_context(ProgressBar())
        run(llm, examples, comparison, store, progress=progress, answer_fused=answer_fused)
    summary = summarise(store, examples, metric=given["metric"], seed=comparison.seed)
    if given["plots"] is not None:
        drawn = draw_all(given["plots"], store, examples, summary, comparison.signals, ks)
        say(f"{len(drawn)} figures in {given['plots']}", "dim")
    click.echo(json.dumps(as_json(summary), indent=2) if given["as_json"] else markdown(summary))


def _made_with(
    llm: Engine, examples: Sequence[Example], comparison: Comparison, given: dict[str, Any]
) -> dict[str, Any]:
    """All settings that affect the answers, JSON-ready; no display options."""
    data = hashlib.sha256(json.dumps([asdict(example) for example in examples]).encode())
    return {
        "version": __version__,
        "model": weights_key(llm.base.path)[:32],
        "adapters": {name: adapter.n_bytes for name, adapter in llm.pool.adapters.items()},
        "data": f"{len(examples)} prompts, {data.hexdigest()[:16]}",
        **asdict(comparison),
        **{name: given[name] for name in _ENGINE_SETTINGS},
    }
