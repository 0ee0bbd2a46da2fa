"""Signals from the likelihood of the prompt under each adapter."""

from __future__ import annotations

from ..registry import DEFAULT, Need, find, signal
from ..scoring import Prompt, Scorer
from ..signals import Scores, sharpened

SHORTLIST = 5  # adapters that the second stage evaluates one by one
# Log-likelihood differences in nats give a posterior directly; halved, because the tokens of a
# prompt are not independent.
TEMPERATURE = 2.0


@signal(
    "each-likelihood",
    Need.EACH,
    summary="its share of the prompt's likelihood under all, if it beats the base",
    source="Bayes' rule",
)
def likelihood(_scorer: Scorer, prompt: Prompt) -> Scores:
    """By the likelihood of the prompt under all candidates."""
    return _shares(prompt.each.gains(prompt.each.names))


@signal(
    "shortlist",
    *(Need.PROMPT, Need.EXAMPLES, Need.SAMPLES, Need.BASELINES, Need.EACH),
    summary="each-likelihood among the best five by the default signal",
    source="our own",
)
def shortlist(scorer: Scorer, prompt: Prompt) -> Scores:
    """The first few by the default signal, evaluated one by one."""
    first = scorer.candidates(find(DEFAULT).name, prompt)
    fitting = sorted((n for n, s in first.items() if s > 0), key=lambda n: (-first[n], n))
    chosen = _shares(prompt.each.gains(fitting[:SHORTLIST]))
    return {name: chosen.get(name, 0.0) for name in first}


def _shares(gains: Scores) -> Scores:
    """Shares of 1 by Bayes' rule with equal priors, tempered; 0 if the base is likelier."""
    shares = sharpened(gains, TEMPERATURE)
    return {name: share if gains[name] > 0 else 0.0 for name, share in shares.items()}
