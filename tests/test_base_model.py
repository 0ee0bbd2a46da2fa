"""Reading the shape of a base model from its header."""

import gguf
import numpy as np
import pytest
from random_gguf import BLOCKS, HEADS, KV_HEADS, KV_WIDTH, WIDTH, write_adapter, write_base

from logo_local.errors import ModelError
from logo_local.files.base_model import BaseModel


def test_what_is_read(random_base):
    base = BaseModel.read(random_base)
    assert (base.architecture, base.name) == ("llama", "base")
    assert (base.n_blocks, base.n_embd) == (BLOCKS, WIDTH)
    assert (base.n_head, base.n_head_kv, base.n_expert) == (HEADS, KV_HEADS, 0)
    assert base.n_ctx_train == 256
    assert base.tensors["blk.0.attn_k.weight"] == (KV_WIDTH, WIDTH)


def test_the_fingerprint_is_of_the_shape_alone(random_base, tmp_path):
    other = write_base(tmp_path / "other.gguf", seed=5)
    assert BaseModel.read(other).fingerprint == BaseModel.read(random_base).fingerprint


def write(path, *, architecture="llama", heads=4, tensors=(), **keys):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    if heads is not None:
        writer.add_head_count(heads)
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    for name, shape in dict(tensors).items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_heads_that_differ_by_block_and_arrays_of_text(tmp_path):
    path = write(
        tmp_path / "x.gguf",
        embedding_length=8,
        heads=[4, 2],
        token_list=["a", "", "ccc"],
        tags=["x", "y"],
        head_count_kv=[2, 1],
    )
    base = BaseModel.read(path)
    assert (base.n_head, base.n_head_kv) == (4, 2)
    assert base.tensors == {"token_embd.weight": (4, 8)}


@pytest.mark.parametrize("stored", [(8,), (1, 8)])
def test_the_gate_of_a_shared_expert_is_a_layer_with_one_output(tmp_path, stored):
    tensors = {"blk.0.ffn_gate_inp_shexp.weight": stored, "blk.0.attn_norm.weight": (8,)}
    base = BaseModel.read(write(tmp_path / "x.gguf", embedding_length=8, tensors=tensors))
    assert base.tensors["blk.0.ffn_gate_inp_shexp.weight"] == (1, 8)
    assert base.tensors["blk.0.attn_norm.weight"] == (8,)


def test_every_missing_key_is_named(tmp_path):
    with pytest.raises(ModelError) as caught:
        BaseModel.read(write(tmp_path / "x.gguf", heads=None))
    assert caught.value.problems == (
        "no key llama.embedding_length",
        "no key llama.attention.head_count",
    )


def test_an_adapter_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="not a model") as caught:
        BaseModel.read(write_adapter(tmp_path / "x.gguf", 1))
    assert "--adapters" in caught.value.hint


@pytest.mark.parametrize("keep", [0, 3, 30, 2000, -1])
def test_a_damaged_file_is_an_error(random_base, tmp_path, keep):
    path = tmp_path / "cut.gguf"
    path.write_bytes(random_base.read_bytes()[: keep if keep >= 0 else None] if keep else b"")
    if keep == -1:
        path.write_bytes(b"GGML" + random_base.read_bytes()[4:])
    with pytest.raises(ModelError, match="cannot be read as a GGUF file"):
        BaseModel.read(path)


def split(folder):
    """Two files that are one model; returns them."""
    writer = gguf.GGUFWriter(folder / "big.gguf", "llama", split_max_tensors=1)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_embedding_length(8)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("big-*.gguf"))


def test_a_model_in_several_files_is_read_whole(tmp_path):
    first, second = split(tmp_path)
    assert set(BaseModel.read(first).tensors) == {"token_embd.weight", "output.weight"}
    second.unlink()
    with pytest.raises(ModelError, match="00002-of-00002"):
        BaseModel.read(first)


def test_a_later_part_names_the_first(tmp_path):
    with pytest.raises(ModelError) as caught:
        BaseModel.read(split(tmp_path)[1])
    assert "-00001-of-00002.gguf" in caught.value.hint


def test_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(ModelError) as caught:
        BaseModel.read(tmp_path / "none.gguf")
    assert "demo" in caught.value.hint
