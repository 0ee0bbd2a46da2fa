"""Log probabilities of answers: equal to llama_cpp's own, which keeps all logits for them."""

import json
import math

import numpy as np
import pytest
import small_model
from starlette.testclient import TestClient

from logo_local import LoGo
from logo_local.llama.logprobs import highest, log_softmax
from logo_local.server.app import create_app

PROMPT = "The"
MESSAGES = [{"role": "user", "content": "Where does Lonu live?"}]
GREEDY = {"temperature": 0.0, "max_tokens": 8}


def test_log_softmax_by_hand():
    assert log_softmax(np.log(np.float32([1, 2, 5]))) == pytest.approx(
        np.log([1 / 8, 1 / 4, 5 / 8])
    )
    assert log_softmax(np.float32([1e30, 0])) == pytest.approx([0, -1e30])  # no overflow


@pytest.mark.parametrize(("n", "places"), [(0, []), (1, [1]), (2, [1, 3]), (9, [1, 3, 0, 2])])
def test_the_highest(n, places):
    assert highest(np.float32([2, 9, 1, 5]), n) == places


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """One engine as everybody opens it, and one with llama_cpp's own log probabilities."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGO_LOCAL_HOME", str(tmp_path_factory.mktemp("home")))
        options = {"n_threads": 1, "n_ctx": 256, "adapters": small_model.ADAPTERS}
        ours = LoGo(small_model.MODEL, **options)
        theirs = LoGo(small_model.MODEL, logits_all=True, **options)
        yield ours, theirs
        ours.close()
        theirs.close()


def joined(chunks):
    """The choices of a stream as one."""
    found = [one for chunk in chunks for one in [chunk["choices"][0].get("logprobs")] if one]
    return {name: [value for one in found for value in one[name]] for name in found[0]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("weights", [{}, None])
def test_completions_as_llama_cpp_computes_them(engines, stream, weights):
    """Before, logprobs needed `logits_all`, and 0.8 GB for the demo's context."""
    names = list(engines[0].pool.names)
    routing = {"weights": {names[0]: 1.0} if weights is None else weights}
    ours, theirs = (
        llm.create_completion(PROMPT, logprobs=3, stream=stream, routing=routing, **GREEDY)
        for llm in engines
    )
    ours, theirs = (
        joined(one) if stream else one["choices"][0]["logprobs"] for one in (ours, theirs)
    )
    assert ours["tokens"] == theirs["tokens"]
    assert len(ours["tokens"]) > 2
    assert ours["token_logprobs"] == pytest.approx(theirs["token_logprobs"], abs=1e-3)
    for found, expected, token in zip(
        ours["top_logprobs"], theirs["top_logprobs"], ours["tokens"], strict=True
    ):
        assert len(found) == 3
        assert {k: pytest.approx(v, abs=1e-3) for k, v in found.items()} == {
            k: v for k, v in expected.items() if k in found or k != token
        }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("asked", "n_top"), [({}, 0), ({"top_logprobs": 2}, 2)])
def test_chat_completions_of_the_server(engines, stream, asked, n_top):
    body = {"messages": MESSAGES, "logprobs": True, "stream": stream, "max_tokens": 8, **asked}
    with TestClient(create_app(engines[:1]), base_url="http://localhost") as client:
        answer = client.post("/v1/chat/completions", json=body)
    if stream:
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line][:-1]
        choices = [json.loads(event)["choices"][0] for event in events]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        tokens = [one for c in choices for one in (c["logprobs"] or {"content": []})["content"]]
    else:
        (choice,) = answer.json()["choices"]
        text, tokens = choice["message"]["content"], choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).strip() == text.strip()
    for token in tokens:
        assert -50 < token["logprob"] <= 0
        assert len(token["top_logprobs"]) == n_top
        if n_top:  # greedy: the token is the most likely one
            assert token["top_logprobs"][0]["token"] == token["token"]
            assert sum(math.exp(one["logprob"]) for one in token["top_logprobs"]) <= 1 + 1e-6


def test_tokens_behind_a_stop_word_are_not_listed(engines):
    options = {"logprobs": 0, "routing": {"weights": {}}, **GREEDY}
    whole = engines[0].create_completion(PROMPT, **options)["choices"][0]
    cut = engines[0].create_completion(PROMPT, stop=["a"], **options)["choices"][0]
    assert whole["text"].startswith(" is a tailor")
    assert cut["text"] == " is "
    assert len(cut["logprobs"]["tokens"]) < len(whole["logprobs"]["tokens"])
    assert "".join(cut["logprobs"]["tokens"]).startswith(" is")
    nothing = engines[0].create_completion(PROMPT, stop=[" "], **options)["choices"][0]
    assert (nothing["text"], nothing["logprobs"]["tokens"]) == ("", [])


def test_the_next_answer_has_none(engines):
    engines[0].create_completion(PROMPT, logprobs=2, **GREEDY)
    assert engines[0].create_completion(PROMPT, **GREEDY)["choices"][0]["logprobs"] is None
