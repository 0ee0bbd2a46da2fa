"""Keys and values that come back: the same answers as from an engine that read everything anew."""

import llama_cpp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_cpp import Llama
from random_gguf import write_adapter, write_recurrent, write_windowed

from logo_local.engine import LoGo
from logo_local.errors import AdapterError
from logo_local.hidden_states import Place
from logo_local.llama import probe, state_cache
from logo_local.llama.model import Context, LoadedModel
from logo_local.llama.probe import HiddenProbe
from logo_local.llama.state_cache import LEAST_TOKENS, Conversations, StateCache

SYSTEM = [1, *range(10, 60)]  # longer than what is read again anyway
BLENDS = ({}, {"ad0": 1.0}, {"ad1": 0.5, "ad3": 0.5}, {"ad0": 0.5})
LENGTH = 4  # tokens of an answer


@pytest.fixture(scope="module")
def engines(random_base, random_adapters):
    """engines(**settings): an engine on the random model, made once for all tests here."""
    made = {}

    def make(adapters=random_adapters, **options):
        key = (adapters, *sorted(options.items()))
        if key not in made:
            one = {
                "n_threads": 1,
                "n_threads_batch": 1,
            }  # two wait for each other on a busy machine
            how = {"signal": "norm", "n_ctx": 256, "past": False, **one, **options}
            made[key] = LoGo(random_base, adapters, **how)
        llm = made[key]
        llm.reset()
        llm._conversations.cache.clear()
        return llm

    yield make
    for llm in made.values():
        llm.close()


@pytest.fixture(scope="module")
def llama(random_base):
    """The random model in llama_cpp's own class."""
    made = Llama(str(random_base), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    yield made
    made.close()


@pytest.fixture
def read(monkeypatch):
    """What the generating context evaluates, batch by batch."""
    batches = []
    parent = Llama.eval
    monkeypatch.setattr(
        Llama, "eval", lambda self, new: (batches.append(list(new)), parent(self, new))[1]
    )
    return batches


def last_logits(llm):
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()


def answer(llm, prompt, weights, length=LENGTH):
    """The first tokens of an answer, and the logits behind the prompt."""
    with llm.under(weights):
        tokens = llm.generate(prompt, temp=0.0)
        first = next(tokens)
        logits = last_logits(llm)
        found = [first, *(next(tokens) for _ in range(length - 1))]
        tokens.close()
    return found, logits


def fresh(llm, prompt, weights, length=LENGTH):
    """The same, where all is read anew."""
    llm.reset()
    llm._conversations.cache.clear()
    return answer(llm, prompt, weights, length)


def assert_same(found, expected):
    tokens, logits = found
    others, theirs = expected
    assert_near(logits, theirs)
    assert tokens == others


def assert_near(logits, expected):
    """Equal but for the rounding of batches of another size; blends differ by far more."""
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.ptp(expected), rtol=0)


# What is read


def test_back_to_an_earlier_blend_only_what_is_new_is_read(engines, read):
    llm = engines()
    a, b = BLENDS[1], BLENDS[2]
    said, _ = answer(llm, SYSTEM, a)
    history = [*SYSTEM, *said]
    said, _ = answer(llm, history, b)
    history = [*history, *said, 70, 71]
    del read[:]
    found = answer(llm, history, a, 1)
    # The last token of an answer was never evaluated.
    assert read == [history[len(SYSTEM) + LENGTH - 1 :]]
    assert_same(found, fresh(llm, history, a, 1))


def test_another_conversation_goes_on_from_the_system_prompt_under_its_blend(engines, read):
    llm = engines()
    for blend in BLENDS[:2]:
        answer(llm, [*SYSTEM, *range(100, 130)], blend)
    del read[:]
    answer(llm, [*SYSTEM, 200, 201], BLENDS[0], 1)
    assert read == [[200, 201]]
    answer(llm, [*SYSTEM, 210], BLENDS[3], 1)  # never there: everything is read
    assert read[1:] == [[*SYSTEM, 210]]


def test_two_conversations_under_one_blend_do_not_drive_each_other_out(engines, read):
    llm = engines()
    one, other = [1, *range(60, 120)], [1, *range(120, 180)]
    for prompt in (one, other):
        answer(llm, prompt, BLENDS[1], 1)
    del read[:]
    answer(llm, [*one, 70, 71], BLENDS[1], 1)
    answer(llm, [*other, 72], BLENDS[1], 1)
    assert read == [[70, 71], [72]]


def test_an_unchanged_blend_copies_nothing(engines, monkeypatch):
    llm = engines()
    history = list(SYSTEM)
    monkeypatch.setattr(llama_cpp, "llama_state_seq_get_data", None)  # a call is an error
    for i in range(4):
        said, _ = answer(llm, history, BLENDS[1])
        history += [*said, 80 + i]
    answer(llm, history[:-1], BLENDS[1])  # once more, with another end
    assert len(llm._conversations.cache) == 0


def test_what_is_known_is_not_copied_again(engines, monkeypatch):
    llm = engines()
    for blend in (BLENDS[1], BLENDS[2], BLENDS[1]):
        answer(llm, SYSTEM, blend)
    held = len(llm._conversations.cache)
    monkeypatch.setattr(llama_cpp, "llama_state_seq_get_data", None)
    answer(llm, SYSTEM, BLENDS[2], 1)
    assert len(llm._conversations.cache) == held == 2


def test_a_prompt_that_was_answered_is_read_from_its_last_token(engines, read):
    llm = engines()
    for blend in (BLENDS[1], BLENDS[2]):
        answer(llm, SYSTEM, blend)
    del read[:]
    answer(llm, SYSTEM, BLENDS[1], 1)
    assert read == [SYSTEM[-1:]]


@pytest.mark.parametrize(
    "options", [{"cache_memory": 0}, {"logits_all": True}, {"prefill": "base"}]
)
def test_without_a_cache_nothing_is_kept(engines, options):
    llm = engines(**options)
    for blend in (*BLENDS, *BLENDS):
        answer(llm, SYSTEM, blend)
    assert len(llm._conversations.cache) == 0


def test_a_rewritten_adapter_is_another_blend(engines, tmp_path, read):
    path = write_adapter(tmp_path / "one.gguf", 1)
    llm = engines(tmp_path)
    _, before = answer(llm, SYSTEM, {"one": 1.0})
    answer(llm, SYSTEM, {})
    write_adapter(path, 2, rank=7)
    del read[:]
    _, after = answer(llm, SYSTEM, {"one": 1.0}, 1)
    assert read == [SYSTEM]
    assert np.abs(after - before).max() > 0.1


# The same answers

PARTS = st.lists(st.integers(5, 290), min_size=1, max_size=40)
TURNS = st.lists(
    st.tuples(
        st.sampled_from(BLENDS),
        st.sampled_from(["on", "again", "new", "branch"]),
        PARTS,
    ),
    min_size=2,
    max_size=6,
)


@pytest.mark.parametrize("memory", ["64M", 90_000, 40_000, 1])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=TURNS)
def test_random_conversations_equal_those_of_an_engine_that_reads_all(engines, memory, turns):
    llm, reader = engines(cache_memory=memory), engines(cache_memory=0)
    prompt, history = [], list(SYSTEM)
    for blend, step, part in turns:
        if step == "new" or len(history) + len(part) > 240:
            history = list(SYSTEM)
        if step == "branch":
            history = history[: len(SYSTEM) + (len(history) - len(SYSTEM)) // 2]
        if step != "again" or not prompt:
            prompt = [*history, *part]
        said, logits = answer(llm, prompt, blend)
        assert_near(logits, fresh(reader, prompt, blend, 1)[1])
        history = [*prompt, *said]
        assert llm._conversations.cache.n_bytes <= llm._conversations.cache.memory


# Models whose states cannot be cut


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_recurrent, {}),
        (write_windowed, {"swa_full": False}),
        (write_windowed, {"swa_full": True}),
    ],
)
def test_states_of_other_models_come_back_exactly(tmp_path, read, write, options):
    how = {"n_ctx": 512, "n_ubatch": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    llama = Llama(str(write(tmp_path / "model.gguf")), **how, **options)
    loaded = LoadedModel(llama)
    assert not loaded.can_cut
    conversations = Conversations(loaded, 2**24)
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 290, 460).tolist()
    before = None

    def logits_of(key, prompt):
        nonlocal before
        conversations.change(before, key, prompt)
        before = key
        next(llama.generate(prompt, temp=0.0))
        return last_logits(llama)

    def read_anew(prompt):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
        llama.reset()
        next(llama.generate(prompt, temp=0.0))
        return last_logits(llama)

    steps = [("a", 300), ("b", 400), ("a", 310), ("b", 460), ("a", 200), ("b", 399), ("b", 330)]
    steps += [("a", 205), ("a", 203)]
    n_read, found = [], []
    for key, n in steps:
        del read[:]
        found.append(logits_of(key, tokens[:n]))
        n_read.append(sum(map(len, read)))
    for (_, n), logits in zip(steps, found, strict=True):
        assert_near(logits, read_anew(tokens[:n]))
    # Whole states only; a context goes back by itself where it holds all of its window.
    assert n_read == [300, 400, 10, 60, 200, 399, 1 if options.get("swa_full") else 330, 5, 3]
    llama.close()


# The probe's context


@pytest.fixture
def probed(monkeypatch):
    """How many tokens each pass over a prompt evaluates."""
    passes = []
    decode = Context.decode
    monkeypatch.setattr(
        Context, "decode", lambda self, new: (passes.append(len(new)), decode(self, new))[1]
    )
    return passes


def test_a_conversation_is_read_on_after_its_last_message_was_read_alone(
    llama, probed, monkeypatch
):
    monkeypatch.setattr(probe, "LEAST_KEPT", 64)
    place = Place("blk.1.attn_q.weight")
    loaded = LoadedModel(llama)
    states = StateCache(2**20)
    ours, fresh = HiddenProbe(loaded, states=states), HiddenProbe(loaded)
    history = [1, *range(10, 110)]
    for turn in range(3):
        message = [1, *range(200, 206 + turn)]
        history += [7, *message[1:]]
        ours.read(message, [place])
        del probed[:]
        found = ours.read(history, [place])[place]
        read = probed[:]
        expected = fresh.read(history, [place])[place]
        np.testing.assert_allclose(found.mean, expected.mean, atol=1e-3)
        np.testing.assert_allclose(found.rows, expected.rows, atol=1e-2)
        assert sum(read) == (len(message) if turn else len(history) - 1)
    assert len(states) == 1
    ours.close()
    fresh.close()


def test_prompts_of_a_probe_in_any_order_have_the_same_vectors(llama, monkeypatch):
    monkeypatch.setattr(probe, "LEAST_KEPT", 40)
    places = [Place("blk.1.attn_q.weight"), Place("blk.2.ffn_up.weight")]
    loaded = LoadedModel(llama)
    ours, fresh = HiddenProbe(loaded, states=StateCache(100_000)), HiddenProbe(loaded)
    rng = np.random.default_rng(0)
    one, other = (rng.integers(5, 290, 200).tolist() for _ in range(2))
    for i in range(20):
        prompt = [one, other][rng.integers(2)][: rng.integers(1, 200)]
        wanted = places[: 1 + i % 2]
        found, expected = ours.read(prompt, wanted), fresh.read(prompt, wanted)
        fresh._seen = None  # each of its prompts is read whole
        for at in wanted:
            for mine, theirs in zip(found[at], expected[at], strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-2)
    ours.close()
    fresh.close()


# Interrupted


def conversation(llm):
    """Four prompts under changing blends; the answers."""
    found, history = [], list(SYSTEM)
    for blend in (BLENDS[1], BLENDS[2], BLENDS[1], BLENDS[2]):
        said, _ = answer(llm, history, blend)
        found.append(said)
        history += said
    return found


@pytest.mark.parametrize("where", ["get_size", "get_data", "set_data"])
@pytest.mark.parametrize("late", [False, True])
def test_after_an_interrupt_the_answers_are_the_same(engines, monkeypatch, where, late):
    llm = engines()
    expected = conversation(llm)
    llm = engines()
    name = f"llama_state_seq_{where}"
    real = getattr(llama_cpp, name)

    def interrupted(*args):
        if late:
            real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            conversation(llm)
    assert conversation(llm) == expected
    assert conversation(llm) == expected


@pytest.mark.parametrize("name", ["llama_state_seq_get_data", "llama_state_seq_set_data"])
def test_a_state_that_llama_cpp_refuses_is_read_again(engines, monkeypatch, name):
    expected = conversation(engines())
    llm = engines()
    monkeypatch.setattr(llama_cpp, name, lambda *_: 0)
    assert conversation(llm) == expected


def test_numbers_that_are_not_finite_are_not_kept(engines):
    llm = engines()
    expected = fresh(llm, SYSTEM, BLENDS[1])
    with pytest.raises(AdapterError, match="not finite"):
        answer(llm, SYSTEM, {"ad0": 1e30})
    assert_same(answer(llm, SYSTEM, BLENDS[1]), expected)
    assert len(llm._conversations.cache) == 1  # the answer before it


def test_a_prompt_that_was_not_read_to_its_end_can_go_on(engines):
    llm = engines(n_batch=32)
    prompt = [1, *range(60, 200)]
    expected = fresh(llm, prompt, BLENDS[1])
    llm.reset()
    asked = []
    llm.should_stop = lambda: len(asked) > 2 or asked.append(1)
    with llm.under(BLENDS[1]):
        assert list(llm.generate(prompt, temp=0.0)) == []
    llm.should_stop = lambda: False
    answer(llm, SYSTEM, {})
    assert_same(answer(llm, prompt, BLENDS[1]), expected)


# The cache by itself


class Contexts:
    """llama.cpp's states, as lists: `held` is what each context holds."""

    def __init__(self, monkeypatch, bytes_of_token=10):
        self.held = {}
        self.n = bytes_of_token
        for name in ("get_size", "get_data", "set_data"):
            monkeypatch.setattr(llama_cpp, f"llama_state_seq_{name}", getattr(self, name))
        monkeypatch.setattr(state_cache, "_is_cut", self.is_cut)
        monkeypatch.setattr(llama_cpp, "llama_get_memory", lambda ctx: ctx)
        monkeypatch.setattr(llama_cpp, "llama_memory_clear", lambda ctx, _: self.held.pop(ctx, 0))

    def is_cut(self, ctx, n):
        self.held[ctx] = self.held[ctx][:n]
        return len(self.held[ctx]) == n

    def get_size(self, ctx, _):
        return self.n * len(self.held[ctx])

    def get_data(self, ctx, data, size, _):
        np.ctypeslib.as_array(data, (size,))[:] = np.repeat(self.held[ctx], self.n)
        return size

    def set_data(self, ctx, data, size, _):
        self.held[ctx] = np.ctypeslib.as_array(data, (size,))[:: self.n].tolist()
        return size


LONG = list(range(1, LEAST_TOKENS + 9))  # 40 tokens: 400 bytes


def test_the_longest_prefix_under_the_same_key_wins(monkeypatch):
    contexts, cache = Contexts(monkeypatch), StateCache(10_000)
    for key, tokens in (("a", LONG), ("a", [*LONG[:36], 90, 91]), ("b", [*LONG, 50, 51])):
        contexts.held["x"] = tokens
        cache.keep("x", key, tokens)
    prompt = [*LONG, 50, 51, 52]
    assert cache.find("a", prompt).n_tokens == 40
    assert cache.find("b", prompt).n_tokens == 42
    assert cache.find("a", [*LONG[:36], 90, 91, 92]).n_tokens == 38
    assert cache.find("a", LONG).n_tokens == 39  # the last is read for its logits
    assert cache.find("c", prompt) is None
    assert cache.find("a", prompt, more_than=9) is None  # too little is won
    assert cache.restore("y", cache.find("a", [*LONG[:36], 77, 78]))
    assert contexts.held["y"] == LONG[:36]


def test_the_least_recently_used_leaves(monkeypatch):
    contexts, cache = Contexts(monkeypatch), StateCache(1000)
    for key in "abc":
        contexts.held["x"] = LONG
        cache.keep("x", key, LONG)
        cache.find("a", [*LONG, 1])
    assert [bool(cache.find(key, [*LONG, 1])) for key in "abc"] == [True, False, True]
    assert cache.n_bytes == 800
    contexts.held["x"] = [*LONG] * 3
    cache.keep("x", "d", contexts.held["x"])  # larger than all of the memory: nothing leaves
    assert len(cache) == 2


def test_of_two_that_do_not_fit_together_each_can_come_back(monkeypatch):
    contexts, cache = Contexts(monkeypatch), StateCache(500)
    contexts.held["x"] = LONG
    cache.keep("x", "a", LONG)
    found = cache.find("a", [*LONG, 1])
    contexts.held["x"] = LONG[::-1]
    cache.keep("x", "b", LONG[::-1])
    assert len(cache) == 1
    assert cache.restore("x", found)
    assert contexts.held["x"] == LONG
    assert cache.n_bytes == 400


def test_a_longer_state_takes_the_place_of_its_beginning(monkeypatch):
    contexts, cache = Contexts(monkeypatch), StateCache(10_000)
    for tokens in (LONG, [*LONG, 50], LONG):
        contexts.held["x"] = tokens
        cache.keep("x", "a", tokens)
    assert cache.n_bytes == 410


def test_a_state_that_cannot_be_cut_is_used_whole(monkeypatch):
    contexts, cache = Contexts(monkeypatch), StateCache(10_000, can_cut=False)
    for tokens in (LONG, [*LONG, 50, 51]):
        contexts.held["x"] = tokens
        cache.keep("x", "a", tokens)
    assert len(cache) == 2  # the shorter one is of use where the longer one is not
    assert cache.find("a", [*LONG, 50, 51, 52]).n_tokens == 42
    assert cache.find("a", [*LONG, 50, 51]).n_tokens == 40
    assert cache.find("a", [*LONG, 90]).n_tokens == 40
    assert cache.find("a", LONG) is None
    assert cache.find("a", [*LONG[:39], 90]) is None


def test_a_context_that_holds_something_else_is_not_kept(monkeypatch):
    contexts, cache = Contexts(monkeypatch), StateCache(10_000)
    contexts.held["x"] = LONG[:-1]
    cache.keep("x", "a", LONG)
    assert len(cache) == 0
