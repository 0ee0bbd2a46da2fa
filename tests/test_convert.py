"""The converter by hand: layouts, bytes, types, refusals, and that failure leaves nothing."""

import dataclasses
import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from peft_folder import factor_name, factors, read_lora, save_as, write_peft

from logo_local.convert import OUTTYPES, convert_adapter, plan_conversion
from logo_local.convert.layouts import (
    LAYOUTS,
    REFUSED,
    halves_interleaved,
    parts_apart,
    parts_of,
)
from logo_local.errors import AdapterError, ConversionError, ModelError
from logo_local.files.adapter_file import ALORA, read_adapter
from logo_local.files.base_model import BaseModel

REPOSITORY = Path(__file__).parents[1]
Q0 = "model.layers.0.self_attn.q_proj"
K1 = "model.layers.1.self_attn.k_proj"
V2 = "model.layers.2.self_attn.v_proj"
UP = "model.layers.0.mlp.up_proj"
SHAPES = {Q0: (64, 64), K1: (32, 64), V2: (32, 64), UP: (96, 64)}


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


@pytest.fixture
def adapter(tmp_path):
    """A sound PEFT folder of rank 4 and alpha 8 for `random_base`."""
    return write_peft(tmp_path / "sorter", factors(SHAPES))


@pytest.fixture
def out(tmp_path):
    """Where to write: alone in its folder, so that leftovers show."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "adapter.gguf"


def listing(out):
    return sorted(path.name for path in out.parent.iterdir())


# Layouts


def test_halves_of_each_head_are_interleaved():
    # two heads of width 4: rows 0 1 | 2 3 and 4 5 | 6 7 become pairs (0, 2) (1, 3) and so on
    assert halves_interleaved(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert halves_interleaved(8, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    with pytest.raises(ValueError, match="6 rows do not form 2 heads of even width"):
        halves_interleaved(6, 2)


def test_queries_keys_and_values_are_put_apart():
    # two heads of width 2, each q k v
    assert parts_apart(12, 2, (1, 1, 1)).tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    # two groups of two queries, a key and a value, of width 1
    assert parts_apart(8, 2, (2, 1, 1)).tolist() == [0, 1, 4, 5, 2, 6, 3, 7]
    with pytest.raises(ValueError, match="7 rows do not form 8 heads"):
        parts_apart(7, 2, (2, 1, 1))


@pytest.mark.parametrize(
    ("architecture", "module", "expected"),
    [
        # 4 heads of queries in 2 groups, each followed by a key and a value, of width 2:
        # q0 q1 k0 v0 q2 q3 k1 v1; a head of width 2 is its own rotary order
        (
            "internlm2",
            "model.layers.0.attention.wqkv",
            {"attn_q": [0, 1, 2, 3, 8, 9, 10, 11], "attn_k": [4, 5, 12, 13],
             "attn_v": [6, 7, 14, 15]},
        ),
        # the same heads one after the other
        (
            "baichuan",
            "model.layers.0.self_attn.W_pack",
            {"attn_q": list(range(8)), "attn_k": [8, 9, 10, 11], "attn_v": [12, 13, 14, 15]},
        ),
        (
            "granitemoe",
            "model.layers.0.shared_mlp.input_linear",
            {"ffn_gate_shexp": list(range(8)), "ffn_up_shexp": list(range(8, 16))},
        ),
    ],
)  # fmt: skip
def test_the_parts_of_a_layer(base, architecture, module, expected):
    parts = parts_of(architecture, module)
    assert {kind: rows(base, 16).indices.tolist() for kind, rows in parts} == expected
    with pytest.raises(ValueError, match="15 rows do not form"):
        parts[0][1](base, 15)


def test_the_parts_of_queries_are_put_in_rotary_order(base):
    ((_, queries), *_) = parts_of("internlm2", "model.layers.0.attention.wqkv")
    # heads of width 4: q0 is rows 0 to 3, whose halves are interleaved
    assert queries(base, 32).indices.tolist()[:8] == [0, 2, 1, 3, 4, 6, 5, 7]
    assert queries(base, 32).indices.tolist()[8:] == [16, 18, 17, 19, 20, 22, 21, 23]


def test_llama_reorders_only_the_rows_of_q_and_k(adapter, base, out):
    conversion = convert_adapter(adapter, base, out, "f32")
    tensors = factors(SHAPES)
    _, converted = read_lora(out)
    assert {row.peft_name: row.transform for row in conversion.rows} == {
        Q0: "rotary rows, 4 heads", K1: "rotary rows, 2 heads", V2: "", UP: "",
    }  # fmt: skip
    for row in conversion.rows:
        a, b = (tensors[factor_name(row.peft_name, part)] for part in "AB")
        if heads := {Q0: 4, K1: 2}.get(row.peft_name):
            b = b[halves_interleaved(len(b), heads)]
            assert not np.array_equal(b, tensors[factor_name(row.peft_name, "B")])
        np.testing.assert_array_equal(converted[row.target][0], a)
        np.testing.assert_array_equal(converted[row.target][1], b)


def test_qwen2_reorders_nothing(adapter, base, out):
    convert_adapter(adapter, dataclasses.replace(base, architecture="qwen2"), out, "f32")
    np.testing.assert_array_equal(
        read_lora(out)[1]["blk.0.attn_q.weight"][1], factors(SHAPES)[factor_name(Q0, "B")]
    )


# The file


def test_the_bytes_of_a_minimal_adapter(base, tmp_path, out):
    tensors = {
        factor_name(V2.replace("2", "0"), "A"): np.array([[1, 2, 3]], np.float32),
        factor_name(V2.replace("2", "0"), "B"): np.array([[4], [5]], np.float32),
    }
    small = dataclasses.replace(base, n_blocks=1, tensors={"blk.0.attn_v.weight": (2, 3)})
    said = {"base_model_name_or_path": "somebody/a-base", "peft_version": "0.21.2"}
    folder = write_peft(tmp_path / "tiny", tensors, r=1, lora_alpha=2, task_type=None, **said)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA card.")
    convert_adapter(folder, small, out, "f32")

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def key(name, kind, value):
        return text(name) + struct.pack("<I", kind) + value

    u32, f32, string = 4, 6, 8
    expected = b"GGUF" + struct.pack("<IQQ", 3, 2, 13)
    expected += key("general.architecture", string, text("llama"))
    expected += key("general.type", string, text("adapter"))
    expected += key("adapter.type", string, text("lora"))
    expected += key("adapter.lora.alpha", f32, struct.pack("<f", 2))
    expected += key("general.name", string, text("tiny"))
    expected += key("general.file_type", u32, struct.pack("<I", 0))
    expected += key("general.quantization_version", u32, struct.pack("<I", 2))
    expected += key("logo_local.converter_version", u32, struct.pack("<I", 2))
    source = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    expected += key("logo_local.source_sha256", string, text(source))
    expected += key("general.base_model.count", u32, struct.pack("<I", 1))
    expected += key("general.base_model.0.name", string, text("somebody/a-base"))
    expected += key("logo_local.peft_version", string, text("0.21.2"))
    expected += key("general.license", string, text("mit"))
    # name, number of dimensions, dimensions (innermost first), type (0 is f32), offset of the data
    expected += text("blk.0.attn_v.weight.lora_a") + struct.pack("<IQQIQ", 2, 3, 1, 0, 0)
    expected += text("blk.0.attn_v.weight.lora_b") + struct.pack("<IQQIQ", 2, 1, 2, 0, 32)
    expected += bytes(-len(expected) % 32)
    expected += struct.pack("<3f", 1, 2, 3).ljust(32, b"\0")
    expected += struct.pack("<2f", 4, 5).ljust(32, b"\0")
    assert out.read_bytes() == expected


def test_an_activated_lora_carries_its_tokens_for_llama_cpp(base, tmp_path, out, random_llama):
    """llama.cpp itself reads them back; this runtime says that it does not run it."""
    tokens = [299, 0, 17]
    folder = write_peft(tmp_path / "x", factors(SHAPES), alora_invocation_tokens=tokens)
    conversion = convert_adapter(folder, base, out)
    assert conversion.invocation_tokens == (299, 0, 17)
    (note,) = conversion.notes
    assert note.startswith("it is an activated LoRA (aLoRA)")
    assert "not supported by logo-local" in note
    adapter = llama_cpp.llama_adapter_lora_init(random_llama.model, str(out).encode())
    assert adapter
    n = llama_cpp.llama_adapter_get_alora_n_invocation_tokens(adapter)
    assert llama_cpp.llama_adapter_get_alora_invocation_tokens(adapter)[:n] == tokens
    llama_cpp.llama_adapter_lora_free(adapter)
    with pytest.raises(AdapterError) as caught:
        read_adapter(out, base)
    assert caught.value.problems == (ALORA,)
    # the numbers are those of the same adapter without them
    with_tokens = read_lora(out)[1]
    convert_adapter(write_peft(tmp_path / "x", factors(SHAPES)), base, out)
    for target, pair in read_lora(out)[1].items():
        for one, other in zip(pair, with_tokens[target], strict=True):
            np.testing.assert_array_equal(one, other)


def test_to_run_it_an_activated_lora_is_refused_and_nothing_written(base, tmp_path, out):
    folder = write_peft(tmp_path / "x", factors(SHAPES), alora_invocation_tokens=[1])
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, out, to_run=True)
    assert caught.value.problems == (ALORA,)
    assert "llama.cpp's own programs" in caught.value.hint
    assert listing(out) == []


@pytest.mark.parametrize(
    "card",
    ["", "no head", "---\nlicense: [a, b]\n---", "---\nlicense: {\n---", "---\nlicense: mit"],
)
def test_a_card_that_says_nothing_of_a_licence(base, tmp_path, out, card):
    folder = write_peft(tmp_path / "x", factors({Q0: (64, 64)}), base_model_name_or_path=7)
    (folder / "README.md").write_text(card)
    convert_adapter(folder, base, out)
    fields = gguf.GGUFReader(out).fields
    assert not fields.keys() & {"general.license", "general.base_model.count"}


def test_what_somebody_else_wrote_is_kept_short_and_printable(base, tmp_path, out):
    folder = write_peft(
        tmp_path / "x", factors({Q0: (64, 64)}), base_model_name_or_path="\x1b[31m" + "x" * 999
    )
    convert_adapter(folder, base, out)
    name = gguf.GGUFReader(out).fields["general.base_model.0.name"].contents()
    assert name.isprintable()
    assert len(name) <= 256


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float16, "F16"), (np.float32, "F32"), (np.float64, "F32")]
)
def test_auto_keeps_the_adapters_own_precision(base, tmp_path, out, dtype, kind):
    tensors = {name: v.astype(dtype) for name, v in factors({V2: (32, 64)}).items()}
    convert_adapter(write_peft(tmp_path / "x", tensors), base, out, "auto")
    reader = gguf.GGUFReader(out)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {kind}
    ((a, b),) = read_lora(out)[1].values()
    np.testing.assert_array_equal(a, tensors[factor_name(V2, "A")].astype(np.float32))
    np.testing.assert_array_equal(b, tensors[factor_name(V2, "B")].astype(np.float32))


def test_converting_twice_gives_the_same_bytes(adapter, base, out, tmp_path):
    convert_adapter(adapter, base, out)
    again = tmp_path / "again.gguf"
    convert_adapter(adapter, base.path, again)
    assert out.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("outtype", "relative"),
    [("f32", 0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 0.5 / 127 + 2**-11)],
)
def test_types_keep_their_precision(outtype, relative, base, tmp_path, out):
    folder = write_peft(tmp_path / "wide", factors({Q0: (64, 64)}, rank=32), r=32)
    conversion = convert_adapter(folder, base, out, outtype)
    kind = gguf.GGMLQuantizationType[outtype.upper()]
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(out).tensors} == {kind}
    (row,) = conversion.rows
    assert row.types == (outtype, outtype)
    assert conversion.n_bytes == sum(t.n_bytes for t in gguf.GGUFReader(out).tensors)
    tensors = factors({Q0: (64, 64)}, rank=32)
    a, b = read_lora(out)[1][row.target]
    for got, part in ((a, "A"), (b, "B")):
        exact = tensors[factor_name(Q0, part)]
        if part == "B":
            exact = exact[halves_interleaved(len(exact), 4)]
        # q8_0 rounds by the largest of 32 numbers, in steps that are f16; the others one by one
        blocks = np.abs(exact.reshape(-1, 32)).max(1).repeat(32).reshape(exact.shape)
        size = blocks if outtype == "q8_0" else np.abs(exact)
        assert (np.abs(got - exact) <= relative * size * 1.01).all()


def test_q8_0_falls_back_to_f16_where_rows_do_not_divide(adapter, base, out):
    conversion = convert_adapter(adapter, base, out, "q8_0")
    assert {row.types for row in conversion.rows} == {("q8_0", "f16")}
    assert "no multiple of 32" in conversion.notes[0]
    types = {t.name.rpartition(".")[2]: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
    assert types == {"lora_a": "Q8_0", "lora_b": "F16"}


def test_stored_types_are_widened_without_loss(base, tmp_path, out):
    tensors = factors({V2: (32, 64)})
    folder = write_peft(tmp_path / "stored", tensors)
    weights = folder / "adapter_model.safetensors"
    halves = {n: t.astype(np.float16) for n, t in tensors.items()}
    upper = {n: (t.view(np.uint32) >> 16).astype(np.uint16) for n, t in tensors.items()}
    exact = {
        "f16": {n: t.astype(np.float32) for n, t in halves.items()},
        "bf16": {n: (t.astype(np.uint32) << 16).view(np.float32) for n, t in upper.items()},
        "f64": tensors,
    }
    for stored, values in exact.items():
        if stored == "bf16":
            save_as(weights, "bfloat16", upper)
        else:
            wide = {n: t.astype(np.float64) for n, t in tensors.items()}
            write_peft(folder, halves if stored == "f16" else wide)
        convert_adapter(folder, base, out, "f32")
        for part, got in zip("AB", read_lora(out)[1]["blk.2.attn_v.weight"], strict=True):
            np.testing.assert_array_equal(got, values[factor_name(V2, part)])


# Scalings


def alphas_and_factors(base, folder, tensors, **config):
    plan = plan_conversion(write_peft(folder, tensors, **config), base, folder.parent / "x.gguf")
    return plan.lora_alpha, {row.peft_name: row.factor for row in plan.rows}


def test_one_alpha_for_all_leaves_the_numbers_alone(base, tmp_path):
    tensors = factors(SHAPES, rank=4)
    alpha, by_row = alphas_and_factors(base, tmp_path / "a", tensors, lora_alpha=3)
    assert (alpha, set(by_row.values())) == (3.0, {1.0})
    # rank_pattern changes the rank that alpha is divided by, which GGUF sees by itself
    mixed = factors({Q0: (64, 64)}, rank=4) | factors({UP: (96, 64)}, rank=2)
    pattern = {"up_proj": 2}
    alpha, by_row = alphas_and_factors(base, tmp_path / "b", mixed, rank_pattern=pattern)
    assert (alpha, set(by_row.values())) == (8.0, {1.0})
    # rsLoRA of one rank: alpha / sqrt(4) is the same as 2 alpha / 4
    alpha, by_row = alphas_and_factors(base, tmp_path / "c", tensors, lora_alpha=3, use_rslora=True)
    assert (alpha, set(by_row.values())) == (6.0, {1.0})


def test_layers_that_differ_have_the_rest_multiplied_into_b(base, tmp_path, out):
    tensors = factors(SHAPES)
    pattern = {"k_proj": 2, "layers.0.mlp.up_proj": 12}
    alpha, by_row = alphas_and_factors(base, tmp_path / "a", tensors, alpha_pattern=pattern)
    assert alpha == 8.0
    assert by_row == {Q0: 1.0, V2: 1.0, K1: 0.25, UP: 1.5}
    convert_adapter(tmp_path / "a", base, out, "f32")
    b = read_lora(out)[1]["blk.0.ffn_up.weight"][1]
    np.testing.assert_array_equal(b, tensors[factor_name(UP, "B")] * np.float32(1.5))


def test_the_plan_says_what_would_be_done(adapter, base, out):
    plan = plan_conversion(adapter, base, out, "q8_0")
    assert listing(out) == []
    assert (plan.name, plan.architecture, plan.rank_text) == ("sorter", "llama", "4")
    first = plan.rows[0]
    assert (first.peft_name, first.target) == (Q0, "blk.0.attn_q.weight")
    assert (first.d_in, first.d_out, first.rank, first.scaling) == (64, 64, 4, 2.0)
    assert first.transform == "rotary rows, 4 heads"
    assert plan == convert_adapter(adapter, base, out, "q8_0")


def test_remarks(adapter, base, out):
    (adapter / "adapter_model.bin").write_bytes(b"whatever")
    (plan_note,) = plan_conversion(adapter, base, out).notes
    assert "adapter_model.bin lies beside" in plan_note
    zero = {n: t * ("lora_A" in n) for n, t in factors(SHAPES).items()}
    (adapter / "adapter_model.bin").unlink()
    (note,) = plan_conversion(write_peft(adapter, zero), base, out).notes
    assert "every lora_B is zero" in note


def test_remarks_on_patterns(base, tmp_path, out):
    patterns = {"[qk]_proj": 2, "q_proj": 3, "z_proj": 4}
    folder = write_peft(tmp_path / "patterns", factors(SHAPES), alpha_pattern=patterns)
    plan = plan_conversion(folder, base, out)
    scalings = {row.peft_name: row.scaling for row in plan.rows}
    assert scalings == {Q0: 0.5, K1: 0.5, V2: 2.0, UP: 2.0}
    idle, ambiguous = plan.notes
    assert idle == "alpha_pattern: 'z_proj' names no layer of the adapter"
    assert f"{Q0} is named by '[qk]_proj' and 'q_proj'; '[qk]_proj' is taken" in ambiguous


def test_progress_counts_to_the_end(adapter, base, out):
    seen = []
    convert_adapter(adapter, base, out, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16)
    assert seen == sorted(seen)


# Names


@pytest.mark.parametrize(
    "form",
    [
        "base_model.model.{}.lora_{}.weight",
        "base_model.model.{}.lora_{}.default.weight",
        "{}.lora_{}.weight",
        "base_model.model.{}.lora_{}.my-adapter.weight",
    ],
)
def test_forms_of_names(form, base, tmp_path, out):
    tensors = {
        form.format(Q0, "A"): np.ones((4, 64), np.float32),
        form.format(Q0, "B"): np.ones((64, 4), np.float32),
    }
    plan = plan_conversion(write_peft(tmp_path / "named", tensors), base, out)
    assert [row.target for row in plan.rows] == ["blk.0.attn_q.weight"]


# Refusals: (what is changed in the config, in the tensors), and what must be said


def without(*names):
    return {name: None for name in names}


def ones(*shape):
    return np.ones(shape, np.float32)


AQ, BQ = factor_name(Q0, "A"), factor_name(Q0, "B")
REFUSALS = {
    "another peft type": ({"peft_type": "LOHA"}, {}, "peft_type is 'LOHA'; only LORA"),
    "not PEFT at all": ({"peft_type": None}, {}, "peft_type is None"),
    "dora": ({"use_dora": True}, {}, "DoRA (use_dora)"),
    "dora by its tensors": (
        {},
        {f"base_model.model.{Q0}.lora_magnitude_vector.weight": ones(64)},
        "lora_magnitude_vector.weight: DoRA magnitudes",
    ),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save: whole layers"),
    "modules_to_save by its tensors": (
        {},
        {"base_model.model.lm_head.modules_to_save.default.weight": ones(300, 64)},
        "whole layers trained beside LoRA",
    ),
    "a whole embedding": (
        {},
        {"base_model.model.model.embed_tokens.weight": ones(310, 64)},
        "a whole embedding or output layer (new tokens?)",
    ),
    "lora of an embedding with more tokens": (
        {},
        {
            "base_model.model.model.embed_tokens.lora_embedding_A": ones(4, 310),
            "base_model.model.model.embed_tokens.lora_embedding_B": ones(64, 4),
        },
        "made for a layer of shape (310, 64), but the base's token_embd.weight has (300, 64)",
    ),
    "half of an embedding": (
        {},
        {"base_model.model.model.embed_tokens.lora_embedding_A": ones(4, 300)},
        "model.embed_tokens has lora_A without lora_B",
    ),
    "new tokens": ({"trainable_token_indices": [5]}, {}, "trainable_token_indices"),
    "bias": ({"bias": "all"}, {}, "bias is 'all'"),
    "bias by its tensors": (
        {},
        {f"base_model.model.{Q0}.bias": ones(64)},
        "self_attn.q_proj.bias: trained biases",
    ),
    "lora_bias": ({"lora_bias": True}, {}, "lora_bias: the adapter adds biases"),
    "lora_bias by its tensors": (
        {},
        {f"base_model.model.{Q0}.lora_B.bias": ones(64)},
        "biases of lora_B",
    ),
    "norms": (
        {},
        {"base_model.model.model.layers.0.input_layernorm.weight": ones(64)},
        "input_layernorm.weight: trained norms",
    ),
    "base weights": (
        {},
        {f"base_model.model.{Q0}.base_layer.weight": ones(64, 64)},
        "weights of the base model itself",
    ),
    "a tensor of no known kind": ({}, {"something": ones(3)}, "something: not LoRA factors"),
    "qalora": ({"use_qalora": True}, {}, "QALoRA"),
    "a switch of the future": ({"use_magic": True}, {}, "use_magic is set"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, {}, "changed the base's own weights"),
    "olora": ({"init_lora_weights": "OLoRA"}, {}, "changed the base's own weights"),
    "corda": ({"init_lora_weights": "corda"}, {}, "changed the base's own weights"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, {}, "changed the base's own weights"),
    "loftq": ({"init_lora_weights": "loftq"}, {}, "belongs to a base that LoftQ quantised"),
    "layer_replication": ({"layer_replication": [[0, 2], [1, 3]]}, {}, "layer_replication"),
    "target_parameters in words": (
        {"target_parameters": "experts"},
        {},
        "target_parameters is not a list of names",
    ),
    "activated lora without tokens": (
        {"alora_invocation_tokens": []},
        {},
        "alora_invocation_tokens is not a list of tokens' numbers",
    ),
    "activated lora by words": (
        {"alora_invocation_tokens": ["go", True]},
        {},
        "alora_invocation_tokens is not a list of tokens' numbers",
    ),
    "activated lora below zero": (
        {"alora_invocation_tokens": [-1]},
        {},
        "alora_invocation_tokens is not a list of tokens' numbers",
    ),
    "activated lora of another vocabulary": (
        {"alora_invocation_tokens": [299, 300]},
        {},
        "alora_invocation_tokens: the base has 300 tokens, and no token 300",
    ),
    "activated lora of before": ({"invocation_string": "<go>"}, {}, "invocation_string: an"),
    "adalora by its tensors": (
        {},
        {f"base_model.model.{Q0}.lora_E": ones(4, 1), f"base_model.model.{Q0}.ranknum": ones(1)},
        "lora_E and 1 more: AdaLoRA's singular values",
    ),
    "alpha 0": ({"lora_alpha": 0}, {}, "lora_alpha is 0; it must be a number other than 0"),
    "alpha missing": ({"lora_alpha": None}, {}, "lora_alpha is None"),
    "alpha in words": ({"lora_alpha": "16"}, {}, "lora_alpha is '16'"),
    "alpha not finite": ({"lora_alpha": float("nan")}, {}, "lora_alpha is nan"),
    "alpha beyond float32": (
        {"lora_alpha": 1e300},
        {},
        "lora_alpha 1e+300 is too small or too large",
    ),
    "alpha below float32": (
        {"lora_alpha": 1e-300},
        {},
        "lora_alpha 1e-300 is too small or too large",
    ),
    "rank 0": ({"r": 0}, {}, "r is 0; it must be a whole number of at least 1"),
    "rank true": ({"r": True}, {}, "r is True"),
    "another rank than r": ({"r": 5}, {}, "rank 4, but adapter_config.json says 5 (r)"),
    "another rank than rank_pattern": (
        {"rank_pattern": {"q_proj": 7}},
        {},
        "rank 4, but adapter_config.json says 7 (rank_pattern 'q_proj')",
    ),
    "a pattern that is none": (
        {"alpha_pattern": {"q_(proj": 7}},
        {},
        "'q_(proj' is not a regular expression",
    ),
    "a pattern of 0": ({"alpha_pattern": {"q_proj": 0}}, {}, "alpha_pattern: 'q_proj' is 0"),
    "a pattern that is a list": ({"rank_pattern": [1]}, {}, "rank_pattern is not a table"),
    "A without B": ({}, without(BQ), "q_proj has lora_A without lora_B"),
    "B without A": ({}, without(AQ), "q_proj has lora_B without lora_A"),
    "ranks of A and B differ": ({}, {BQ: ones(64, 5)}, "the ranks of A and B differ"),
    "rank 0 in the file": (
        {},
        {AQ: ones(0, 64), BQ: ones(64, 0)},
        "a dimension is 0",
    ),
    "a vector": ({}, {AQ: ones(64)}, "both must have two dimensions"),
    "NaN": ({}, {BQ: ones(64, 4) * np.nan}, "lora_B has numbers that are not finite"),
    "NaN twice": (
        {},
        {AQ: ones(4, 64) * np.nan, BQ: ones(64, 4) * np.nan},
        "lora_A has numbers that are not finite (NaN or infinity), and so have 1 more",
    ),
    "infinity": ({}, {AQ: ones(4, 64) * np.inf}, "lora_A has numbers that are not finite"),
    "too large for f16": ({}, {BQ: ones(64, 4) * 1e6}, "up to 1e+06, too large for f16"),
    "twice the same": (
        {},
        {AQ.removeprefix("base_model.model."): ones(4, 64)},
        "q_proj has lora_A twice",
    ),
    "two adapters in one file": (
        {},
        {
            factor_name(V2, "A").replace("weight", "one.weight"): ones(4, 64),
            factor_name(V2, "B").replace("weight", "two.weight"): ones(32, 4),
        },
        "the file holds several adapters: (no name), one, two",
    ),
    "two names for one weight": (
        {},
        factors({"model.layers.0.attention.wq": (64, 64)}),
        "are both blk.0.attn_q.weight",
    ),
    "a layer beyond the base": (
        {},
        factors({"model.layers.7.self_attn.q_proj": (64, 64)}),
        "model.layers.7.self_attn.q_proj: layer 7 is beyond the base's 3 layers",
    ),
    "an unknown layer": (
        {},
        factors({"model.layers.0.self_attn.z_proj": (64, 64)}),
        "z_proj: the base's architecture has no such layer",
    ),
    "another width": (
        {},
        {AQ: ones(4, 128), BQ: ones(128, 4)},
        "made for a layer of shape (128, 128), but the base's blk.0.attn_q.weight has (64, 64)",
    ),
    "no tensors": ({}, without(AQ, BQ), "adapter_model.safetensors holds no tensors"),
}


def changed(folder, config, tensors):
    everything = factors({Q0: (64, 64)}) | tensors
    kept = {name: values for name, values in everything.items() if values is not None}
    return write_peft(folder, kept, **config)


@pytest.mark.parametrize(("config", "tensors", "said"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(config, tensors, said, base, tmp_path, out):
    folder = changed(tmp_path / "bad", config, tensors)
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, out)
    assert caught.value.message == f"cannot convert {folder}"
    assert [p for p in caught.value.problems if said in p], caught.value.problems
    assert len(caught.value.problems) == 1
    assert listing(out) == []


def test_everything_wrong_is_said_at_once(base, tmp_path, out):
    folder = changed(
        tmp_path / "bad",
        {"use_dora": True, "bias": "all", "lora_alpha": 0},
        {BQ: ones(64, 4) * np.nan, "extra": ones(2)} | factors({UP: (80, 64)}),
    )
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, out)
    said = "\n".join(caught.value.problems)
    for part in ("use_dora", "bias is", "lora_alpha", "not finite", "extra", "(80, 64)"):
        assert part in said
    assert len(caught.value.problems) == 6
    assert "merge" in caught.value.hint


def test_an_unsupported_architecture_is_named(adapter, base, out):
    with pytest.raises(
        ConversionError, match=r"'rwkv6' is not supported; supported: .*llama.*qwen2"
    ):
        convert_adapter(adapter, dataclasses.replace(base, architecture="rwkv6"), out)


@pytest.mark.parametrize(
    "architecture", sorted(set(gguf.MODEL_ARCH_NAMES.values()) - set(LAYOUTS) - set(REFUSED))
)
def test_every_other_architecture_is_refused_by_name(adapter, base, out, architecture):
    with pytest.raises(ConversionError) as caught:
        plan_conversion(adapter, dataclasses.replace(base, architecture=architecture), out)
    (problem,) = caught.value.problems
    assert problem.startswith(f"the base's architecture {architecture!r} is not supported")


def test_every_architecture_is_one_of_ggufs_and_supported_or_refused():
    assert set(LAYOUTS) | set(REFUSED) <= set(gguf.MODEL_ARCH_NAMES.values())
    assert not set(LAYOUTS) & set(REFUSED)


def test_an_architecture_that_llama_cpp_adapts_nothing_of_is_refused(adapter, base, out):
    with pytest.raises(ConversionError, match="makes no use of adapters"):
        convert_adapter(adapter, dataclasses.replace(base, architecture="deepseek2"), out)


def test_the_copy_of_the_output_layer_that_peft_saves_is_left_out(base, tmp_path, out):
    head = factors({"lm_head": base.tensors["output.weight"]})
    copy = {"base_model.model.lm_head.base_layer.weight": np.ones((3, 4), np.float32)}
    conversion = convert_adapter(write_peft(tmp_path / "head", head | copy), base, out)
    assert [row.target for row in conversion.rows] == ["output.weight"]
    assert any("the base's own layer" in note for note in conversion.notes)


EMBEDDING = {
    "base_model.model.model.embed_tokens.lora_embedding_A": np.arange(1200.0).reshape(4, 300),
    "base_model.model.model.embed_tokens.lora_embedding_B": np.arange(256.0).reshape(64, 4),
    "base_model.model.model.embed_tokens.base_layer.weight": np.ones((300, 64)),
}


def test_an_embedding_has_a_row_for_each_token(base, tmp_path, out):
    conversion = convert_adapter(write_peft(tmp_path / "x", EMBEDDING), base, out, "f32")
    (row,) = conversion.rows
    assert (row.target, row.rank, row.d_in, row.d_out) == ("token_embd.weight", 4, 300, 64)
    ((a, b),) = read_lora(out)[1].values()
    np.testing.assert_array_equal(a, np.arange(1200.0).reshape(4, 300).T)
    np.testing.assert_array_equal(b, np.arange(256.0).reshape(64, 4))
    assert any("the base's own layer" in note for note in conversion.notes)


def test_an_embedding_that_is_the_output_too(base, tmp_path, out):
    tied = {n: s for n, s in base.tensors.items() if n != "output.weight"}
    with pytest.raises(ConversionError, match="cannot adapt one alone"):
        convert_adapter(
            write_peft(tmp_path / "x", EMBEDDING), dataclasses.replace(base, tensors=tied), out
        )


def test_output_layer_of_a_base_that_shares_its_embedding(base, tmp_path, out):
    tied = {n: s for n, s in base.tensors.items() if n != "output.weight"}
    folder = write_peft(tmp_path / "head", factors({"lm_head": base.tensors["token_embd.weight"]}))
    with pytest.raises(ConversionError, match="its output layer is its token embedding"):
        convert_adapter(folder, dataclasses.replace(base, tensors=tied), out)


def test_heads_that_do_not_divide_the_rows(adapter, base, out):
    with pytest.raises(ConversionError, match="64 rows do not form 5 heads of even width"):
        convert_adapter(adapter, dataclasses.replace(base, n_head=5), out)


def test_every_layout_is_an_architecture_of_gguf():
    assert set(LAYOUTS) <= set(gguf.MODEL_ARCH_NAMES.values())


# Damaged and missing files


def no_config(folder):
    (folder / "adapter_config.json").unlink()


def nested(folder):
    (folder / "default").mkdir()
    for path in list(folder.glob("adapter_*")):
        path.rename(folder / "default" / path.name)


def pickle_only(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def no_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def truncated(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def empty(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"")


def huge_header(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64)


def eight_bits(folder):
    bits = {AQ: np.ones((4, 64), np.uint8), BQ: np.ones((64, 4), np.uint8)}
    save_as(folder / "adapter_model.safetensors", "float8_e4m3fn", bits)


def broken_config(folder):
    (folder / "adapter_config.json").write_text("{")


def listed_config(folder):
    (folder / "adapter_config.json").write_text("[]")


def foreign_config(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 8}}))


def deep_config(folder):
    (folder / "adapter_config.json").write_text("[" * 100_000)


def binary_config(folder):
    (folder / "adapter_config.json").write_bytes(b"\xff\xfe\x00")


DAMAGE = {
    no_config: "no adapter_config.json in it",
    nested: "no adapter_config.json in it",
    pickle_only: "adapter_model.bin is a pickle",
    no_weights: "no adapter_model.safetensors in it",
    truncated: "adapter_model.safetensors cannot be read",
    empty: "adapter_model.safetensors cannot be read",
    huge_header: "adapter_model.safetensors cannot be read",
    eight_bits: "stored as F8_E4M3",
    broken_config: "adapter_config.json cannot be read",
    listed_config: "is not a JSON object",
    foreign_config: "has no peft_type",
    deep_config: "adapter_config.json cannot be read",
    binary_config: "adapter_config.json cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_folders(damage, adapter, base, out):
    damage(adapter)
    with pytest.raises(ConversionError) as caught:
        convert_adapter(adapter, base, out)
    assert DAMAGE[damage] in "\n".join(caught.value.problems)
    assert listing(out) == []


def test_a_file_cut_short_anywhere_is_refused(adapter, base, out):
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), 101):
        path.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match="cannot be read"):
            convert_adapter(adapter, base, out)


def test_hints_show_the_way_out(adapter, base, out):
    nested(adapter)
    with pytest.raises(ConversionError) as caught:
        convert_adapter(adapter, base, out)
    assert caught.value.hint == "it has adapters inside: default"
    pickle_only(adapter / "default")
    with pytest.raises(ConversionError) as caught:
        convert_adapter(adapter / "default", base, out)
    assert "safe_serialization=True" in caught.value.hint


def test_sources_that_are_no_folder(adapter, base, out, tmp_path):
    with pytest.raises(ConversionError, match="it does not exist"):
        convert_adapter(tmp_path / "nowhere", base, out)
    with pytest.raises(ConversionError, match="it is a file"):
        convert_adapter(adapter / "adapter_config.json", base, out)


def test_a_base_that_is_none(adapter, out, tmp_path):
    with pytest.raises(ModelError):
        convert_adapter(adapter, tmp_path / "nowhere.gguf", out)
    assert listing(out) == []


# Destinations


def test_destinations_that_cannot_be(adapter, base, tmp_path):
    before = base.path.read_bytes()
    for out, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere" / "x.gguf", "does not exist"),
        (base.path, "is the base model"),
        (adapter / "adapter_model.safetensors", "is part of the adapter"),
    ):
        with pytest.raises(ConversionError, match=said):
            convert_adapter(adapter, base, out)
    assert base.path.read_bytes() == before


def test_an_unknown_outtype_is_the_callers_mistake(adapter, base, out):
    with pytest.raises(ValueError, match="q4_0"):
        convert_adapter(adapter, base, out, "q4_0")
    assert OUTTYPES == ("f32", "f16", "bf16", "q8_0", "auto")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failure_on_the_way_leaves_the_old_file(failure, adapter, base, out, monkeypatch):
    out.write_bytes(b"the old one")
    written = []

    def fail_at_the_third(self, tensor):
        written.append(tensor)
        if len(written) == 3:
            raise failure

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail_at_the_third)
    expected = ConversionError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        convert_adapter(adapter, base, out)
    if expected is ConversionError:
        assert "No space left" in caught.value.message
        assert "free disk space" in caught.value.hint
    assert out.read_bytes() == b"the old one"
    assert listing(out) == ["adapter.gguf"]


def test_a_source_that_shrinks_on_the_way(adapter, base, out):
    def shrink(done, total):
        if done == total // 2:
            truncated(adapter)

    with pytest.raises(ConversionError, match="changed while it was read"):
        convert_adapter(adapter, base, out, progress=shrink)
    assert listing(out) == []


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
def test_the_file_has_the_mode_that_any_new_file_has(adapter, base, out):
    convert_adapter(adapter, base, out)
    other = out.with_name("other")
    other.touch()
    assert out.stat().st_mode == other.stat().st_mode


# The package


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_the_package_has_one_name_only():
    done = run_python("import convert")
    assert "ImportError: this package is logo_local.convert" in done.stderr


def test_conversion_needs_neither_torch_nor_transformers(adapter, base, out):
    done = run_python(
        "import sys; from logo_local.convert import convert_adapter; "
        f"convert_adapter({str(adapter)!r}, {str(base.path)!r}, {str(out)!r}); "
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert listing(out) == ["adapter.gguf"]
