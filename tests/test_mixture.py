"""Adapters inside llama.cpp: the bound on memory, who may leave, what a context runs under."""

import llama_cpp
import numpy as np
import pytest
from random_gguf import write_adapter

from logo_local.errors import AdapterError, PoolError
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.llama.mixture import ResidentAdapters, mixture_key
from logo_local.llama.model import LoadedModel
from logo_local.llama.probe import EachProbe

TOKENS = [1, *range(60, 80)]


@pytest.fixture(scope="module")
def adapters(random_base, random_adapters):
    base = BaseModel.read(random_base)
    return [read_adapter(path, base) for path in sorted(random_adapters.glob("*.gguf"))]


@pytest.fixture
def probe(random_llama):
    probe = EachProbe(LoadedModel(random_llama))
    yield probe
    probe.close()


@pytest.fixture
def residents(random_llama, probe, adapters):
    made = []

    def make(memory):
        made.append(ResidentAdapters(random_llama.model, memory))
        return made[-1]

    yield make
    for each in made:
        each.forget(probe.ctx)
        each.close()


def test_the_least_recently_used_leave(residents, probe, adapters):
    a, b, c = adapters[:3]
    held = residents(a.n_bytes + b.n_bytes + c.n_bytes - 1)
    for adapter in (a, b, a, c):
        held.set_on(probe.ctx, [(adapter, 1.0)])
    assert held.names == ("ad0", "ad2")
    assert held.size() == a.n_bytes + c.n_bytes <= held.memory


def test_an_adapter_in_use_stays_whatever_the_bound(residents, probe, adapters, random_llama):
    a, b = adapters[:2]
    held = residents(b.n_bytes)
    held.set_on(probe.ctx, [(a, 1.0)])
    held.set_on(random_llama.ctx, [(b, 1.0)])
    assert set(held.names) == {"ad0", "ad1"}
    held.forget(random_llama.ctx)
    held.set_on(probe.ctx, [(b, 1.0)])
    assert held.names == ("ad1",)


def test_a_mixture_above_the_bound_is_refused_and_says_what_to_change(residents, probe, adapters):
    held = residents(adapters[0].n_bytes)
    with pytest.raises(PoolError) as caught:
        held.set_on(probe.ctx, [(adapters[0], 0.5), (adapters[1], 0.5)])
    assert "--adapter-memory" in caught.value.hint


def test_leaving_and_coming_back_changes_nothing(residents, probe, adapters):
    a, b = adapters[:2]
    held = residents(max(a.n_bytes, b.n_bytes))
    logits = []
    for adapter in (a, b, a, b):
        held.set_on(probe.ctx, [(adapter, 1.0)])
        logits.append(probe.logits(TOKENS))
    np.testing.assert_array_equal(logits[0], logits[2])
    np.testing.assert_array_equal(logits[1], logits[3])
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_an_empty_mixture_is_the_base(residents, probe, adapters, random_llama):
    held = residents(1 << 30)
    before = probe.logits(TOKENS)
    held.set_on(probe.ctx, [(adapters[0], 1.0)])
    under = probe.logits(TOKENS)
    held.set_on(probe.ctx, [])
    np.testing.assert_array_equal(probe.logits(TOKENS), before)
    assert np.abs(under - before).max() > 0.1


@pytest.mark.parametrize("change", ["cut", "rewritten", "gone"])
def test_a_file_changed_after_its_check_never_reaches_llama_cpp(
    residents, probe, tmp_path, random_base, change
):
    path = write_adapter(tmp_path / "x.gguf", seed=9)
    adapter = read_adapter(path, BaseModel.read(random_base))
    if change == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif change == "rewritten":
        write_adapter(path, seed=10)
    else:
        path.unlink()
    with pytest.raises(AdapterError, match="x"):
        residents(1 << 30).set_on(probe.ctx, [(adapter, 1.0)])


def test_each_equals_an_evaluation_by_hand(residents, probe, adapters, random_base):
    held = residents(1 << 30)
    by_hand = llama_cpp.Llama(
        str(random_base), n_ctx=256, verbose=False, lora_path=str(adapters[3].path)
    )
    tokens = (llama_cpp.llama_token * len(TOKENS))(*TOKENS)  # must outlive the decode
    batch = llama_cpp.llama_batch_get_one(tokens, len(TOKENS))
    assert llama_cpp.llama_decode(by_hand.ctx, batch) == 0
    pointer = llama_cpp.llama_get_logits_ith(by_hand.ctx, -1)
    expected = np.ctypeslib.as_array(pointer, shape=(by_hand.n_vocab(),)).copy()
    by_hand.close()
    held.set_on(probe.ctx, [(adapters[3], 1.0)])
    np.testing.assert_array_equal(probe.logits(TOKENS), expected)


def test_the_key_is_the_set_and_the_weights(adapters):
    a, b = adapters[:2]
    assert mixture_key([(a, 0.4), (b, 0.6)]) == mixture_key([(b, 0.6), (a, 0.4)])
    assert mixture_key([(a, 0.4), (b, 0.6)]) != mixture_key([(a, 0.6), (b, 0.4)])
    assert mixture_key([(a, 1.0)]) != mixture_key([])
