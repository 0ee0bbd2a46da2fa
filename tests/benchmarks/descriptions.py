"""How often a description selects its adapter, by the number of adapters.

    python tests/benchmarks/descriptions.py demo --data SUITE/choose/*.jsonl

Uses only the descriptions of the adapters, not their examples. For each size, some subsets of the
pool are drawn. Routes only, nothing is generated. `selected` and `right` are shares of the prompts
whose adapter is in the subset; the last column is the share of all other prompts that the base
answers.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from examples import Vectors
from logo_local import LoGo
from logo_local.evaluation.data import read_examples
from logo_local.files.description import description_of
from logo_local.routing.adapter_profiles import format_of, general_requests
from logo_local.routing.descriptions import LEAST_MARGIN, Descriptions, description_prompts
from logo_local.routing.example_prompts import prompts_beside

DRAWS = 8


@click.command()
@click.argument("model")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.option("--adapters", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, type=click.Path(path_type=Path))
@click.option("--limit", type=int, default=4, help="Prompts per file.")
@click.option("--names", is_flag=True, help="Use the adapters' names as descriptions.")
def main(model: str, more: tuple[Path, ...], adapters, data, limit: int, names: bool) -> None:
    """Print the table."""
    with LoGo(model, adapters, n_threads=1, n_threads_batch=1, n_ctx=2048) as llm:
        pool = llm.pool
        examples = read_examples((*data, *more), pool.names, limit)
        said = {
            name: name.replace("-", " ")
            if names
            else description_of(pool.origin(name), pool.adapters[name].description)
            for name in pool.names
        }
        said = {name: text for name, text in said.items() if text}
        vectors = Vectors(llm)
        # The format of prompts, from the examples; they are not used for anything else.
        head, tail = format_of([prompts_beside(pool.origin(name)) for name in said])
        general = vectors.of([f"{head}{request}{tail}" for request in general_requests()])
        about = {
            name: vectors.of([f"{head}{prompt}{tail}" for prompt in description_prompts(text)])
            for name, text in said.items()
        }
        asked = vectors.of([example.context for example in examples])
    rng = np.random.default_rng(1)
    print("| adapters | selected | right | others answered by the base |")
    print("|---|---|---|---|")
    for size in sorted({1, 3, 6, len(about)} & set(range(len(about) + 1))):
        selected, right, others = [], [], []
        for _ in range(DRAWS if size < len(about) else 1):
            chosen = sorted(rng.choice(list(about), size, replace=False).tolist())
            fitted = Descriptions.fit({name: about[name] for name in chosen}, general)
            for example, x in zip(examples, asked, strict=True):
                nearest, margin = fitted.nearest(x)
                fits = margin >= LEAST_MARGIN
                if example.adapter in chosen:
                    selected.append(fits)
                    right.append(fits and nearest == example.adapter)
                else:
                    others.append(not fits)
        means = (f"{np.mean(values):.2f}" for values in (selected, right, others))
        print(f"| {size} | {' | '.join(means)} |", flush=True)


if __name__ == "__main__":
    main()
