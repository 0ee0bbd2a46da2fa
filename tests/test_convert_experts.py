"""Experts, split and joined layers by hand: which numbers are written where, and what is refused.

What each weight gains must be what the adapter's form says: lora_alpha / rank * B A in the file is
compared with PEFT's formulas for bare parameters, written down here as einsums.
"""

import dataclasses

import llama_cpp
import numpy as np
import pytest
from peft_folder import factor_name, factors, read_lora, write_peft
from random_gguf import EXPERTS, write_base
from safetensors.numpy import save_file

from logo_local.convert import OUTTYPES, convert_adapter
from logo_local.convert.layouts import halves_interleaved
from logo_local.errors import ConversionError
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel

N, WIDTH, FFN = 4, 64, 96
W2 = "model.layers.0.block_sparse_moe.experts.{}.w2"
OWNER = "model.layers.1.mlp.experts"
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return BaseModel.read(write_base(tmp_path_factory.mktemp("x") / "base.gguf", shape=EXPERTS))


@pytest.fixture
def converted(base, tmp_path):
    """A function that converts an adapter of these tensors: (what was done, gains by weight)."""

    def convert(tensors, base=base, **config):
        folder = write_peft(tmp_path / "adapter", tensors, **config)
        conversion = convert_adapter(folder, base, tmp_path / "out.gguf", "f32")
        alpha, pairs = read_lora(tmp_path / "out.gguf")
        assert {row.target for row in conversion.rows} == set(pairs)
        gains = {name: alpha / b.shape[-1] * (b @ a) for name, (a, b) in pairs.items()}
        return conversion, gains

    return convert


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_single_experts_are_stacked_as_they_are(base, converted, tmp_path):
    tensors = factors({W2.format(i): (WIDTH, FFN) for i in range(N)})
    conversion, _ = converted(tensors)
    (row,) = conversion.rows
    assert (row.target, row.rank, row.factor) == ("blk.0.ffn_down_exps.weight", 4, 1.0)
    assert (row.d_in, row.d_out, row.transform) == (FFN, WIDTH, "4 experts as one")
    assert row.peft_name == "model.layers.0.block_sparse_moe.experts.w2"
    alpha, pairs = read_lora(tmp_path / "out.gguf")
    assert alpha == 8.0
    for part, found in zip("AB", pairs[row.target], strict=True):
        own = [tensors[factor_name(W2.format(i), part)] for i in range(N)]
        np.testing.assert_array_equal(found, np.stack(own))


def test_experts_that_are_missing_or_differ_are_filled_up(converted):
    ranks, alphas = {0: 4, 2: 2, 3: 6}, {0: 8, 2: 8, 3: 5}
    tensors = {}
    for i, rank in ranks.items():
        tensors |= factors({W2.format(i): (WIDTH, FFN)}, rank, seed=i)
    conversion, gains = converted(
        tensors,
        rank_pattern={r"experts\.2\.w2": 2, r"experts\.3\.w2": 6},
        alpha_pattern={r"experts\.3\.w2": 5},
    )
    assert conversion.rows[0].rank == 6
    assert conversion.rows[0].transform == "3 of 4 experts as one"
    (gain,) = gains.values()  # (n_expert, d_out, d_in)
    assert not gain[1].any()
    for i, rank in ranks.items():
        a, b = (tensors[factor_name(W2.format(i), part)] for part in "AB")
        near(gain[i], alphas[i] / rank * b @ a)


def wrapped(name, rows, columns, rank, seed):
    """PEFT's A and B of a stack (N, rows, columns), as flat as it saves them."""
    flat = {name: (rows, columns)}
    return factors(flat, rank * N, seed)


def per_expert(tensors, name, formula):
    """PEFT's get_delta_weight of tuners/lora/layer.py, without the scaling."""
    a, b = (tensors[factor_name(name, part)] for part in "AB")
    return np.einsum(formula, b.reshape(len(b), -1, N), a.reshape(N, -1, a.shape[1]))


def test_bare_parameters_are_read_as_peft_lays_them_out(converted):
    inner, outer = f"{OWNER}.base_layer", OWNER
    tensors = wrapped(inner, 2 * FFN, WIDTH, 3, 1) | wrapped(outer, WIDTH, FFN, 4, 2)
    conversion, gains = converted(
        tensors, target_parameters=BOTH, rank_pattern={"gate_up_proj": 3}, use_rslora=True
    )
    assert [(row.peft_name, row.transform.partition(" x ")[0]) for row in conversion.rows] == [
        (f"{OWNER}.gate_up_proj", "rows 0 to 95 of 192"),
        (f"{OWNER}.gate_up_proj", "rows 96 to 191 of 192"),
        (f"{OWNER}.down_proj", "B"),
    ]
    gate_up = 8 / np.sqrt(3) * per_expert(tensors, inner, "ore,eri->eoi")
    near(gains["blk.1.ffn_gate_exps.weight"], gate_up[:, :FFN])
    near(gains["blk.1.ffn_up_exps.weight"], gate_up[:, FFN:])
    down = 8 / np.sqrt(4) * per_expert(tensors, outer, "ore,eri->eoi")
    near(gains["blk.1.ffn_down_exps.weight"], down)


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_the_runtime_takes_stacks_of_every_type(base, tmp_path, outtype):
    tensors = wrapped(OWNER, 2 * FFN, WIDTH, 32, 1)
    folder = write_peft(tmp_path / "x", tensors, r=32, target_parameters=BOTH[:1])
    convert_adapter(folder, base, tmp_path / "x.gguf", outtype)
    adapter = read_adapter(tmp_path / "x.gguf", base)
    kind = "F32" if outtype == "auto" else outtype.upper()
    for target, rows in (("gate", slice(0, FFN)), ("up", slice(FFN, None))):
        name = f"blk.1.ffn_{target}_exps.weight"
        module = adapter.modules[name]
        assert (module.dtype, module.rank, module.n_expert) == (kind, 32, N)
        a, b = adapter.factors(name)
        expected = per_expert(tensors, OWNER, "ore,eri->eoi")[:, rows]
        assert np.abs(b @ a - expected).max() < 0.02 * np.abs(expected).max()


def test_one_bare_parameter_alone_is_the_one_that_the_config_names(converted):
    tensors = wrapped(OWNER, 2 * FFN, WIDTH, 4, 1)
    _, gains = converted(tensors, target_parameters=BOTH[:1])
    assert set(gains) == {"blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"}


def test_files_of_older_pefts_have_the_axes_the_other_way_round(converted):
    inner, outer = f"{OWNER}.base_layer", OWNER
    tensors = wrapped(inner, WIDTH, 2 * FFN, 4, 1) | wrapped(outer, FFN, WIDTH, 4, 2)
    _, gains = converted(tensors, target_parameters=BOTH)
    gate_up = 2 * per_expert(tensors, inner, "ore,eri->eio")
    near(gains["blk.1.ffn_up_exps.weight"], gate_up[:, FFN:])
    near(gains["blk.1.ffn_down_exps.weight"], 2 * per_expert(tensors, outer, "ore,eri->eio"))


def square(base):
    """The same base, with experts of which gate and up together are as wide as the model."""
    shapes = dict(base.tensors)
    for name, shape in base.tensors.items():
        if "_exps" in name:
            shapes[name] = tuple(WIDTH // 2 if n == FFN else n for n in shape)
    return dataclasses.replace(base, tensors=shapes)


@pytest.mark.parametrize("version", [None, "0.18.1", "0.19.0", "1.0"])
def test_a_square_parameter_is_taken_only_from_a_peft_that_has_it_right(base, converted, version):
    tensors = wrapped(OWNER, WIDTH, WIDTH, 4, 1)
    given = {"target_parameters": BOTH[:1]} | ({"peft_version": version} if version else {})
    if version in ("0.19.0", "1.0"):
        _, gains = converted(tensors, square(base), **given)
        expected = 2 * per_expert(tensors, OWNER, "ore,eri->eoi")
        near(gains["blk.1.ffn_gate_exps.weight"], expected[:, : WIDTH // 2])
    else:
        with pytest.raises(ConversionError, match=r"as many rows as columns.*before 0\.19"):
            converted(tensors, square(base), **given)


def test_a_stack_that_is_called_weight(base, converted):
    # GraniteMoe in transformers 4: block_sparse_moe.input_linear.weight is (n_expert, 2 d_ff, d)
    name = "model.layers.0.block_sparse_moe.input_linear"
    tensors = wrapped(name, 2 * FFN, WIDTH, 4, 1)
    granite = dataclasses.replace(base, architecture="granitemoe")
    _, gains = converted(tensors, granite, target_parameters=["input_linear.weight"])
    expected = 2 * per_expert(tensors, name, "ore,eri->eoi")
    near(gains["blk.0.ffn_gate_exps.weight"], expected[:, :FFN])
    near(gains["blk.0.ffn_up_exps.weight"], expected[:, FFN:])


def test_a_router_as_a_parameter_is_a_layer(converted):
    name = "model.layers.2.mlp.gate"
    tensors = factors({name: (N, WIDTH)}, 5)
    conversion, gains = converted(
        tensors, target_parameters=["mlp.gate.weight"], rank_pattern={"gate.weight": 5}
    )
    assert conversion.rows[0].peft_name == name
    assert conversion.notes == ()  # no pattern is said to name nothing
    a, b = (tensors[factor_name(name, part)] for part in "AB")
    near(gains["blk.2.ffn_gate_inp.weight"], 8 / 5 * b @ a)


@pytest.mark.parametrize("start", ["model.language_model.", "language_model.model."])
def test_experts_inside_a_larger_model_are_the_same(converted, start):
    """Both forms, of which one is placed by its block and the other by gguf's tables."""
    found = []
    for before in ("model.", start):
        outer = f"{before}layers.1.mlp.experts"
        tensors = wrapped(outer, WIDTH, FFN, 4, 1)
        tensors |= wrapped(f"{outer}.base_layer", 2 * FFN, WIDTH, 4, 2)
        for i in range(N):
            name = f"{before}layers.0.mlp.experts.{i}.down_proj"
            tensors |= factors({name: (WIDTH, FFN)}, seed=3 + i)
        pattern = {rf"^{before}layers\.1\.mlp\.experts\.down_proj": 5}
        conversion, gains = converted(tensors, target_parameters=BOTH, alpha_pattern=pattern)
        assert conversion.notes == ()
        found.append(gains)
    plain, inside = found
    assert (
        set(plain)
        == set(inside)
        == {
            "blk.0.ffn_down_exps.weight",
            *(f"blk.1.ffn_{kind}_exps.weight" for kind in ("gate", "up", "down")),
        }
    )
    for name in plain:
        np.testing.assert_array_equal(plain[name], inside[name])


def test_experts_in_shards_are_the_same_as_in_one_file(base, converted, tmp_path):
    names = {W2.format(i): (WIDTH, FFN) for i in range(N)}
    tensors = factors(names) | wrapped(OWNER, 2 * FFN, WIDTH, 4, 1)
    _, whole = converted(tensors, target_parameters=BOTH[:1])
    folder = write_peft(tmp_path / "shards", tensors, target_parameters=BOTH[:1])
    (folder / "adapter_model.safetensors").unlink()
    for shard in range(3):  # an A and its B are in different files, and so are experts of a layer
        some = dict(sorted(tensors.items())[shard::3])
        save_file(some, folder / f"adapter_model-{shard + 1:05}-of-00003.safetensors")
    convert_adapter(folder, base, tmp_path / "shards.gguf", "f32")
    alpha, pairs = read_lora(tmp_path / "shards.gguf")
    assert set(pairs) == set(whole)
    for name, (a, b) in pairs.items():
        np.testing.assert_array_equal(alpha / b.shape[-1] * (b @ a), whole[name])
    # a shard that is missing is not taken for experts that are not adapted
    (folder / "adapter_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, tmp_path / "less.gguf")
    assert caught.value.problems == ("of its 3 shards number 2 is missing",)


def test_an_activated_lora_of_single_experts_carries_its_tokens(base, converted, tmp_path):
    tensors = factors({W2.format(i): (WIDTH, FFN) for i in range(N)})
    _, plain = converted(tensors)
    conversion, gains = converted(tensors, alora_invocation_tokens=[7, 8])
    assert conversion.invocation_tokens == (7, 8)
    np.testing.assert_array_equal(*(g["blk.0.ffn_down_exps.weight"] for g in (plain, gains)))
    llama = llama_cpp.Llama(str(base.path), n_ctx=32, verbose=False)
    try:
        out = str(tmp_path / "out.gguf").encode()
        adapter = llama_cpp.llama_adapter_lora_init(llama.model, out)
        assert llama_cpp.llama_adapter_get_alora_invocation_tokens(adapter)[:2] == [7, 8]
        llama_cpp.llama_adapter_lora_free(adapter)
    finally:
        llama.close()


# adapter's tensors, config, what is said
REFUSED = {
    "an expert too many": (
        factors({W2.format(i): (WIDTH, FFN) for i in range(N + 1)}),
        {},
        "experts.4.w2: the base has 4 experts, numbered from 0",
    ),
    "an expert by two numbers": (
        factors({W2.format("1"): (WIDTH, FFN), W2.format("01"): (WIDTH, FFN)}),
        {},
        "experts.01.w2: the base's architecture has no such layer",
    ),
    "experts of different shapes": (
        factors({W2.format(0): (WIDTH, FFN), W2.format(1): (WIDTH, 80)}),
        {},
        "its experts are made for layers of different shapes: (64, 80), (64, 96)",
    ),
    "experts of another model": (
        factors({W2.format(i): (WIDTH, 80) for i in range(N)}),
        {},
        "made for a layer of shape (4, 64, 80), but the base's blk.0.ffn_down_exps.weight has "
        "(4, 64, 96)",
    ),
    "a layer of no expert": (
        factors({W2.format(0).replace("w2", "w9"): (WIDTH, FFN)}),
        {},
        "experts.w9: the base's architecture has no such layer",
    ),
    "a stack within one expert": (
        factors({W2.format(0): (WIDTH, FFN)}, 8),
        {"target_parameters": ["experts.0.w2.gate_up_proj"]},
        "experts.0.w2.gate_up_proj: the base's architecture has no such layer",
    ),
    "NaN in one expert": (
        factors({W2.format(0): (WIDTH, FFN)})
        | {factor_name(W2.format(0), "B"): np.full((WIDTH, 4), np.nan, np.float32)},
        {},
        "experts.w2: lora_B has numbers that are not finite",
    ),
    "a wrapper of nothing": (
        wrapped(f"{OWNER}.base_layer", 2 * FFN, WIDTH, 4, 1),
        {},
        "target_parameters names 0 parameters of model.layers.1.mlp.experts",
    ),
    "a wrapper too many": (
        wrapped(f"{OWNER}.base_layer", 2 * FFN, WIDTH, 4, 1),
        {"target_parameters": BOTH[:1]},
        "target_parameters names 1 parameters of model.layers.1.mlp.experts",
    ),
    "parameters in an order that is not known": (
        wrapped(OWNER, 2 * FFN, WIDTH, 4, 1),
        {"target_parameters": ["experts.gate_up_proj", "experts.gate_up_proj_bias"]},
        "which of its parameters gate_up_proj, gate_up_proj_bias comes first is not known",
    ),
    "bare parameters of an activated LoRA": (
        wrapped(OWNER, 2 * FFN, WIDTH, 4, 1),
        {"target_parameters": BOTH[:1], "alora_invocation_tokens": [7, 8]},
        "alora_invocation_tokens with target_parameters: PEFT has no activated LoRA of bare",
    ),
    "experts within an unknown model": (
        wrapped("eyes." + OWNER, 2 * FFN, WIDTH, 4, 1),
        {"target_parameters": BOTH[:1]},
        "eyes.model.layers.1.mlp.experts.gate_up_proj: the base's architecture has no such layer",
    ),
    "experts of what sees": (
        wrapped("model.visual.layers.1.mlp.experts", 2 * FFN, WIDTH, 4, 1)
        | factors({f"model.visual.layers.0.mlp.experts.{i}.up_proj": (80, 32) for i in range(9)}),
        {"target_parameters": BOTH[:1]},
        "it adapts visual (10 layers), but the GGUF base holds the text part only",
    ),
    "ranks that are no multiple": (
        factors({OWNER: (2 * FFN, WIDTH)}, 10),
        {"target_parameters": BOTH[:1]},
        "gate_up_proj: rank 10, but adapter_config.json says 4 (r)",
    ),
    "a rank that is no number of rows": (
        factors({OWNER: (2 * FFN, WIDTH)}, 10),
        {"target_parameters": BOTH[:1], "rank_pattern": {"gate_up_proj": 2.5}},
        "gate_up_proj: rank 10, but adapter_config.json says 2.5 (rank_pattern 'gate_up_proj')",
    ),
    "a rank below zero": (
        factors({OWNER: (2 * FFN, WIDTH)}, 16),
        {"target_parameters": BOTH[:1], "rank_pattern": {"gate_up_proj": -4}},
        "gate_up_proj: rank 16, but adapter_config.json says -4 (rank_pattern 'gate_up_proj')",
    ),
    "too few experts": (
        factors({OWNER: (2 * FFN, WIDTH)}, 12),
        {"target_parameters": BOTH[:1]},
        "made for a layer of shape (3, 192, 64), but the base's blk.1.ffn_gate_exps.weight and "
        "blk.1.ffn_up_exps.weight has (4, 192, 64)",
    ),
    "both forms of the same": (
        wrapped("model.layers.0.mlp.experts", WIDTH, FFN, 4, 1)
        | factors({W2.format(i): (WIDTH, FFN) for i in range(N)}),
        {"target_parameters": BOTH[1:]},
        "are both blk.0.ffn_down_exps.weight",
    ),
}


@pytest.mark.parametrize(("tensors", "config", "said"), REFUSED.values(), ids=REFUSED)
def test_refusals(converted, tensors, config, said):
    with pytest.raises(ConversionError) as caught:
        converted(tensors, **config)
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]


def test_a_base_without_experts(random_base, converted):
    tensors = factors({W2.format(0): (WIDTH, FFN)})
    with pytest.raises(ConversionError, match=r"experts\.0\.w2: the base has no experts"):
        converted(tensors, BaseModel.read(random_base))


# Joined layers: blk.N.attn_qkv.weight where the model has q_proj, k_proj and v_proj


def joined(base):
    shapes = {name: shape for name, shape in base.tensors.items() if ".attn_" not in name}
    shapes |= {f"blk.{i}.attn_qkv.weight": (128, WIDTH) for i in range(3)}
    return dataclasses.replace(base, tensors=shapes)


@pytest.mark.parametrize("kinds", ["q", "kv", "qkv"])
def test_separate_layers_are_rows_of_a_joined_weight(base, converted, kinds):
    rows = {"q": slice(0, 64), "k": slice(64, 96), "v": slice(96, 128)}
    names = {kind: f"model.layers.1.self_attn.{kind}_proj" for kind in kinds}
    tensors = {}
    for kind, name in names.items():
        rank = 3 if kind == "k" else 4
        tensors |= factors({name: (64 if kind == "q" else 32, WIDTH)}, rank, seed=ord(kind))
    conversion, gains = converted(
        tensors, joined(base), rank_pattern={"k_proj": 3}, alpha_pattern={"v_proj": 5}
    )
    (row,) = conversion.rows
    assert row.peft_name.endswith("self_attn." + "+".join(f"{k}_proj" for k in kinds))
    assert row.transform.startswith("rows of " + " + ".join(f"attn_{k}" for k in kinds))
    assert (row.d_in, row.d_out) == (WIDTH, 128)
    gain = gains["blk.1.attn_qkv.weight"]
    for kind in "qkv":
        if kind not in kinds:
            assert not gain[rows[kind]].any()
            continue
        a, b = (tensors[factor_name(names[kind], part)] for part in "AB")
        if kind != "v":
            b = b[halves_interleaved(len(b), {"q": 4, "k": 2}[kind])]
        near(gain[rows[kind]], {"q": 8 / 4, "k": 8 / 3, "v": 5 / 4}[kind] * b @ a)


def test_a_joined_weight_that_is_not_made_of_heads_has_no_parts(base, converted):
    odd = dict(joined(base).tensors) | {"blk.1.attn_qkv.weight": (130, WIDTH)}
    tensors = factors({"model.layers.1.self_attn.v_proj": (32, WIDTH)})
    with pytest.raises(ConversionError, match=r"the base has no blk\.1\.attn_v\.weight"):
        converted(tensors, dataclasses.replace(base, tensors=odd))
