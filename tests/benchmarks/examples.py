"""How many example prompts routing needs, and in how many wordings.

    python tests/benchmarks/examples.py demo --data SUITE/report/*.jsonl
    python tests/benchmarks/examples.py MODEL --examples models/demo/adapters --data ...

`--examples` takes the example prompts from another folder, for a model that these adapters do not
fit: the route depends only on the base model and the examples. Routes only, nothing is generated.
Each adapter needs at least eight examples, the i-th in wording i % 4, as the recipe of the pool
writes them. `own adapter first` and `refused` are of the prompts with an adapter; the other columns
are the shares of prompts without one that the base answers, by group. Intervals are 95 % bootstrap
intervals over prompts.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from logo_local import LoGo
from logo_local.evaluation.data import read_examples
from logo_local.routing.adapter_profiles import format_of, general_requests
from logo_local.routing.contrasts import contrast_prompts, n_wordings
from logo_local.routing.example_prompts import prompts_beside
from logo_local.routing.profiles import Measure, Profile

# (examples, wordings): the positions of the examples that are used.
SETTINGS = {
    "1 example": [0],
    "2 in 1 wording": [0, 4],
    "2 in 2 wordings": [0, 3],
    "4 in 2 wordings": [0, 3, 4, 7],
    "4 in 4 wordings": [0, 1, 2, 3],
    "8 in 4 wordings": list(range(8)),
}


class Vectors:
    """Vectors of texts, each read once."""

    def __init__(self, llm: LoGo) -> None:
        self.llm, self.form = llm, "chat" if llm.loaded.has_template else "raw"
        self.known: dict[str, np.ndarray] = {}

    def of(self, texts: list[str]) -> np.ndarray:
        """The vectors (n, F) of texts."""
        for text in texts:
            if text not in self.known:
                self.known[text] = self.llm.router._vector(text, self.form)
        return np.stack([self.known[text] for text in texts])


def interval(values: list[bool]) -> str:
    """A share with its interval."""
    rng = np.random.default_rng(1)
    found = np.array(values, dtype=float)
    draws = found[rng.integers(len(found), size=(2000, len(found)))].mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{found.mean():.2f} ({low:.2f} to {high:.2f})"


@click.command()
@click.argument("model")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.option("--adapters", type=click.Path(path_type=Path))
@click.option("--examples", "folder", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, type=click.Path(path_type=Path))
@click.option("--limit", type=int)
def main(model: str, more: tuple[Path, ...], adapters: Path | None, folder, data, limit) -> None:
    """Print the table."""
    with LoGo(model, adapters, n_threads=1, n_threads_batch=1, n_ctx=2048) as llm:
        given = {name: prompts_beside(llm.pool.origin(name)) for name in llm.pool.names}
        if folder is not None:
            given = {path.stem: prompts_beside(path) for path in sorted(folder.glob("*.gguf"))}
        examples = read_examples((*data, *more), [*given], limit)
        vectors = Vectors(llm)
        head, tail = format_of(list(given.values()))  # as the engine does it
        general = vectors.of([f"{head}{request}{tail}" for request in general_requests()])
        asked = vectors.of([example.context for example in examples])
        groups = sorted({e.group or "other" for e in examples if e.adapter is None})
        print("| examples | own adapter first | refused |", *(f"{g} |" for g in groups))
        print("|---|---|---|" + "---|" * len(groups))
        for label, positions in SETTINGS.items():
            profiles = {}
            for name, prompts in given.items():
                chosen = [prompts[at] for at in positions]
                bare = [prompt.removeprefix(head).removesuffix(tail) for prompt in chosen]
                against = tuple(
                    vectors.of([f"{head}{prompt}{tail}" for prompt in kind])
                    for kind in contrast_prompts(bare)
                )
                profiles[name] = Profile(
                    vectors.of(chosen), contrasts=against, wordings=n_wordings(chosen)
                )
            measure = Measure.fit(profiles, general=general)
            first, refused = [], []
            outside = defaultdict(list)
            for example, x in zip(examples, asked, strict=True):
                nearest = int(measure.nearness(x).argmax())
                fits = measure.matches(x)[nearest] >= measure.least[nearest]
                if example.adapter is None:
                    outside[example.group or "other"].append(not fits)
                else:
                    first.append(measure.names[nearest] == example.adapter)
                    refused.append(not fits)
            cells = [interval(first), interval(refused), *(interval(outside[g]) for g in groups)]
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
