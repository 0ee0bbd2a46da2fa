"""Profiles: vectors of texts, distances by hand, and what is near."""

import numpy as np
import pytest

from logo_local.hidden_states import Hidden
from logo_local.routing.profile_store import ProfileStore
from logo_local.routing.profiles import (
    LEAST_GAIN,
    LEAST_GAP,
    LEAST_MATCH,
    MOST_GAIN,
    Measure,
    Profile,
    embed,
)
from logo_local.routing.whitening import Whitening


def profile(*vectors, **more):
    return Profile(np.array(vectors, dtype=np.float32), **more)


def test_embed_is_the_mean_of_each_block_at_length_one():
    means = [Hidden.of(np.array([[3.0, 0.0], [3.0, 8.0]])).mean, np.array([0.0, 5.0])]
    np.testing.assert_allclose(embed(means), [0.6, 0.8, 0.0, 1.0], rtol=1e-6)


def test_a_block_without_anything_embeds_as_zero():
    assert embed([np.zeros(3, dtype=np.float32)]).tolist() == [0.0, 0.0, 0.0]


def test_distances_by_hand():
    # Deviations are along the first axis only: variance 1 there (2 texts each, freedom 2),
    # 0 on the second. Mean variance 1/2 per axis.
    found = Measure.fit({"a": profile((-1, 0), (1, 0)), "b": profile((-1, 4), (1, 4))}, 1.0)
    # s^2 / freedom = 4 / 2 = 2 along x, floor = 1 * (4 / 2 / 2) = 1: C = diag(3, 1)
    np.testing.assert_allclose(
        found.distances(np.array([3.0, 0.0], dtype=np.float32)),
        [np.sqrt(9 / 3), np.sqrt(9 / 3 + 16)],
        rtol=1e-5,
    )


def test_what_is_typical_is_measured_on_texts_left_out():
    rng = np.random.default_rng(1)
    texts = [rng.standard_normal((9, 40)).astype(np.float32) for _ in range(6)]
    found = Measure.fit({str(i): Profile(v[:8]) for i, v in enumerate(texts)})
    new = [found.distances(v[8])[i] for i, v in enumerate(texts)]
    assert found.typical == pytest.approx(np.mean(new), rel=0.15)


def test_without_a_second_text_anything_may_be_near():
    found = Measure.fit({"a": profile((1, 0))})
    assert found.nearness(np.array([0, 9], dtype=np.float32)).tolist() == [0.0]


def test_what_texts_of_one_adapter_differ_in_counts_less():
    rng = np.random.default_rng(0)
    noisy = np.array([10.0, 0.1, 0.1])
    a = Profile((rng.standard_normal((8, 3)) * noisy).astype(np.float32))
    b = Profile((rng.standard_normal((8, 3)) * noisy + [0, 1, 0]).astype(np.float32))
    found = Measure.fit({"a": a, "b": b}, 1e-4)
    x = np.array([b.vectors[:, 0].mean(), 0.05, 0.0], dtype=np.float32)  # b by x, a by y
    assert np.linalg.norm(x - b.vectors.mean(0)) < np.linalg.norm(x - a.vectors.mean(0))
    assert found.distances(x).argmin() == 0


def test_profiles_of_one_text_can_be_told_apart():
    found = Measure.fit({"a": profile((1, 0)), "b": profile((0, 1))})
    assert found.distances(np.array([0.9, 0.1], dtype=np.float32)).argmin() == 0
    assert np.isfinite(found.nearness(np.array([0.9, 0.1], dtype=np.float32))).all()


@pytest.mark.parametrize(
    ("gain", "tells"), [(None, True), (0.0, False), (LEAST_GAIN, True), (MOST_GAIN + 1, False)]
)
def test_samples_tell_when_they_are_neither_the_bases_nor_noise(gain, tells):
    assert profile((1, 0), gain=gain).is_informative is tells


def vector(*values):
    return np.array(values, dtype=np.float32)


def test_matches_by_hand():
    """Positions between a reference and the centre, and the smaller one where there are two."""
    a = profile((4, 0), contrasts=[np.array([[0, 4], [0, 4]], dtype=np.float32)])
    general = np.array([[-4, 0], [-4, 0]], dtype=np.float32)
    found = Measure.fit({"a": a}, general=general)
    assert found.matches(vector(4, 0)) == pytest.approx([1.0])
    # Half of the way from (-4, 0) to (4, 0), and from (0, 4) to (4, 0).
    assert found.matches(vector(2, 2))[0] == pytest.approx(0.5)
    assert found.matches(vector(3, -1))[0] == pytest.approx(0.875)  # the general requests decide
    assert found.matches(vector(1, 4))[0] == pytest.approx(0.125)  # the contrasts decide


def test_the_match_is_the_mean_over_both_kinds_of_contrasts():
    kinds = [np.array([[0, 4]], dtype=np.float32), np.array([[0, -4]], dtype=np.float32)]
    general = np.array([[-4, 0]], dtype=np.float32)
    found = Measure.fit({"a": profile((4, 0), contrasts=kinds)}, general=general)
    # (4, 2) is three quarters of the way from (0, 4) and five quarters from (0, -4).
    assert found.matches(vector(4, 2))[0] == pytest.approx((0.75 + 1.25) / 2)
    assert found.matches(vector(3, 1))[0] == pytest.approx((0.75 + 1) / 2)


def test_what_the_inputs_of_one_request_differ_in_counts_less():
    """Two adapters with inputs far apart (x), a request each (y), and one request about both."""
    a = profile((10, 1), contrasts=[np.array([[10, 0]], dtype=np.float32)])
    b = profile((-10, 1), contrasts=[np.array([[-10, 0]], dtype=np.float32)])
    general = np.array([[0, -1]], dtype=np.float32)
    found = Measure.fit({"a": a, "b": b}, 0.1, general=general)
    # The input is that of a, the request is not; without the contrasts, x alone would decide.
    assert found.matches(vector(10, 0))[0] < 0.6
    alone = Measure.fit({"a": profile((10, 1)), "b": profile((-10, 1))}, 0.1, general=general)
    assert alone.matches(vector(10, 0))[0] > 0.9


def test_what_a_message_continues_by_hand():
    """On the x axis, a is at 0, b at 40, and general requests are at 20 and 100."""
    profiles = {
        "a": profile((-2, 0), (2, 0), (-2, 0), (2, 0)),
        "b": profile((38, 0), (42, 0), (38, 0), (42, 0)),
    }
    general, other = vector((20, 0), (100, 0), (0, 80)), vector((0, 90))
    found = Measure.fit(profiles, general=general, continuations=other)
    assert found.continues(vector(1, 0)).tolist() == [True, False]
    assert found.continues(vector(19, 0)).tolist() == [False, False]  # like a general request
    just = 10 - LEAST_GAP * found.typical / 2 / scale(found)
    assert found.continues(vector(just - 0.1, 0)).tolist() == [True, False]
    assert found.continues(vector(just + 0.1, 0)).tolist() == [False, False]
    # Like a message that continues any conversation.
    assert found.continues(vector(0, 89)).tolist() == [True, True]
    alone = Measure.fit(profiles, general=general)
    assert alone.continues(vector(60, 0)).tolist() == [False, True]
    assert alone.continues(vector(0, 89)).tolist() == [False, False]
    assert Measure.fit(profiles).continues(vector(60, 0)).tolist() == [True, True]


def scale(measure):
    """Whitened length of one unit on the x axis."""
    return float(abs(measure.distances(vector(1, 0))[0] - measure.distances(vector(0, 0))[0]))


def test_matches_of_some_profiles_are_those_of_all():
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((5, 6, 9)).astype(np.float32)
    profiles = {n: Profile(v, contrasts=[rows[3]]) for n, v in zip("abc", rows, strict=False)}
    found = Measure.fit(profiles, general=rows[4])
    x = rng.standard_normal(9).astype(np.float32)
    np.testing.assert_allclose(found.matches(x, [2, 0]), found.matches(x)[[2, 0]], rtol=1e-5)


def test_matches_are_at_most_zero_where_a_general_request_is_nearer():
    general = np.array([[-4, 0], [0, 3]], dtype=np.float32)
    found = Measure.fit({"a": profile((4, 0))}, general=general)
    assert found.matches(vector(1.2, 2))[0] == 0
    assert found.matches(vector(2.5, 1))[0] > 0.5


def test_what_is_far_from_everything_matches_nothing():
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((3, 8, 30)).astype(np.float32)
    found = Measure.fit({n: Profile(v) for n, v in zip("ab", rows, strict=False)}, general=rows[2])
    # Along no direction between the two, so that it lies half-way between them, as it were.
    away = np.linalg.svd(rows.reshape(-1, 30))[2][-1]
    middle = (rows[0].mean(0) + rows[2].mean(0)) / 2
    assert found.matches((middle + 0.1 * away).astype(np.float32))[0] > 0
    assert found.matches((middle + 50 * away).astype(np.float32))[0] <= 0


def test_matches_do_not_depend_on_the_scale_of_a_model():
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((4, 6, 9)).astype(np.float32)
    x = rng.standard_normal(9).astype(np.float32)
    small, large = (
        Measure.fit(
            {n: Profile(f * v, contrasts=[f * rows[3]]) for n, v in zip("ab", rows, strict=False)},
            general=f * rows[2],
        ).matches(f * x)
        for f in (1.0, 50.0)
    )
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-3)


def test_without_references_everything_matches():
    assert Measure.fit({"a": profile((1, 0))}).matches(vector(0, 9)).tolist() == [1.0]


@pytest.mark.parametrize(
    ("n_texts", "wordings", "share"),
    [(1, 1, 1 / 3), (8, 1, 1 / 3), (8, 2, 1 / 2), (8, 4, 2 / 3), (8, 8, 2 / 3), (2, 0, 1 / 2)],
)
def test_examples_in_few_wordings_ask_for_less(n_texts, wordings, share):
    found = profile(*[(1, 0)] * n_texts, wordings=wordings)
    assert found.least_match == pytest.approx(LEAST_MATCH * share)


def test_what_is_typical_of_two_texts_each():
    """Leaving one out leaves one, which differs from nothing: other profiles say what is usual."""
    rng = np.random.default_rng(2)
    texts = [rng.standard_normal((3, 30)).astype(np.float32) for _ in range(40)]
    found = Measure.fit({str(i): Profile(v[:2]) for i, v in enumerate(texts)})
    new = [found.distances(v[2])[i] for i, v in enumerate(texts)]
    assert 0.5 < found.typical / np.mean(new) < 2


def test_vectors_are_made_once_and_read_again(tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x" * 100)
    store = ProfileStore(tmp_path / "cache", model)

    def ords(text, _form):
        return np.array([ord(text), 1.0], np.float32)

    made = store.of_prompts(["a", "b"], (), ords, "chat")

    def never(*_):
        raise AssertionError("the vectors are in the cache")

    again = ProfileStore(tmp_path / "cache", model).of_prompts(["a", "b"], (), never, "chat")
    np.testing.assert_array_equal(again.vectors, made.vectors)
    samples = store.of_samples(
        "k" * 64, lambda: (["a"], 0.5), lambda *_: np.ones(2, np.float32), "chat"
    )
    read = store.of_samples("k" * 64, never, never, "chat")
    assert (read.gain, read.vectors.tolist()) == (samples.gain, samples.vectors.tolist())
    assert store.of_samples("n" * 64, lambda: ([], 0.0), never, "chat") is None


def test_profiles_of_one_and_the_same_text_are_near_to_everything():
    one = profile((3, 1))
    found = Measure.fit({"a": one, "b": one})
    assert found.typical == float("inf")
    assert found.nearness(np.array([9.0, 9.0], np.float32)).tolist() == [0.0, 0.0]


def test_a_row_whitened_twice_stands_for_both_sides_of_a_product():
    rng = np.random.default_rng(3)
    groups = [rng.standard_normal((6, 20)).astype(np.float32) for _ in range(4)]
    whitening = Whitening.fit(groups)
    x, rows = rng.standard_normal(20).astype(np.float32), groups[0]
    towards, squares = whitening.twice(rows)
    np.testing.assert_allclose(towards @ x, whitening(rows) @ whitening(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(squares, (whitening(rows) ** 2).sum(axis=1), rtol=1e-4)
    assert whitening.square(x) == pytest.approx(float((whitening(x) ** 2).sum()), rel=1e-4)


def test_a_covariance_of_many_texts_is_made_of_some_of_them():
    rng = np.random.default_rng(7)
    scale = np.array([5.0, 1.0, 1.0, 0.2])
    groups = [(rng.standard_normal((40, 4)) * scale).astype(np.float32) for _ in range(60)]
    some = Whitening.fit(groups)  # of 2,400 texts
    few = Whitening.fit(groups[:20])  # of 800, all of which count
    x = np.ones(4, dtype=np.float32)
    np.testing.assert_allclose(some(x), few(x), rtol=0.1)
