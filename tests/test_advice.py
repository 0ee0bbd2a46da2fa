"""What is said about examples: one wording only, and adapters that cannot be told apart."""

import numpy as np
import pytest

from logo_local.routing.advice import one_wording, twins
from logo_local.routing.profiles import Profile


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        (["Sort the words: a", "Sort the words: b", "Sort the words: c"],
         'begin with "Sort the words:"'),
        (["a b in French, please", "c in French, please", "d in French, please"],
         'end with "in French, please"'),
        (["Sort a", "Sort b", "Sort c"], ""),  # one word is no wording
        (["Sort the a", "Sort the b"], ""),  # two examples say little about the third
        (["Sort the a", "Sort the b", "Order the c"], ""),
        (["one two", "one two", "one two"], 'begin with "one two"'),
        ([], ""),
    ],
)  # fmt: skip
def test_examples_in_one_wording(examples, expected):
    assert one_wording(examples) == expected


def profiles(n_adapters, n_texts=8, width=60, spread=4.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = spread * rng.standard_normal((n_adapters, 1, width))
    texts = rng.standard_normal((n_adapters, n_texts, width))
    return {f"ad{i}": Profile(rows.astype(np.float32)) for i, rows in enumerate(centres + texts)}


def test_adapters_with_examples_of_the_same_kind_are_twins():
    found = profiles(8)
    rng = np.random.default_rng(9)
    centre = found["ad3"].vectors.mean(axis=0)
    found["other"] = Profile((centre + rng.standard_normal((8, 60))).astype(np.float32))
    assert twins(found) == [("ad3", "other")]


@pytest.mark.parametrize("n_adapters", [0, 1, 2, 3, 8])
def test_adapters_far_apart_are_no_twins(n_adapters):
    assert twins(profiles(n_adapters)) == []


@pytest.mark.parametrize(("vector", "expected"), [([1, 2], [("a", "b")]), ([1, 3], [])])
def test_single_examples_are_twins_only_where_they_are_the_same(vector, expected):
    one, other = (Profile(np.array([v], np.float32)) for v in ([1, 2], vector))
    assert twins({"a": one, "b": other}) == expected
