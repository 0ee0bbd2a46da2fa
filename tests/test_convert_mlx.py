"""Adapters that mlx-lm trained: the same numbers as PEFT's, other names and shapes, refusals."""

import json
import os

import numpy as np
import pytest
from peft_folder import factor_name, factors, read_lora, write_peft
from safetensors.numpy import save_file

from logo_local.console.report import check_json
from logo_local.convert import FOR_POOL, convert_adapter
from logo_local.errors import ConversionError
from logo_local.files.base_model import BaseModel
from logo_local.files.file_index import content_key
from logo_local.files.pool import Pool

MODULES = {
    "model.layers.0.self_attn.q_proj": (64, 64),
    "model.layers.1.self_attn.k_proj": (32, 64),
    "model.layers.2.mlp.down_proj": (64, 96),
}
CONFIG = {
    "model": "mlx-community/a-base-4bit",
    "fine_tune_type": "lora",
    "num_layers": 3,
    "lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 20.0},
}
NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


def write_mlx(folder, tensors=None, **config):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    if tensors is None:
        tensors = {}
        given = factors(MODULES)
        for name in MODULES:
            tensors[f"{name}.lora_a"] = given[factor_name(name, "A")].T.copy()
            tensors[f"{name}.lora_b"] = given[factor_name(name, "B")].T.copy()
    save_file(tensors, folder / "adapters.safetensors")
    return folder


def test_it_becomes_what_the_same_adapter_of_peft_becomes(base, tmp_path):
    convert_adapter(write_mlx(tmp_path / "mlx"), base, tmp_path / "mlx.gguf", "f32")
    peft = write_peft(tmp_path / "peft", factors(MODULES), r=4, lora_alpha=80)  # 20 * 4 / 4
    convert_adapter(peft, base, tmp_path / "peft.gguf", "f32")
    alpha, found = read_lora(tmp_path / "mlx.gguf")
    expected_alpha, expected = read_lora(tmp_path / "peft.gguf")
    assert alpha == expected_alpha == 80
    assert found.keys() == expected.keys()
    for target, pair in expected.items():
        for got, want in zip(found[target], pair, strict=True):
            np.testing.assert_array_equal(got, want)


ONE = {f"{NAME}.lora_a": np.ones((64, 4), np.float32)}
BOTH = {**ONE, f"{NAME}.lora_b": np.ones((4, 64), np.float32)}


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"fine_tune_type": "dora"}, None, "fine_tune_type is 'dora'"),
        ({"use_dora": True}, None, "fine_tune_type is 'dora'"),
        ({"fine_tune_type": "full"}, None, "fine_tune_type is 'full'"),
        ({"lora_parameters": {}}, None, "scale is None"),
        ({"lora_parameters": {"scale": 0}}, None, "scale is 0"),
        ({"lora_parameters": {"scale": True}}, None, "scale is True"),
        ({"lora_parameters": {"scale": 1e300}}, None, "scale is 1e+300"),
        ({"lora_parameters": 7}, None, "scale is None"),
        ({}, ONE, "has lora_a without lora_b"),
        ({}, BOTH | {f"{NAME}.m": np.ones(64, np.float32)}, ".m: not a LoRA factor"),
        ({}, {}, "holds no"),
        ({}, BOTH | {f"{NAME}.lora_b": np.ones((3, 64), np.float32)}, "do not belong together"),
        (
            {},
            {
                "model.embed_tokens.lora_a": np.ones((300, 4), np.float32),
                "model.embed_tokens.lora_b": np.ones((4, 64), np.float32),
            },
            "LoRA of an embedding",
        ),
        (
            {},
            {
                "model.layers.0.mlp.switch_mlp.up_proj.lora_a": np.ones((2, 4, 64), np.float32),
                "model.layers.0.mlp.switch_mlp.up_proj.lora_b": np.ones((2, 96, 4), np.float32),
            },
            "a stack of experts",
        ),
        (
            {},
            {
                "model.layers.9.self_attn.q_proj.lora_a": np.ones((64, 4), np.float32),
                "model.layers.9.self_attn.q_proj.lora_b": np.ones((4, 64), np.float32),
            },
            "beyond the base's 3 layers",
        ),
    ],
)
def test_what_cannot_be_converted_says_why(base, tmp_path, config, tensors, words):
    folder = write_mlx(tmp_path / "mlx", tensors, **config)
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, tmp_path / "x.gguf")
    assert words in "\n".join(caught.value.problems)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("config", ["", "[]", "{", "\0"])
def test_a_config_that_is_none(base, tmp_path, config):
    folder = write_mlx(tmp_path / "mlx")
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, tmp_path / "x.gguf")
    assert len(caught.value.problems) == 1  # not its scale as well


def test_a_file_that_was_cut(base, tmp_path):
    folder = write_mlx(tmp_path / "mlx")
    path = folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, tmp_path / "x.gguf")
    assert "adapters.safetensors cannot be read" in caught.value.problems[0]


def test_a_pool_takes_it_and_sees_when_it_changes(base, tmp_path):
    folder = write_mlx(tmp_path / "pool" / "mine")
    pool = Pool.open(tmp_path / "pool", base, cache=tmp_path / "cache", converter=FOR_POOL)
    assert pool.names == ("mine",)
    assert [row["kind"] for row in check_json(pool)] == ["mlx"]
    assert pool.content_key("mine") == content_key(folder)
    before = content_key(folder)
    save_file(BOTH, folder / "adapters.safetensors")
    os.utime(folder / "adapters.safetensors", (1, 1))
    assert pool.rescan().changed == ("mine",)
    assert pool.content_key("mine") == content_key(folder) != before
    assert list(pool.adapters["mine"].modules) == ["blk.0.attn_q.weight"]


def test_pefts_weights_go_first_where_both_are_there(base, tmp_path):
    folder = write_mlx(tmp_path / "both")
    write_peft(folder, factors({NAME: (64, 64)}), r=4, lora_alpha=8)
    conversion = convert_adapter(folder, base, tmp_path / "x.gguf")
    assert conversion.lora_alpha == 8
