"""Whatever the installed PEFT can be told: what becomes of it here, with PEFT as the judge.

The model is a tiny random Llama of the shape of `random_base`. What a converted file adds to a
weight must be what PEFT says (get_delta_weight), or what really became of the weight.
"""

import copy
import dataclasses
import json
import re
import warnings
from typing import get_args, get_type_hints

import numpy as np
import peft
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_folder import factors, read_lora, write_peft
from random_gguf import SMALL

from logo_local.convert import convert_adapter
from logo_local.convert.layouts import halves_interleaved
from logo_local.convert.peft_config import (
    BASE_CHANGING_STARTS,
    IGNORED,
    PLAIN_STARTS,
    READ,
    UNSUPPORTED,
)
from logo_local.errors import ConversionError
from logo_local.files.base_model import BaseModel
from logo_local.files.folder import weights_in

Q0 = "model.layers.0.self_attn.q_proj"
TOKENS = torch.tensor([[1, 5, 17, 80, 33, 201, 44, 9]])


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


@pytest.fixture
def llama():
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=SMALL.vocab, hidden_size=SMALL.width, intermediate_size=SMALL.ffn,
        num_hidden_layers=SMALL.blocks, num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.kv_heads, initializer_range=0.12, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def quiet():
    """PEFT warns of what is on purpose here, and of what transformers does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def train(model):
    """Move A and B as training would."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))


def updates(folder, base, out):
    """What the converted file adds to each weight, rows as in Hugging Face, by module; the plan."""
    conversion = convert_adapter(folder, base, out, "f32")
    alpha, factors_of = read_lora(out)
    found = {}
    for row in conversion.rows:
        a, b = factors_of[row.target]
        update = (alpha / len(a)) * (b.astype(np.float64) @ a)
        if heads := {"q_proj": 4, "k_proj": 2}.get(row.peft_name.rpartition(".")[2]):
            update = update[np.argsort(halves_interleaved(len(update), heads))]
        found[row.peft_name] = update
    return found, conversion


def assert_close(found, expected, tolerance=1e-5):
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# --- where the factors are, and how they started -----------------------------------------------

LINEAR = {f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")}
SETTINGS = {
    "a regular expression": (
        {"target_modules": r".*layers\.[02]\..*(q_proj|down_proj)"},
        {f"layers.{i}.{name}" for i in (0, 2) for name in ("self_attn.q_proj", "mlp.down_proj")},
    ),
    "all linear layers": ({"target_modules": "all-linear"}, 7 * SMALL.blocks),
    "all but some": (
        {"target_modules": "all-linear", "exclude_modules": ["k_proj", "up_proj"]},
        5 * SMALL.blocks,
    ),
    "some layers by pattern": (
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 2],
         "layers_pattern": "layers"},
        {f"layers.{i}.{name}" for i in (1, 2) for name in ("self_attn.q_proj", "mlp.up_proj")},
    ),
    "one layer": (
        {"target_modules": ["k_proj"], "layers_to_transform": 1},
        {"layers.1.self_attn.k_proj"},
    ),
    "the head as well": ({"target_modules": ["q_proj", "lm_head"]}, SMALL.blocks + 1),
    "bare parameters": (
        {"target_modules": [], "target_parameters": ["mlp.up_proj.weight", "mlp.gate_proj.weight"]},
        2 * SMALL.blocks,
    ),
    "random": ({"init_lora_weights": False}, SMALL.blocks),
    "gaussian": ({"init_lora_weights": "gaussian"}, SMALL.blocks),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, SMALL.blocks),
    "eva": ({"init_lora_weights": "eva"}, SMALL.blocks),
    "mica": ({"init_lora_weights": "mica"}, SMALL.blocks),
    "activated": ({"alora_invocation_tokens": [5, 17]}, SMALL.blocks),
    "velora": ({"velora_config": {"num_groups": 4}}, SMALL.blocks),
    "dropout": ({"lora_dropout": 0.3, "revision": "main", "inference_mode": True}, SMALL.blocks),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "layers"), SETTINGS.values(), ids=SETTINGS.keys())
def test_every_update_is_pefts(settings, layers, llama, base, tmp_path):
    before = copy.deepcopy(llama.state_dict())
    told = {"target_modules": ["q_proj"], "r": 4, "lora_alpha": 6} | settings
    model = get_peft_model(llama, LoraConfig(task_type="CAUSAL_LM", **told))
    train(model)
    model.save_pretrained(tmp_path / "peft")
    found, conversion = updates(tmp_path / "peft", base, tmp_path / "x.gguf")
    assert not [note for note in conversion.notes if "does not know" in note]
    names = {name.removeprefix("model.") for name in found}
    assert (len(names) if isinstance(layers, int) else names) == layers
    for name, update in found.items():
        layer = model.base_model.model.get_submodule(name)
        assert_close(update, layer.get_delta_weight("default").detach().numpy())
        assert torch.equal(layer.base_layer.weight, before[f"{name}.weight"])  # a plain base


# --- those that change the base's weights ------------------------------------------------------


def changing_model(llama, start, **settings):
    """A model whose adapter started so; LoRA-GA looks at some data first."""
    told = {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 6} | settings
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=start, **told)
    if start == "lora_ga":
        from peft import LoraGAConfig, preprocess_loraga

        config.lora_ga_config = LoraGAConfig()
        preprocess_loraga(
            llama, config, lambda: llama(input_ids=TOKENS, labels=TOKENS).loss.backward()
        )
    return get_peft_model(llama, config)


# Not made here: CorDA and LoftQ, for which PEFT needs packages of its own. PEFT converts them by
# the same code; refusing them goes by the config alone, see test_convert.
CHANGING = ["pissa", "pissa_niter_4", "olora", "lora_ga"]


@pytest.mark.parametrize("start", CHANGING)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_converted_back_by_peft_it_is_taken(start, use_rslora, llama, base, tmp_path):
    before = {n: t.clone() for n, t in llama.state_dict().items()}
    model = changing_model(llama, start, use_rslora=use_rslora)
    initial = tmp_path / "initial"
    model.save_pretrained(initial)
    train(model)
    model.save_pretrained(tmp_path / "peft", path_initial_model_for_weight_conversion=str(initial))
    assert config_of(tmp_path / "peft")["init_lora_weights"] is True
    found, conversion = updates(tmp_path / "peft", base, tmp_path / "x.gguf")
    assert {row.rank for row in conversion.rows} == {8}  # twice what it was
    assert len(found) == 2 * SMALL.blocks
    for name, update in found.items():
        layer = model.base_model.model.get_submodule(name)
        old = before[f"{name}.weight"].numpy()
        assert not np.array_equal(layer.base_layer.weight.detach().numpy(), old)
        now = layer.base_layer.weight + layer.get_delta_weight("default")
        # against the weights themselves, so to the precision of float32 there
        assert np.abs(update - (now.detach().numpy() - old)).max() < 1e-5 * np.abs(old).max()
        assert np.abs(update).max() > 0.01


@pytest.mark.parametrize("start", CHANGING)
def test_saved_as_it_is_it_is_refused_with_the_way_out(start, llama, base, tmp_path):
    model = changing_model(llama, start)
    train(model)
    model.save_pretrained(tmp_path / "peft")
    assert config_of(tmp_path / "peft")["init_lora_weights"] == start
    with pytest.raises(ConversionError) as caught:
        convert_adapter(tmp_path / "peft", base, tmp_path / "x.gguf")
    (problem,) = caught.value.problems
    assert f"init_lora_weights is {start!r}" in problem
    assert "changed the base's own weights" in problem
    assert "path_initial_model_for_weight_conversion" in caught.value.hint


# --- all that PEFT has -------------------------------------------------------------------------

KINDS = [kind.value for kind in peft.PeftType if kind != peft.PeftType.LORA]


UNMERGEABLE = {"LILY", "POLY", "SHADOW"}


@pytest.mark.parametrize("kind", sorted(UNMERGEABLE))
def test_peft_itself_merges_these_into_no_base(kind, llama):
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    model = get_peft_model(llama, config(target_modules=["q_proj"]))
    with pytest.raises(NotImplementedError):
        model.merge_and_unload()


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_kind_is_refused_by_its_name_and_with_a_way_out(kind, base, tmp_path):
    folder = write_peft(tmp_path / "x", factors({Q0: (64, 64)}), peft_type=kind)
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, tmp_path / "x.gguf")
    assert caught.value.problems == (f"peft_type is {kind!r}; only LORA can be converted",)
    prompts = issubclass(
        PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)], peft.PromptLearningConfig
    )
    if prompts or kind == "ADAPTION_PROMPT":
        assert "it trained prompts" in caught.value.hint
    elif kind in UNMERGEABLE:
        assert "cannot merge it" in caught.value.hint
    elif kind == "XLORA":
        assert "one by one" in caught.value.hint
    else:
        assert "merge_and_unload" in caught.value.hint


def test_an_adalora_as_peft_saves_it(llama, base, tmp_path):
    config = peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, total_step=10)
    get_peft_model(llama, config).save_pretrained(tmp_path / "x")
    with pytest.raises(ConversionError, match="peft_type is 'ADALORA'"):
        convert_adapter(tmp_path / "x", base, tmp_path / "x.gguf")
    written = config_of(tmp_path / "x") | {"peft_type": "LORA", "r": 4}
    (tmp_path / "x" / "adapter_config.json").write_text(json.dumps(written))
    with pytest.raises(ConversionError, match="AdaLoRA's singular values"):
        convert_adapter(tmp_path / "x", base, tmp_path / "x.gguf")


def test_every_setting_of_pefts_lora_was_decided_on():
    """A field that is new in PEFT fails here until it is put among one of the three."""
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields <= READ | IGNORED | UNSUPPORTED.keys()
    assert not READ & IGNORED
    assert not UNSUPPORTED.keys() & (READ | IGNORED)
    # what is not PEFT's is written by others
    assert (READ | IGNORED | UNSUPPORTED.keys()) - fields == {"invocation_string"}


def test_every_start_that_peft_knows_was_decided_on():
    hint = get_type_hints(LoraConfig)["init_lora_weights"]
    names = {name for part in get_args(hint) for name in get_args(part)}
    assert {"gaussian", "pissa", "olora"} <= names
    for name in names:
        assert name.startswith(PLAIN_STARTS) != name.startswith(BASE_CHANGING_STARTS), name


@pytest.mark.parametrize("setting", sorted(UNSUPPORTED))
def test_each_unsupported_setting_is_refused_with_a_way_out(setting, base, tmp_path):
    folder = write_peft(tmp_path / "x", factors({Q0: (64, 64)}), **{setting: {"on": 1}})
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, tmp_path / "x.gguf")
    (problem,) = caught.value.problems
    assert setting in problem
    assert caught.value.hint


def test_peft_itself_has_no_activated_lora_of_bare_parameters(llama):
    told = {"target_parameters": ["mlp.up_proj.weight"], "alora_invocation_tokens": [5]}
    with pytest.raises(ValueError, match="alora_invocation_tokens"):
        get_peft_model(llama, LoraConfig(task_type="CAUSAL_LM", target_modules=[], **told))


@pytest.mark.parametrize("setting", [*sorted(UNSUPPORTED), "target_parameters"])
@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_a_setting_that_is_not_in_use_stands_in_no_way(setting, value, base, tmp_path):
    folder = write_peft(tmp_path / "x", factors({Q0: (64, 64)}), **{setting: value})
    assert not convert_adapter(folder, base, tmp_path / "x.gguf").notes


def test_a_setting_that_nobody_knows_is_remarked_on(base, tmp_path):
    said = {"magic_size": 3, "magic_off": None, "magic_too": {}}
    folder = write_peft(tmp_path / "x", factors({Q0: (64, 64)}), **said)
    notes = convert_adapter(folder, base, tmp_path / "x.gguf").notes
    assert notes == ("adapter_config.json has magic_size, which this converter does not know",)


def test_a_start_that_nobody_knows_is_refused(base, tmp_path):
    folder = write_peft(tmp_path / "x", factors({Q0: (64, 64)}), init_lora_weights="magic")
    with pytest.raises(ConversionError, match="does not know whether that changed the base's own"):
        convert_adapter(folder, base, tmp_path / "x.gguf")


# --- what PEFT saved that cannot be held, as it saved it ---------------------------------------

Q = {"target_modules": ["q_proj"], "r": 4}
REFUSED = {
    "dora": (LoraConfig(use_dora=True, **Q), ["use_dora", "DoRA magnitudes"]),
    "modules_to_save": (
        LoraConfig(modules_to_save=["lm_head"], **Q),
        ["modules_to_save:", "lm_head.weight: a whole embedding or output layer"],
    ),
    "norms": (
        LoraConfig(modules_to_save=["input_layernorm"], **Q),
        ["modules_to_save:", "input_layernorm.weight and 2 more: trained norms"],
    ),
    "tokens": (
        LoraConfig(trainable_token_indices={"embed_tokens": [1, 2]}, **Q),
        ["trainable_token_indices", "new or trained tokens"],
    ),
    "bias": (LoraConfig(bias="all", **Q), ["bias is 'all'"]),
    "bias of lora": (LoraConfig(bias="lora_only", **Q), ["bias is 'lora_only'"]),
    "lora_bias": (LoraConfig(lora_bias=True, **Q), ["lora_bias:", "biases of lora_B"]),
    "replication": (LoraConfig(layer_replication=[(0, 2), (1, 3)], **Q), ["layer_replication"]),
    "kasa": (LoraConfig(kasa_config=peft.KasaConfig(), **Q), ["kasa_config"]),
    "vera": (peft.VeraConfig(target_modules=["q_proj"]), ["'VERA'"]),
    "ia3": (
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        ["'IA3'"],
    ),
    "loha": (peft.LoHaConfig(target_modules=["q_proj"]), ["'LOHA'"]),
    "lokr": (peft.LoKrConfig(target_modules=["q_proj"]), ["'LOKR'"]),
    "prompts": (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        ["'PROMPT_TUNING'"],
    ),
    "prefixes": (
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        ["'PREFIX_TUNING'"],
    ),
}


@pytest.mark.parametrize(("config", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_peft_saved_is_refused_by_every_sign_of_it(config, said, llama, base, tmp_path):
    model = get_peft_model(llama, copy.deepcopy(config))
    train(model)
    model.save_pretrained(tmp_path / "x")
    with pytest.raises(ConversionError) as caught:
        convert_adapter(tmp_path / "x", base, tmp_path / "x.gguf")
    for part in said:
        assert [line for line in caught.value.problems if part in line], caught.value.problems
    assert caught.value.hint


def test_added_tokens(llama, base, tmp_path):
    llama.resize_token_embeddings(SMALL.vocab + 10)
    model = get_peft_model(llama, LoraConfig(**Q))
    train(model)
    model.save_pretrained(tmp_path / "x", save_embedding_layers=True)
    with pytest.raises(ConversionError) as caught:
        convert_adapter(tmp_path / "x", base, tmp_path / "x.gguf")
    (problem,) = caught.value.problems
    assert "a whole embedding or output layer (new tokens?)" in problem
    assert "merge_and_unload" in caught.value.hint


def test_pickled(llama, base, tmp_path):
    get_peft_model(llama, LoraConfig(**Q)).save_pretrained(tmp_path / "x", safe_serialization=False)
    with pytest.raises(ConversionError, match="is a pickle, which can run code") as caught:
        convert_adapter(tmp_path / "x", base, tmp_path / "x.gguf")
    assert "safe_serialization=True" in caught.value.hint


# --- saved by transformers ---------------------------------------------------------------------


def test_shards_as_transformers_writes_them(llama, base, tmp_path):
    config = LoraConfig(target_modules=["q_proj", "up_proj", "down_proj"], r=4, lora_alpha=6)
    llama.add_adapter(config)
    train(llama)
    llama.save_pretrained(tmp_path / "x", max_shard_size="4KB")
    names = [path.name for path in weights_in(tmp_path / "x")]
    assert len(names) > 3
    assert all(re.fullmatch(r"adapter_model-\d{5}-of-\d{5}\.safetensors", name) for name in names)
    assert (tmp_path / "x" / "model.safetensors.index.json").is_file()
    found, _ = updates(tmp_path / "x", base, tmp_path / "x.gguf")
    assert len(found) == 3 * SMALL.blocks
    for name, update in found.items():
        delta = llama.get_submodule(name).get_delta_weight("default")
        assert_close(update, delta.detach().numpy())
