"""Would reading example prompts in batches be faster? Tokens a second by the length of a batch.

    python tests/benchmarks/prefill.py [--threads 1]

With the demo's model. Then the time for 48 general requests as the router reads them, one by one.
"""

from __future__ import annotations

import time

import click
import numpy as np

from logo_local import LoGo
from logo_local.routing.adapter_profiles import general_requests

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
REPEATS, N_TEXTS = 4, 48


def fastest(llm: LoGo, n: int) -> float:
    """Seconds for a batch of `n` random tokens, the best of several."""
    tokens = np.random.default_rng(n).integers(100, 40_000, n).tolist()
    found = []
    for _ in range(REPEATS):
        llm.reset()
        started = time.perf_counter()
        llm.eval(tokens)
        found.append(time.perf_counter() - started)
    return min(found)


@click.command()
@click.option("--threads", type=int, default=1, show_default=True)
def main(threads: int) -> None:
    """Print both."""
    settings = {"n_threads": threads, "n_threads_batch": threads, "n_batch": 512, "n_ctx": 1024}
    with LoGo("demo", **settings) as llm:
        print("| tokens in a batch | tokens/s |\n|---|---|")
        for n in LENGTHS:
            print(f"| {n} | {n / fastest(llm, n):.0f} |", flush=True)
        texts = general_requests()[:N_TEXTS]
        llm.router._vector("Where am I?", "chat")
        started = time.perf_counter()
        for text in texts:
            llm.router._vector(text, "chat")
        print(f"\n{N_TEXTS} texts one by one: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
