"""What scoring costs beside the pass: `python tests/benchmarks/scoring_cost.py`.

Arithmetic only, on random numbers in the shape of a 1.2B Llama: width 2048, four blocks read, 256
prompt tokens, adapters of rank 16, 8 example prompts an adapter. The z-norms are those of the
default route: of a few tokens, and of the nearest adapters of a large pool. Prints medians in
milliseconds as a Markdown table. Needs no model; says nothing of what the pass itself costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np

from logo_local.profiles import Measure, Profile, embed
from logo_local.scoring import Z_ADAPTERS
from logo_local.signals import log_rms_norms, norm, projection_output
from logo_local.z_norms import KINDS
from logo_local.z_norms import TOKENS as Z_TOKENS

WIDTH, RANK, TOKENS, BLOCKS, EXAMPLES = 2048, 16, 256, 4, 8


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
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    rows = [random(TOKENS, WIDTH) for _ in range(BLOCKS)]
    click.echo("| adapters | norm | profile | z-norms | default: profile and z-norms |")
    click.echo("|---|---|---|---|---|")
    for n in sizes:
        factors = [(random(RANK, WIDTH), random(WIDTH, RANK)) for _ in range(n)]
        paper = median_ms(
            lambda f=factors: [norm(projection_output(rows[0][-1], a, b, 1.0)) for a, b in f], times
        )
        del factors
        measure = Measure.fit({str(i): Profile(random(EXAMPLES, WIDTH * BLOCKS)) for i in range(n)})
        profile = median_ms(lambda m=measure: m.nearness(embed(rows)), times)
        del measure
        stacked = random(len(KINDS) * min(n, Z_ADAPTERS) * RANK, WIDTH)
        starts = list(range(0, len(stacked), RANK))
        few = rows[0][:Z_TOKENS]
        z = BLOCKS * median_ms(lambda s=stacked, at=starts, r=few: log_rms_norms(r, s, at), times)
        numbers = (paper, profile, z, profile + z)
        click.echo(f"| {n} | {' | '.join(f'{ms:.1f} ms' for ms in numbers)} |")


if __name__ == "__main__":
    main()
