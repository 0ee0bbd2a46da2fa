import ctypes
import gc
import logging
import os

import gguf
import gguf_bytes as g
import llama_cpp
import numpy as np
import pytest
import random_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logo_local.errors import AdapterError
from logo_local.files.adapter_file import AdapterFile, read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.files.stored_values import TENSOR_TYPES

BASE = g.base_model()
Q = "blk.0.attn_q.weight"


def write(path, file):
    path.write_bytes(file if isinstance(file, bytes) else file.pack())
    return path


# --- what is read ------------------------------------------------------------------------------


def test_an_adapter_as_read(tmp_path):
    path = write(tmp_path / "sort.words.gguf", g.adapter(rank=4, alpha=8.0))
    adapter = read_adapter(path, BASE)
    assert adapter.name == "sort.words"
    assert adapter.path == path
    assert adapter.lora_alpha == 8.0
    assert adapter.n_bytes == path.stat().st_size
    assert list(adapter.modules) == [
        f"blk.{block}.{kind}.weight" for block in range(2) for kind in ("attn_q", "attn_v")
    ]
    module = adapter.modules["blk.1.attn_v.weight"]
    assert (module.rank, module.d_in, module.d_out, module.dtype) == (4, g.D, g.D // 2, "F32")
    assert module.n_expert == 0
    assert adapter.rank_text == "4"
    assert adapter.scaling(Q) == 2.0


def test_ranks_that_differ_by_module(tmp_path):
    file = g.adapter(rank=4)
    file.tensors[:2] = g.pair(Q, np.ones((16, g.D), "f"), np.ones((g.D, 16), "f"))
    adapter = read_adapter(write(tmp_path / "x.gguf", file), BASE)
    assert adapter.rank_text == "4-16"
    assert adapter.scaling(Q) == 0.5


def test_alpha_0_means_a_scaling_of_1(tmp_path):
    adapter = read_adapter(write(tmp_path / "x.gguf", g.adapter(alpha=0.0)), BASE)
    assert adapter.scaling(Q) == 1.0


def test_a_file_without_alpha_is_taken_as_llama_cpp_does_and_said(tmp_path, caplog):
    file = g.adapter().without("adapter.lora.alpha")
    with caplog.at_level(logging.WARNING):
        adapter = read_adapter(write(tmp_path / "x.gguf", file), BASE)
    assert adapter.scaling(Q) == 1.0
    assert "x.gguf has no adapter.lora.alpha" in caplog.text


def test_factors_are_what_was_written(tmp_path):
    rng = np.random.default_rng(3)
    a, b = g.floats(rng, 3, g.D), g.floats(rng, g.D, 3)
    file = g.adapter()
    file.tensors[:2] = g.pair(Q, a, b)
    got_a, got_b = read_adapter(write(tmp_path / "x.gguf", file), BASE).factors(Q)
    assert got_a.dtype == got_b.dtype == np.float32
    np.testing.assert_array_equal(got_a, a)
    np.testing.assert_array_equal(got_b, b)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_factors_of_other_types_are_dequantised(dtype, tmp_path):
    kind = gguf.GGMLQuantizationType[dtype]
    rng = np.random.default_rng(4)
    a, b = g.floats(rng, 32, g.D), g.floats(rng, g.D, 32)
    packed = [gguf.quants.quantize(array, kind) for array in (a, b)]
    file = g.adapter()
    for tensor, array in zip(g.pair(Q, a, b), packed, strict=True):
        tensor.kind, tensor.data = int(kind), array.tobytes()
        file.tensors[["lora_a", "lora_b"].index(tensor.name.rpartition(".")[2])] = tensor
    adapter = read_adapter(write(tmp_path / "x.gguf", file), BASE)
    assert adapter.modules[Q].dtype == dtype
    for got, array in zip(adapter.factors(Q), packed, strict=True):
        np.testing.assert_array_equal(got, gguf.quants.dequantize(array, kind))


def test_two_types_in_one_module_are_named(tmp_path):
    file = g.adapter()
    file.tensors[0].kind, file.tensors[0].data = g.T_F16, np.ones(4 * g.D, "<f2").tobytes()
    assert read_adapter(write(tmp_path / "x.gguf", file), BASE).modules[Q].dtype == "F16/F32"


def test_a_stack_of_experts(tmp_path):
    rng = np.random.default_rng(5)
    a, b = g.floats(rng, g.N_EXPERT, 2, g.D), g.floats(rng, g.N_EXPERT, g.D_FF, 2)
    file = g.adapter()
    file.tensors = g.pair("blk.1.ffn_up_exps.weight", a, b)
    adapter = read_adapter(write(tmp_path / "x.gguf", file), BASE)
    module = adapter.modules["blk.1.ffn_up_exps.weight"]
    assert (module.rank, module.d_in, module.d_out, module.n_expert) == (2, g.D, g.D_FF, 4)
    got_a, got_b = adapter.factors("blk.1.ffn_up_exps.weight")
    np.testing.assert_array_equal(got_a, a)
    np.testing.assert_array_equal(got_b, b)


def test_an_embedding_is_stored_the_other_way_round(tmp_path):
    rng = np.random.default_rng(6)
    rows, b = g.floats(rng, g.N_VOCAB, 3), g.floats(rng, g.D, 3)  # one row of A for each token
    file = g.adapter()
    file.tensors = g.pair("token_embd.weight", rows, b)
    adapter = read_adapter(write(tmp_path / "x.gguf", file), BASE)
    module = adapter.modules["token_embd.weight"]
    assert (module.rank, module.d_in, module.d_out) == (3, g.N_VOCAB, g.D)
    got_a, got_b = adapter.factors("token_embd.weight")
    token = np.eye(g.N_VOCAB, dtype=np.float32)[7]
    np.testing.assert_allclose(got_b @ (got_a @ token), b @ rows[7], rtol=1e-6)


def test_an_embedding_that_is_the_output_too_is_refused(tmp_path):
    """An assertion of llama.cpp on it ends the process when the first token is decoded."""
    rng = np.random.default_rng(6)
    tied = {name: shape for name, shape in BASE.tensors.items() if name != "output.weight"}
    file = g.adapter()
    file.tensors += g.pair("token_embd.weight", g.floats(rng, g.N_VOCAB, 3), g.floats(rng, g.D, 3))
    path = write(tmp_path / "x.gguf", file)
    assert "token_embd.weight" in read_adapter(path, BASE).modules
    with pytest.raises(AdapterError, match="also uses as its output"):
        read_adapter(path, g.base_model(tensors=tied))


def test_outer_axes_of_length_1_come_and_go(tmp_path):
    file = g.adapter(rank=1)
    file.tensors[0].dims = (g.D,)
    file.tensors[1].dims = (1, g.D, 1, 1)
    adapter = read_adapter(write(tmp_path / "x.gguf", file), BASE)
    assert [factor.shape for factor in adapter.factors(Q)] == [(1, g.D), (g.D, 1)]


def test_an_unknown_target_is_a_key_error(tmp_path):
    adapter = read_adapter(write(tmp_path / "x.gguf", g.adapter()), BASE)
    with pytest.raises(KeyError):
        adapter.factors("blk.0.ffn_down.weight")


def test_a_file_that_changed_since_is_not_read(tmp_path):
    path = write(tmp_path / "x.gguf", g.adapter())
    adapter = read_adapter(path, BASE)
    write(path, g.adapter(rank=5))
    with pytest.raises(AdapterError, match="has changed") as caught:
        adapter.factors(Q)
    assert "rescan" in caught.value.hint
    path.unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        adapter.factors(Q)


def test_two_readings_are_equal_until_the_file_changes(tmp_path):
    path = write(tmp_path / "x.gguf", g.adapter())
    first, second = read_adapter(path, BASE), read_adapter(path, BASE)
    assert first == second
    assert hash(first) == hash(second)
    os.utime(path, ns=(1, 1))
    assert read_adapter(path, BASE) != first


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="looks into Linux's /proc")
def test_no_file_stays_open_or_mapped(tmp_path):
    path = write(tmp_path / "x.gguf", g.adapter())
    bad = write(tmp_path / "bad.gguf", g.adapter().pack()[:-100])
    adapter = read_adapter(path, BASE)
    factors = adapter.factors(Q)
    with pytest.raises(AdapterError):
        read_adapter(bad, BASE)
    gc.collect()
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) not in maps.read()
    open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [name for name in open_files if name.startswith(str(tmp_path))]
    assert factors[0].any()


def test_a_read_adapter_takes_little_memory(tmp_path):
    """Less than a kilobyte for each adapted weight, whatever its size."""
    import tracemalloc

    targets = [f"blk.{i}.attn_q.weight" for i in range(28)]
    file = g.adapter()
    file.tensors = [
        tensor
        for target in targets
        for tensor in g.pair(target, np.ones((32, g.D), "f"), np.ones((g.D, 32), "f"))
    ]
    path = write(tmp_path / "x.gguf", file)
    base = g.base_model(tensors=dict.fromkeys(targets, (g.D, g.D)))
    read_adapter(path, base)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [read_adapter(path, base) for _ in range(10)]
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept[0].n_bytes > 28 * 2 * 32 * g.D * 4
    assert (after - before) / len(kept) < 28 * 1000


# --- llama.cpp agrees --------------------------------------------------------------------------

SCALARS = {
    g.U8: 1, g.I8: -1, g.U16: 1, g.I16: -1, g.U32: 1, g.I32: -1, g.F32: 1.5, g.BOOL: True,
    g.U64: 1, g.I64: -1, g.F64: 1.5,
}  # fmt: skip


def with_all_kinds_of_keys():
    file = g.adapter()
    for kind, value in SCALARS.items():
        file.set(f"x.{kind}", kind, value)
        file.set(f"xs.{kind}", g.ARRAY, (kind, [value] * 3))
        file.set(f"none.{kind}", g.ARRAY, (kind, []))
    file.set("x.text", g.STRING, "odd \x07 text \udcff".encode(errors="surrogateescape"))
    file.set("xs.text", g.ARRAY, (g.STRING, ["a", "", "ü"]))
    return file.set("none.text", g.ARRAY, (g.STRING, []))


def quantised(dtype):
    kind = gguf.GGMLQuantizationType[dtype]
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    width, rank = 256, 256
    file = g.adapter()
    size = width * rank // block * n_bytes
    file.tensors = [
        g.Tensor(f"wide.{side}", (width, rank), bytes(size), int(kind))
        for side in ("lora_a", "lora_b")
    ]
    return file


def aligned_to(n):
    file = g.adapter().set("general.alignment", g.U32, n)
    file.alignment = n
    return file


def version_2():
    file = g.adapter()
    file.version = 2
    return file


def one_axis():
    file = g.adapter(rank=1)
    file.tensors[0].dims = (g.D,)
    file.tensors[1].dims = (1, g.D, 1, 1)
    return file


def embedding():
    rng = np.random.default_rng(0)
    file = g.adapter()
    vocab = random_gguf.VOCAB
    file.tensors += g.pair("token_embd.weight", g.floats(rng, vocab, 2), g.floats(rng, g.D, 2))
    return file


def of_type(dtype):
    kind = gguf.GGMLQuantizationType[dtype]
    file = g.adapter(rank=32)
    for tensor in file.tensors:
        array = np.frombuffer(tensor.data, "<f4").reshape(tuple(reversed(tensor.dims)))
        tensor.kind, tensor.data = int(kind), gguf.quants.quantize(array, kind).tobytes()
    return file


ACCEPTED = {
    "plain": g.adapter,
    "no alpha": lambda: g.adapter().without("adapter.lora.alpha"),
    "alpha 0": lambda: g.adapter(alpha=0.0),
    "all kinds of keys": with_all_kinds_of_keys,
    "aligned to 1": lambda: aligned_to(1),
    "aligned to 4096": lambda: aligned_to(4096),
    "version 2": version_2,
    "one axis, and four": one_axis,
    "an embedding": embedding,
    "followed by other bytes": lambda: g.adapter().pack() + b"trailing",
    **{
        dtype: lambda dtype=dtype: of_type(dtype)
        for dtype in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
    },
}


class LlamaCpp:
    """A context of llama.cpp itself, to load adapters into."""

    def __init__(self, llama):
        self.model, self.ctx = llama.model, llama.ctx

    def loads(self, path):
        handle = llama_cpp.llama_adapter_lora_init(self.model, os.fsencode(path))
        if handle:
            llama_cpp.llama_adapter_lora_free(handle)
        return bool(handle)

    def decodes(self, path):
        """Whether a token decodes to numbers under the adapter."""
        handle = llama_cpp.llama_adapter_lora_init(self.model, os.fsencode(path))
        assert handle
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handle)
        llama_cpp.llama_set_adapters_lora(self.ctx, handles, 1, (ctypes.c_float * 1)(1.0))
        memory = llama_cpp.llama_get_memory(self.ctx)
        llama_cpp.llama_memory_clear(memory, True)
        batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(5), 1)
        rc = llama_cpp.llama_decode(self.ctx, batch)
        logits = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits(self.ctx), shape=(random_gguf.VOCAB,)
        )
        fine = rc == 0 and bool(np.isfinite(logits).all())
        llama_cpp.llama_set_adapters_lora(self.ctx, None, 0, None)
        llama_cpp.llama_memory_clear(memory, True)
        llama_cpp.llama_adapter_lora_free(handle)
        return fine


@pytest.fixture(scope="module")
def llama(random_llama):
    return LlamaCpp(random_llama)


@pytest.fixture(scope="module")
def real_base(random_base):
    return BaseModel.read(random_base)


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted_runs_in_llama_cpp(case, tmp_path, llama, real_base):
    path = write(tmp_path / "x.gguf", ACCEPTED[case]())
    assert isinstance(read_adapter(path, real_base), AdapterFile)
    assert llama.decodes(path)


@pytest.mark.parametrize("dtype", sorted(TENSOR_TYPES))
def test_every_tensor_type_can_be_read(dtype, tmp_path):
    base = g.base_model(tensors={"wide": (256, 256)})
    adapter = read_adapter(write(tmp_path / "x.gguf", quantised(dtype)), base)
    assert adapter.modules["wide"].dtype == dtype
    a, b = adapter.factors("wide")
    assert a.shape == b.shape == (256, 256)
    assert a.dtype == b.dtype == np.float32


MUTATED = g.adapter(rank=2).pack()


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_change_of_a_byte_or_length_leads_to_anything_but_an_adapter_error(
    data, tmp_path, llama, real_base
):
    """And whatever is still accepted loads in llama.cpp: our rules are as strict as its."""
    file = bytearray(MUTATED)
    for _ in range(data.draw(st.integers(1, 3))):
        # Half of the changes hit the header, which is where structure lies.
        last = len(file) - 1 if data.draw(st.booleans()) else min(len(file) - 1, 900)
        file[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
        if data.draw(st.integers(0, 3)) == 0:
            del file[data.draw(st.integers(1, len(file))) :]
    path = write(tmp_path / "x.gguf", bytes(file))
    try:
        read_adapter(path, real_base)
    except AdapterError:
        return
    assert llama.loads(path)
