"""Asks the base model which adapter fits the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..registry import Fit, Need, signal
from ..scoring import Prompt, Scorer
from ..signals import Scores

NONE = "None of these."
MOST = 20  # adapters in one list; the likeliest of several lists are compared in a second round


@signal(
    "ask-base",
    Need.MENU,
    summary="how likely the base names it, from a list of descriptions",
    source="after Adaptive Minds, arXiv 2510.15416",
)
def ask_base(scorer: Scorer, prompt: Prompt) -> Fit:
    """Shares of 1 among the adapters in the list; all 0 if "none of these" is likelier."""
    names: Sequence[str] = prompt.each.names
    while len(names) > MOST:
        lists = [names[i : i + MOST] for i in range(0, len(names), MOST)]
        names = [
            max(found, key=found.__getitem__) for found in (_ask(scorer, prompt, n) for n in lists)
        ]
    shares = _ask(scorer, prompt, names)
    none = 1.0 - sum(shares.values())
    best = max(shares, key=shares.__getitem__)
    fits = shares[best] > none
    scores = {name: shares.get(name, 0.0) if fits else 0.0 for name in prompt.each.names}
    return Fit(scores, f"the base names {best}" if fits else "the base names no adapter")


def _ask(scorer: Scorer, prompt: Prompt, names: Sequence[str]) -> Scores:
    """The probability of each of `names`; the rest to 1 is the probability of none of them."""
    lines = [*(f"{name}: {scorer.about[name]}".removesuffix(": ") for name in names), NONE]
    logits = prompt.each.menu(lines).astype(np.float64)  # (n + 1,)
    likely = np.exp(logits - logits.max())
    return dict(zip(names, (likely / likely.sum()).tolist(), strict=False))
