"""Several adapters as one: the identity itself, shapes by hand, and what float16 can hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_gguf import EXPERTS, SMALL, write_adapter, write_base

from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.files.stacking import (
    StackedModule,
    common_factor,
    covers,
    native_type,
    put_a,
    put_b,
    stacked_modules,
    total_bytes,
)


def stacked(pairs, factors, side, dtype=np.float32):
    """A and B of the stack of `pairs`, with the factors in `side`, and the scale to set it with."""
    rank = sum(len(a) for a, _ in pairs)
    a_stack = np.zeros((rank, pairs[0][0].shape[1]), dtype)
    b_stack = np.zeros((len(pairs[0][1]), rank), dtype)
    scale, at_a, at_b = common_factor(factors), 0, 0
    for (a, b), factor in zip(pairs, factors, strict=True):
        of_a, of_b = (factor / scale, 1.0) if side == "a" else (1.0, factor / scale)
        at_a = put_a(a_stack, -2, at_a, a, of_a)
        at_b = put_b(b_stack, at_b, b, of_b)
    assert at_a == at_b == rank
    return a_stack, b_stack, scale


@given(
    st.lists(st.tuples(st.integers(1, 7), st.floats(-4, 4, width=32)), min_size=1, max_size=5),
    st.integers(0, 99),
    st.sampled_from("ab"),
)
def test_a_stack_is_the_weighted_sum_of_the_adapters(parts, seed, side):
    rng = np.random.default_rng(seed)
    pairs = [
        (rng.standard_normal((r, 6), np.float32), rng.standard_normal((5, r), np.float32))
        for r, _ in parts
    ]
    factors = [factor for _, factor in parts]
    x = rng.standard_normal(6, np.float32)
    expected = sum(f * (b @ (a @ x)) for f, (a, b) in zip(factors, pairs, strict=True))
    a, b, scale = stacked(pairs, factors, side)
    np.testing.assert_allclose(scale * (b @ (a @ x)), expected, atol=1e-4)


def test_a_stack_by_hand():
    one = (np.array([[1, 2]], np.float32), np.array([[3], [4]], np.float32))
    two = (np.array([[5, 6], [7, 8]], np.float32), np.array([[1, 0], [0, 1]], np.float32))
    a, b, scale = stacked([one, two], [0.5, 3.0], "a")
    assert scale == 4.0
    np.testing.assert_array_equal(a * scale, [[0.5, 1], [15, 18], [21, 24]])
    np.testing.assert_array_equal(b, [[3, 1, 0], [4, 0, 1]])
    a, b, scale = stacked([one, two], [0.5, 3.0], "b")
    np.testing.assert_array_equal(a, [[1, 2], [5, 6], [7, 8]])
    np.testing.assert_array_equal(b * scale, [[1.5, 3, 0], [2, 0, 3]])


@pytest.mark.parametrize("factor", [1.0, 0.3, -0.7, 1e-3])
def test_float16_is_rounded_once(factor):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 40)).astype(np.float16)
    stack = np.zeros((5, 40), np.float16)
    put_a(stack, -2, 1, a, factor)
    expected = (a.astype(np.float32) * np.float32(factor)).astype(np.float16)
    np.testing.assert_array_equal(stack[1:4], expected)
    assert not stack[[0, 4]].any()
    stack = np.zeros((3, 50), np.float16)
    put_b(stack, 7, a, factor)
    np.testing.assert_array_equal(stack[:, 7:47], expected)
    assert np.count_nonzero(stack) == np.count_nonzero(expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("stack_dtype", [np.float16, np.float32])
def test_any_type_goes_into_any_stack_at_any_rank(dtype, stack_dtype):
    rng = np.random.default_rng(0)
    b = rng.integers(-9, 9, (2, 4, 3)).astype(dtype)  # exact in both
    stack = np.zeros((2, 4, 11), stack_dtype)
    assert put_b(stack, 5, b, 0.5) == 8
    np.testing.assert_array_equal(stack[..., 5:8], b / 2)
    a = rng.integers(-9, 9, (2, 3, 6)).astype(dtype)
    stack = np.zeros((2, 11, 6), stack_dtype)
    assert put_a(stack, -2, 5, a, 0.5) == 8
    np.testing.assert_array_equal(stack[:, 5:8], a / 2)
    embedding = rng.integers(-9, 9, (7, 3)).astype(dtype)
    stack = np.zeros((7, 11), stack_dtype)
    assert put_a(stack, -1, 5, embedding, -0.5) == 8
    np.testing.assert_array_equal(stack[:, 5:8], -embedding / 2)
    assert np.count_nonzero(stack) == np.count_nonzero(embedding)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [([], 1), ([0.0], 1), ([0.01], 1), ([1.0], 1), ([-1.01], 2), ([4.0, 1.0], 4), ([33], 64)],
)
def test_the_common_factor_is_a_power_of_two_that_all_fit_in(factors, expected):
    assert common_factor(factors) == expected


@pytest.fixture
def adapters(tmp_path, random_base):
    base = BaseModel.read(random_base)
    few = write_adapter(tmp_path / "few.gguf", 1, rank=3, kinds=("attn_q",), blocks=(1,))
    many = write_adapter(tmp_path / "many.gguf", 2, rank=40, dtype=np.float16, embeddings=True)
    return read_adapter(few, base), read_adapter(many, base)


def test_ranks_add_up_and_are_filled_up(adapters):
    few, many = adapters
    q = SMALL.width
    assert stacked_modules([few]) == {
        "blk.1.attn_q.weight": StackedModule(32, (32, q), (q, 32), -2)
    }
    both = stacked_modules([few, many])
    assert set(both) == set(many.modules)
    assert both["blk.1.attn_q.weight"].rank == 64
    assert both["blk.0.attn_q.weight"].rank == 64
    assert stacked_modules([few, few])["blk.1.attn_q.weight"].rank == 32
    assert stacked_modules([few, few], 64)["blk.1.attn_q.weight"].rank == 64
    embedding = both["token_embd.weight"]
    assert (embedding.a_shape, embedding.b_shape) == ((SMALL.vocab, 64), (q, 64))
    assert embedding.a_axis == -1
    assert {target.split(".")[-2]: module.scaled for target, module in both.items()} == {
        "attn_q": "a", "attn_k": "b", "attn_v": "b", "attn_output": "a",
        "ffn_gate": "a", "ffn_up": "a", "ffn_down": "b", "token_embd": "b", "output": "a",
    }  # fmt: skip


def test_a_stack_of_experts_keeps_its_first_axis(tmp_path):
    base = BaseModel.read(write_base(tmp_path / "base.gguf", shape=EXPERTS))
    one = read_adapter(write_adapter(tmp_path / "a.gguf", 1, shape=EXPERTS), base)
    module = stacked_modules([one, one])["blk.0.ffn_up_exps.weight"]
    assert module.a_shape == (4, 32, SMALL.width)
    assert module.b_shape == (4, SMALL.ffn, 32)


def test_room_and_bytes(adapters):
    few, many = adapters
    small, large = stacked_modules([few]), stacked_modules([few, many])
    assert covers(large, small)
    assert not covers(small, large)
    assert not covers({}, small)
    assert total_bytes(small, "f32") == 2 * total_bytes(small, "f16") == 4 * 2 * 32 * 64
    assert total_bytes(small, "q8_0") == 2 * 64 * 34


def test_the_exact_type_is_the_widest(adapters):
    few, many = adapters
    assert native_type([many]) == "f16"
    assert native_type([many, few]) == "f32"
