"""Prompts through a stand-in engine: who is asked what, how often, and how it goes on."""

import json

import pytest

from logo_local.errors import PromptError, SettingsError
from logo_local.evaluation.data import Example
from logo_local.evaluation.runner import Comparison, evaluate
from logo_local.evaluation.store import Store
from logo_local.fake import FakeLoGo

SCORES = {"a": 3.0, "b": 1.0, "c": 0.0}
NORM = Comparison(signals=("norm",), top_k=(1, 2))
MINE = Example("mine", 1, "prompt", ("a",), "a")
NOBODYS = Example("nobodys", 1, "other prompt", ("a",))


def blend(_prompt, route):
    """An answer that says what it was answered under, and has a second line."""
    parts = [f"{n}{w:.2g}" for n, w in zip(route.names, route.weights, strict=True)]
    return f"{' '.join(parts) or 'base alone'} \nmore"


@pytest.fixture
def llm():
    return FakeLoGo(SCORES, blend, top_k=2)


def run(llm, *examples, comparison=NORM, store=None, **more):
    store = store or Store()
    evaluate(llm, examples, comparison, store, **more)
    return store


def texts(store, task="mine", out=False):
    return {
        done.method: done.text
        for done in store.answered.values()
        if (done.task, done.out) == (task, out)
    }


def asked(llm):
    return [call for call in llm.history if call.method != "route"]


def test_every_method_answers_under_its_weights(llm):
    found = texts(run(llm, MINE))
    assert {name: text for name, text in found.items() if "random" not in name} == {
        "base": "base alone",
        "own": "a1",
        "uniform": "a0.33 b0.33 c0.33",
        "norm, k = 1": "a1",
        "norm, k = 2": "a0.75 b0.25",
        "default": "a0.75 b0.25",
    }
    assert asked(llm)[0].options["max_tokens"] == 64
    assert asked(llm)[0].options["temperature"] == 0.0


def test_the_same_weights_answer_once(llm):
    found = texts(run(llm, MINE, comparison=Comparison(("norm",), (1, 2), best_single=True)))
    assert {found[f"single: {name}"] for name in SCORES} == {"a1", "b1", "c1"}
    assert len(asked(llm)) == len(set(found.values()))


def test_each_signal_has_its_own_scores():
    llm = FakeLoGo(SCORES, blend, by_signal={"entropy": {"c": 2.0, "b": 1.0}})
    store = run(llm, MINE, comparison=Comparison(("norm", "entropy"), (1,)))
    assert texts(store)["norm, k = 1"] == "a1"
    assert texts(store)["entropy, k = 1"] == "c1"
    assert store.scored["mine", 1, False].scores["entropy"] == {"c": 2.0, "b": 1.0}


def test_out_of_the_pool_there_is_no_own(llm):
    store = run(llm, MINE, NOBODYS, comparison=Comparison(("norm",), (1,), own_out=True))
    assert "own" not in texts(store, "nobodys")
    assert texts(store, "nobodys", out=True) == {}


def test_with_the_own_adapter_out_it_takes_no_part(llm):
    found = texts(run(llm, MINE, comparison=Comparison(("norm",), (1, 3), own_out=True)), out=True)
    assert {name: text for name, text in found.items() if "random" not in name} == {
        "base": "base alone",
        "uniform": "b0.5 c0.5",
        "norm, k = 1": "b1",
        "norm, k = 3": "b1",
        "default": "b1",
    }
    assert llm.pool.excluded == ()


def test_no_own_adapter_out_where_it_is_the_only_one():
    with pytest.raises(SettingsError, match="only one adapter"):
        run(FakeLoGo({"a": 1.0}), MINE, comparison=Comparison(("norm",), (1,), own_out=True))


def test_without_a_template_the_prompt_is_completed():
    llm = FakeLoGo(SCORES, blend, chat_template=False)
    run(llm, MINE)
    assert {call.method for call in asked(llm)} == {"create_completion"}
    raw = FakeLoGo(SCORES, blend)
    run(raw, MINE, comparison=Comparison(("norm",), (1,), raw=True))
    assert {call.method for call in asked(raw)} == {"create_completion"}


def test_what_was_broken_off_goes_on(llm, tmp_path):
    whole = run(FakeLoGo(SCORES, blend, top_k=2), MINE, NOBODYS)
    with Store.open(tmp_path, {}) as store:
        run(llm, MINE, NOBODYS, store=store)
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    again = FakeLoGo(SCORES, blend, top_k=2)
    with Store.open(tmp_path, {}) as store:
        run(again, MINE, NOBODYS, store=store)
        assert store.answered == whole.answered
        assert list(store.answered) == list(whole.answered)
    assert not [call for call in again.history if call.method == "route"]  # scores were kept
    kept = [json.loads(line) for line in lines[:3]]
    done = {line["text"] for line in kept if line["task"] == "mine"}
    first = [call.prompt for call in asked(again)].count("prompt")
    assert first == len(set(texts(whole).values()) - done)
    finished = FakeLoGo(SCORES, blend, top_k=2)
    with Store.open(tmp_path, {}) as store:
        run(finished, MINE, NOBODYS, store=store)
    assert finished.history == []


def test_averages_are_answered_by_whom_it_is_told(llm):
    seen = []

    def answer_fused(prompt, weights, sampling):
        seen.append((prompt, weights, sampling.max_tokens))
        return "fused\n"

    comparison = Comparison(("norm",), (1, 2, 3), max_tokens=5, fusion=True)
    found = texts(run(llm, MINE, comparison=comparison, answer_fused=answer_fused))
    assert found["norm, k = 2"] == "a0.75 b0.25"
    assert found["norm, k = 2, fused"] == found["norm, k = 3, fused"] == "fused"
    assert seen == [([{"role": "user", "content": "prompt"}], {"a": 0.75, "b": 0.25}, 5)]


def test_a_prompt_that_does_not_fit_is_named():
    def too_long(_prompt, _route):
        raise PromptError("the prompt does not fit", hint="shorten it")

    with pytest.raises(PromptError, match="mine, line 1: the prompt does not fit") as caught:
        run(FakeLoGo(SCORES, too_long), MINE)
    assert caught.value.hint == "shorten it"


def test_progress_is_told(llm):
    told = []
    store = run(llm, MINE, NOBODYS, progress=lambda *step: told.append(step))
    n_answers = len(texts(store)) + len(texts(store, "nobodys"))
    assert told == [
        *(("scoring prompts", done, 2) for done in range(3)),
        *(("answering prompts", done, n_answers) for done in range(n_answers + 1)),
    ]


def test_prompts_of_one_blend_are_answered_together():
    order = []

    def answer(prompt, route):
        order.append((tuple(route.applied.items()), prompt))
        return "answer"

    examples = [Example("task", n, text, ("a",), "a") for n, text in enumerate("cab")]
    comparison = Comparison(("norm",), (2,), best_single=True)
    run(FakeLoGo(SCORES, answer, top_k=2), *examples, comparison=comparison)
    blends = list(dict.fromkeys(blend for blend, _ in order))
    # Sorted by text within a blend, so that prompts with the same start follow each other.
    assert order == sorted(order, key=lambda one: (blends.index(one[0]), one[1]))
    assert len(order) == len(set(order)) > len(blends) > 1


def test_without_a_known_answer_only_the_route_counts():
    llm = FakeLoGo(dict.fromkeys(SCORES, 0.0), blend)
    store = run(llm, Example("everyday", 1, "hello", (), metric="refused"))
    assert [call.method for call in llm.history] == ["route"]  # nothing was generated
    refused = {done.method: done.metrics["refused"] for done in store.answered.values()}
    assert refused["base"] == refused["default"] == refused["norm, k = 1"] == 1.0
    assert refused["uniform"] == 0.0
