"""Signals that compare the prompt with texts of each adapter, and z-norms beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..registry import Fit, Need, signal
from ..scoring import Prompt, Scorer
from ..signals import Scores, sharpened

# Chosen on the choosing set (docs/quality.md), as are the bounds below.
Z_TEMPERATURE = 0.05
PROFILE_TEMPERATURE = 0.02
# In units of the typical distance of a profile's own texts: up to the first an adapter is applied
# in full, from the next on by half, beyond the last not at all.
SURE, UNSURE, FARTHEST = 1.5, 1.6, 2.1


@signal(
    "z-norm",
    *(Need.PROMPT, Need.BASELINES),
    summary="how far its norms are above those of other texts",
    source="our own, after SEQR, arXiv 2509.18093",
)
def z_norm(scorer: Scorer, prompt: Prompt) -> Scores:
    """Shares of 1 by the z-norms of all adapters."""
    return z_shares(scorer.z_norms.scores(prompt.reading))


@signal(
    "profile",
    *(Need.PROMPT, Need.EXAMPLES),
    summary="how near the prompt is to its example prompts",
    source="our own",
    everywhere=True,
)
def profile(scorer: Scorer, prompt: Prompt) -> Fit:
    """By the example prompts that somebody gave."""
    return by_profiles(scorer, prompt, "prompts")


@signal(
    "self-profile",
    *(Need.PROMPT, Need.SAMPLES),
    summary="how near the prompt is to texts that the adapter writes",
    source="our own",
)
def self_profile(scorer: Scorer, prompt: Prompt) -> Fit:
    """By texts that the adapters wrote themselves."""
    return by_profiles(scorer, prompt, "samples")


@signal(
    "combined",
    *(Need.PROMPT, Need.SAMPLES, Need.BASELINES),
    summary="self-profile; z-norm where no profile is near",
    source="our own",
)
def combined(scorer: Scorer, prompt: Prompt) -> Fit:
    """By self-profiles, and by z-norms where none of them is near."""
    return profiles_then_norms(scorer, prompt, "samples")


@signal(
    "mixed",
    *(Need.PROMPT, Need.EXAMPLES, Need.SAMPLES, Need.BASELINES),
    summary="profile, self-profile without examples, z-norm where none is near",
    source="our own",
    everywhere=True,
)
def mixed(scorer: Scorer, prompt: Prompt) -> Fit:
    """By examples or, without them, by self-profiles; by z-norms where none is near."""
    return profiles_then_norms(scorer, prompt, "any")


def by_profiles(scorer: Scorer, prompt: Prompt, source: str) -> Fit:
    """Shares of 1 by nearness among the adapters whose profile is near enough."""
    near = scorer.nearness(prompt.reading, source)
    enough = {name: value >= -FARTHEST for name, value in near.items()}
    return Fit(_only(enough, sharpened(near, PROFILE_TEMPERATURE)), _strength(near))


def profiles_then_norms(scorer: Scorer, prompt: Prompt, source: str) -> Fit:
    """By profiles; where none is near, the adapters without any by their z-norms.

    z-norms have no say beside a profile that is near: on one set of adapters they helped, on
    another they harmed more (docs/quality.md).
    """
    fit = by_profiles(scorer, prompt, source)
    # Computed for each prompt, so that all count among the past ones.
    z = scorer.z_norms.scores(prompt.reading, scorer.without_profile(source))
    if any(fit.scores.values()):
        return fit._replace(scores={**fit.scores, **dict.fromkeys(z, 0.0)})
    return fit._replace(scores={**fit.scores, **z_shares(z)})


def z_shares(z: Scores) -> Scores:
    """Shares of 1 by z-norms; an adapter below its baseline has none."""
    return _only({name: value > 0 for name, value in z.items()}, sharpened(z, Z_TEMPERATURE))


def _strength(near: Scores) -> float:
    """From 1 down to 0.5 as the nearest profile is further away; 1 where none is near enough, for
    whatever is chosen then is not chosen by nearness.
    """
    nearest = -max(near.values(), default=-FARTHEST)
    if nearest >= FARTHEST:
        return 1.0
    return float(np.clip(1 - 0.5 * (nearest - SURE) / (UNSURE - SURE), 0.5, 1.0))


def _only(fits: Mapping[str, bool], scores: Scores) -> Scores:
    """`scores` with zero for each adapter that does not fit."""
    return {name: score if fits[name] else 0.0 for name, score in scores.items()}
