"""The engine on a random model: routes, mixtures, and keys and values that are never stale."""

import copy
import gc
import inspect
import logging
import pickle
import re
import sys
import traceback
import weakref

import llama_cpp
import numpy as np
import pytest
from gpu_layers import tolerance
from llama_cpp import Llama, LlamaRAMCache
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from random_gguf import CHAT_TEMPLATE, write_adapter

from logo_local import config
from logo_local.engine import LoGo
from logo_local.errors import AdapterError, ModelError, PoolError, PromptError, SettingsError
from logo_local.llama import native
from logo_local.llama.mixture import set_adapters
from logo_local.llama.model import Context
from logo_local.llama.options import ChatOptions, CompletionOptions
from logo_local.llama.reader import RAW_SUFFIX
from logo_local.llama.sampling import BatchContext
from logo_local.routing import registry
from logo_local.routing.router import Scored
from logo_local.routing.settings import DEFAULTS, OPTIONS

A, B = "alpha beta gamma", "one two three four five six"
NEAR = tolerance(1e-4, 1e-2)
GREEDY = {"max_tokens": 8, "temperature": 0.0}


@pytest.fixture
def logo(random_base, described_adapters):
    """logo(**settings): an engine on the random model, closed afterwards."""
    made = []

    def make(**settings):
        defaults = {"adapters": described_adapters, "n_ctx": 256}
        settings = {**defaults, **settings}
        made.append(LoGo(random_base, **settings))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def last_logits(llm):
    """The logits behind the last token that was evaluated."""
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()


def prompt_logits(llm, prompt):
    """The logits behind `prompt`, by way of generate."""
    next(llm.generate(llm.tokenize(prompt.encode()), temp=0.0))
    return last_logits(llm)


def test_a_completion_carries_its_route_and_timings(logo):
    llm = logo(top_k=2, signal="norm")
    answer = llm(A, **GREEDY)
    assert answer["usage"]["completion_tokens"] == 8
    route = answer["logo"]["route"]
    assert route["signal"] == "norm"
    assert route["probe"] == "one-pass"
    assert route["target"] == "blk.2.attn_q.weight"
    assert route["mixture"] == "stacked"
    assert set(route["scores"]) == {f"ad{i}" for i in range(5)}
    assert len(route["adapters"]) == 2
    assert sum(a["weight"] for a in route["adapters"]) == pytest.approx(1.0)
    timings = answer["logo"]["timings_ms"]
    assert set(timings) == {"load", "probe", "score", "mixture", "prefill", "decode"}
    assert all(timings[phase] > 0 for phase in timings)


def test_the_route_alone_is_that_of_the_completion(logo):
    llm = logo()
    assert llm.route(A).as_dict() == llm(A, **GREEDY)["logo"]["route"]
    assert llm.route(A) != llm.route(B)


def test_messages_are_routed_through_the_chat_template(logo):
    llm = logo()
    messages = [{"role": "user", "content": "hello"}]
    assert "[{{ m['role'] }}]" in CHAT_TEMPLATE
    rendered = "[user] hello\n[assistant] "
    tokens = llm.tokenize(rendered.encode(), add_bos=False, special=True)
    chat = llm.create_chat_completion(messages=messages, **GREEDY)
    assert llm.route(messages) == llm.route(tokens) == llm.last_route
    assert chat["logo"]["route"] == llm.route(tokens).as_dict()


def test_asking_for_a_route_does_not_disturb_the_conversation(logo):
    llm = logo()
    first = llm(A, **GREEDY)["choices"][0]["text"]
    n_tokens, seed = llm.n_tokens, llm._seed
    llm.route(B)
    assert (llm.n_tokens, llm._seed) == (n_tokens, seed)
    assert llm(A, **GREEDY)["choices"][0]["text"] == first


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_carries_the_route_in_its_last_chunk(logo, chat):
    llm = logo()
    if chat:
        messages = [{"role": "user", "content": "hello"}]
        chunks = list(llm.create_chat_completion(messages=messages, stream=True, **GREEDY))
    else:
        chunks = list(llm(A, stream=True, **GREEDY))
    assert len(chunks) > 1
    assert ["logo" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["logo"]["route"] == llm.last_route.as_dict()


def test_routes_a_b_a_equal_a_fresh_a(logo):
    fresh = prompt_logits(logo(), A)
    llm = logo()
    first = prompt_logits(llm, A)
    other = prompt_logits(llm, B)
    again = prompt_logits(llm, A)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(again, fresh, atol=NEAR * np.ptp(fresh))
    assert np.abs(first - other).max() > 0.1


def test_the_same_tokens_under_another_route_are_evaluated_anew(logo):
    """What llama_cpp alone would get wrong: it reuses a prefix by its tokens."""
    llm = logo()
    tokens = [1, *range(60, 80)]
    expected = {}
    for name in ("ad0", "ad1"):
        llm.pool.pin(name)
        next(llm.generate(tokens, temp=0.0))
        expected[name] = last_logits(llm)
        llm.pool.auto()
    for name in ("ad0", "ad1", "ad0"):
        llm.pool.pin(name)
        next(llm.generate(tokens, temp=0.0))
        np.testing.assert_array_equal(last_logits(llm), expected[name])
        llm.pool.auto()
    assert np.abs(expected["ad0"] - expected["ad1"]).max() > 0.1


def test_an_unchanged_route_keeps_the_prefix(logo, monkeypatch):
    llm = logo()
    llm.pool.pin("ad3")  # one adapter: weight 1 whatever the prompt
    tokens = [1, *range(60, 80)]
    next(llm.generate(tokens, temp=0.0))
    evaluated = []
    parent = Llama.eval
    monkeypatch.setattr(
        Llama, "eval", lambda self, new: (evaluated.extend(new), parent(self, new))[1]
    )
    next(llm.generate([*tokens, 90, 91], temp=0.0))
    assert evaluated == [90, 91]


def test_a_saved_state_is_not_used_under_another_route(logo):
    llm = logo()
    tokens = [1, *range(60, 80)]
    llm.pool.pin("ad0")
    next(llm.generate(tokens, temp=0.0))
    expected, state = last_logits(llm), llm.save_state()
    llm.pool.pin("ad0")
    llm.pool.auto()
    llm.pool.pin("ad1")
    next(llm.generate(tokens, temp=0.0))
    under_ad1 = last_logits(llm)
    llm.load_state(state)
    next(llm.generate(tokens, temp=0.0))
    np.testing.assert_array_equal(last_logits(llm), under_ad1)
    llm.pool.auto()
    llm.pool.pin("ad0")
    llm.load_state(state)
    next(llm.generate(tokens, temp=0.0))
    np.testing.assert_allclose(last_logits(llm), expected, atol=NEAR * np.ptp(expected))


def test_the_parents_ram_cache_stays_right(logo):
    llm = logo(top_k=1)
    plain = [llm(p, **GREEDY)["choices"][0]["text"] for p in (A, B, A, B)]
    llm.set_cache(LlamaRAMCache())
    cached = [llm(p, **GREEDY)["choices"][0]["text"] for p in (A, B, A, B)]
    assert cached == plain


def test_one_adapter_with_weight_one_equals_that_adapter_alone(logo, random_base, random_adapters):
    llm = logo(top_k=1, mixture="scales")
    ours = prompt_logits(llm, A)
    (name,) = llm.last_route.names
    alone = Llama(
        str(random_base),
        n_ctx=256,
        verbose=False,
        lora_path=str(random_adapters / f"{name}.gguf"),
    )
    next(alone.generate(alone.tokenize(A.encode()), temp=0.0))
    np.testing.assert_array_equal(ours, last_logits(alone))
    alone.close()


def test_base_only_equals_llama_cpp_itself(logo, random_llama):
    llm = logo()
    with_adapters = prompt_logits(llm, A)
    with llm.base_only():
        base = prompt_logits(llm, A)
        assert llm.last_route.is_base
    random_llama.reset()
    next(random_llama.generate(random_llama.tokenize(A.encode()), temp=0.0))
    np.testing.assert_array_equal(base, last_logits(random_llama))
    np.testing.assert_array_equal(prompt_logits(llm, A), with_adapters)


def test_under_given_weights_nothing_is_probed(logo, monkeypatch):
    llm = logo(top_k=2, signal="norm")
    routed = prompt_logits(llm, A)
    weights = dict(zip(llm.last_route.names, llm.last_route.weights, strict=True))
    monkeypatch.setattr(llm.router, "route", lambda *_: 1 / 0)
    with llm.under(weights):
        np.testing.assert_array_equal(prompt_logits(llm, A), routed)
        with llm.under({"ad4": 2.0}):
            louder = prompt_logits(llm, A)
            assert llm.last_route.weights == (2.0,)
        np.testing.assert_array_equal(prompt_logits(llm, A), routed)
    assert np.abs(louder - routed).max() > 0.1
    with pytest.raises(PoolError, match="ad9"), llm.under({"ad9": 1.0}):
        pass


def stream_text(chunks):
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def test_a_stream_stays_under_the_weights_it_was_made_under(logo):
    llm = logo()
    with llm.base_only():
        expected = llm(A, **GREEDY)["choices"][0]["text"]
        stream = llm(A, stream=True, **GREEDY)
    routed = llm(A, stream=True, **GREEDY)
    assert stream_text(stream) == expected
    assert llm.last_route.is_base
    with llm.base_only():
        stream_text(routed)
    assert not llm.last_route.is_base


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_should_stop_ends_after_the_token(logo, stream):
    llm = logo()
    asked = []
    llm.should_stop = lambda: len(asked) > 4 or asked.append(1)
    answer = llm(A, **{**GREEDY, "max_tokens": 50}, stream=stream)
    last = list(answer)[-1] if stream else answer
    assert last["choices"][0]["finish_reason"] == "length"
    # Once for each token before it, and once for the only batch of the prompt, and its first token.
    assert len(llm._input_ids) - len(llm.tokens_of(A)) <= 3
    llm.should_stop = lambda: False
    assert llm(A, **GREEDY)["usage"]["completion_tokens"] == 8


def test_a_prompt_is_not_read_to_its_end_where_it_should_stop(logo):
    llm = logo(n_batch=4)
    prompt = list(range(5, 60))
    whole = llm(prompt, **GREEDY)["choices"][0]["text"]
    llm.reset()
    asked = []
    llm.should_stop = lambda: len(asked) > 5 or asked.append(1)
    stopped = llm(prompt, **GREEDY)
    assert (stopped["choices"][0]["text"], stopped["usage"]["completion_tokens"]) == ("", 0)
    assert 0 < llm.n_tokens < len(prompt)
    llm.should_stop = lambda: False
    assert llm(prompt, **GREEDY)["choices"][0]["text"] == whole


def test_weights_for_an_adapter_that_has_just_come(logo, tmp_path):
    write_adapter(tmp_path / "old.gguf", seed=1, rank=2)
    llm = logo(adapters=tmp_path)
    write_adapter(tmp_path / "new.gguf", seed=2, rank=2)
    with llm.under({"new": 1.0}):
        llm(A, **GREEDY)
    assert llm.last_route.names == ("new",)


def test_going_on_with_an_answer_after_another_prompt_is_an_error(logo):
    llm = logo(signal="norm")
    stream = llm(A, stream=True, **GREEDY)
    next(stream)
    llm(B, **GREEDY)
    with pytest.raises(PromptError, match="another prompt"):
        list(stream)
    assert llm(A, **GREEDY)["choices"]


def test_without_reset_the_tokens_follow_those_that_are_there(logo):
    tokens = [1, *range(60, 90)]
    llm = logo()
    next(llm.generate(tokens, temp=0.0))
    whole, route = last_logits(llm), llm.last_route
    llm = logo()
    llm.eval(tokens[:20])
    next(llm.generate(tokens[20:], temp=0.0, reset=False))
    assert llm.last_route.names == route.names
    np.testing.assert_allclose(last_logits(llm), whole, atol=NEAR * np.ptp(whole))


def test_asking_for_a_route_takes_nothing_from_the_cache(logo):
    llm = logo()
    llm.set_cache(LlamaRAMCache())
    llm(A, **GREEDY)
    llm(B, **GREEDY)
    before = llm._input_ids.tolist()
    llm.route(A)
    assert llm._input_ids.tolist() == before


def test_timings_are_those_of_this_prompt(logo):
    llm = logo()
    llm(A, **GREEDY)
    with llm.base_only():
        timings = llm(A, **GREEDY)["logo"]["timings_ms"]
    assert (timings["probe"], timings["score"]) == (0.0, 0.0)
    llm.route(B)
    assert llm.timings_ms["probe"] > 0
    assert llm.timings_ms["prefill"] == 0.0


def test_the_pool_knows_what_is_resident(logo):
    llm = logo(top_k=2, adapter_memory="1M", mixture="scales")
    assert llm.pool.resident_bytes == 0
    llm(A, **GREEDY)
    used = [llm.pool.adapters[name].n_bytes for name in llm.last_route.names]
    assert llm.pool.resident_bytes == sum(used)


def test_nothing_keeps_a_dropped_engine_alive(random_base, random_adapters):
    llm = LoGo(random_base, random_adapters, n_ctx=256)
    llm(A, **GREEDY)
    gone = weakref.ref(llm)
    gc.disable()
    try:
        del llm
        assert gone() is None
    finally:
        gc.enable()


def test_ctrl_c_during_a_probe_arrives(logo, monkeypatch):
    llm = logo()

    def interrupted(_self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(native.Tensor, "rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.route(A)
    assert llm.route(A).names


def test_settings_without_effect_are_named(logo, caplog):
    logo(probe="each", layer=0)
    assert "no effect" in caplog.text


def test_generation_runs_without_a_callback(logo):
    llm = logo()
    llm(A, **GREEDY)
    assert not llm.context_params.cb_eval


def test_each_scores_every_adapter_by_its_own_next_token(logo, random_base, random_adapters):
    llm = logo(probe="each", top_k=2)
    route = llm.route(A)
    assert (route.signal, route.probe, route.target) == ("each-entropy", "each", None)
    for name, score in route.all_scores.items():
        alone = Llama(
            str(random_base),
            n_ctx=256,
            verbose=False,
            lora_path=str(random_adapters / f"{name}.gguf"),
        )
        next(alone.generate(alone.tokenize(A.encode()), temp=0.0))
        logits = last_logits(alone).astype(np.float64)
        alone.close()
        p = np.exp(logits - logits.max())
        p /= p.sum()
        assert score == pytest.approx(1 / (-(p * np.log(p)).sum() + 1e-6), rel=1e-6)


@pytest.mark.parametrize("tap", ["input", "residual"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_tap_and_layer_change_what_is_read(logo, tap, layer):
    route = logo(tap=tap, layer=layer, signal="norm").route(A)
    assert route.target == f"blk.{layer % 3}.attn_q.weight"


def test_pins_and_exclusions(logo):
    llm = logo(top_k=5, signal="norm")
    llm.pool.exclude("ad2")
    assert set(llm.route(A).names) == {"ad0", "ad1", "ad3", "ad4"}
    llm.pool.pin("ad1")
    assert llm.route(A).names == ("ad1",)
    llm.pool.auto()
    assert len(llm.route(A).names) == 5


def test_a_pinned_adapter_answers_whether_it_fits_or_not(logo):
    llm = logo()
    llm.pool.pin("ad2")
    assert llm.route(A).names == ("ad2",)
    assert llm.route(A).weights == (1.0,)


def test_an_adapter_can_be_taught_what_it_is_for(logo, random_adapters):
    llm = logo(adapters=random_adapters, signal="profile")
    assert llm.route(A).is_base  # nobody has any examples
    assert llm.teach("ad1", [A, "alpha beta delta"]) == 2
    assert llm.teach("ad3", [B, "one two three four"]) == 2
    assert llm.route(A).names[0] == "ad1"
    assert llm.route(B).names[0] == "ad3"
    assert llm.unteach("ad1", last=True) == 1
    assert llm.unteach("ad1") == llm.unteach("ad3") - 1 == 1
    assert llm.route(A).is_base


def test_scores_by_several_signals_at_once(logo, random_adapters):
    llm = logo(adapters=random_adapters, signal="norm")
    signals = ("norm", "z-norm", "combined", "shortlist", "each-likelihood")
    found = llm.signal_scores(A, signals)
    assert list(found) == list(signals)
    assert found["norm"] == pytest.approx(llm.route(A).all_scores, rel=tolerance(1e-6, 1e-3))
    assert found["each-likelihood"].keys() == set(llm.pool.names)
    assert sum(found["each-likelihood"].values()) <= 1 + 1e-6
    with pytest.raises(SettingsError, match="loudest"):
        llm.signal_scores(A, ["loudest"])


def test_self_profiles_are_made_once(logo, monkeypatch):
    first = logo(signal="self-profile").route(A).all_scores
    monkeypatch.setattr(BatchContext, "sample", None)  # a second time is an error
    assert logo(signal="self-profile").route(A).all_scores == first


def test_without_self_profiles_nothing_is_sampled(logo, monkeypatch):
    monkeypatch.setattr(BatchContext, "sample", None)
    assert logo(signal="combined", self_profile=False).route(A).all_scores


def test_answered_prompts_are_remembered_in_numbers(logo, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path))
    llm = logo(signal="z-norm")
    llm.route(A)  # asked for its route only
    with llm.base_only():
        llm(A, **GREEDY)
    llm.close()
    assert not list((tmp_path / "data").rglob("*.npz"))
    llm = logo(signal="z-norm")
    llm(A, **GREEDY)
    llm(A, **GREEDY)  # the same prompt is another one, asked again
    llm.close()
    (file,) = (tmp_path / "data").rglob("*.npz")
    with np.load(file) as kept:
        assert len(kept["keys"]) == 5
        assert kept["m0"][0].tolist() == [2.0] * kept["m0"].shape[1]
    file.unlink()
    llm = logo(signal="z-norm", past=False)
    llm(A, **GREEDY)
    llm.close()
    assert not file.exists()


def test_without_q_proj_the_most_adapted_projection_is_probed(logo, tmp_path, caplog):
    write_adapter(tmp_path / "up.gguf", 1, kinds=("ffn_up", "ffn_down"))
    write_adapter(tmp_path / "up2.gguf", 2, kinds=("ffn_up",))
    write_adapter(tmp_path / "down.gguf", 3, kinds=("attn_v",))
    llm = logo(adapters=tmp_path, signal="norm")
    route = llm.route(A)
    assert route.target == "blk.2.ffn_up.weight"
    assert set(route.all_scores) == {"up", "up2"}
    assert "down takes no part in routing" in caplog.text


def test_adapters_that_come_and_go_are_noticed_at_the_next_prompt(logo, tmp_path, caplog):
    write_adapter(tmp_path / "one.gguf", 1)
    llm = logo(adapters=tmp_path, signal="norm")
    assert llm.route(A).names == ("one",)
    assert "has changed" not in caplog.text
    write_adapter(tmp_path / "two.gguf", 2)
    assert set(llm.route(A).names) == {"one", "two"}
    assert f"{tmp_path} has changed: new: two" in caplog.text
    (tmp_path / "one.gguf").unlink()
    assert llm(A, **GREEDY)["logo"]["route"]["adapters"][0]["name"] == "two"
    assert "has changed: gone: one" in caplog.text


@pytest.mark.parametrize("mixture", ["stacked", "scales"])
def test_an_adapter_rewritten_while_the_engine_runs(logo, tmp_path, caplog, mixture):
    path = write_adapter(tmp_path / "one.gguf", 1)
    llm = logo(adapters=tmp_path, mixture=mixture, signal="norm")
    llm(A, **GREEDY)
    write_adapter(path, 2, rank=7)  # in place: the folder itself does not change
    found = prompt_logits(llm, B)
    assert "has changed: changed: one" in caplog.text
    llm.close()
    np.testing.assert_array_equal(
        found, prompt_logits(logo(adapters=tmp_path, mixture=mixture, signal="norm"), B)
    )


def test_an_adapter_that_is_still_being_copied_is_taken_when_it_is_whole(logo, tmp_path, caplog):
    whole = write_adapter(tmp_path / "whole.gguf", 1).read_bytes()
    llm = logo(adapters=tmp_path, signal="norm")
    with (tmp_path / "new.gguf").open("wb") as file:
        file.write(whole[:5000])
        file.flush()
        assert llm.route(A).names == ("whole",)
        assert "left out: new.gguf" in caplog.text
        file.write(whole[5000:])
    assert set(llm.route(A).names) == {"whole", "new"}


def test_weights_named_by_the_caller_survive_a_changed_folder(logo, tmp_path):
    one, _ = (write_adapter(tmp_path / f"{name}.gguf", i) for i, name in enumerate("ab"))
    llm = logo(adapters=tmp_path, signal="norm")
    with llm.under({"a": 1.0, "b": 0.5}):
        llm(A, **GREEDY)
        one.unlink()
        with pytest.raises(PoolError, match="there is no adapter 'a'"):
            llm(B, **GREEDY)
    assert llm(A, **GREEDY)["logo"]["route"]["adapters"][0]["name"] == "b"


def test_a_route_that_hardly_changes_is_kept_where_that_is_wished(logo, monkeypatch):
    def answer_as(llm, **scores):
        monkeypatch.setattr(
            llm.router, "scores", lambda *_: Scored("norm", "one-pass", None, scores)
        )
        return llm(A, **GREEDY)["logo"]["route"]["adapters"]

    llm = logo(keep_route=0.1)
    first = answer_as(llm, ad0=0.6, ad1=0.4)
    assert answer_as(llm, ad0=0.4501, ad1=0.4) == [
        {"name": "ad0", "score": 0.4501, "weight": 0.6},
        {"name": "ad1", "score": 0.4, "weight": 0.4},
    ]
    assert [a["weight"] for a in answer_as(llm, ad0=0.52, ad1=0.48)] == [0.6, 0.4]
    # Compared with what the conversation runs under, not with the route before.
    assert answer_as(llm, ad0=0.4, ad1=0.6)[0]["weight"] == pytest.approx(0.6)
    assert answer_as(llm, ad0=0.6, ad2=0.4)[1]["name"] == "ad2"
    exact = logo()
    assert answer_as(exact, ad0=0.6, ad1=0.4) == first
    assert answer_as(exact, ad0=0.59, ad1=0.41)[0]["weight"] == pytest.approx(0.59)


@pytest.mark.parametrize("routed", [True, False])
def test_a_prompt_that_the_base_has_read(logo, random_base, random_adapters, routed):
    """Only the last token of the prompt, and what follows, is under the mixture."""
    llm = logo(prefill="base", top_k=1, mixture="scales", signal="norm")
    alone = Llama(str(random_base), n_ctx=256, verbose=False)
    for prompt in (A, A + " and more of it", B, B):
        name = llm.route(prompt).names[0]
        if routed:
            found = prompt_logits(llm, prompt)
        else:
            with llm.under({name: 1.0}):
                found = prompt_logits(llm, prompt)
        tokens = alone.tokenize(prompt.encode())
        handle = native.load_adapter(alone.model, random_adapters / f"{name}.gguf")
        expected = []
        for under_base in (len(tokens) - 1, 0):
            set_adapters(alone.ctx, [], [])
            alone.reset()
            alone.eval(tokens[:under_base])
            set_adapters(alone.ctx, [handle], [1.0])
            alone.eval(tokens[under_base:])
            expected.append(last_logits(alone))
        set_adapters(alone.ctx, [], [])
        llama_cpp.llama_adapter_lora_free(handle)
        np.testing.assert_allclose(found, expected[0], atol=0.01)
        assert np.abs(found - expected[1]).max() > 0.1
    alone.close()


def test_a_conversation_whose_prompts_the_base_has_read(logo):
    llm = logo(prefill="base", top_k=2)
    messages = [{"role": "user", "content": A}]
    first = llm.create_chat_completion(messages, max_tokens=4, temperature=0.0)
    assert first["logo"]["route"]["adapters"]
    messages += [first["choices"][0]["message"], {"role": "user", "content": B}]
    second = llm.create_chat_completion(messages, max_tokens=4, temperature=0.0)
    llm.close()
    fresh = logo(prefill="base", top_k=2)
    again = fresh.create_chat_completion(messages, max_tokens=4, temperature=0.0)
    assert second["choices"] == again["choices"]


@pytest.mark.parametrize("signal", ["norm", "auto"])
def test_reading_ahead_leaves_only_what_is_new(logo, monkeypatch, signal):
    llm = logo(signal=signal, self_profile=False)
    tokens = llm.tokenize(A.encode())
    expected = llm.route([*tokens, 70, 71])
    llm.route(B)
    evaluated = []
    decode = Context.decode
    monkeypatch.setattr(
        Context,
        "decode",
        lambda self, tokens: (evaluated.append(list(tokens)), decode(self, tokens))[1],
    )
    llm.read_ahead(tokens)
    llm.read_ahead(tokens)
    # Profiles read a fixed suffix behind a raw prompt.
    suffix = [] if signal == "norm" else llm.tokenize(RAW_SUFFIX.encode(), add_bos=False)
    (first,) = evaluated  # but for what it has in common with the prompt before, and only once
    read = [*tokens, *suffix]
    assert first == read[-len(first) :]
    route = llm.route([*tokens, 70, 71])
    assert evaluated[1:] == [[70, 71, *suffix]]
    assert route.names == expected.names
    assert route.weights == pytest.approx(expected.weights, rel=NEAR)


def said(*texts):
    """A conversation by user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_conversation_the_last_message_is_routed(logo, stream):
    llm = logo()
    alone, whole = llm.route(said(B)), llm.route(llm.tokens_of(said(A, "yes", B)))
    assert alone.all_scores != whole.all_scores
    system = {"role": "system", "content": "one two"}
    for conversation in (said(A, "yes", B), [system, *said(B)], [system, *said(A, "yes", B)]):
        assert llm.route(conversation) == alone
        answer = llm.create_chat_completion(conversation, **GREEDY, stream=stream)
        last = list(answer)[-1] if stream else answer
        assert last["logo"]["route"]["scores"] == alone.all_scores
        assert llm.usage["prompt_tokens"] == len(llm.tokens_of(conversation))
    # A text by itself is not mistaken for a part of what was said before.
    assert llm.create_completion(A, **GREEDY)["logo"]["route"]["scores"] == llm.route(A).all_scores


def scripted(llm, monkeypatch, steps):
    """Scores messages by `steps`: by text the adapter that fits, "!" if sure, and continued ones.

    Returns the list of the messages that are scored.
    """
    routed = []
    texts = {tuple(llm.tokens_of(said(text))): text for text in steps}

    def scores(tokens, _signal):
        text = texts[tuple(tokens)]
        name, *continues = steps[text].split()
        routed.append(text)
        found = {n: float(n == name.strip("!")) for n in llm.pool.names}
        sure = name.endswith("!")
        return Scored("mixed", "one-pass", None, found, f"{name}.", sure, frozenset(continues))

    monkeypatch.setattr(llm.router, "scores", scores)
    return routed


@pytest.mark.parametrize(
    ("messages", "expected", "scored"),
    [
        ("one two", "ad2", "two"),  # sure about the last message
        ("one more", "ad1", "more one"),  # continues ad1
        ("two more", "", "more two"),  # does not continue ad2
        ("one weak", "ad1", "weak one"),  # it fits another one, but not surely
        ("two weak", "ad3", "weak two"),
        ("one subject", "", "subject"),  # continues nothing, so the others are not read
        ("one more again", "ad1", "again more one"),
        ("one subject again", "", "again subject"),  # continues the subject, not what was before
        ("one subject weak", "ad3", "weak subject"),
        ("more", "", "more"),
        ("one again again again again", "", "again again again again"),  # the last four only
    ],
)
def test_a_message_continues_the_conversation_or_not(logo, monkeypatch, messages, expected, scored):
    llm = logo()
    steps = {"one": "ad1!", "two": "ad2!", "more": "none ad1", "weak": "ad3 ad1"}
    steps |= {"subject": "none", "again": "none ad0 ad1 ad2 ad3"}
    routed = scripted(llm, monkeypatch, steps)
    turns = [text for message in messages.split() for text in (message, "yes")][:-1]
    system = {"role": "system", "content": "one two"}
    for conversation in (said(*turns), [system, *said(*turns)]):
        routed.clear()
        route = llm.route(conversation)
        assert route.names == ((expected,) if expected else ())
        assert routed == scored.split()
    before = expected == "ad1"
    assert route.reason.startswith("continues an earlier message: ad1!") == before
    assert route.reason.count("continues") == before


def test_numbers_that_are_not_finite_go_with_all_keys(logo):
    llm = logo()
    expected = llm(A, **GREEDY)["choices"][0]["text"]
    with llm.under({"ad0": 1e30}), pytest.raises(AdapterError, match="not finite"):
        llm(B, **GREEDY)
    assert llm(A, **GREEDY)["choices"][0]["text"] == expected


def test_adapters_of_other_blocks_are_routed_where_no_single_place_is_needed(logo, tmp_path):
    for i in range(2):
        write_adapter(tmp_path / f"low{i}.gguf", seed=i, rank=2, blocks=(0,))
    llm = logo(adapters=tmp_path, signal="z-norm", self_profile=False)
    assert not llm.route(A).is_base
    with pytest.raises(PoolError, match="no adapter touches block"):
        llm.signal_scores(A, ["norm"])
    with pytest.raises(PoolError, match="no adapter touches block"):
        logo(adapters=tmp_path, signal="norm")


@pytest.mark.parametrize(
    "conversation",
    [
        said(A),  # nothing else is there
        [{"role": "system", "content": A}, {"role": "assistant", "content": B}],  # nobody asks
        [{"role": "system", "content": A}, {"role": "user", "content": ""}],
    ],
)
def test_conversations_that_are_routed_as_they_are(logo, conversation):
    llm = logo()
    assert llm.route(conversation) == llm.route(llm.tokens_of(conversation))


def test_what_the_base_reads_anyway_is_routed_as_a_whole(logo):
    llm, conversation = logo(prefill="base"), said(A, "yes", B)
    assert llm.route(conversation) == llm.route(llm.tokens_of(conversation))


def test_reading_ahead_is_nothing_where_every_adapter_is_evaluated(logo):
    llm = logo(probe="each")
    llm.read_ahead(A)
    assert llm.reader._hidden is None


def test_reading_ahead_is_nothing_where_only_the_next_message_will_be_read(logo):
    llm = logo()
    llm.read_ahead(said(A, "yes"))
    assert llm.reader._hidden is None


def test_silent_adapters_leave_the_base_alone(logo, tmp_path):
    write_adapter(tmp_path / "zero.gguf", 1, loudness=0.0)
    llm = logo(adapters=tmp_path)
    assert llm.route(A).is_base


def test_routing_can_change_between_prompts(logo):
    llm = logo(signal="norm", top_k=2)
    llm.configure(top_k=1, signal="entropy", mixture="scales", keep_route=0.5)
    assert (llm.routing.top_k, llm.routing.signal, llm.routing.keep_route) == (1, "entropy", 0.5)
    route = llm(A, **GREEDY)["logo"]["route"]
    assert (len(route["adapters"]), route["signal"], route["mixture"]) == (1, "entropy", "scales")
    before = llm.routing
    llm.configure()
    with pytest.raises(SettingsError, match="top_k is 0") as caught:
        llm.configure(top_k=0, signal="loud", mixture="stacked")
    assert len(caught.value.problems) == 2
    assert (llm.routing, llm.mixture) == (before, "scales")
    assert len(llm.route(A).names) == 1


def test_probing_with_each_adapter_allows_its_signals_only(logo):
    llm = logo(probe="each")
    with pytest.raises(SettingsError, match="one-pass"):
        llm.configure(signal="norm")
    llm.configure(signal="each-likelihood")
    assert llm.routing.signal == "each-likelihood"


def test_tokens_are_counted(logo):
    llm = logo()
    answer = llm(A, **GREEDY)
    assert answer["usage"]["completion_tokens"] == llm.usage["completion_tokens"] == 8
    assert answer["usage"]["prompt_tokens"] == llm.usage["prompt_tokens"] == len(llm.tokens_of(A))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"signal": "volume"}, SettingsError, "signal"),
        ({"probe": "each", "signal": "norm"}, SettingsError, "norm"),
        ({"top_k": 0}, SettingsError, "top_k"),
        ({"layer": 3}, SettingsError, "layer 3"),
        ({"layer": -4}, SettingsError, "layer -4"),
        ({"tap": "x", "mixture": "y"}, SettingsError, "mixture.*tap"),
        ({"adapter_memory": 10}, PoolError, "10 are allowed"),
        ({"lora_path": "x.gguf"}, SettingsError, "lora_path"),
        ({"topk": 3}, SettingsError, "topk"),
        ({"mixture_type": "q4_0", "prefill": "none"}, SettingsError, "mixture_type.*prefill"),
        ({"keep_route": -0.1}, SettingsError, "keep_route"),
        ({"adapter_memory": "lots"}, SettingsError, "adapter_memory"),
        ({"cache_memory": "some"}, SettingsError, "cache_memory"),
    ],
)
def test_settings_that_cannot_be_used(logo, settings, error, words):
    with pytest.raises(error, match=words):
        logo(**settings)(A, **GREEDY)


@pytest.mark.parametrize("signal", ["norm", "auto", "each-entropy"])
@pytest.mark.parametrize("kind", ["empty", "missing"])
def test_a_folder_without_adapters_is_answered_by_the_base(logo, tmp_path, caplog, kind, signal):
    folder = tmp_path / "pool"
    if kind == "empty":
        folder.mkdir()
    llm = logo(adapters=folder, signal=signal)
    assert caplog.messages == [f"no adapters in {folder} yet: the base model answers"]
    answer = llm(A, **GREEDY)
    with llm.base_only():
        assert llm(A, **GREEDY)["choices"] == answer["choices"]
    assert answer["logo"]["route"]["adapters"] == []
    assert answer["logo"]["route"]["reason"] == "there are no adapters"
    assert llm.signal_scores(A, ["norm", "profile"]) == {"norm": {}, "profile": {}}
    llm.read_ahead(A)
    folder.mkdir(exist_ok=True)
    write_adapter(folder / "late.gguf", seed=1)
    llm.configure(signal="norm")
    assert llm.route(A).names == ("late",)  # found without a restart
    (folder / "late.gguf").unlink()
    assert llm.route(A).is_base
    assert caplog.messages[-2].startswith("no adapters in ")


def test_an_adapter_that_cannot_be_used_leaves_an_empty_pool_empty(logo, tmp_path, caplog):
    llm = logo(adapters=tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert llm.route(A).is_base
    assert caplog.messages[-1].startswith("left out: broken.gguf")
    with pytest.raises(PoolError, match="none of the adapters"):
        logo(adapters=tmp_path)


def test_without_a_folder_the_base_answers_and_nothing_is_said(logo, caplog):
    llm = logo(adapters=None)
    assert repr(llm.pool) == "<Pool without a folder, 0 adapters>"
    assert llm(A, **GREEDY)["logo"]["route"]["adapters"] == []
    assert not llm.pool.has_changed()
    assert not llm.pool.rescan()
    with pytest.raises(PoolError, match="there is no adapter 'a' in use"), llm.under({"a": 1.0}):
        pass
    assert caplog.messages == []


def test_embeddings_without_the_setting_name_what_to_use(logo):
    """Line 19: create_embedding failed without naming `embeddings`."""
    llm = logo()
    with pytest.raises(SettingsError, match="embedding=True") as caught:
        llm.create_embedding(A)
    assert "llm.embeddings(texts)" in caught.value.hint
    assert len(logo(embedding=True).create_embedding(A)["data"][0]["embedding"]) > 0


def test_the_pool_is_shown_in_a_line(logo, described_adapters):
    """Line 19: it had 11,749 characters."""
    assert repr(logo().pool) == f"<Pool {described_adapters}, 5 adapters>"


def test_what_takes_long_is_told_and_logged(logo, tmp_path, monkeypatch, caplog):
    """Line 19: progress and an INFO log while profiles are made."""
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path / "home"))
    pool, stages = tmp_path / "pool", set()
    pool.mkdir()
    write_adapter(pool / "told.gguf", seed=1)
    write_adapter(pool / "untold.gguf", seed=2)
    (pool / "told.prompts.txt").write_text("alpha beta\n")
    caplog.set_level(logging.INFO, "logo_local")
    llm = logo(adapters=pool, signal="auto", progress=lambda *now: stages.add(now[0]))
    llm.make_self_profiles()
    llm.signal_scores(A, ["mixed", "z-norm"])
    assert {"writing example prompts", "reading example prompts"} <= stages
    text = caplog.text
    assert "letting adapters write example prompts: untold" in text
    assert re.search(r"reading \d+ example prompts, once for this model", text)
    assert "reading 64 generic prompts, once for this model" in text
    caplog.clear()
    llm.make_self_profiles()
    llm.signal_scores(A, ["mixed"])
    assert not [r for r in caplog.records if r.levelno == logging.INFO]


def test_a_missing_model_is_an_error_that_leaves_nothing_behind(random_adapters, tmp_path):
    with pytest.raises(ModelError, match="no model file"):
        LoGo(tmp_path / "none.gguf", random_adapters)


@pytest.mark.parametrize("prompt", ["x" * 300, [5] * 300])
def test_a_prompt_longer_than_the_context(logo, prompt):
    llm = logo()
    with pytest.raises(PromptError, match="256"):
        llm.route(prompt)
    with pytest.raises(PromptError, match="256"):
        llm(prompt, **GREEDY)
    with pytest.raises(PromptError, match="256"):
        list(llm(prompt, stream=True, **GREEDY))
    assert llm(A, **GREEDY)["choices"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[0]['content'] + nothing.at.all }}", "nothing"),
    ],
)
def test_a_template_that_refuses_a_conversation(logo, template, words):
    llm = logo()
    formatter = Jinja2ChatFormatter(template, eos_token="", bos_token="")
    llm.chat_handler = formatter.to_chat_handler()
    for stream in (False, True):
        with pytest.raises(PromptError, match=f"chat template refuses.*{words}"):
            llm.create_chat_completion([{"role": "user", "content": A}], stream=stream)


@pytest.mark.parametrize("n_ctx", [1, 64, 257])
def test_a_context_that_llama_cpp_rounds_up_can_be_filled(logo, n_ctx):
    llm = logo(n_ctx=n_ctx)
    assert llm.n_ctx() == len(llm.input_ids) == (256 if n_ctx < 256 else 512)
    prompt = [5] * (llm.n_ctx() - 3)
    assert llm(prompt, **GREEDY)["usage"]["completion_tokens"] == 3


def test_a_context_is_closed_only_once(logo):
    llm = logo()
    llm(A, **GREEDY)
    llm.close()
    llm.close()


# What programs above the engine follow


@pytest.mark.parametrize("bias", [None, {2: 100.0}], ids=["until the limit", "ends at once"])
def test_usage_is_what_llama_cpp_counts(logo, bias):
    llm = logo()
    assert llm.token_eos() == 2
    counted = llm(A, logit_bias=bias, **GREEDY)["usage"]
    assert counted["completion_tokens"] == (GREEDY["max_tokens"] if bias is None else 0)
    del counted["total_tokens"]
    assert llm.usage == counted
    stream_text(llm(B, stream=True, max_tokens=1, temperature=0.0))
    list(llm(A, stream=True, logit_bias=bias, **GREEDY))
    assert llm.usage == counted


def test_a_route_is_told_before_its_prompt_is_read(logo, monkeypatch):
    llm = logo()
    told, read = [], []
    monkeypatch.setattr(Llama, "eval", lambda *_: read.append(len(told)) or 1 / 0)
    llm.on_route = told.append
    with pytest.raises(ZeroDivisionError):
        llm(A, **GREEDY)
    assert (read, told) == ([1], [llm.last_route])
    with llm.base_only(), pytest.raises(ZeroDivisionError):
        llm(A, **GREEDY)
    assert told[1].is_base


# What a call can say of its routing


def test_a_call_says_how_it_is_routed(logo):
    llm = logo(signal="norm", top_k=3)
    before = llm.routing
    routes = [
        llm(A, routing=routing, **GREEDY)["logo"]["route"]
        for routing in ({"signal": "entropy", "top_k": 1}, {"weights": {"ad1": 0.5}}, {}, None)
    ]
    assert [len(route["adapters"]) for route in routes] == [1, 1, 3, 3]
    assert [route["signal"] for route in routes] == ["entropy", "none", "norm", "norm"]
    assert routes[1]["adapters"] == [{"name": "ad1", "score": 0.5, "weight": 0.5}]
    assert llm.routing == before
    chat = llm.create_chat_completion(said(A), routing={"weights": {}}, **GREEDY)
    assert chat["logo"]["route"]["adapters"] == []
    assert len(llm.route(A, routing={"top_k": 2}).names) == 2
    with llm.base_only():
        assert llm(A, routing={"top_k": 2}, **GREEDY)["logo"]["route"]["adapters"]
        assert llm(A, **GREEDY)["logo"]["route"]["adapters"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_in_a_calls_routing_is_said_at_once(logo, stream):
    llm = logo()
    wrong = {"signal": "loud", "top_k": 0, "weights": {"ad1": float("nan")}, "layer": 1}
    with pytest.raises(SettingsError) as caught:
        llm(A, stream=stream, routing=wrong)
    assert len(caught.value.problems) == 5
    with pytest.raises(PoolError, match="ad9"):
        llm(A, stream=stream, routing={"weights": {"ad9": 1.0}})
    assert llm.last_route is None


def test_the_name_of_a_routes_signal_can_be_given_back(logo):
    llm = logo(self_profile=False, n_ctx=1024)  # ask-base has a list of all adapters
    for signal in registry.names():
        route = llm.route(A, routing={"signal": signal})
        assert route.signal == registry.find(signal).name
        again = llm.route(A, routing={"signal": route.signal})
        assert again.all_scores == pytest.approx(route.all_scores, rel=1e-3)


def test_scores_are_those_of_the_folder_as_it_is_now(logo, tmp_path):
    write_adapter(tmp_path / "one.gguf", 1)
    llm = logo(adapters=tmp_path)
    llm.route(A)
    write_adapter(tmp_path / "two.gguf", 2)
    assert llm.signal_scores(A, ["norm"])["norm"].keys() == {"one", "two"}


def test_two_adapters_with_one_and_the_same_example_share_its_prompt(logo, random_adapters):
    llm = logo(adapters=random_adapters, signal="profile")
    llm.teach("ad1", ["sort these words"])
    llm.teach("ad3", ["sort these words"])
    route = llm.route(said("sort these words"))
    assert dict(zip(route.names, route.weights, strict=True)) == pytest.approx(
        {"ad1": 0.5, "ad3": 0.5}
    )
    llm.unteach("ad1"), llm.unteach("ad3")


def test_a_taught_prompt_with_any_line_separator_is_read_again(logo, random_adapters):
    llm = logo(adapters=random_adapters, signal="profile")
    odd = "one\u2028two\u2029three\x85four"
    llm.teach("ad1", [odd, A])
    assert llm.route(said(A)).names[:1] == ("ad1",)
    (file,) = (config.data_dir() / "prompts").iterdir()
    file.write_bytes(file.read_bytes() + b"\xff no JSON\n")
    llm.teach("ad3", [B])
    assert llm.route(said(A)).names[:1] == ("ad1",)
    assert llm.unteach("ad1") == 2
    llm.unteach("ad3")


# The default signal


def test_nothing_is_read_before_an_answer_where_nothing_is_known(
    logo, random_adapters, monkeypatch
):
    """Without examples and descriptions the first answer takes what the base model takes."""
    llm = logo(adapters=random_adapters)

    def never(*_given):
        raise AssertionError("a pass that no signal needs")

    monkeypatch.setattr(llm.reader, "read", never)
    monkeypatch.setattr(llm.reader, "written_by", never)
    answer = llm.create_chat_completion(said(A), **GREEDY)
    assert answer["logo"]["route"]["adapters"] == []
    assert answer["logo"]["route"]["reason"] == "no adapter has example prompts"


def test_the_default_signal_routes_by_examples_and_leaves_the_rest_to_the_base(
    logo, random_adapters
):
    llm = logo(adapters=random_adapters, self_profile=False, past=False)
    for name, prompts in {"ad1": [A, A + " delta"], "ad3": [B, B + " seven"]}.items():
        llm.teach(name, prompts)
    answer = llm.create_chat_completion(said(A), **GREEDY)
    assert answer["logo"]["route"]["signal"] == "mixed"
    assert answer["logo"]["route"]["adapters"][0]["name"] == "ad1"
    assert llm.create_chat_completion(said(B), **GREEDY)["logo"]["route"]["adapters"][0][
        "name"
    ] == ("ad3")
    first = prompt_logits(llm, A)
    prompt_logits(llm, B)
    np.testing.assert_array_equal(prompt_logits(llm, A), first)
    for name in ("ad1", "ad3"):
        llm.unteach(name)


# What cannot be used


@pytest.mark.parametrize(
    "use",
    [
        lambda llm: llm(A),
        lambda llm: llm(A, stream=True),
        lambda llm: llm.create_chat_completion(said(A)),
        lambda llm: llm.route(A),
        lambda llm: llm.route([5, 6]),
        lambda llm: next(llm.generate([5, 6])),
        lambda llm: llm.tokenize(b"x"),
        lambda llm: llm.detokenize([5]),
        lambda llm: llm.embeddings([A]),
        lambda llm: llm.embed(A),
        lambda llm: llm.eval([5]),
        lambda llm: llm.save_state(),
        lambda llm: llm.signal_scores(A, ["norm"]),
        lambda llm: llm.n_ctx(),
        lambda llm: llm.under({}).__enter__() or llm(A),
    ],
)
def test_a_closed_engine_is_an_error(logo, use):
    llm = logo()
    llm.close()
    with pytest.raises(PromptError, match="the engine is closed") as caught:
        use(llm)
    assert "LoGo" in caught.value.hint


def test_without_weights_there_is_no_engine(logo):
    with pytest.raises(SettingsError, match="vocab_only"):
        logo(vocab_only=True)


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_is_neither_pickled_nor_copied(logo, how):
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        how(logo())


def test_what_is_shown_of_objects_is_short(logo):
    llm = logo()
    assert repr(llm) == "<LoGo base.gguf, 5 adapters>"
    for value in (llm.pool, llm.base, llm.route(A), llm.pool.adapters["ad0"]):
        assert len(repr(value)) < 400


@pytest.mark.parametrize(
    ("name", "options"),
    [("create_completion", CompletionOptions), ("create_chat_completion", ChatOptions)],
)
def test_completions_show_llama_cpps_own_options(name, options):
    ours = inspect.signature(getattr(LoGo, name)).parameters
    theirs = inspect.signature(getattr(Llama, name)).parameters
    added = ours.keys() - theirs.keys()
    assert added <= {"routing", "chat_template_kwargs"}
    assert theirs.keys() - ours.keys() == set()
    assert {n: p.default for n, p in ours.items() if n not in added} == {
        n: p.default for n, p in theirs.items()
    }
    assert options.__annotations__.keys() | {"self", "prompt", "messages"} >= theirs.keys()
    assert options.__annotations__.keys() <= theirs.keys()


def test_settings_are_the_engines_parameters():
    parameters = inspect.signature(LoGo).parameters
    assert {n: parameters[n].default for n in OPTIONS} == vars(DEFAULTS)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_a_traceback_has_the_hint():
    error = PromptError("no", hint="say yes")
    assert "hint: say yes" in "".join(traceback.format_exception(error))
