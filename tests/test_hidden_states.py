"""What is kept of a prompt's hidden states: windows of the text, whatever was read before."""

import numpy as np
import pytest

from logo_local import hidden_states
from logo_local.engine import LoGo
from logo_local.hidden_states import WINDOW, Framed, Hidden, Place
from logo_local.llama.probe import HiddenProbe
from logo_local.llama.reader import RAW_SUFFIX

PLACES = (Place("blk.0.attn_q.weight"), Place("blk.1.attn_q.weight"))


@pytest.fixture
def llm(random_base, random_adapters):
    threads = {"n_threads": 1, "n_threads_batch": 1}
    with LoGo(random_base, random_adapters, n_ctx=512, signal="norm", **threads) as made:
        yield made


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        (3, 50, range(3, 3 + WINDOW), range(50 - WINDOW, 50)),
        (3, 8, range(3, 8), range(3, 8)),  # a short text is both
        (3, 3, range(3, 4), range(3, 4)),  # an empty one still has something to read
    ],
)
def test_windows_are_inside_the_users_text(start, end, first, last):
    assert Framed(tuple(range(60)), start, end, "chat").positions() == (first, last)


def test_windows_by_hand():
    rows = np.arange(40, dtype=np.float32)[:, None]  # (n_tokens, 1)
    found = Hidden.of(rows, Framed(tuple(range(40)), 4, 36, "chat"))
    assert found.mean.item() == 19.5
    assert found.first.item() == np.mean(range(4, 20))
    assert found.final.item() == np.mean(range(20, 36))
    assert found.last.item() == 39


def tokens(n, seed):
    return np.random.default_rng(seed).integers(5, 200, n).tolist()


def test_the_probe_reads_what_all_rows_would_give(llm, monkeypatch):
    prompt = Framed(tuple(tokens(200, 1)), 20, 190, "chat")
    kept = HiddenProbe(llm.loaded).read(prompt, PLACES)
    monkeypatch.setattr(hidden_states, "MOST_ROWS", 1000)
    whole = HiddenProbe(llm.loaded).read(prompt, PLACES)
    for place in PLACES:
        by_hand = Hidden.of(whole[place].rows, prompt)
        for part in ("mean", "first", "final", "last"):
            found, expected = getattr(kept[place], part), getattr(by_hand, part)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("common", [0, 5, 30, 90, 119])
def test_a_prompt_that_begins_alike_is_read_as_a_fresh_one(llm, common):
    one, other = tokens(120, 1), tokens(150, 2)
    other[:common] = one[:common]
    first, second = (Framed(tuple(t), 2, len(t) - 5, "chat") for t in (one, other))
    probe = HiddenProbe(llm.loaded)
    probe.read(first, PLACES)
    again, fresh = probe.read(second, PLACES), HiddenProbe(llm.loaded).read(second, PLACES)
    for place in PLACES:
        for part in ("mean", "first", "final", "last"):
            np.testing.assert_allclose(
                getattr(again[place], part), getattr(fresh[place], part), rtol=1e-3, atol=1e-3
            )


def test_a_raw_prompt_has_a_suffix_unless_it_fills_the_context(llm):
    reader = llm.router._reader
    suffix = llm.tokenize(RAW_SUFFIX.encode(), add_bos=False)
    framed = reader.frame([1, 9, 9])
    assert (framed.form, list(framed.tokens[framed.end :])) == ("raw", suffix)
    full = reader.frame(tokens(llm.n_ctx(), 3))
    assert len(full.tokens) == full.end == llm.n_ctx()
