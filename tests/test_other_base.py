"""Adapters of another base: one line for each, whatever the number of layers that do not fit."""

import json
from dataclasses import replace

import gguf
import pytest
from click.testing import CliRunner
from peft_folder import factors, write_peft
from random_gguf import SMALL, write_adapter, write_base

from logo_local.commands.cli import cli
from logo_local.convert import FOR_POOL
from logo_local.errors import PoolError
from logo_local.files.base_model import BaseModel
from logo_local.files.pool import Pool

LARGER = replace(SMALL, width=96, blocks=30, ffn=160)
OTHER = "made for a model 96 wide with 30 blocks; this one is 64 wide with 3"


def of_peft(folder, shape=LARGER, **config):
    """A PEFT adapter on all projections of a Llama of that shape."""
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    modules = {
        f"model.layers.{block}.{name}": shape.matrices[kind]
        for block in range(shape.blocks)
        for kind, name in names.items()
    }
    return write_peft(folder, factors(modules), **config)


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base.gguf")


@pytest.fixture
def pool(tmp_path):
    """A folder with an adapter that fits, and three of another base."""
    folder = tmp_path / "pool"
    folder.mkdir()
    write_adapter(folder / "fits.gguf", 1)
    write_adapter(folder / "native.gguf", 2, shape=LARGER)
    of_peft(folder / "peft")
    of_peft(folder / "named", base_model_name_or_path="example/Llama-96")
    return folder


def test_one_line_says_what_the_adapter_was_made_for(base, pool, tmp_path):
    found = Pool.open(pool, BaseModel.read(base), cache=tmp_path / "cache", converter=FOR_POOL)
    reasons = {problem.name: problem.reason for problem in found.problems}
    assert found.names == ("fits",)
    assert reasons == {
        "native": OTHER,
        "peft": OTHER,
        "named": f"{OTHER} (adapter_config.json names example/Llama-96)",
    }
    assert {len(problem.details) for problem in found.problems} == {150, 210}


def test_the_file_of_an_adapter_names_its_base(base, tmp_path):
    path = write_adapter(tmp_path / "x.gguf", 2, shape=LARGER)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "named.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    writer.add_string("general.base_model.0.name", "example/Llama-96")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.unlink()
    with pytest.raises(PoolError) as caught:
        Pool.open(tmp_path / "", BaseModel.read(base), cache=tmp_path / "cache", converter=FOR_POOL)
    assert f"named.gguf: {OTHER} (the file names example/Llama-96)" in caught.value.problems


def test_an_adapter_of_some_blocks_says_at_least(base, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    write_adapter(folder / "late.gguf", 2, shape=LARGER, blocks=(20, 29))
    with pytest.raises(PoolError) as caught:
        Pool.open(folder, BaseModel.read(base), cache=tmp_path / "cache", converter=FOR_POOL)
    assert "96 wide with at least 30 blocks" in caught.value.problems[0]


def test_layers_that_do_not_exist_are_counted(base, tmp_path):
    folder = tmp_path / "pool"
    modules = {f"transformer.h.{i}.attn.c_attn": (192, 64) for i in range(12)}
    write_peft(folder / "gpt2", factors(modules))
    with pytest.raises(PoolError) as caught:
        Pool.open(folder, BaseModel.read(base), cache=tmp_path / "cache", converter=FOR_POOL)
    (line,) = caught.value.problems
    assert line.endswith("has no such layer (and 11 more layers that do not fit)")


def test_the_command_line_shows_a_line_and_the_rest_on_request(base, pool, tmp_path):
    env = {"LOGO_LOCAL_HOME": str(tmp_path / "home")}

    def check(*options):
        return CliRunner().invoke(cli, ["check", str(pool), "--base", str(base), *options], env=env)

    short, verbose = check(), check("--verbose")
    assert short.exit_code == 1
    assert max(map(len, short.output.splitlines())) < 200
    assert len(short.output.splitlines()) < 12
    assert "blk.29.attn_q.weight" not in short.output
    assert "native.gguf: the base has no weight blk.29.attn_q.weight" in verbose.output
    assert "peft: model.layers.29.self_attn.q_proj: layer 29 is beyond" in verbose.output
    rows = {row["name"]: row for row in json.loads(check("--json").stdout)}
    assert len(rows["peft"]["details"]) == 150


def test_convert_shows_a_line_and_the_rest_on_request(base, pool, tmp_path):
    def convert(*options):
        arguments = ["convert", str(pool / "peft"), "--base", str(base), "--out"]
        return CliRunner().invoke(cli, [*arguments, str(tmp_path / "out.gguf"), *options])

    assert len(convert().output.splitlines()) == 3
    assert OTHER in convert().output
    assert "layer 29 is beyond" in convert("-v").output
