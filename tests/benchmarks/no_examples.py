"""Time to the first token with adapters that have neither examples nor descriptions.

    python tests/benchmarks/no_examples.py demo [--adapters DIR] [--pairs 20]

The adapters are copied to an empty folder, so that nothing but their names is known. Prints the
first answer after the start, and the median ratio of routed requests to requests to the base, in
pairs, with an unrelated request between any two so that no prompt is in the cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from logo_local import LoGo, config
from logo_local.routing.adapter_profiles import general_requests


@click.command()
@click.argument("model")
@click.option("--adapters", type=click.Path(path_type=Path))
@click.option("--pairs", type=int, default=20, show_default=True)
def main(model: str, adapters: Path | None, pairs: int) -> None:
    """Print the ratios."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ[config.HOME_VARIABLE] = str(scratch / "home")
        bare = scratch / "adapters"
        bare.mkdir()
        for path in sorted((adapters or config.demo_adapters()).glob("*.gguf")):
            shutil.copy(path, bare)
        path = config.demo_model() if model == "demo" else model
        llm = stack.enter_context(LoGo(path, bare, n_threads=1, n_threads_batch=1, n_ctx=1024))
        requests = general_requests()

        def first_token(text: str, *, routed: bool) -> float:
            messages = [{"role": "user", "content": text}]
            started = time.perf_counter()
            with llm.base_only() if not routed else ExitStack():
                llm.create_chat_completion(messages, max_tokens=1)
            return time.perf_counter() - started

        first_token("What is a good name for a cat?", routed=False)  # reads the model file
        base = first_token("What is a good name for a goat?", routed=False)
        routed = first_token("What is a good name for a boat?", routed=True)
        print(f"{len(llm.pool.names)} adapters; first answer: {routed / base:.2f}")
        ratios = []
        for at in range(pairs):
            text, other = requests[at % len(requests)], requests[(at + 7) % len(requests)]
            first_token(f"{other} (first {at})", routed=False)
            routed = first_token(f"{text} {at}", routed=True)
            first_token(f"{other} (second {at})", routed=False)
            base = first_token(f"{text} {at}", routed=False)
            ratios.append(routed / base)
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        print(f"median of {pairs} pairs: {median:.2f} (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
