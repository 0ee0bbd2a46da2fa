"""Means, intervals, groups and the table, on answers made up for it."""

import json

import numpy as np
import pytest

from logo_local.evaluation.data import Example
from logo_local.evaluation.metrics import METRICS
from logo_local.evaluation.store import Answered, Store
from logo_local.evaluation.summary import as_json, bootstrap, bootstrap_ratio, markdown, summarise


def stored(*rows):
    """A store of (example, method, exact match, first, out), BLEU being half of that."""
    store = Store()
    for row in rows:
        one, method, em, first, out = (
            (*row, None, False)[:5] if len(row) == 3 else (*row, False)[:5]
        )
        values = {**dict.fromkeys(METRICS, 0.0), "em": em, "bleu": em / 2}
        store.add(Answered(*one.key, out, method, {}, first, "", values))
    return store


def example(task, line, adapter="a", group=None):
    return Example(task, line, "prompt", ("answer",), adapter, group)


ONE, TWO, THREE = example("x", 1), example("x", 2), example("y", 1, "b")


def test_the_mean_is_over_tasks_and_not_over_prompts():
    rows = [(ONE, "m", 1.0), (TWO, "m", 0.0), (THREE, "m", 1.0)]
    result = summarise(stored(*rows), [ONE, TWO, THREE]).groups["in pool"].methods["m"]
    assert result.mean == 0.75
    assert result.tasks == {"x": 0.5, "y": 1.0}
    assert (result.metrics["em"], result.metrics["bleu"]) == (0.75, 0.375)
    by_bleu = summarise(stored(*rows), [ONE, TWO, THREE], metric="bleu")
    assert by_bleu.groups["in pool"].methods["m"].mean == 0.375


def test_intervals_on_known_data():
    assert bootstrap({"x": [1.0] * 5, "y": [0.5]}, seed=1) == (0.75, 0.75)
    # a coin thrown 400 times: 1.96 standard errors of 0.025
    low, high = bootstrap({"x": [0.0, 1.0] * 200}, seed=1)
    assert low == pytest.approx(0.5 - 0.049, abs=0.005)
    assert high == pytest.approx(0.5 + 0.049, abs=0.005)
    # two such tasks: the error shrinks by the root of 2
    low, high = bootstrap({"x": [0.0, 1.0] * 200, "y": [0.0, 1.0] * 200}, seed=1)
    assert high - low == pytest.approx(0.098 / np.sqrt(2), abs=0.007)
    # of a ratio, both means are of the same prompts: a method at half of the other's is always so
    assert bootstrap_ratio({"x": [0.5, 1.0]}, {"x": [1.0, 2.0]}, seed=1) == (0.5, 0.5)
    # and one that may be zero leaves the ratio without an upper end
    assert bootstrap_ratio({"x": [1.0, 1.0]}, {"x": [1.0, 0.0]}, seed=1) == (1.0, None)
    assert bootstrap({"x": [0.0, 1.0]}, seed=3) == bootstrap({"x": [0.0, 1.0]}, seed=3)


def test_one_prompt_a_task_has_no_interval():
    found = summarise(stored((ONE, "m", 1.0), (THREE, "m", 0.0)), [ONE, THREE])
    assert found.groups["in pool"].methods["m"].interval is None
    assert "| m | 0.50 |  |  |" in markdown(found)


def test_the_score_is_each_tasks_own_metric():
    four = Example("z", 1, "prompt", ("answer",), "a", metric="bleu")
    rows = [(ONE, "m", 1.0), (four, "m", 1.0)]
    found = summarise(stored(*rows), [ONE, four])
    assert found.groups["in pool"].methods["m"].tasks == {"x": 1.0, "z": 0.5}
    assert "| method | score |" in markdown(found)
    assert summarise(stored(*rows), [four]).label == "BLEU-4"
    by_em = summarise(stored(*rows), [ONE, four], metric="em")
    assert by_em.groups["in pool"].methods["m"].mean == 1.0
    assert by_em.label == "exact match"


def test_the_own_adapter():
    rows = [
        *((ONE, "own", 1.0), (TWO, "own", 0.6), (THREE, "own", 0.8)),
        *((ONE, "norm", 0.2, "a"), (TWO, "norm", 0.2, "b"), (THREE, "norm", 0.2, None)),
        *((ONE, "norm", 0.4, "b", True), (TWO, "norm", 0.4, "b", True)),
    ]
    groups = summarise(stored(*rows), [ONE, TWO, THREE]).groups
    norm = groups["in pool"].methods["norm"]
    assert norm.own_first == pytest.approx(1 / 3)
    assert norm.of_own.value == pytest.approx(0.2 / 0.8)
    assert groups["in pool"].methods["own"].own_first is None
    out = groups["own adapter out"].methods["norm"]
    assert (out.mean, out.own_first) == (0.4, None)
    assert out.of_own.value == pytest.approx(0.4 / 0.8)


def test_groups_in_their_order():
    examples = [
        example("x", 1, group="sequence"),
        example("x", 2, group="answers"),
        example("z", 1, adapter=None, group="answers"),
    ]
    rows = [(one, "m", 1.0) for one in examples] + [(examples[0], "m", 0.0, None, True)]
    groups = summarise(stored(*rows), examples).groups
    assert {name: group.n_prompts for name, group in groups.items()} == {
        "in pool": 2,
        "in pool, answers": 1,
        "in pool, sequence": 1,
        "own adapter out": 1,
        "out of pool": 1,
        "out of pool, answers": 1,
    }
    assert list(groups)[-3:] == ["own adapter out", "out of pool", "out of pool, answers"]
    assert groups["out of pool"].methods["m"].of_own is None


def test_outside_the_pool_the_base_is_the_measure():
    outside = [example("z", line, adapter=None) for line in (1, 2)]
    values = {"base": (1.0, 0.5), "m": (0.5, 0.5)}
    rows = [(outside[i], name, v[i]) for name, v in values.items() for i in (0, 1)]
    found = summarise(stored(*rows), outside)
    ratio = found.groups["out of pool"].methods["m"].of_base
    assert ratio.value == pytest.approx(1.0 / 1.5)
    assert ratio.interval == pytest.approx((0.5, 1.0))
    assert "| m | 0.50 (0.50 to 0.50) | 0.67 (0.50 to 1.00) |" in markdown(found)
    never = [(one, "base", float(one.line == 1)) for one in outside]
    found = summarise(stored(*rows[2:], *never), outside)
    assert "| m | 0.50 (0.50 to 0.50) | 1.00 (0.50 or more) |" in markdown(found)
    # of prompts that the base has not answered, nothing can be said
    one = summarise(stored(*rows[1:]), outside).groups["out of pool"].methods["m"]
    assert one.of_base is None


def test_the_best_single_adapter():
    rows = [
        *((ONE, "default", 0.0), (ONE, "single: a", 1.0), (ONE, "single: b", 0.0)),
        *((THREE, "default", 0.0), (THREE, "single: a", 0.2), (THREE, "single: b", 0.9)),
        *((ONE, "base", 0.0), (THREE, "base", 0.0)),
        *((ONE, "base", 0.0, None, True), (THREE, "base", 0.0, None, True)),
    ]
    found = summarise(stored(*rows), [ONE, THREE])
    assert found.best_single == "a"
    assert list(found.groups["in pool"].methods) == ["base", "best single", "default"]
    assert found.groups["in pool"].methods["best single"].tasks == {"x": 1.0, "y": 0.2}
    # x is a's own task: the best of the others answers it
    assert found.groups["own adapter out"].methods["best single"].tasks == {"x": 0.0, "y": 0.2}
    assert markdown(found).endswith("The best single adapter over all prompts is a.")


def test_the_table_and_the_json():
    rows = [
        (one, m, v, f) for one in (ONE, TWO) for m, v, f in (("own", 1.0, None), ("n", 0.5, "a"))
    ]
    found = summarise(stored(*rows), [ONE, TWO])
    assert markdown(found) == (
        "### in pool: 2 prompts of 1 task\n"
        "\n"
        "| method | exact match | own adapter first | of the own adapter's "
        "| answered by the base |\n"
        "|---|---|---|---|---|\n"
        "| own | 1.00 (1.00 to 1.00) |  | 1.00 (1.00 to 1.00) | 0.00 |\n"
        "| n | 0.50 (0.50 to 0.50) | 1.00 | 0.50 (0.50 to 0.50) | 0.00 |"
    )
    value = json.loads(json.dumps(as_json(found)))
    assert (value["metric"], value["label"]) == ("score", "exact match")
    assert value["groups"]["in pool"]["methods"]["n"] == {
        "mean": 0.5,
        "interval": [0.5, 0.5],
        "tasks": {"x": 0.5},
        "metrics": {
            **{"em": 0.5, "bleu": 0.25, "rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0},
            "refused": 0.0,
        },
        "own_first": 1.0,
        "of_own": {"value": 0.5, "interval": [0.5, 0.5]},
        "of_base": None,
    }
