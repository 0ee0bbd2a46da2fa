"""The signals of the paper: an adapter's output at one projection, for the last token."""

from __future__ import annotations

from ..registry import Need, signal
from ..scoring import Prompt, Scorer
from ..signals import Scores, entropy, projection_output

_SOURCE = "LoGo, arXiv 2511.07129"


@signal(
    "norm",
    Need.LAST_TOKEN,
    summary="the length of what the adapter adds to one projection",
    source=_SOURCE,
    everywhere=True,
)
def norm(scorer: Scorer, prompt: Prompt) -> Scores:
    """||scaling B A h|| with the last token's h, computed for all adapters in one product."""
    return scorer.index.norms(prompt.reading[scorer.place].last)


@signal(
    "entropy",
    Need.LAST_TOKEN,
    summary="the inverse entropy of what the adapter adds to one projection",
    source=_SOURCE,
    everywhere=True,
)
def inverse_entropy(scorer: Scorer, prompt: Prompt) -> Scores:
    """1 / H(softmax(scaling B A h)) with the last token's h."""
    h = prompt.reading[scorer.place].last  # (d_in,)
    return {
        name: entropy(projection_output(h, one.a, one.b, one.scaling))
        for name, one in scorer.index.entries.items()
    }


@signal(
    "each-entropy",
    Need.EACH,
    summary="the inverse entropy of the next token under the adapter",
    source="our own, after LoGo's entropy",
    everywhere=True,
)
def each_entropy(_scorer: Scorer, prompt: Prompt) -> Scores:
    """1 / H(softmax(logits)), from an evaluation of the prompt with each adapter."""
    return {name: entropy(logits) for name, logits in prompt.each.logits()}
