"""Ctrl+C while llama.cpp runs, sent in C at every node that it computes."""

import ctypes
import signal
import threading

import llama_cpp
import pytest
from random_gguf import write_adapter

from logo_local import LoGo
from logo_local import __main__ as program
from logo_local.hidden_states import Place
from logo_local.llama.interrupts import interrupted, interrupts_held
from logo_local.llama.model import LoadedModel
from logo_local.llama.probe import EachProbe, HiddenProbe
from logo_local.routing.router import Router

PROMPT = [1, *range(60, 80)]


def raise_within(monkeypatch, ctx, after=0):
    """Let the C library raise SIGINT in the next `llama_decode` of `ctx` but `after`, in C."""
    raise_in_c = ctypes.cast(ctypes.CDLL(None)["raise"], ctypes.c_void_p).value
    set_callback = ctypes.CDLL(llama_cpp.llama_cpp._lib._name).llama_set_abort_callback
    set_callback.argtypes, set_callback.restype = [ctypes.c_void_p] * 3, None
    real, calls = llama_cpp.llama_decode, []

    def decode(found, batch):
        if found != ctx:
            return real(found, batch)
        calls.append(len(calls))
        if len(calls) == after + 1:
            set_callback(ctx, raise_in_c, signal.SIGINT)
        code = real(found, batch)
        set_callback(ctx, None, None)
        return code

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)
    monkeypatch.setattr(llama_cpp._internals.llama_cpp, "llama_decode", decode)


@pytest.fixture(autouse=True)
def usual_handler():
    """Python's own, also where the tests run in the background, for which shells ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def logo(random_base, random_adapters):
    opened = []

    def make(adapters=random_adapters, **settings):
        given = {
            "signal": "norm",
            "n_ctx": 256,
            "n_threads": 1,
            "self_profile": False,
            "past": False,
        }
        opened.append(LoGo(random_base, adapters, **given | settings))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


def test_ctrl_c_while_a_prompt_is_probed_is_a_keyboard_interrupt(random_llama, monkeypatch):
    places = [Place("blk.1.attn_q.weight"), Place("blk.2.ffn_up.weight")]
    probe, expected = (HiddenProbe(LoadedModel(random_llama)) for _ in range(2))
    with monkeypatch.context() as patch:
        raise_within(patch, probe._context.ctx)
        with pytest.raises(KeyboardInterrupt):
            probe.read(PROMPT, places)
    for place, hidden in probe.read(PROMPT, places).items():
        assert (hidden.rows == expected.read(PROMPT, places)[place].rows).all()
    probe.close()
    expected.close()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_after_ctrl_c_the_same_prompt_has_the_same_answer(logo, monkeypatch, after):
    """0 is in the reading of the prompt, 1 in the first token of the answer."""
    llm = logo()

    def answer():
        with llm.under({"ad1": 0.8}):
            return llm.create_completion(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]

    expected = answer()
    llm.reset()
    with monkeypatch.context() as patch:
        raise_within(patch, llm.ctx, after)
        with pytest.raises(KeyboardInterrupt):
            answer()
    assert answer() == expected
    assert answer() == expected


def test_an_evaluation_that_fails_is_not_counted(logo, monkeypatch):
    llm = logo()

    def answer():
        with llm.under({"ad1": 0.8}):
            return llm.create_completion(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]

    expected = answer()
    real = llama_cpp.Llama.eval

    def failing(self, tokens):
        real(self, tokens)
        raise OSError("after the evaluation")

    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp.Llama, "eval", failing)
        llm.reset()
        with pytest.raises(OSError, match="after"):
            answer()
    assert llm.n_tokens == 0
    assert answer() == expected


def test_a_prompt_read_by_the_base_gets_its_first_token_under_given_weights(logo):
    def first_token(llm):
        with llm.under({"ad1": 4.0, "ad3": -3.0}):
            return next(llm.generate(PROMPT, temp=0))

    by_base, mixed = logo(prefill="base"), logo()
    with mixed.base_only():
        of_base = next(mixed.generate(PROMPT, temp=0))
    by_base._read_by_base(PROMPT)
    assert by_base._requires_eval  # the last token is evaluated once more, under the mixture
    assert first_token(by_base) != of_base


def test_ctrl_c_ends_a_load_before_its_end(logo, monkeypatch):
    """Line 7: at once, not when gigabytes have been read."""
    real, loaded = llama_cpp.llama_model_load_from_file, []

    def loading(path, params):
        signal.raise_signal(signal.SIGINT)
        model = real(path, params)
        loaded.append(bool(model))
        return model

    monkeypatch.setattr(llama_cpp._internals.llama_cpp, "llama_model_load_from_file", loading)
    with pytest.raises(KeyboardInterrupt):
        logo()
    assert loaded == [False]
    assert not interrupted()


@pytest.mark.parametrize("where", ["answer", "probe"])
def test_ctrl_c_ends_a_batch_before_its_end(logo, random_llama, monkeypatch, where):
    """Line 7: a batch of 512 tokens takes half a minute with a large model."""
    codes, real = [], llama_cpp.llama_decode

    def decode(ctx, batch):
        signal.raise_signal(signal.SIGINT)
        codes.append(real(ctx, batch))
        return codes[-1]

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)
    monkeypatch.setattr(llama_cpp._internals.llama_cpp, "llama_decode", decode)
    if where == "answer":
        llm = logo()
        with pytest.raises(KeyboardInterrupt), llm.base_only():
            llm.create_completion(PROMPT, max_tokens=1)
        assert llm.n_tokens == 0
    else:
        probe = EachProbe(LoadedModel(random_llama))
        with pytest.raises(KeyboardInterrupt):
            probe.logits(PROMPT)
        probe.close()
    assert codes == [2]  # aborted, as llama.h has it


def test_ctrl_c_while_modules_are_imported(monkeypatch):
    def importing():
        raise KeyboardInterrupt

    monkeypatch.setattr("logo_local.commands.cli.main", importing)
    with pytest.raises(SystemExit) as caught:
        program.main()
    assert caught.value.code == 130


def test_no_progress_stage_stays_open_after_ctrl_c(logo, tmp_path, monkeypatch):
    stages = {}
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    write_adapter(adapters / "one.gguf", 1)
    llm = logo(adapters, signal="auto", progress=lambda *now: stages.update({now[0]: now[1:]}))

    def reading(self):
        for done in range(4):
            self._progress("reading generic prompts", done, 10)
        raise KeyboardInterrupt

    monkeypatch.setattr(Router, "_scorer_for", lambda self, _signal, _form: reading(self))
    with pytest.raises(KeyboardInterrupt):
        llm.route(PROMPT)
    assert stages["reading generic prompts"] == (10, 10)


def test_contexts_that_were_made_while_ctrl_c_came_are_freed(random_llama, monkeypatch):
    freed, real = [], llama_cpp.llama_init_from_model

    def making(*given):
        signal.raise_signal(signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(llama_cpp, "llama_init_from_model", making)
    monkeypatch.setattr(llama_cpp, "llama_free", freed.append)
    with pytest.raises(KeyboardInterrupt):
        LoadedModel(random_llama).context("for a test")
    assert len(freed) == 1


def test_holding_back_is_for_the_main_thread_and_may_be_nested():
    order = []

    def interrupt_itself():
        with interrupts_held():
            with interrupts_held():
                signal.raise_signal(signal.SIGINT)
                order.append("inner")
            order.append("outer")
            assert interrupted()
        order.append("never")

    with pytest.raises(KeyboardInterrupt):
        interrupt_itself()
    assert order == ["inner", "outer"]
    assert not interrupted()

    def elsewhere():
        with interrupts_held():
            order.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert order[-1] is True
