"""A model of real size with random weights: `python tests/benchmarks/random_model.py FOLDER`.

Writes FOLDER/base.gguf, a Llama of 1.1B parameters in Q4_0 (617 MB), and FOLDER/adapters with LoRA
files of rank 16 on all seven projections in float16 (22 MB each). Of a thousand adapters 32 have
weights of their own; the others are further names of the same files (hard links), which cost no
disk and are as many to a program. What is there already stays. Answers are noise.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_gguf import LLAMA_1B, write_adapter, write_base

DISTINCT = 32


def random_model(folder: Path, n_adapters: int, rank: int = 16) -> tuple[Path, Path]:
    """The base and a folder of `n_adapters`, made where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.gguf"
    if not base.exists():
        write_base(folder / "unfinished", shape=LLAMA_1B, q4_0=True).rename(base)
    files, adapters = folder / f"rank-{rank}", folder / f"rank-{rank}-{n_adapters}"
    files.mkdir(exist_ok=True)
    adapters.mkdir(exist_ok=True)
    for i in range(n_adapters):
        file = files / f"{i % DISTINCT:02d}.gguf"
        if not file.exists():
            how = {"shape": LLAMA_1B, "rank": rank, "alpha": 2.0 * rank, "dtype": np.float16}
            write_adapter(folder / "unfinished", i, loudness=0.02, **how).rename(file)
        name = adapters / f"adapter-{i:04d}.gguf"
        if not name.exists():
            os.link(file, name)
    return base, adapters


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--adapters", default=20, show_default=True)
@click.option("--rank", default=16, show_default=True)
def main(folder: Path, adapters: int, rank: int) -> None:
    """Write the model and say where it is."""
    for path in random_model(folder, adapters, rank):
        click.echo(path)


if __name__ == "__main__":
    main()
