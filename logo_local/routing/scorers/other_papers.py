"""Signals of other papers, read at the same place as LoGo's, for comparison."""

from __future__ import annotations

from ..registry import Need, signal
from ..scoring import Prompt, Scorer
from ..signals import Scores, projection_output, relative_norm
from ..signals import arrow as arrow_score
from ..signals import spectr as spectr_score


@signal(
    "relative",
    Need.LAST_TOKEN,
    summary="the norm over the largest that a vector of h's length could give",
    source="our own",
)
def relative(scorer: Scorer, prompt: Prompt) -> Scores:
    """The norm, independent of the adapter's scale."""
    h = prompt.reading[scorer.place].last  # (d_in,)
    return {
        name: relative_norm(
            projection_output(h, one.a, one.b, one.scaling), h, scorer.index.product_norms[name]
        )
        for name, one in scorer.index.entries.items()
    }


@signal(
    "arrow",
    Need.LAST_TOKEN,
    summary="h along the adapter's first singular direction",
    source="Arrow, arXiv 2405.11157",
)
def arrow(scorer: Scorer, prompt: Prompt) -> Scores:
    """|v . h| with the first right singular vector v of B A."""
    h = prompt.reading[scorer.place].last  # (d_in,)
    return {name: arrow_score(h, v) for name, v in scorer.index.directions.items()}


@signal(
    "spectr",
    Need.LAST_TOKEN,
    summary="the norm without scaling",
    source="SpectR, arXiv 2504.03454",
)
def spectr(scorer: Scorer, prompt: Prompt) -> Scores:
    """||B A h||."""
    h = prompt.reading[scorer.place].last  # (d_in,)
    return {name: spectr_score(h, one.a, one.b) for name, one in scorer.index.entries.items()}
