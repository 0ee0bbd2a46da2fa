"""The whole way against Hugging Face: the paper's scores in torch, the mixture in PEFT.

Tiny random Llama and Qwen2 models; four adapters of different ranks, alphas and modules (one
rsLoRA, one with patterns, one on q and v only), converted by this project; all in float32.
"""

import llama_cpp
import numpy as np
import pytest
from gpu_layers import tolerance

from logo_local.convert import convert_adapter
from logo_local.engine import LoGo

NAMES = ("plain", "query-value", "rslora", "patterns")
# llama.cpp rounds keys and values to 16 bits unless told otherwise; torch does not.
F32_CACHE = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
REL = tolerance(1e-4, 1e-3)
PROMPTS = ("the quick brown fox jumps over", "lazy sheep sleep while 42 dogs", "a")


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_qwen2"])
def tiny(request, tmp_path_factory):
    """(the tiny model, a folder with its adapters converted to f32)."""
    model = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    for name in NAMES:
        convert_adapter(model.adapters[name], model.gguf, folder / f"{name}.gguf", "f32")
    return model, folder


@pytest.fixture(scope="module")
def peft_model(tiny):
    return tiny[0].load_peft(*NAMES)


@pytest.fixture
def open_logo(tiny):
    made = []

    def make(**settings):
        model, folder = tiny
        if settings.get("probe") != "each":
            settings = {"signal": "norm", **settings}  # it always blends all of them
        made.append(LoGo(model.gguf, folder, n_ctx=256, top_k=len(NAMES), **F32_CACHE, **settings))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def torch_scores(peft_model, tokens, layer, tap, signal):
    """The paper's formula, from PEFT's own A, B and scaling and transformers' hidden states."""
    import torch

    seen = {}
    with torch.no_grad(), peft_model.disable_adapter():
        base = peft_model.base_model.model
        blocks = base.model.layers
        block = blocks[layer]
        hook = block.self_attn.q_proj.register_forward_pre_hook(
            lambda _module, inputs: seen.update(h=inputs[0][0, -1])
        )
        states = base(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        hook.remove()
        h = seen["h"] if tap == "input" else states[layer % len(blocks)][0, -1]
        scores = {}
        for name in NAMES:
            q = block.self_attn.q_proj
            o = q.scaling[name] * (q.lora_B[name].weight @ (q.lora_A[name].weight @ h))
            if signal == "norm":
                scores[name] = o.norm().item()
            else:
                p = torch.softmax(o.double(), dim=0)
                scores[name] = 1 / (-(p * p.log()).sum().item() + 1e-6)
    return scores


@pytest.mark.parametrize("signal", ["norm", "entropy"])
@pytest.mark.parametrize("tap", ["input", "residual"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_scores_and_their_order_are_the_papers(tiny, peft_model, open_logo, signal, tap, layer):
    llm = open_logo(signal=signal, tap=tap, layer=layer)
    for prompt in PROMPTS:
        tokens = tiny[0].encode(prompt)
        route = llm.route(tokens)
        expected = torch_scores(peft_model, tokens, layer, tap, signal)
        assert route.all_scores == pytest.approx(expected, rel=REL)
        assert list(route.names) == sorted(expected, key=lambda name: -expected[name])
        total = sum(expected.values())
        assert route.weights == pytest.approx([expected[n] / total for n in route.names], rel=REL)


def peft_logits(peft_model, tokens, weights):
    """PEFT's logits (len(tokens), n_vocab) with each adapter's scaling times its weight."""
    import torch
    from peft.tuners.lora import LoraLayer

    layers = [m for m in peft_model.modules() if isinstance(m, LoraLayer)]
    before = [dict(m.scaling) for m in layers]
    peft_model.base_model.set_adapter(list(weights))
    try:
        for module in layers:
            for name, weight in weights.items():
                if name in module.scaling:
                    module.scaling[name] *= weight
        with torch.no_grad():
            return peft_model(torch.tensor([tokens])).logits[0].numpy()
    finally:
        for module, scaling in zip(layers, before, strict=True):
            module.scaling.update(scaling)


def llama_logits(llm, tokens):
    """llama.cpp's logits (n_vocab,) behind `tokens` under the route that the engine chooses."""
    next(llm.generate(tokens, temp=0.0))
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_of_the_mixture_are_pefts(tiny, peft_model, open_logo, prompt):
    llm = open_logo(signal="norm")
    tokens = tiny[0].encode(prompt)
    ours = llama_logits(llm, tokens)
    weights = dict(zip(llm.last_route.names, llm.last_route.weights, strict=True))
    assert len(weights) == 4
    assert len({round(w, 3) for w in weights.values()}) == 4  # unequal, or it proves less
    theirs = peft_logits(peft_model, tokens, weights)[-1]
    assert np.abs(ours - theirs).max() <= 1e-3 * np.ptp(theirs)
    base = peft_logits(peft_model, tokens, dict.fromkeys(NAMES, 0.0))[-1]
    assert np.abs(base - theirs).max() > 0.02 * np.ptp(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_one_adapter_are_pefts(tiny, peft_model, open_logo, name):
    llm = open_logo()
    llm.pool.pin(name)
    tokens = tiny[0].encode(PROMPTS[0])
    ours = llama_logits(llm, tokens)
    theirs = peft_logits(peft_model, tokens, {name: 1.0})[-1]
    assert np.abs(ours - theirs).max() <= 1e-3 * np.ptp(theirs)


def test_each_ranks_by_pefts_next_token_entropy(tiny, peft_model, open_logo):
    llm = open_logo(probe="each")
    tokens = tiny[0].encode(PROMPTS[0])
    route = llm.route(tokens)
    for name, score in route.all_scores.items():
        logits = peft_logits(peft_model, tokens, {name: 1.0})[-1].astype(np.float64)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        assert score == pytest.approx(1 / (-(p * np.log(p)).sum() + 1e-6), rel=1e-3)
