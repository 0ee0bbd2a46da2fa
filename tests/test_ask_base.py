"""The signal ask-base: shares by hand, two stages, and the list read by a real context."""

import numpy as np
import pytest

from logo_local import LoGo
from logo_local.errors import ContextError
from logo_local.llama.menu import Menu
from logo_local.routing.registry import find
from logo_local.routing.scorers.ask_base import MOST, NONE
from logo_local.routing.scoring import EachAdapter, Prompt, Scorer


class Reader:
    """Names what is in `wanted`; remembers the lists that it was asked about."""

    def __init__(self, wanted):
        self.wanted, self.asked = wanted, []

    def menu_logits(self, _tokens, lines):
        self.asked.append(list(lines))
        logits = [5.0 if line.partition(":")[0] in self.wanted else 0.0 for line in lines]
        return np.array(logits, dtype=np.float32)


def scored(reader, names):
    scorer = Scorer({}, None, None, None, None, about={name: "says it" for name in names})
    each = EachAdapter(reader, [1, 2], {}, names)
    return find("ask-base").score(scorer, Prompt(evaluations=each))


def test_shares_by_hand():
    fit = scored(Reader({"b"}), ["a", "b"])
    total = np.exp(5.0) + 2
    assert fit.scores == pytest.approx({"a": 1 / total, "b": np.exp(5.0) / total})
    assert fit.reason == "the base names b"


def test_none_of_these_leaves_the_prompt_to_the_base():
    fit = scored(Reader({NONE}), ["a", "b"])
    assert fit.scores == {"a": 0.0, "b": 0.0}
    assert fit.reason == "the base names no adapter"


def test_a_large_pool_takes_two_stages():
    names = [f"ad{i}" for i in range(3 * MOST)]
    reader = Reader({"ad1", "ad25", "ad41"})
    fit = scored(reader, names)
    assert [len(lines) for lines in reader.asked] == [MOST + 1] * 3 + [4]
    assert reader.asked[-1][:3] == ["ad1: says it", "ad25: says it", "ad41: says it"]
    assert {name for name, score in fit.scores.items() if score} == {"ad1", "ad25", "ad41"}
    assert fit.scores.keys() == set(names)


def test_the_list_is_read_once_and_the_request_alone_decides(random_base, described_adapters):
    with LoGo(random_base, described_adapters, n_ctx=1024) as llm:
        menu = Menu(llm.loaded)
        lines = ["a: sorts", "b: counts", NONE]
        first = menu.logits(lines, "one two")
        assert first.shape == (3,)
        assert menu.logits(lines, "") == pytest.approx(np.zeros(3))
        menu.logits(lines, "another request")
        # From another starting point in the cache, so other kernels may round otherwise.
        np.testing.assert_allclose(menu.logits(lines, "one two"), first, atol=1e-3)
        menu.close()
        route = llm.route("one two", routing={"signal": "ask-base", "top_k": 1})
        assert route.signal == "ask-base"
        assert route.reason.startswith("the base names ")


def test_the_last_tokens_of_another_list_are_not_taken_over(random_base, described_adapters):
    with LoGo(random_base, described_adapters, n_ctx=1024) as llm:
        fresh, used = Menu(llm.loaded), Menu(llm.loaded)
        used.logits(["x: other", NONE], "a long request about something else")
        lines = ["a: sorts", NONE]
        np.testing.assert_allclose(used.logits(lines, "one"), fresh.logits(lines, "one"), atol=1e-3)


def test_a_list_that_does_not_fit_says_so(random_base, described_adapters):
    expected = pytest.raises(ContextError, match="the list of 6 adapters and the prompt")
    with LoGo(random_base, described_adapters, n_ctx=256) as llm, expected:
        llm.route("one two", routing={"signal": "ask-base"})
