"""Signals that compare the prompt with texts of each adapter, and z-norms."""

from __future__ import annotations

from collections.abc import Mapping

from ..descriptions import LEAST_MARGIN
from ..registry import Fit, Need, signal
from ..scoring import Prompt, Scorer, profile_vector
from ..signals import Scores, sharpened

# Chosen on the choosing set (docs/quality.md).
Z_TEMPERATURE = 0.05
PROFILE_TEMPERATURE = 0.005
# A message of a conversation decides alone if its match exceeds the required one by this.
CLEARLY = 0.15


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
    """By example prompts."""
    return by_profiles(scorer, prompt, "prompts")


@signal(
    "self-profile",
    *(Need.PROMPT, Need.SAMPLES),
    summary="how near the prompt is to texts that the adapter writes",
    source="our own",
)
def self_profile(scorer: Scorer, prompt: Prompt) -> Fit:
    """By texts that the adapters generated."""
    return by_profiles(scorer, prompt, "samples")


@signal(
    "combined",
    *(Need.PROMPT, Need.SAMPLES, Need.BASELINES),
    summary="self-profile; z-norm where no profile is near",
    source="our own",
)
def combined(scorer: Scorer, prompt: Prompt) -> Fit:
    """By self-profiles, or by z-norms if none of them is near."""
    return profiles_then_norms(scorer, prompt, "samples")


@signal(
    "description",
    *(Need.PROMPT, Need.DESCRIPTIONS),
    summary="1 if its description is clearly the nearest to the prompt",
    source="our own",
)
def description(scorer: Scorer, prompt: Prompt) -> Fit:
    """By descriptions alone."""
    return by_descriptions(scorer, prompt)


@signal(
    "mixed",
    *(Need.PROMPT, Need.EXAMPLES, Need.SAMPLES, Need.DESCRIPTIONS),
    summary="profile; without examples, self-profile or description",
    source="our own",
    everywhere=True,
)
def mixed(scorer: Scorer, prompt: Prompt) -> Fit:
    """By examples; if none fits, by generated texts or descriptions of adapters without examples.

    An adapter with none of these is never chosen.
    """
    fit = by_profiles(scorer, prompt, "any")
    if not any(fit.scores.values()) and scorer.descriptions is not None:
        described = by_descriptions(scorer, prompt)
        continues = fit.continues | described.continues
        if any(described.scores.values()) or not fit.scores:
            fit = described._replace(scores={**fit.scores, **described.scores})
        fit = fit._replace(continues=continues)
    return fit._replace(scores={**dict.fromkeys(scorer.adapters, 0.0), **fit.scores})


def by_descriptions(scorer: Scorer, prompt: Prompt) -> Fit:
    """The adapter whose description is clearly the nearest, or none."""
    if scorer.descriptions is None:
        return Fit({}, "no adapter has a description")
    x = profile_vector(prompt.reading, scorer.base)  # (F,)
    name, margin = scorer.descriptions.nearest(x)
    fits = margin >= LEAST_MARGIN
    reason = (
        f"the description of {name} {'matches' if fits else 'is the nearest, but not clearly'} "
        f"(margin {margin:.2f}, and {LEAST_MARGIN:.2f} is needed)"
    )
    scores = {n: float(fits and n == name) for n in scorer.descriptions.names}
    return Fit(scores, reason, fits, scorer.descriptions.continued(x))


def by_profiles(scorer: Scorer, prompt: Prompt, source: str) -> Fit:
    """Shares of 1 by nearness among the adapters that the prompt fits.

    All 0 if the prompt does not fit the nearest: a further one that fits may only have more
    varied examples.
    """
    compared = scorer.compared(prompt.reading, source)
    if not compared:
        return Fit({}, "no adapter has example prompts")
    nearest = compared[0]
    continues = frozenset(one.name for one in compared if one.continues)
    numbers = f"match {nearest.match:.2f}, and {nearest.least:.2f} is needed"
    if not nearest.fits:
        return Fit(
            {one.name: 0.0 for one in compared},
            f"no adapter matches: the nearest is {nearest.name} ({numbers})",
            False,
            continues,
        )
    near = {one.name: one.nearness for one in compared}
    fits = {one.name: one.fits for one in compared}
    scores = _only(fits, sharpened(near, PROFILE_TEMPERATURE))
    sure = nearest.match >= nearest.least + CLEARLY
    return Fit(scores, f"{nearest.name} matches ({numbers})", sure, continues)


def profiles_then_norms(scorer: Scorer, prompt: Prompt, source: str) -> Fit:
    """By profiles; if none fits, by the z-norms of adapters without a profile."""
    fit = by_profiles(scorer, prompt, source)
    # Computed for every prompt, so that all are added to the past prompts.
    z = scorer.z_norms.scores(prompt.reading, scorer.without_profile(source))
    if any(fit.scores.values()):
        return fit._replace(scores={**fit.scores, **dict.fromkeys(z, 0.0)})
    return Fit({**fit.scores, **z_shares(z)}, "by z-norms: no profile fits")


def z_shares(z: Scores) -> Scores:
    """Shares of 1 by z-norms; 0 for an adapter below its baseline."""
    return _only({name: value > 0 for name, value in z.items()}, sharpened(z, Z_TEMPERATURE))


def _only(fits: Mapping[str, bool], scores: Scores) -> Scores:
    """`scores` with zero for each adapter that does not fit."""
    return {name: score if fits[name] else 0.0 for name, score in scores.items()}
