"""The methods that an evaluation compares; each is a set of weights by adapter.

Plain arithmetic on scores and names; does not use an engine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..routing.route import select
from .data import Example

Weights = Mapping[str, float]

BASE, OWN, BEST_SINGLE, UNIFORM, DEFAULT = "base", "own", "best single", "uniform", "default"
RANDOM = "random"
_SINGLE, _AT_K = "single: ", ", k = "
_FUSED = ", fused"


@dataclass(frozen=True)
class Method:
    """A method for one prompt: the mixture's `weights` by adapter; empty for the base.

    `first` is the adapter with the highest score, if adapters were scored. With `fused`, the
    adapters' parameters are averaged instead of their outputs.
    """

    name: str
    weights: Weights = field(default_factory=dict)
    first: str | None = None
    fused: bool = False


def usable_ks(top_k: Sequence[int], n_adapters: int) -> tuple[int, ...]:
    """`top_k` in ascending order without duplicates; limited to the size of the pool."""
    return tuple(sorted({min(k, n_adapters) for k in top_k}))


def planned(
    example: Example,
    names: Sequence[str],
    scores: Mapping[str, Mapping[str, float]],
    default: Weights,
    ks: Sequence[int],
    *,
    seed: int,
    fusion: bool = False,
) -> list[Method]:
    """Every method for one prompt, in the order of the table.

    `names` are the candidates, `scores` their scores by signal, `default` the weights of the
    engine's own route. The prompt's own adapter is a method if it is a candidate. Random adapters
    are drawn for each prompt by `seed`, with equal weights; a larger k includes the adapters of a
    smaller one. At k = all they equal `uniform` and are skipped. If fewer than k adapters are
    left, a method uses all of these.
    """
    methods = [Method(BASE)]
    if example.adapter in names:
        methods.append(Method(OWN, {str(example.adapter): 1.0}))
    methods.append(Method(UNIFORM, _equal(names)))
    # Seeded by the prompt, so that a resumed evaluation draws the same adapters.
    drawn = sorted(names)
    random.Random(f"{seed} {example.task} {example.line}").shuffle(drawn)
    methods += [Method(at_k(RANDOM, k), _equal(drawn[:k])) for k in ks if k < len(names)]
    for signal, by_name in scores.items():
        for k in ks:
            route = select(by_name, k)
            first = None if route.is_base else route.names[0]
            name, weights = at_k(signal, k), route.applied
            methods.append(Method(name, weights, first))
            if fusion and len(weights) > 1:
                methods.append(Method(name + _FUSED, weights, first, fused=True))
            elif fusion and k > 1:  # for a single adapter, both are equal
                methods.append(Method(name + _FUSED, weights, first))
    methods.append(Method(DEFAULT, default, max(default, key=default.__getitem__, default=None)))
    return methods


def singles(names: Sequence[str]) -> list[Method]:
    """One method for each adapter alone; `best single` is selected from them later."""
    return [Method(_SINGLE + name, {name: 1.0}) for name in names]


def single_of(method: str) -> str | None:
    """The adapter of a method of `singles`; None for other methods."""
    return method[len(_SINGLE) :] if method.startswith(_SINGLE) else None


def place(method: str) -> tuple[int, str, int, bool]:
    """The sort key for the rows of a table: reference methods, random, signals, the default."""
    name, is_fused = method.removesuffix(_FUSED), method.endswith(_FUSED)
    what, _, k = name.partition(_AT_K)
    order = (BASE, OWN, BEST_SINGLE, UNIFORM, RANDOM)
    rank = order.index(what) if what in order else len(order) + (what == DEFAULT)
    return rank, what, int(k or 0), is_fused


def at_k(what: str, k: int) -> str:
    """The name of a method with k adapters: "norm, k = 3"."""
    return f"{what}{_AT_K}{k}"


def fused(method: str) -> str:
    """The name of the same method with averaged parameters."""
    return method + _FUSED


def _equal(names: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(names, 1 / len(names)) if names else {}
