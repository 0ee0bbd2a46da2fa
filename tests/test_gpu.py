"""Layers in the memory of a GPU give what the CPU gives: routes, mixtures, states, answers.

Skipped where llama.cpp has no GPU; `make gpu-check` builds one that has, and fails without.
"""

import llama_cpp
import numpy as np
import pytest
from random_gguf import EXPERTS, write_adapter, write_base

from logo_local.engine import LoGo
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.hidden_states import Place
from logo_local.llama import devices
from logo_local.llama.mixture import Mixer, ResidentAdapters
from logo_local.llama.model import LoadedModel
from logo_local.llama.probe import EachProbe, HiddenProbe

if not devices.gpus():
    pytest.skip("llama.cpp has no GPU here: make gpu-check", allow_module_level=True)

# Of the four of the random model, the last of which is the output: all, three, and the output.
LAYERS = (-1, 3, 1)
SHORT = [1, *range(60, 80)]
LONG = [1, *range(10, 200)]  # from 32 tokens, llama.cpp copies the CPU's weights to the GPU
F32_CACHE = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
WEIGHTS = {"ad0": 0.5, "ad2": 0.3, "ad4": 0.2}


def near(found, expected, tolerance=1e-2):
    """Whether numbers are the same but for the order of sums and float16 within attention."""
    return np.abs(found - expected).max() <= tolerance * np.ptp(expected)


class Model:
    """The random model with its adapters, and readings of it."""

    def __init__(self, base, adapters, n_gpu_layers):
        where = devices.placed({"n_gpu_layers": n_gpu_layers})
        self.llama = llama_cpp.Llama(str(base), n_ctx=256, verbose=False, **F32_CACHE, **where)
        self.loaded = LoadedModel(self.llama)
        described = BaseModel.read(base)
        paths = sorted(adapters.glob("*.gguf"))
        self.adapters = {path.stem: read_adapter(path, described) for path in paths}

    def hidden(self, tokens, places):
        probe = HiddenProbe(self.loaded)
        reading = probe.read(tokens, places)
        probe.close()
        return {place: (found.last, found.mean) for place, found in reading.items()}

    def logits(self, tokens, *mixtures, way):
        """The logits under each mixture in turn, and the ways that were used."""
        probe = EachProbe(self.loaded)
        residents = ResidentAdapters(self.llama.model, 1 << 30)
        mixer = Mixer(self.loaded, probe.ctx, residents, way=way)
        found = []
        for weights in mixtures:
            used = mixer.set([(self.adapters[name], w) for name, w in weights.items()])
            assert used == (way if weights else "none")
            found.append(probe.logits(tokens))
        self.in_place = [buffer._in_place for buffer in mixer._buffers]
        mixer.close()
        probe.close()
        residents.close()
        return found

    def close(self):
        self.loaded.close()
        self.llama.close()


@pytest.fixture(scope="module")
def on_cpu(random_base, random_adapters):
    model = Model(random_base, random_adapters, 0)
    yield model
    model.close()


@pytest.fixture(scope="module", params=LAYERS)
def on_gpu(request, random_base, random_adapters):
    model = Model(random_base, random_adapters, request.param)
    yield model
    model.close()


@pytest.mark.parametrize("tokens", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("residual", [False, True], ids=["input", "residual"])
def test_hidden_states_are_those_of_the_cpu(on_cpu, on_gpu, tokens, residual):
    places = [Place(f"blk.{block}.attn_q.weight", residual) for block in range(3)]
    if not residual:
        places += [Place("blk.1.ffn_down.weight"), Place("blk.0.attn_output.weight")]
    found, expected = on_gpu.hidden(tokens, places), on_cpu.hidden(tokens, places)
    for place in places:
        for ours, theirs in zip(found[place], expected[place], strict=True):
            assert near(ours, theirs), place


@pytest.mark.parametrize("tokens", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("way", ["stacked", "scales"])
def test_mixtures_are_those_of_the_cpu(on_cpu, on_gpu, tokens, way):
    mixtures = [WEIGHTS, {**WEIGHTS, "ad0": -0.7}, {"ad1": 1.0}, {}, WEIGHTS]
    found = on_gpu.logits(tokens, *mixtures, way=way)
    expected = on_cpu.logits(tokens, *mixtures, way="scales")
    for ours, theirs in zip(found, expected, strict=True):
        assert near(ours, theirs)
    assert not near(expected[0], expected[3], 0.05)
    np.testing.assert_array_equal(found[0], found[-1])


def test_a_stack_in_the_gpus_memory_is_not_written_in_place(on_cpu, on_gpu):
    on_gpu.logits(SHORT, WEIGHTS, way="stacked")
    on_cpu.logits(SHORT, WEIGHTS, way="stacked")
    layers = on_gpu.llama.model_params.n_gpu_layers
    assert on_gpu.in_place == [layers == 1]  # the output alone has no adapter here
    assert on_cpu.in_place == [True]


def engine(base, adapters, layers, **settings):
    how = {"signal": "norm", "n_ctx": 256, "past": False, "n_gpu_layers": layers, **F32_CACHE}
    return LoGo(base, adapters, **{**how, **settings})


def text_of(llm, prompt):
    completion = llm.create_completion(prompt, max_tokens=8, temperature=0)
    return completion["choices"][0]["text"]


def answer(llm, tokens, weights, length=6):
    with llm.under(weights):
        generated = llm.generate(tokens, temp=0.0)
        found = [next(generated) for _ in range(length)]
        generated.close()
    return found


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("signal", ["norm", "profile", "each-entropy"])
def test_routes_and_answers_are_those_of_the_cpu(random_base, described_adapters, layers, signal):
    each = signal.startswith("each")
    how, tolerance = ({"probe": "each"}, 3e-2) if each else ({}, 1e-3)
    with (
        engine(random_base, described_adapters, 0, signal=signal, **how) as cpu,
        engine(random_base, described_adapters, layers, signal=signal, **how) as gpu,
    ):
        for prompt in ("alpha beta gamma", "north south east west " * 6):
            ours, theirs = gpu.route(prompt), cpu.route(prompt)
            assert ours.names == theirs.names
            assert ours.all_scores == pytest.approx(theirs.all_scores, rel=tolerance, abs=1e-4)
            if not each:  # its weights depend on all logits, and the random model's are close
                assert text_of(gpu, prompt) == text_of(cpu, prompt)


@pytest.mark.parametrize("layers", LAYERS)
def test_a_state_that_comes_back_is_that_of_a_fresh_engine(random_base, random_adapters, layers):
    a, b = {"ad0": 1.0}, {"ad1": 0.5, "ad3": 0.5}
    text = LONG[:80]
    with engine(random_base, random_adapters, layers) as llm:
        first, other, again = (answer(llm, text, weights) for weights in (a, b, a))
        assert llm._conversations.cache.n_bytes
        longer = answer(llm, [*text, *first, 5, 6, 7], a)
        llm.reset()
        llm._conversations.cache.clear()
        assert first == again == answer(llm, text, a)
        assert first != other
        llm.reset()
        llm._conversations.cache.clear()
        assert longer == answer(llm, [*text, *first, 5, 6, 7], a)


@pytest.mark.parametrize("layers", LAYERS)
def test_a_saved_state_is_loaded(random_base, random_adapters, layers):
    with engine(random_base, random_adapters, layers) as llm:
        expected = answer(llm, LONG[:40], {"ad0": 1.0})
        state = llm.save_state()
        answer(llm, SHORT, {"ad1": 1.0})
        llm.load_state(state)
        assert answer(llm, LONG[:40], {"ad0": 1.0}) == expected


@pytest.mark.parametrize("layers", LAYERS)
def test_a_prompt_read_by_the_base_is_copied_to_the_generating_context(
    random_base, random_adapters, layers
):
    with (
        engine(random_base, random_adapters, 0, prefill="base") as cpu,
        engine(random_base, random_adapters, layers, prefill="base") as gpu,
    ):
        assert text_of(gpu, "alpha beta gamma") == text_of(cpu, "alpha beta gamma")


@pytest.mark.parametrize("layers", LAYERS)
def test_a_pass_over_experts_can_end_early(tmp_path, layers):
    """Experts of the CPU are copied by ids that a pass computes, unless it has ended before."""
    base = write_base(tmp_path / "base.gguf", shape=EXPERTS)
    (tmp_path / "adapters").mkdir()
    write_adapter(tmp_path / "adapters" / "ad0.gguf", 1, shape=EXPERTS)
    places = [Place("blk.0.attn_q.weight")]
    found = []
    for n_gpu_layers in (0, layers):
        model = Model(base, tmp_path / "adapters", n_gpu_layers)
        found.append(model.hidden(LONG, places)[places[0]][0])
        found.append(model.logits(LONG, {"ad0": 1.0}, way="stacked")[0])
        model.close()
    assert near(found[2], found[0])
    assert near(found[3], found[1])


def test_embeddings_are_those_of_the_cpu(random_base, random_adapters):
    texts = ["alpha beta gamma", "one two three"]
    with (
        engine(random_base, random_adapters, 0) as cpu,
        engine(random_base, random_adapters, -1) as gpu,
    ):
        for ours, theirs in zip(gpu.embeddings(texts)[0], cpu.embeddings(texts)[0], strict=True):
            assert near(np.asarray(ours), np.asarray(theirs))
