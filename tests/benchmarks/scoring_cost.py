"""What scoring costs beside the pass: `python tests/benchmarks/scoring_cost.py`.

The scorer itself on random numbers in the shape of a 1.2B Llama: width 2048, keys and values of
width 512, four blocks read, 256 prompt tokens, adapters of rank 16, 8 example prompts an adapter.
Prints medians in milliseconds as a Markdown table; "mixed" is the default, here all with profiles.
"float16" is the norm's product if its matrices were kept in half the space.
Needs no model; says nothing of what the pass itself costs. With 1,000 adapters it takes some
minutes and 3 GB of memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from logo_local.files.adapter_file import Module
from logo_local.files.base_model import BaseModel
from logo_local.files.stored_values import TensorPlace
from logo_local.hidden_states import Hidden, Place
from logo_local.routing.index import RoutingIndex
from logo_local.routing.profiles import Profile, embed
from logo_local.routing.scoring import Scorer, answer_places, read_places
from logo_local.routing.z_norms import KINDS, ZNorms

WIDTH, KV_WIDTH, RANK, TOKENS, BLOCKS, EXAMPLES = 2048, 512, 16, 256, 16, 8
SIGNALS = ("norm", "z-norm", "mixed")

rng = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    """Standard normal numbers, float32."""
    return rng.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Synthetic:
    """What the scorer asks of an `AdapterFile`, with random factors."""

    name: str
    modules: Mapping[str, Module]
    path: Path = Path("random")
    n_bytes: int = 0
    mtime_ns: int = 0

    def factors(self, target: str) -> tuple[np.ndarray, np.ndarray]:
        """A (RANK, WIDTH) and B (d_out, RANK)."""
        return random(RANK, WIDTH), random(WIDTH if "attn_q" in target else KV_WIDTH, RANK)

    def scaling(self, target: str) -> float:
        """Always 1."""
        return 1.0


def profile_near(centre: np.ndarray) -> Profile:
    """A profile of texts around the parts `centre` (n_parts, WIDTH) of `profile_vector`."""
    texts = [centre + 0.5 * random(*centre.shape) for _ in range(EXAMPLES)]
    return Profile(np.stack([embed(list(text)) for text in texts]))


def scorer_of(n: int) -> Scorer:
    """A scorer for `n` adapters with profiles, and with nothing left to be made."""
    targets = [f"blk.{block}.{kind}.weight" for block in range(BLOCKS) for kind in KINDS]
    shapes = {target: (WIDTH, WIDTH) for target in targets}
    base = BaseModel(Path("random"), "llama", "random", BLOCKS, WIDTH, 32, 8, 0, TOKENS, shapes)
    place_a = TensorPlace(0, 0, "F32", (RANK, WIDTH))
    module = Module(RANK, WIDTH, WIDTH, "F32", 0, place_a, place_a)
    adapters = {f"{i}": Synthetic(f"{i}", dict.fromkeys(targets, module)) for i in range(n)}
    place = Place(f"blk.{BLOCKS - 1}.attn_q.weight")
    places = read_places(base)
    n_parts = 3 * len(places) + len(answer_places(base))
    profiles = {name: profile_near(random(n_parts, WIDTH)) for name in adapters}
    z_norms = ZNorms(adapters, places)
    z_norms.measure({p: Hidden.of(random(4, WIDTH)) for p in places} for _ in range(32))
    index = RoutingIndex.build(adapters, place.target)
    general = np.stack([embed(list(random(n_parts, WIDTH))) for _ in range(64)])
    return Scorer(adapters, base, index, place, z_norms, profiles, general=general)


def reading_near(scorer: Scorer, parts: np.ndarray) -> dict[Place, Hidden]:
    """A prompt whose vector has these `parts` (n_parts, WIDTH)."""
    early = read_places(scorer.base)
    n = len(early)
    reading = {
        place: Hidden.of(parts[i] + 0.01 * random(TOKENS, WIDTH))._replace(
            first=parts[n + i], final=parts[2 * n + i]
        )
        for i, place in enumerate(early)
    }
    for place, last in zip(answer_places(scorer.base), parts[3 * n :], strict=True):
        reading[place] = Hidden.of(last + 0.01 * random(TOKENS, WIDTH))
    return reading


def median_ms(work: Callable[[], object], times: int) -> float:
    """The median of several runs, after one that is not counted."""
    work()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return float(np.median(taken))


@click.command()
@click.option("--adapters", "sizes", multiple=True, default=(27, 260, 1000), show_default=True)
@click.option("--times", default=7, show_default=True)
def main(sizes: tuple[int, ...], times: int) -> None:
    """Print the table."""
    columns = (*SIGNALS, "float16")
    click.echo(f"| adapters | {' | '.join(columns)} |")
    click.echo("|---" * (1 + len(columns)) + "|")
    for n in sizes:
        scorer = scorer_of(n)
        # Near to one of the profiles, so that none of the work is left out.
        near = scorer.prompts["0"].vectors.mean(axis=0).reshape(-1, WIDTH)  # (n_parts, WIDTH)
        reading = reading_near(scorer, near)
        reading[scorer.place] = Hidden.of(random(TOKENS, WIDTH))
        assert scorer.fit("mixed", reading).scores["0"] > 0
        taken = [median_ms(lambda s=s, k=scorer: k.fit(s, reading), times) for s in SIGNALS]  # noqa: B023
        half = scorer.index._stack.matrix.astype(np.float16)  # (sum of ranks, WIDTH)
        h = reading[scorer.place].last  # (WIDTH,)
        taken.append(median_ms(lambda m=half, h=h: m.astype(np.float32) @ h, times))
        click.echo(f"| {n:,} | {' | '.join(f'{ms:.1f} ms' for ms in taken)} |")


if __name__ == "__main__":
    main()
