"""The converter against what it must agree with: PEFT, llama.cpp's converter, and their logits."""

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft_folder import read_lora
from tiny import ADAPTERS, ORACLE_ADAPTERS, known_warnings

from logo_local.convert import convert_adapter
from logo_local.convert.layouts import halves_interleaved
from logo_local.convert.patterns import pattern_key
from logo_local.files.base_model import BaseModel

# llama.cpp's converter


@pytest.mark.parametrize("name", ORACLE_ADAPTERS)
def test_equal_to_llama_cpps_converter_bit_for_bit(name, tiny_model, tmp_path):
    convert_adapter(tiny_model.adapters[name], tiny_model.gguf, tmp_path / "ours.gguf", "f32")
    alpha, ours = read_lora(tmp_path / "ours.gguf")
    their_alpha, theirs = read_lora(tiny_model.oracle[name])
    assert alpha == their_alpha == ADAPTERS[name]["lora_alpha"]
    assert ours.keys() == theirs.keys()
    for target, factors in theirs.items():
        for got, expected in zip(ours[target], factors, strict=True):
            assert got.tobytes() == expected.tobytes(), target


# PEFT's arithmetic

LEAVES = ("q_proj", "k_proj", "v_proj", "down_proj")
PATTERNS = (
    "q_proj",
    "k_proj",
    "proj",  # names nothing: a key must cover a whole part of the name
    "self_attn.v_proj",
    r"layers\.1\..*",
    "^model.layers.0.mlp.down_proj",
    "^layers.0.self_attn.q_proj",  # anchored, so it names nothing
    ".*down_proj",
    "model.layers.1.self_attn.k_proj",
    r"[qv]_proj",
    "0.self_attn.q_proj|v_proj",
)


def all_modules():
    for block in range(2):
        for leaf in LEAVES:
            yield f"model.layers.{block}.{'mlp' if leaf == 'down_proj' else 'self_attn'}.{leaf}"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_in_peft(pattern):
    from peft.utils.other import get_pattern_key

    patterns = {"nothing.at.all": 1, pattern: 2}
    for module in all_modules():
        theirs = patterns.get(get_pattern_key(patterns.keys(), module))
        ours = pattern_key(patterns, module)
        assert (None if ours is None else patterns[ours]) == theirs


def skeleton():
    """The layers of a Llama, without anything that would make them work together."""
    import torch

    def linear(d_out, d_in):
        return torch.nn.Linear(d_in, d_out, bias=False)

    def block():
        attention = {"q_proj": linear(16, 16), "k_proj": linear(8, 16), "v_proj": linear(8, 16)}
        return torch.nn.ModuleDict(
            {
                "self_attn": torch.nn.ModuleDict(attention),
                "mlp": torch.nn.ModuleDict({"down_proj": linear(16, 24)}),
            }
        )

    layers = torch.nn.ModuleList([block(), block()])
    return torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": layers})})


@pytest.fixture(scope="module")
def skeleton_base(random_base):
    tensors = {}
    for block in range(2):
        tensors[f"blk.{block}.attn_q.weight"] = (16, 16)
        tensors[f"blk.{block}.attn_k.weight"] = (8, 16)
        tensors[f"blk.{block}.attn_v.weight"] = (8, 16)
        tensors[f"blk.{block}.ffn_down.weight"] = (16, 24)
    return dataclasses.replace(BaseModel.read(random_base), n_blocks=2, tensors=tensors)


ranks = st.integers(1, 9)
alphas = st.one_of(st.integers(1, 64), st.floats(0.01, 100), st.floats(-4, -0.5))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    r=ranks,
    lora_alpha=alphas,
    use_rslora=st.booleans(),
    rank_pattern=st.dictionaries(st.sampled_from(PATTERNS), ranks, max_size=4),
    alpha_pattern=st.dictionaries(st.sampled_from(PATTERNS), alphas, max_size=4),
)
def test_every_update_equals_pefts(skeleton_base, tmp_path, **settings_drawn):
    import torch
    from peft import LoraConfig, get_peft_model

    # Where two keys match, the first one counts, and PEFT sorts the keys when it saves: unsorted,
    # PEFT itself would read back another adapter than it saved.
    for table in ("rank_pattern", "alpha_pattern"):
        settings_drawn[table] = dict(sorted(settings_drawn[table].items()))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using Rank-Stabilized LoRA")  # about converting weights
        warnings.filterwarnings("ignore", ".*keys did not match any targeted module")
        config = LoraConfig(target_modules=list(LEAVES), **settings_drawn)
        model = get_peft_model(skeleton(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "peft")
    conversion = convert_adapter(tmp_path / "peft", skeleton_base, tmp_path / "x.gguf", "f32")
    alpha, converted = read_lora(tmp_path / "x.gguf")
    assert {row.peft_name for row in conversion.rows} == set(all_modules())
    for row in conversion.rows:
        layer = model.base_model.model.get_submodule(row.peft_name)
        expected = layer.get_delta_weight("default").detach().numpy()  # (d_out, d_in)
        if heads := {"q_proj": 4, "k_proj": 2}.get(row.peft_name.rpartition(".")[2]):
            expected = expected[halves_interleaved(len(expected), heads)]
        a, b = converted[row.target]
        got = (alpha / a.shape[0]) * (b.astype(np.float64) @ a)
        assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()
        assert row.scaling == layer.scaling["default"]


# Logits

PROMPT = "the lazy dog sleeps over 42 brown sheep, quick!"


@pytest.fixture(scope="module")
def peft_logits(tiny_model):
    """A function from an adapter's name (None: the base alone) to logits (tokens, vocabulary)."""
    import torch

    model = tiny_model.load_peft(*ADAPTERS)
    tokens = torch.tensor([tiny_model.encode(PROMPT)])

    def logits(name):
        with torch.no_grad(), known_warnings():
            if name is None:
                with model.disable_adapter():
                    return model(tokens).logits[0].numpy()
            model.set_adapter(name)
            return model(tokens).logits[0].numpy()

    return logits


def llama_logits(tiny_model, **options):
    from llama_cpp import Llama

    tokens = tiny_model.encode(PROMPT)
    llama = Llama(
        str(tiny_model.gguf),
        n_ctx=64,
        n_threads=1,
        n_threads_batch=1,
        type_k=0,  # keys and values in float32
        type_v=0,
        logits_all=True,
        verbose=False,
        **options,
    )
    llama.eval(tokens)
    logits = llama.scores[: len(tokens)].copy()
    llama.close()
    return logits


def spread(logits):
    return logits.max() - logits.min()


def test_base_logits_agree(tiny_model, peft_logits):
    theirs = peft_logits(None)
    assert np.abs(llama_logits(tiny_model) - theirs).max() < 1e-3 * spread(theirs)


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_under_an_adapter_agree(name, tiny_model, peft_logits, tmp_path):
    convert_adapter(tiny_model.adapters[name], tiny_model.gguf, tmp_path / "x.gguf", "f32")
    ours = llama_logits(tiny_model, lora_path=str(tmp_path / "x.gguf"))
    theirs = peft_logits(name)
    assert np.abs(ours - theirs).max() < 1e-3 * spread(theirs)
    # and the adapter does something that could have gone wrong
    assert np.abs(theirs - peft_logits(None)).max() > 0.05 * spread(theirs)
