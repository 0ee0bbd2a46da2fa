"""The signals against values computed by hand, and the laws that hold for all inputs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from logo_local.routing.signals import (
    ENTROPY_EPSILON,
    arrow,
    entropy,
    frobenius_norm,
    log_rms_norms,
    norm,
    principal_direction,
    projection_output,
    reduced,
    relative_norm,
    softmax,
    spectr,
)

outputs = arrays(np.float32, st.integers(2, 40), elements=st.floats(-30, 30, width=32))


def f32(*values):
    return np.array(values, dtype=np.float32)


def test_projection_output_by_hand():
    h = f32(1, 2, 3)
    a = np.array([[1, 0, 1], [0, 2, 0]], dtype=np.float32)  # (2, 3): z = (4, 4)
    b = np.array([[1, 0], [0, 1], [1, -1], [2, 1]], dtype=np.float32)  # (4, 2): (4, 4, 0, 12)
    assert projection_output(h, a, b, 0.5).tolist() == [2.0, 2.0, 0.0, 6.0]


def test_norm_by_hand():
    assert norm(f32(3, 4)) == 5.0
    assert norm(f32(0, 0, 0)) == 0.0


@pytest.mark.parametrize(
    ("o", "h"),
    [
        (f32(0, 0, 0, 0), math.log(4)),  # nothing preferred
        (f32(math.log(3), 0), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))),
        (f32(5, 5, -1000), math.log(2)),  # a probability of zero takes no part
    ],
)
def test_entropy_by_hand(o, h):
    assert entropy(o) == pytest.approx(1 / (h + ENTROPY_EPSILON), rel=1e-6)


def test_entropy_of_certainty_is_finite():
    assert entropy(f32(1000, 0, 0)) == pytest.approx(1 / ENTROPY_EPSILON)


@given(outputs)
def test_entropy_lies_in_its_range(o):
    assert 1 / (math.log(len(o)) + ENTROPY_EPSILON) * (1 - 1e-9) <= entropy(o) <= 1e6


@given(outputs, st.floats(-50, 50))
def test_entropy_ignores_a_constant(o, c):
    shifted = (o.astype(np.float64) + c).astype(np.float32)
    assert 1 / entropy(shifted) == pytest.approx(1 / entropy(o), abs=1e-4)


@given(outputs, st.permutations(range(8)))
def test_signals_ignore_the_order_of_outputs(o, order):
    o = np.resize(o, 8)
    for signal in (norm, entropy):
        assert signal(o[list(order)]) == pytest.approx(signal(o), rel=1e-5)


@given(outputs, st.floats(0.125, 8, width=32))
def test_norm_scales_with_the_output(o, factor):
    assert norm(o * np.float32(factor)) == pytest.approx(norm(o) * factor, rel=1e-4, abs=1e-30)


@pytest.fixture
def factors():
    """A (3, 5) and B (7, 3), and their product (7, 5)."""
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (7, 3)))
    return a, b, b @ a


def test_norms_of_the_product_without_the_product(factors):
    a, b, product = factors
    h = f32(1, -2, 0.5, 3, 1)
    assert frobenius_norm(a, b, -2.0) == pytest.approx(2 * np.linalg.norm(product), rel=1e-5)
    assert spectr(h, a, b) == pytest.approx(np.linalg.norm(product @ h), rel=1e-5)
    assert np.linalg.norm(reduced(a, b, 0.5) @ h) == pytest.approx(
        0.5 * np.linalg.norm(product @ h), rel=1e-5
    )


def test_relative_norm_does_not_know_how_loud_an_adapter_or_a_prompt_is(factors):
    a, b, _ = factors
    h = f32(1, -2, 0.5, 3, 1)
    one = relative_norm(projection_output(h, a, b, 1.0), h, frobenius_norm(a, b, 1.0))
    other = relative_norm(projection_output(9 * h, a, b, 7.0), 9 * h, frobenius_norm(a, b, 7.0))
    assert one == pytest.approx(other, rel=1e-5)
    assert 0 < one <= 1
    assert relative_norm(f32(0, 0), f32(1, 1), 0.0) == 0.0


def test_arrow_is_the_part_along_the_first_singular_vector(factors):
    a, b, product = factors
    expected = np.linalg.svd(product)[2][0]
    found = principal_direction(a, b)
    assert abs(found @ expected) == pytest.approx(1, rel=1e-5)
    assert arrow(2 * expected, found) == pytest.approx(2, rel=1e-5)


def test_log_rms_norms_by_hand():
    rows = np.array([[3.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    stacked = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=np.float32)
    # the first two rows: squares 9 and 4, mean 6.5; the first alone: 9 and 0; the last is silent
    found = log_rms_norms(rows, stacked, [0, 2])
    np.testing.assert_allclose(found, [np.log(np.sqrt(6.5)), np.log(1e-12)], rtol=1e-5)


def test_softmax_sharpens_as_it_cools():
    np.testing.assert_allclose(softmax(f32(0, np.log(3))), [0.25, 0.75], rtol=1e-5)
    np.testing.assert_allclose(softmax(f32(0, np.log(3)), 0.5), [0.1, 0.9], rtol=1e-5)
    assert softmax(f32(-1e4, 1e4)).tolist() == [0.0, 1.0]
