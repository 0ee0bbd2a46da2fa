"""Reading prompts: what is kept of them, how far a pass goes, and likelihoods against llama_cpp."""

import numpy as np
import pytest
from llama_cpp import Llama
from random_gguf import write_adapter, write_base

from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.hidden_states import MOST_ROWS, WINDOW, Place, kept_positions
from logo_local.llama import probe as probe_module
from logo_local.llama.mixture import ResidentAdapters
from logo_local.llama.model import LoadedModel
from logo_local.llama.probe import HiddenProbe
from logo_local.llama.reader import PromptReader
from logo_local.llama.sampling import BatchContext
from logo_local.prefix import common_prefix

FIRST, LAST = Place("blk.0.attn_q.weight"), Place("blk.2.attn_q.weight")
TOKENS = [1, *(60 + i * 7 % 90 for i in range(220))]


@pytest.fixture
def loaded(random_llama):
    loaded = LoadedModel(random_llama)
    yield loaded
    loaded.close()


@pytest.fixture
def reader(loaded):
    residents = ResidentAdapters(loaded.pointer, 1 << 30)
    reader = PromptReader(loaded, residents)
    yield reader
    reader.close()
    residents.close()


@pytest.fixture
def blocks_seen(monkeypatch):
    """The blocks whose weights llama.cpp has come to since the list was emptied."""
    seen = []
    look = probe_module.Tap._look

    def noted(self, node, *, ask):
        weight = node.source(0)
        name = "" if weight is None else weight.name
        if name.startswith("blk."):
            seen.append(int(name.split(".")[1]))
        return look(self, node, ask=ask)

    monkeypatch.setattr(probe_module.Tap, "_look", noted)
    return seen


def test_the_pass_ends_behind_the_last_place(loaded, blocks_seen):
    """Also after an earlier prompt was read further, as another signal wants it."""
    probe = HiddenProbe(loaded)
    probe.read(TOKENS[:20], [LAST])
    assert max(blocks_seen) == 2
    blocks_seen.clear()
    probe.read(TOKENS[:30], [FIRST])
    assert set(blocks_seen) == {0}
    probe.read(TOKENS[:30], [LAST])  # what was not read before is read now
    assert max(blocks_seen) == 2


def test_few_rows_are_kept_of_a_long_prompt(loaded):
    probe = HiddenProbe(loaded)
    hidden = probe.read(TOKENS, [LAST])[LAST]
    assert len(hidden.rows) <= MOST_ROWS + 1
    kept = probe._kept[LAST]
    both_ends = 2 * WINDOW  # of the user's text
    assert len(kept.rows) <= MOST_ROWS + both_ends + 1
    assert len(kept.sums) <= MOST_ROWS + both_ends + 2


@pytest.mark.parametrize("n_tokens", [1, 2, 63, 64, 65, 128, 129, 1000])
def test_positions_are_evenly_spaced_and_end_at_the_last_token(n_tokens):
    positions = kept_positions(n_tokens)
    assert positions[0] == 0
    assert positions[-1] == n_tokens - 1
    assert len(positions) <= MOST_ROWS + 1
    steps = set(np.diff(positions[:-1]).tolist())
    assert len(steps) <= 1
    assert set(kept_positions(n_tokens)) - {n_tokens - 1} <= set(range(0, n_tokens, 1))


@pytest.mark.parametrize("before", [[20], [100], [70, 150], [218], [220, 90]])
def test_a_prompt_in_pieces_is_read_as_at_once(loaded, before, monkeypatch):
    probe, fresh = HiddenProbe(loaded), HiddenProbe(loaded)
    expected = fresh.read(TOKENS[:219], [FIRST, LAST])
    for n in before:
        probe.read(TOKENS[:n], [FIRST, LAST])
    found = probe.read(TOKENS[:219], [FIRST, LAST])
    for place in (FIRST, LAST):
        np.testing.assert_allclose(found[place].rows, expected[place].rows, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[place].mean, expected[place].mean, rtol=1e-3, atol=1e-4)
    # The mean is that of all rows, of which only some are kept.
    monkeypatch.setattr("logo_local.hidden_states.MOST_ROWS", 1000)
    every = HiddenProbe(loaded).read(TOKENS[:219], [LAST])[LAST].rows
    assert len(every) == 219
    np.testing.assert_allclose(found[LAST].mean, every.mean(axis=0), rtol=1e-3, atol=1e-4)


def log_softmax(logits):
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def by_llama_cpp(base, tokens, lora_path=None):
    """ln p of each token but the first behind those before it, by llama_cpp itself."""
    llama = Llama(str(base), n_ctx=256, verbose=False, logits_all=True, lora_path=lora_path)
    llama.eval(tokens)
    found = log_softmax(np.array(llama.scores[: len(tokens) - 1]))
    llama.close()
    return found[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("n_given", [1, 2, 150])
def test_a_likelihood_is_llama_cpps(loaded, random_base, n_given):
    """Over several batches, and behind those tokens that are given."""
    tokens = TOKENS[:170]
    context = BatchContext(loaded, 1, 256)
    expected = by_llama_cpp(random_base, tokens)[n_given - 1 :].sum()
    assert context.log_likelihood(tokens, n_given) == pytest.approx(expected, rel=1e-3)
    context.close()


def test_gains_are_likelihoods_under_the_adapter_less_those_of_the_base(
    reader, random_base, random_adapters
):
    tokens = TOKENS[:40]
    path = random_adapters / "ad0.gguf"
    adapter = read_adapter(path, BaseModel.read(random_base))
    (gain,) = reader.gains(tokens, [adapter])
    expected = (
        by_llama_cpp(random_base, tokens, str(path)).sum() - by_llama_cpp(random_base, tokens).sum()
    )
    assert abs(expected) > 1
    assert gain == pytest.approx(expected, rel=1e-2)


def test_what_an_adapter_writes_is_likelier_under_it(reader, random_base, random_adapters):
    """Its own samples: on average by the divergence of the two distributions, which is positive."""
    adapter = read_adapter(random_adapters / "ad4.gguf", BaseModel.read(random_base))
    texts, gain = reader.written_by(adapter)
    assert texts
    assert gain > 0.1


def test_cold_samples_are_what_the_model_prefers_and_warm_ones_differ(loaded, random_llama):
    context = BatchContext(loaded, 4, 24)
    head = TOKENS[:6]
    cold = [sample.tokens for sample in context.sample(head, 1, temperature=1e-3)]
    random_llama.reset()
    greedy = []
    for token in random_llama.generate(head, temp=0.0):
        if token == random_llama.token_eos() or len(greedy) == 24 - len(head) + 1:
            break
        greedy.append(token)
    assert set(cold) == {tuple(greedy)}
    assert len({sample.tokens for sample in context.sample(head, 1, temperature=5.0)}) == 4
    context.close()


def test_a_base_that_puts_nothing_before_a_text_lets_adapters_write(tmp_path):
    base = write_base(tmp_path / "base.gguf", bare=True)
    llama = Llama(str(base), n_ctx=256, verbose=False)
    loaded = LoadedModel(llama)
    assert loaded.tokens_of_text("a")[:1] != loaded.tokens_of_text("7")[:1]
    residents = ResidentAdapters(loaded.pointer, 1 << 30)
    reader = PromptReader(loaded, residents)
    adapter = read_adapter(write_adapter(tmp_path / "a.gguf", 1), BaseModel.read(base))
    texts, _gain = reader.written_by(adapter)
    assert texts
    reader.close()
    loaded.close()
    residents.close()
    llama.close()


@pytest.mark.parametrize(
    "prompt", ["alpha beta", "", [5, 6, 7], [{"role": "user", "content": "hello"}]]
)
def test_tokens_are_those_that_generation_reads(loaded, random_llama, monkeypatch, prompt):
    read = []

    def generate(self, tokens, **_options):
        read.append(list(tokens))
        return iter(())

    monkeypatch.setattr(Llama, "generate", generate)
    if isinstance(prompt, list) and isinstance(prompt[0], dict):
        random_llama.create_chat_completion(prompt, max_tokens=1)
    else:
        random_llama.create_completion(prompt, max_tokens=1)
    assert loaded.tokens_of(prompt) == read[0]


@pytest.mark.parametrize(
    ("one", "other", "n"),
    [
        ([1, 2], [1, 2, 3], 2),
        ([1, 2], [1, 3], 1),
        ([], [1], 0),
        ((1, 2), [1, 2, 3], 2),
        ((1, 2), [1, 3], 1),
        ("ab", "abc", 2),
    ],
)
def test_common_prefixes_by_hand(one, other, n):
    assert common_prefix(one, other) == common_prefix(other, one) == n
