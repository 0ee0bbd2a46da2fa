"""From scores to a route: the selected adapters and their weights.

Plain arithmetic without I/O. A `Route` is an immutable value.
Source: LoGo, arXiv 2511.07129: the top k adapters, weighted w_i = s_i / sum_j s_j.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Route:
    """The adapters selected for one prompt, with their scores and weights.

    `names`, `scores` and `weights` belong together, by descending weight; the weights sum to 1.
    `all_scores` holds every scored adapter, selected or not. A route without names means that the
    base model answers alone. `signal` and `probe` say how the scores were computed, `target` which
    weight's input was read (None if the adapters were evaluated one by one). `mixture` says how
    llama.cpp blends them; it is set later, by the engine. `reason` explains the choice in one
    sentence; may be empty.
    """

    names: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    all_scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    signal: str = "none"
    probe: str = "none"
    target: str | None = None
    mixture: str = "none"
    reason: str = ""

    @property
    def applied(self) -> dict[str, float]:
        """The weights used in generation, by adapter name."""
        return dict(zip(self.names, self.weights, strict=True))

    @property
    def is_base(self) -> bool:
        """Whether the base model answers alone."""
        return not self.names

    def as_dict(self) -> dict[str, Any]:
        """The route as JSON-ready values, as `run --json` and `score --json` print it."""
        return {
            "signal": self.signal,
            "probe": self.probe,
            "target": self.target,
            "mixture": self.mixture,
            "reason": self.reason,
            "adapters": [
                {"name": name, "score": score, "weight": weight}
                for name, score, weight in zip(self.names, self.scores, self.weights, strict=True)
            ],
            "scores": dict(self.all_scores),
        }


def fixed(weights: Mapping[str, float]) -> Route:
    """A route with given `weights`, which need not sum to 1.

    Nothing is scored: the weights are also used as scores, and `all_scores` is empty. No weights
    mean the base model alone.
    """
    ordered = sorted(weights.items(), key=lambda item: -item[1])
    values = tuple(weight for _, weight in ordered)
    return Route(
        names=tuple(name for name, _ in ordered),
        scores=values,
        weights=values,
    )


def select(
    scores: Mapping[str, float],
    top_k: int,
    *,
    signal: str = "none",
    probe: str = "none",
    target: str | None = None,
    reason: str = "",
) -> Route:
    """Select the `top_k` highest `scores`, with the weights w_i = s_i / sum_j s_j.

    Fewer than `top_k` adapters are all selected. Equal scores are ordered by name, so a route
    never depends on the order of a folder. If no score is above zero, the route has no names.
    Raises ValueError for top_k < 1, and for scores that are negative or not finite.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    bad = {name: s for name, s in scores.items() if not math.isfinite(s) or s < 0}
    if bad:
        raise ValueError(f"scores must be finite and not negative: {bad}")
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:top_k]
    chosen = [(name, score) for name, score in ranked if score > 0]
    # Divided by the largest first, so that the sum of large scores cannot overflow.
    shares = [score / chosen[0][1] for _, score in chosen]
    total = math.fsum(shares)
    return Route(
        names=tuple(name for name, _ in chosen),
        scores=tuple(score for _, score in chosen),
        weights=tuple(share / total for share in shares),
        all_scores=dict(scores),
        signal=signal,
        probe=probe,
        target=target,
        reason=reason,
    )


def kept(route: Route, last: Route | None, tolerance: float) -> Route:
    """`route`, but with the weights of `last` if these are nearly the same.

    That is, for the same adapters and no weight that differs by more than `tolerance` >= 0; 0
    always returns `route`. `last` has the weights in use, so small changes cannot accumulate.
    """
    if last is None or tolerance <= 0 or set(last.names) != set(route.names):
        return route
    then, now = last.applied, route.applied
    if max((abs(now[name] - then[name]) for name in now), default=0.0) > tolerance:
        return route
    scores = dict(zip(route.names, route.scores, strict=True))
    return replace(
        route,
        names=last.names,
        scores=tuple(scores[name] for name in last.names),
        weights=last.weights,
    )
