"""What the settings of the default route were chosen by: `python tests/benchmarks/choosing.py`.

The bundled model, on the prompts to choose by (`demo/choose/`: one untrained wording a task, other
than the reported one). Prints Markdown tables: how often the prompt's own adapter comes first, by
where and how texts are read, and by how many texts a profile has; and the score of the nearest
adapter by its distance and by how much of it is applied. Some minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

from logo_local import LoGo, config
from logo_local.evaluation.metrics import measure
from logo_local.hidden_states import Place, Reading
from logo_local.llama.probe import HiddenProbe
from logo_local.routing.example_prompts import prompts_beside
from logo_local.routing.profiles import SHRINKAGE, Measure, Profile, embed
from logo_local.routing.scoring import read_places

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DISTANCES = (0.0, 1.3, 1.5, 1.6, 1.7, 1.9, 2.1, 9.0)


@dataclass(frozen=True)
class Row:
    """A prompt to choose by, and what every block receives of it."""

    data: Mapping[str, Any]
    task: str
    reading: Reading

    @property
    def group(self) -> str:
        """ "answers" or "sequence" in the pool, else how the set is related to it."""
        return str(self.data["group"])


class Choosing:
    """The model, its prompts to choose by, and example prompts, read once at every block."""

    def __init__(self, llm: LoGo, limit: int) -> None:
        self.llm = llm
        self.blocks = [Place(f"blk.{i}.attn_q.weight") for i in range(llm.base.n_blocks)]
        self.probe = HiddenProbe(llm.loaded)
        folder = config.demo_folder()
        self.rows = [
            Row(data, path.stem, self.read(data["context"]))
            for path in sorted((folder / "choose").glob("*.jsonl"))
            for data in map(json.loads, path.read_text().splitlines()[:limit])
        ]
        self.examples = {
            name: [self.read(text) for text in prompts_beside(llm.pool.origin(name))]
            for name in llm.pool.names
        }
        llm.signal_scores("any", ["self-profile"])  # makes the profiles and the statistics
        self.scorer = llm.router._scorer_for("combined")

    def read(self, text: str) -> Reading:
        """What attention receives of a text in every block."""
        return self.probe.read(self.llm.loaded.tokens_of_text(text), self.blocks)

    @property
    def in_pool(self) -> list[Row]:
        """The prompts that have an adapter."""
        return [row for row in self.rows if row.data["adapter"]]

    def first(self, score: Callable[[Row], Mapping[str, float]]) -> str:
        """How often the own adapter has the highest score: all, answers only, sequences."""
        hits: dict[str, list[bool]] = {"all": [], "answers": [], "sequence": []}
        for row in self.in_pool:
            scores = score(row)
            hit = max(scores, key=scores.__getitem__) == row.data["adapter"]
            hits["all"].append(hit)
            hits[row.group].append(hit)
        return " | ".join(f"{np.mean(found):.2f}" for found in hits.values())

    def by_profiles(
        self,
        vector: Callable[[Reading], np.ndarray],
        *,
        n: int = 8,
        shrinkage: float = SHRINKAGE,
    ) -> str:
        """`first` by the nearest profile of `n` example prompts."""
        profiles = {
            name: Profile(np.stack([vector(one) for one in readings[:n]]))
            for name, readings in self.examples.items()
        }
        found = Measure.fit(profiles, shrinkage)
        return self.first(lambda row: _named(found, vector(row.reading)))

    def score(self, row: Row, weights: Mapping[str, float]) -> float:
        """The score of the answer under these weights."""
        with self.llm.under(weights):
            messages = [{"role": "user", "content": row.data["context"]}]
            reply = self.llm.create_chat_completion(messages, temperature=0.0, max_tokens=48)
        answer = reply["choices"][0]["message"]["content"]
        return measure(answer, [row.data["completion"]])[row.data["metric"]]


def _named(measure_of: Measure, vector: np.ndarray) -> dict[str, float]:
    return dict(zip(measure_of.names, measure_of.nearness(vector).tolist(), strict=True))


def mean_of(places: Sequence[Place]) -> Callable[[Reading], np.ndarray]:
    """Texts as the mean over their tokens at `places`."""
    return lambda reading: embed([reading[place].mean for place in places])


def last_of(places: Sequence[Place]) -> Callable[[Reading], np.ndarray]:
    """Texts as their last token at `places`."""
    return lambda reading: embed([reading[place].last for place in places])


def table(title: str, rows: Iterable[tuple[str, str]], headings: str) -> None:
    """Print a table as it grows."""
    click.echo(f"\n{title}\n\n| | {headings} |\n|{'---|' * (1 + len(headings.split('|')))}")
    for name, cells in rows:
        click.echo(f"| {name} | {cells} |")


@click.command()
@click.option("--limit", default=20, show_default=True, help="Prompts a task.")
@click.option("--adapters", type=click.Path(path_type=Path), help="Another set than the bundled.")
def main(limit: int, adapters: Path | None) -> None:
    """Print the tables."""
    with LoGo("demo", adapters, n_threads=1, n_threads_batch=1, past=False) as llm:
        c = Choosing(llm, limit)
        own_first = "own first | answers only | whole sequences"
        usual = read_places(llm.base)
        several = {f"block {i}": [place] for i, place in enumerate(c.blocks)}
        several |= {"blocks 0 to 3": list(usual), "all blocks": c.blocks}
        table(
            "Profiles of 8 prompts: where and how a text is read",
            [
                (f"{name}, {how}", c.by_profiles(vector(places)))
                for name, places in several.items()
                for how, vector in (("mean", mean_of), ("last token", last_of))
            ],
            own_first,
        )
        table(
            "Shrinkage",
            [
                (f"{s:g}", c.by_profiles(mean_of(usual), shrinkage=s))
                for s in (0.03, 0.1, 0.3, 1, 3)
            ],
            own_first,
        )
        table(
            "How many prompts",
            [(f"{n}", c.by_profiles(mean_of(usual), n=n)) for n in (1, 2, 4, 8)],
            own_first,
        )
        _self_profiles(c, own_first)
        _likelihood(c, own_first)
        _strengths(c)
        c.probe.close()


def _self_profiles(c: Choosing, own_first: str) -> None:
    telling = {name: p.vectors for name, p in c.scorer.samples.items() if p.is_informative}
    silent = ", ".join(sorted(set(c.scorer.samples) - set(telling)))
    rows = []
    for n in (4, 8, 12, 24):
        found = Measure.fit({name: Profile(vectors[:n]) for name, vectors in telling.items()})
        rows.append((f"{n}", c.first(lambda r, m=found: _named(m, c.scorer.vector(r.reading)))))
    table(f"How many self-written texts (left out as not telling: {silent})", rows, own_first)


def _likelihood(c: Choosing, own_first: str) -> None:
    def likelihood(text: str) -> Mapping[str, float]:
        messages = [{"role": "user", "content": text}]
        return c.llm.signal_scores(messages, ["each-likelihood"])["each-likelihood"]

    hits = []
    for name in c.llm.pool.names:
        for text in prompts_beside(c.llm.pool.origin(name)):
            scores = likelihood(text)
            hits.append(max(scores, key=scores.__getitem__) == name)
    rows = [
        ("example prompts, wordings that were trained on", f"{np.mean(hits):.2f} | | "),
        ("prompts to choose by", c.first(lambda row: likelihood(row.data["context"]))),
    ]
    table("Likelihood of the prompt under each adapter", rows, own_first)


def _strengths(c: Choosing) -> None:
    found = []
    for row in c.rows:
        near = c.scorer._nearness(row.reading, "prompts")
        scores = c.scorer.fit("mixed", row.reading).scores
        nearest = max(near, key=near.__getitem__)
        chosen = max(scores, key=scores.__getitem__) if any(scores.values()) else nearest
        values = [c.score(row, {chosen: s} if s else {}) for s in STRENGTHS]
        where = "in pool" if row.data["adapter"] else row.group
        found.append((where, -near[nearest], values))
    rows = []
    for where in dict.fromkeys(where for where, _, _ in found):
        for low, high in pairwise(DISTANCES):
            some = [v for w, distance, v in found if w == where and low <= distance < high]
            if some:
                means = np.mean(some, axis=0)
                cells = " | ".join(f"{mean:.2f}" for mean in means)
                rows.append((f"{where}, {low:g} to {high:g}", f"{len(some)} | {cells}"))
    headings = " | ".join(f"at {s:g}" for s in STRENGTHS)
    table("Score by the nearest profile's distance and by strength", rows, f"prompts | {headings}")


if __name__ == "__main__":
    main()
