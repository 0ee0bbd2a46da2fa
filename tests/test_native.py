"""Reading an activation: the struct layout, and the tap against arithmetic done by hand."""

import gguf
import llama_cpp
import numpy as np
import pytest
from random_gguf import WIDTH

from logo_local.errors import NativeError
from logo_local.hidden_states import Place
from logo_local.llama import native
from logo_local.llama.model import LoadedModel
from logo_local.llama.probe import HiddenProbe

TOKENS = [1, *range(60, 95)]


def tensor(path, name):
    found = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return np.array(found.data)


def rms_norm(x):
    return x / np.sqrt((x.astype(np.float64) ** 2).mean() + 1e-5)


def assert_same_but_for_rounding(h, expected):
    """llama.cpp multiplies one token by another float32 kernel than many."""
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def hidden(random_llama):
    """hidden(target, residual=False)(tokens) with every probe closed afterwards."""
    probes = []

    def make(target, residual=False, params=random_llama.context_params):
        place = Place(target, residual)
        loaded = LoadedModel(random_llama)
        loaded.params = params
        probe = HiddenProbe(loaded)
        probes.append(probe)
        return lambda tokens: probe.read(tokens, [place])[place].last

    yield make
    for probe in probes:
        probe.close()


def test_the_layout_is_that_of_this_library():
    native.check_layout()


def test_a_wrong_layout_is_an_error_that_names_the_version(monkeypatch):
    fields = [("novelty", native.ctypes.c_int64), *native.GgmlTensor._fields_]
    shifted = type("Shifted", (native.ctypes.Structure,), {"_fields_": fields})
    monkeypatch.setattr(native, "GgmlTensor", shifted)
    native.check_layout.cache_clear()
    try:
        with pytest.raises(NativeError, match=llama_cpp.__version__) as caught:
            native.check_layout()
    finally:
        native.check_layout.cache_clear()
    assert "pip install" in caught.value.hint


def test_input_and_residual_of_the_first_block_by_hand(hidden, random_base):
    embedding = tensor(random_base, "token_embd.weight")[TOKENS[-1]]  # (WIDTH,)
    gain = tensor(random_base, "blk.0.attn_norm.weight")  # (WIDTH,)
    target = "blk.0.attn_q.weight"
    np.testing.assert_array_equal(hidden(target, residual=True)(TOKENS), embedding)
    np.testing.assert_allclose(
        hidden(target)(TOKENS), rms_norm(embedding) * gain, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("block", [1, 2])
def test_the_input_is_the_normed_residual_in_every_block(hidden, random_base, block):
    target = f"blk.{block}.attn_q.weight"
    residual = hidden(target, residual=True)(TOKENS)
    gain = tensor(random_base, f"blk.{block}.attn_norm.weight")  # (WIDTH,)
    np.testing.assert_allclose(
        hidden(target)(TOKENS), rms_norm(residual) * gain, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "width"), [("attn_k", WIDTH), ("attn_output", WIDTH), ("ffn_down", 96)]
)
def test_any_projection_can_be_tapped(hidden, kind, width):
    h = hidden(f"blk.1.{kind}.weight")(TOKENS)
    assert h.shape == (width,)
    assert h.dtype == np.float32
    assert np.isfinite(h).all()


@pytest.mark.parametrize("cut", [1, 7, len(TOKENS) - 1])
@pytest.mark.parametrize("block", [0, 2])
def test_a_prompt_in_two_pieces_gives_the_same_vector(hidden, block, cut):
    target = f"blk.{block}.attn_q.weight"
    whole = hidden(target)(TOKENS)
    in_pieces = hidden(target)
    in_pieces(TOKENS[:cut])
    assert_same_but_for_rounding(in_pieces(TOKENS), whole)


def test_a_changed_history_is_cut_back_to_what_is_common(hidden):
    target = "blk.2.attn_q.weight"
    whole = hidden(target)(TOKENS)
    probe = hidden(target)
    probe([*TOKENS[:9], 5, 6, 7])
    first = probe(TOKENS)
    assert_same_but_for_rounding(first, whole)
    np.testing.assert_array_equal(probe(TOKENS), first)  # nothing new at all


def test_a_prompt_longer_than_a_micro_batch(hidden, random_llama):
    params = type(random_llama.context_params).from_buffer_copy(random_llama.context_params)
    params.n_ubatch = 8
    target = "blk.2.attn_q.weight"
    small = hidden(target, params=params)(TOKENS)
    assert_same_but_for_rounding(small, hidden(target)(TOKENS))


def test_a_weight_that_the_graph_does_not_use_is_an_error(hidden):
    with pytest.raises(NativeError, match=r"blk\.9\.attn_q"):
        hidden("blk.9.attn_q.weight")(TOKENS)


def test_a_place_without_a_norm_before_it_has_no_residual(hidden):
    with pytest.raises(NativeError, match="normalisation"):
        hidden("blk.0.ffn_down.weight", residual=True)(TOKENS)


def test_an_exception_in_the_callback_reaches_the_caller(hidden, monkeypatch):
    monkeypatch.setattr(native.Tensor, "rows", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hidden("blk.0.attn_q.weight")(TOKENS)


# Conversions of numbers, by the processor's vectors and without them


@pytest.fixture(params=[True, False], ids=["vectors", "plain"])
def conversions(request, monkeypatch):
    """Both ways; the first is skipped where libggml-cpu is built otherwise."""
    if not request.param:
        monkeypatch.setattr(native, "_cpu", lambda: None)
    elif native._cpu() is None:
        pytest.skip("this build has no libggml-cpu")
    return request.param


def all_float16():
    """Every number that float16 can hold but NaN and the infinite ones (3968, 16)."""
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return values[np.isfinite(values)].reshape(-1, 16)


def test_float16_becomes_float32(conversions):
    values = all_float16()
    np.testing.assert_array_equal(native.widened(values), values.astype(np.float32))
    across = values[:, ::2]  # not contiguous
    np.testing.assert_array_equal(native.widened(across), across.astype(np.float32))


@pytest.mark.parametrize("factor", [1.0, 0.3, -0.7, 1e-6, 0.0])
def test_float16_times_a_factor_is_rounded_once(conversions, factor):
    values = all_float16()
    found = native.scaled_f16(values, factor)
    if not conversions:
        assert found is None
        return
    expected = (values.astype(np.float32) * np.float32(factor)).astype(np.float16)
    np.testing.assert_array_equal(found, expected)


def test_q8_0_is_that_of_gguf_but_for_halves(conversions):
    rows = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    rows[3] = 0
    found = native.quantized_q8_0(rows).reshape(64, -1)
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
    scales = found.reshape(-1, 34)[:, :2]
    np.testing.assert_array_equal(scales, expected.reshape(-1, 34)[:, :2])
    steps = found.view(np.int8).astype(int) - expected.view(np.int8)
    assert np.abs(steps).max() <= 1
    assert np.mean(steps != 0) < 0.01
