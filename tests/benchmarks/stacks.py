"""What it takes to make a stack of 20 adapters: `python tests/benchmarks/stacks.py FOLDER`.

Writes a model with random weights in the shape of `speed.py`'s, but of a few blocks only, and 20
adapters of rank 16 into FOLDER, and sets mixtures of them: other weights of the same adapters, and
all of them anew. Medians of wall time and of processor time with one thread; both grow with the
blocks, of which the model of 1.1B parameters has 16.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_gguf import LLAMA_1B, write_adapter, write_base

ADAPTERS, RANK = 20, 16
THREADS = {"n_threads": 1, "n_threads_batch": 1}


def files(folder: Path, blocks: int) -> tuple[Path, Path]:
    """The model and the folder of its adapters, written where they are not there yet."""
    shape = replace(LLAMA_1B, blocks=blocks)
    base, adapters = folder / f"base-{blocks}.gguf", folder / f"adapters-{blocks}"
    if not base.exists():
        adapters.mkdir(parents=True, exist_ok=True)
        for i in range(ADAPTERS):
            path = adapters / f"a{i:02}.gguf"
            write_adapter(path, seed=i, rank=RANK, shape=shape, dtype=np.float16)
        write_base(base, shape=shape, q4_0=True)
    return base, adapters


def timed(set_mixture: Callable[[], Any], repeats: int) -> str:
    """Wall and processor time, in milliseconds."""
    wall, processor = [], []
    for _ in range(repeats):
        started, before = time.perf_counter(), time.process_time()
        set_mixture()
        wall.append((time.perf_counter() - started) * 1000)
        processor.append((time.process_time() - before) * 1000)
    return f"{median(wall):.0f} ms | {median(processor):.0f} ms"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--blocks", default=4, show_default=True)
@click.option("--repeats", default=9, show_default=True)
def main(folder: Path, blocks: int, repeats: int) -> None:
    """Print a table for docs/benchmarks.md."""
    from logo_local import LoGo

    base, pool = files(folder, blocks)
    rng = np.random.default_rng(0)
    print("| stack | mixture | wall | processor |\n|---|---|---|---|")
    for kind in ("native", "q8_0"):
        how = {"signal": "norm", "mixture": "stacked", "n_ctx": 256, "adapter_memory": "2G"}
        with LoGo(base, pool, mixture_type=kind, past=False, **how, **THREADS) as llm:
            adapters = [llm.pool.adapters[name] for name in llm.pool.names]

            def other_weights(llm: Any = llm, adapters: Any = adapters) -> None:
                weights = rng.uniform(0.01, 0.9, len(adapters)).tolist()
                llm.mixer.set(list(zip(adapters, weights, strict=True)))

            def anew(llm: Any = llm, set_weights: Any = other_weights) -> None:
                for buffer in llm.mixer._buffers:
                    buffer._held = []  # nothing of it is used again
                set_weights()

            other_weights()  # makes the buffer
            print(f"| {kind} | other weights | {timed(other_weights, repeats)} |", flush=True)
            print(f"| {kind} | new | {timed(anew, repeats)} |", flush=True)


if __name__ == "__main__":
    main()
