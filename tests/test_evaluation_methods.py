"""The ways of answering: who takes part, with which weight."""

from collections import Counter

import pytest

from logo_local.evaluation.data import Example
from logo_local.evaluation.methods import (
    planned,
    single_of,
    singles,
    usable_ks,
)

NAMES = ("a", "b", "c", "d")
SCORES = {"norm": {"a": 6.0, "b": 2.0, "c": 0.0, "d": 0.0}, "flat": dict.fromkeys(NAMES, 0.0)}


def example(adapter="a", line=1):
    return Example("task", line, "prompt", ("answer",), adapter)


def plan(of=None, names=NAMES, scores=SCORES, default=None, ks=(1, 3, 4), **more):
    methods = planned(of or example(), names, scores, default or {}, ks, seed=1, **more)
    assert len({method.name for method in methods}) == len(methods)
    return {method.name: method for method in methods}


@pytest.mark.parametrize(
    ("top_k", "n", "ks"),
    [((1, 3, 5, 10, 20), 15, (1, 3, 5, 10, 15)), ((20, 30), 15, (15,)), ((3, 1), 5, (1, 3))],
)
def test_a_k_beyond_the_pool_is_the_pool(top_k, n, ks):
    assert usable_ks(top_k, n) == ks


def test_the_weights_of_every_method():
    methods = plan(default={"b": 0.6, "a": 0.2})
    assert list(methods) == [
        *("base", "own", "uniform", "random, k = 1", "random, k = 3"),
        *("norm, k = 1", "norm, k = 3", "norm, k = 4"),
        *("flat, k = 1", "flat, k = 3", "flat, k = 4", "default"),
    ]
    assert methods["base"].weights == {}
    assert methods["own"].weights == {"a": 1.0}
    assert methods["uniform"].weights == dict.fromkeys(NAMES, 0.25)
    assert methods["norm, k = 1"].weights == {"a": 1.0}
    assert methods["norm, k = 3"].weights == {"a": 0.75, "b": 0.25}
    assert methods["norm, k = 3"].first == "a"
    assert (methods["flat, k = 3"].weights, methods["flat, k = 3"].first) == ({}, None)
    assert (methods["default"].weights, methods["default"].first) == ({"b": 0.6, "a": 0.2}, "b")
    assert (plan()["default"].weights, plan()["default"].first) == ({}, None)


@pytest.mark.parametrize("of", [example(adapter=None), example(adapter="gone")])
def test_without_an_own_adapter_there_is_no_own(of):
    assert "own" not in plan(of)


def test_random_adapters_are_the_same_again_and_others_for_another_prompt():
    assert plan() == plan(names=NAMES[::-1])
    one, three = (plan()[f"random, k = {k}"].weights for k in (1, 3))
    assert set(one) < set(three)
    assert set(three.values()) == {1 / 3}
    drawn = Counter(
        name for line in range(400) for name in plan(example(line=line))["random, k = 1"].weights
    )
    assert set(drawn) == set(NAMES)
    assert min(drawn.values()) > 50


def test_with_fusion_mixtures_come_twice():
    methods = plan(fusion=True)
    assert "norm, k = 1, fused" not in methods
    assert methods["norm, k = 3, fused"].fused
    assert methods["norm, k = 3, fused"].weights == methods["norm, k = 3"].weights
    # nothing to average: the same answer, and no second engine is asked
    assert not methods["flat, k = 3, fused"].fused


def test_singles_know_their_adapter():
    assert [(single_of(m.name), m.weights) for m in singles(["a", "b"])] == [
        ("a", {"a": 1.0}),
        ("b", {"b": 1.0}),
    ]
    assert single_of("norm, k = 1") is None
