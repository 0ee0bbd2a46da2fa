"""Top k and weights: by hand, and the laws that every route keeps."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logo_local.routing.route import Route, fixed, kept, select

scores = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.just(0.0) | st.floats(1e-6, 1e6),
    min_size=1,
    max_size=30,
)


def test_weights_are_shares_of_the_selected_scores():
    route = select({"a": 1.0, "b": 3.0, "c": 6.0, "d": 0.5}, 2)
    assert route.names == ("c", "b")
    assert route.scores == (6.0, 3.0)
    assert route.weights == pytest.approx((2 / 3, 1 / 3))
    assert route.all_scores == {"a": 1.0, "b": 3.0, "c": 6.0, "d": 0.5}


def test_equal_scores_are_ordered_by_name_whatever_the_folder_order():
    assert select({"b": 1.0, "a": 1.0, "c": 1.0}, 2).names == ("a", "b")
    assert select({"c": 1.0, "a": 1.0, "b": 1.0}, 2).names == ("a", "b")


def test_fewer_adapters_than_k_are_all_taken():
    assert select({"a": 1.0, "b": 1.0}, 20).weights == (0.5, 0.5)


@pytest.mark.parametrize("scores", [{}, {"a": 0.0, "b": 0.0}])
def test_without_a_score_above_zero_the_base_answers(scores):
    route = select(scores, 3)
    assert route.is_base
    assert route.mixture == "none"
    assert route.all_scores == scores


def test_a_silent_adapter_is_not_selected():
    assert select({"a": 2.0, "b": 0.0}, 2).names == ("a",)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_impossible_scores_are_refused(bad):
    with pytest.raises(ValueError, match="b"):
        select({"a": 1.0, "b": bad}, 1)


def test_top_k_must_be_positive():
    with pytest.raises(ValueError, match="top_k"):
        select({"a": 1.0}, 0)


def test_huge_scores_do_not_overflow():
    assert select({"a": 1.5e308, "b": 1.5e308}, 2).weights == (0.5, 0.5)


@given(scores, st.integers(1, 40))
def test_laws_of_a_route(all_scores, k):
    route = select(all_scores, k)
    positive = [s for s in all_scores.values() if s > 0]
    assert len(route.names) == min(k, len(positive))
    assert list(route.weights) == sorted(route.weights, reverse=True)
    assert list(route.scores) == sorted(positive, reverse=True)[:k]
    if route.names:
        assert math.fsum(route.weights) == pytest.approx(1.0)
        assert all(
            w * max(route.scores) == pytest.approx(s * max(route.weights), rel=1e-9)
            for s, w in zip(route.scores, route.weights, strict=True)
        )


def test_as_dict_is_json_in_the_documented_form():
    route = select(
        {"a": 1.0, "b": 3.0},
        1,
        signal="norm",
        probe="one-pass",
        target="blk.0.attn_q.weight",
    )
    route = replace(route, mixture="scales")
    assert json.loads(json.dumps(route.as_dict())) == {
        "signal": "norm",
        "probe": "one-pass",
        "target": "blk.0.attn_q.weight",
        "mixture": "scales",
        "reason": "",
        "adapters": [{"name": "b", "score": 3.0, "weight": 1.0}],
        "scores": {"a": 1.0, "b": 3.0},
    }


def test_given_weights_are_kept_as_they_are():
    route = fixed({"a": 0.5, "b": 2.0})
    assert (route.names, route.weights) == (("b", "a"), (2.0, 0.5))
    assert route.all_scores == {}
    assert fixed({}) == Route()


def test_a_route_is_a_value():
    assert Route(names=("a",), scores=(1.0,), weights=(1.0,)) == Route(("a",), (1.0,), (1.0,))
    assert Route().is_base


BEFORE = Route(names=("a", "b"), scores=(3.0, 2.0), weights=(0.6, 0.4))


@pytest.mark.parametrize(
    ("scores", "tolerance", "weights"),
    [
        ({"a": 0.58, "b": 0.42}, 0.1, {"a": 0.6, "b": 0.4}),
        ({"a": 0.45, "b": 0.55}, 0.2, {"a": 0.6, "b": 0.4}),  # the other one is first now
        ({"a": 0.45, "b": 0.55}, 0.1, {"b": 0.55, "a": 0.45}),
        ({"a": 0.58, "b": 0.42}, 0.0, {"a": 0.58, "b": 0.42}),
        ({"a": 0.6}, 1.0, {"a": 1.0}),
        ({"a": 0.6, "c": 0.4}, 1.0, {"a": 0.6, "c": 0.4}),
        ({}, 1.0, {}),
    ],
)
def test_a_route_is_kept_within_the_tolerance(scores, tolerance, weights):
    found = kept(select(scores, 2), BEFORE, tolerance)
    assert found.applied == pytest.approx(weights)
    assert list(found.applied) == list(weights)
    assert found.all_scores == scores
    assert dict(zip(found.names, found.scores, strict=True)) == scores
