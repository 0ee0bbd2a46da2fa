"""What the figures show, as numbers; and that they are drawn."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from logo_local.console import figures
from logo_local.errors import SettingsError
from logo_local.evaluation import plots
from logo_local.evaluation.data import Example
from logo_local.evaluation.runner import Comparison, evaluate
from logo_local.evaluation.store import Scored, Store
from logo_local.evaluation.summary import summarise
from logo_local.fake import FakeLoGo

EXAMPLES = [
    Example("adding", 1, "p", ("x",), "adder", family="sums"),
    Example("adding", 2, "p", ("x",), "adder", family="sums"),
    Example("sorting", 1, "p", ("x",), "sorter", family="lists"),
    Example("unknown", 1, "p", ("x",)),
]


def scored(task, line, **scores):
    return Scored(task, line, False, {"norm": scores}, {})


@pytest.fixture
def store():
    store = Store()
    store.add(scored("adding", 1, adder=3.0, sorter=1.0, other=0.0))
    store.add(scored("adding", 2, adder=1.0, sorter=1.0, other=0.0))
    store.add(scored("sorting", 1, adder=0.0, sorter=6.0, other=2.0))
    store.add(scored("unknown", 1, adder=9.0, sorter=9.0, other=9.0))
    return store


def test_the_table_of_scores(store):
    table = plots.score_table(store, EXAMPLES, "norm", 1)
    assert table.tasks == ("sorting", "adding")  # by family
    assert table.adapters == ("sorter", "adder", "other")
    assert (table.families, table.own) == (("lists", "sums"), (0, 1))
    np.testing.assert_allclose(table.scores, [[6, 1], [0, 2], [2, 0]])
    # at k = 1: of the equal ones the first by name
    np.testing.assert_allclose(table.weights, [[1, 0], [0, 1], [0, 0]])
    of_three = plots.score_table(store, EXAMPLES, "norm", 3)
    np.testing.assert_allclose(of_three.weights, [[0.75, 0.375], [0, 0.625], [0.25, 0]])
    assert plots.score_table(store, EXAMPLES, "entropy", 1) is None
    assert plots.score_table(store, EXAMPLES[3:], "norm", 1) is None


def test_a_signal_may_say_nothing_of_an_adapter():
    store = Store()
    store.add(scored("adding", 1, sorter=1.0))
    table = plots.score_table(store, EXAMPLES, "norm", 1)
    assert table.adapters == ("adder", "sorter")
    np.testing.assert_allclose(table.scores, [[0], [1]])


def test_each_adapter_has_its_own_range():
    scores = np.array([[100.0, 200.0, 150.0], [0.1, 0.1, 0.1]])
    np.testing.assert_allclose(plots.by_adapter(scores), [[0, 1, 0.5], [0, 0, 0]])


def test_likeness_is_a_cosine():
    # normalised by adapter, the columns are (1, 0), (1, 1) and (0, 1)
    alike = plots.likeness(np.array([[5.0, 5.0, 3.0], [2.0, 4.0, 4.0]]))
    root = 2**-0.5
    np.testing.assert_allclose(alike, [[1, root, 0], [root, 1, root], [0, root, 1]], atol=1e-12)
    assert np.isfinite(plots.likeness(np.zeros((2, 2)))).all()


def test_selections_are_counted_by_rank(store):
    counts = plots.selection_counts(store, EXAMPLES, "norm", ("adder", "sorter", "other"))
    np.testing.assert_array_equal(counts, [[2, 0, 0], [1, 2, 0], [0, 1, 0]])


@pytest.mark.parametrize("fusion", [False, True])
def test_all_figures_are_drawn_whole_and_again_the_same(tmp_path, fusion):
    llm = FakeLoGo({"adder": 3.0, "sorter": 1.0, "other": 1.0}, lambda _p, route: str(route.names))
    comparison, store = Comparison(("norm",), (1, 3), fusion=fusion), Store()
    evaluate(llm, EXAMPLES, comparison, store, answer_fused=lambda *_: "x")
    summary = summarise(store, EXAMPLES)
    for folder in ("first", "second"):
        plots.draw_all(tmp_path / folder, store, EXAMPLES, summary, ["norm"], [1, 3])
    expected = {"scores-norm", "similarity-norm", "ranks-norm", "quality"}
    expected |= {"fusion-norm"} if fusion else set()
    assert {path.name for path in (tmp_path / "first").iterdir()} == {
        f"{name}.svg" for name in expected
    }
    for path in (tmp_path / "first").iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_with_nothing_in_the_pool_nothing_is_drawn(tmp_path, store):
    outside = EXAMPLES[3:]
    assert plots.draw_all(tmp_path, store, outside, summarise(store, outside), ["norm"], [1]) == []


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SettingsError, match="matplotlib") as caught:
        figures.load()
    assert "matplotlib" in caught.value.hint
