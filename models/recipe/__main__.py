"""Build the adapter pool: run every step in order, and skip steps whose output exists.

    python -m models.recipe --data FOLDER            train, convert, measure, publish
    python -m models.recipe --data FOLDER --set again    some adapters again with another seed
    python -m models.recipe --data FOLDER --set gemma --gguf gemma-3-270m-q4_k_m.gguf

The output is in `models/recipe/build/`; to continue an interrupted run, start it again. The last
step of the pool replaces the content of `models/demo/`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import click
import torch

from logo_local import config

from .base import Tokens
from .data import Task, read_tasks
from .pool import convert_all, score_all, selected, ship_profiles, write_manifest
from .settings import AGAIN, GEMMA, SETTINGS
from .suite import demo_prompts, write_example_prompts, write_lines, write_suite
from .training import train_all

SEED = 2511
HERE = Path(__file__).parent
SETS = {"pool": tuple(SETTINGS), "again": AGAIN, "gemma": GEMMA}

log = logging.getLogger("models.recipe")


def publish(
    tasks: Mapping[str, Task], gguf: Path, build: Path, demo: Path, seed: int, threads: int
) -> None:
    """Select adapters by the choosing items, measure them on the others, and replace the demo."""
    trained = [tasks[path.stem] for path in sorted((build / "gguf").glob("*.gguf"))]
    kept = build / "scores-choose.json"
    names = selected(trained, score_all(gguf, build / "gguf", trained, "choose", kept, threads))
    log.info("%d adapters are selected", len(names))
    chosen, kept = [tasks[name] for name in names], build / "scores-report.json"
    scores = score_all(gguf, build / "gguf", chosen, "report", kept, threads)
    shutil.rmtree(demo / "adapters", ignore_errors=True)
    (demo / "adapters").mkdir(parents=True)
    for name in names:
        for path in (build / "gguf").glob(f"{name}.*"):
            shutil.copy(path, demo / "adapters")
    ship_profiles(gguf, demo)
    write_lines(demo / "demo_prompts.jsonl", demo_prompts(tasks, names))
    write_manifest(demo, tasks, names, scores, gguf, seed)
    write_suite(tasks, names, build / "suite")


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The folder of the public data sets; models/README.md says where each is published.",
)
@click.option(
    "--build", type=click.Path(path_type=Path), default=HERE / "build", help="Where all is made."
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--only", multiple=True, metavar="TASK", help="Train only these tasks.")
@click.option("--set", "which", type=click.Choice(list(SETS)), default="pool", show_default=True)
@click.option(
    "--gguf", type=click.Path(exists=True, path_type=Path), help="The base; the demo's by default."
)
@click.option("--no-training", is_flag=True, help="Go on with the adapters that are trained.")
def main(
    data: Path,
    build: Path,
    threads: int,
    only: tuple[str, ...],
    which: str,
    gguf: Path | None,
    no_training: bool,
) -> None:
    """Make everything that is not there yet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    tasks, base, build = read_tasks(data), gguf or config.demo_model(), build / which
    names, seed = only or SETS[which], SEED + (which == "again")
    if not no_training:
        train_all(base, [tasks[name] for name in names], build / "peft", seed)
    context = Tokens(base).context
    for name in convert_all(base, build / "peft", build / "gguf", names):
        write_example_prompts(tasks[name], build / "gguf" / f"{name}.prompts.jsonl", context)
        (build / "gguf" / f"{name}.description.txt").write_text(tasks[name].description + "\n")
    if which == "pool" and gguf is None:  # adapters for another model do not replace the demo's
        publish(tasks, base, build, HERE.parent / "demo", seed, threads)
    else:
        write_suite(tasks, names, build / "suite", context)


if __name__ == "__main__":
    main()
