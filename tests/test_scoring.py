"""From one reading to the scores of a pool: each signal on adapters whose scores are known."""

import numpy as np
import pytest
from random_gguf import WIDTH, write_adapter

from logo_local.adapter_file import read_adapter
from logo_local.base_model import BaseModel
from logo_local.index import RoutingIndex, choose_target
from logo_local.native import Place
from logo_local.past import ENOUGH, PastNorms
from logo_local.profiles import Profile
from logo_local.scoring import ONE_PASS, Scorer, adapter_key, read_places
from logo_local.signals import norm, projection_output


@pytest.fixture
def base(random_base):
    return BaseModel.read(random_base)


@pytest.fixture
def adapters(tmp_path, base):
    return {
        name: read_adapter(write_adapter(tmp_path / f"{name}.gguf", seed=i + 1), base)
        for i, name in enumerate("abc")
    }


def subject(i):
    """What texts of the i-th kind have in common: a vector (WIDTH,)."""
    return np.random.default_rng(1000 + i).standard_normal(WIDTH)


def reading(base, seed, offset=0.0):
    """Random rows, all moved by `offset`, at every place that any signal reads."""
    rng = np.random.default_rng(seed)
    places = [*read_places(base), Place(f"blk.{base.n_blocks - 1}.attn_q.weight")]
    return {
        place: (rng.standard_normal((6, WIDTH)) + offset).astype(np.float32)
        for place in dict.fromkeys(places)
    }


@pytest.fixture
def scorer(base, adapters):
    index = RoutingIndex.build(adapters, choose_target(adapters, base))
    return Scorer(
        adapters,
        base,
        index,
        Place(index.target),
        generic=[reading(base, seed) for seed in range(8)],
    )


def profile_around(scorer, base, offset, **more):
    vectors = [scorer.vector(reading(base, 50 + i, offset)) for i in range(4)]
    return Profile(np.stack(vectors), **more)


def profiles(scorer, base, **more):
    return {n: profile_around(scorer, base, subject(i), **more) for i, n in enumerate("abc")}


def test_blocks_are_read_from_the_first_to_the_last(base):
    assert [place.target for place in read_places(base)] == [
        f"blk.{block}.attn_q.weight" for block in range(3)
    ]


def test_the_papers_norm_is_that_of_each_projection_output(scorer, base, adapters):
    read = reading(base, 9)
    h = read[scorer.place][-1]
    for name, score in scorer.scores("norm", read).items():
        a, b = adapters[name].factors(scorer.place.target)
        o = projection_output(h, a, b, adapters[name].scaling(scorer.place.target))
        assert score == pytest.approx(norm(o))


def test_only_the_last_token_counts_for_the_signals_at_one_place(scorer, base):
    read = reading(base, 9)
    changed = {place: rows.copy() for place, rows in read.items()}
    for rows in changed.values():
        rows[:-1] += 1
    for signal in ("norm", "entropy", "relative", "arrow", "spectr"):
        assert scorer.scores(signal, read) == scorer.scores(signal, changed)


@pytest.mark.parametrize("signal", sorted(ONE_PASS))
def test_every_signal_gives_scores_that_a_route_can_use(scorer, base, signal):
    scorer.prompts = {
        name: profile_around(scorer, base, subject(i)) for i, name in enumerate("abc")
    }
    scorer.samples = profiles(scorer, base, source="samples", gain=0.5)
    scores = scorer.scores(signal, reading(base, 9))
    assert scores.keys() == {"a", "b", "c"}
    assert all(np.isfinite(score) and score >= 0 for score in scores.values())


def test_z_norm_is_zero_for_what_is_usual(scorer, base):
    mean = np.mean([list(scorer.z_norms(one).values()) for one in scorer.generic])
    assert mean == pytest.approx(0.0, abs=1e-4)
    loud = {place: 3 * rows for place, rows in reading(base, 9).items()}
    assert min(scorer.z_norms(loud).values()) > 1


def test_z_norm_compares_adapters_of_different_modules(base, tmp_path):
    settings = {"all": {}, "q-only": {"kinds": ("attn_q",)}, "one-block": {"blocks": (0,)}}
    adapters = {
        name: read_adapter(write_adapter(tmp_path / f"{name}.gguf", seed=i, **more), base)
        for i, (name, more) in enumerate(settings.items())
    }
    index = RoutingIndex.build(adapters, choose_target(adapters, base))
    generic = [reading(base, seed) for seed in range(8)]
    scorer = Scorer(adapters, base, index, Place(index.target), generic=generic)
    assert scorer.z_norms(reading(base, 9)).keys() == adapters.keys()
    assert "one-block" not in scorer.scores("norm", reading(base, 9))


def test_a_profile_finds_its_own_kind_of_text(scorer, base):
    scorer.prompts = {
        name: profile_around(scorer, base, subject(i)) for i, name in enumerate("abc")
    }
    for i, name in enumerate("abc"):
        scores = scorer.scores("profile", reading(base, 99, subject(i)))
        assert max(scores, key=scores.get) == name


def test_a_text_unlike_every_profile_fits_none(scorer, base):
    scorer.prompts = {
        name: profile_around(scorer, base, subject(i)) for i, name in enumerate("abc")
    }
    scores = scorer.scores("profile", reading(base, 99, -5 * subject(1)))
    assert set(scores.values()) == {0.0}


def test_samples_that_say_nothing_are_not_used(scorer, base):
    scorer.samples = {
        "a": profile_around(scorer, base, 0.0, source="samples", gain=0.5),
        "b": profile_around(scorer, base, 1.0, source="samples", gain=0.0),  # the base's own
        "c": profile_around(scorer, base, 1.0, source="samples", gain=9.0),  # no language
    }
    assert scorer.scores("self-profile", reading(base, 9)).keys() == {"a"}
    assert scorer.scores("combined", reading(base, 9)).keys() == {"a", "b", "c"}


def test_auto_is_profile_where_every_adapter_has_prompts(scorer, base):
    assert scorer.resolved("auto") == "mixed"
    scorer.prompts = {"a": profile_around(scorer, base, 0.0)}
    assert scorer.resolved("auto") == "mixed"
    assert scorer.wants_samples("auto") == ["b", "c"]
    assert scorer.wants_generic("auto")
    scorer.prompts = {
        name: profile_around(scorer, base, subject(i)) for i, name in enumerate("abc")
    }
    assert scorer.resolved("auto") == "profile"
    assert scorer.wants_samples("auto") == []
    assert not scorer.wants_generic("auto")
    assert scorer.wants_samples("combined") == ["a", "b", "c"]


def test_past_prompts_take_the_place_of_generic_ones(scorer, base, adapters, tmp_path):
    """What every prompt of this user does is usual, also where generic texts do not do it."""
    now = reading(base, 5, subject(0))
    by_generic = scorer.z_norms(now)
    scorer.past = PastNorms(tmp_path / "past.npz")
    for seed in range(ENOUGH):
        assert scorer.z_norms(now) == by_generic  # too few yet
        scorer.z_norms(reading(base, 100 + seed, subject(0)))
        scorer.remember()
        scorer.remember()  # one prompt counts once
    by_past = scorer.z_norms(now)
    assert max(map(abs, by_past.values())) < 2 < max(map(abs, by_generic.values()))
    mean, _ = scorer.past.usual(adapter_key(adapters["a"]), 6)
    rows = [reading(base, 100 + seed, subject(0)) for seed in range(ENOUGH)]
    place = read_places(base)[0]
    a, b = adapters["a"].factors("blk.0.attn_k.weight")
    scaling = adapters["a"].scaling("blk.0.attn_k.weight")
    by_hand = [
        np.log(np.sqrt(np.mean([norm(projection_output(h, a, b, scaling)) ** 2 for h in r[place]])))
        for r in rows
    ]
    assert mean[0] == pytest.approx(np.mean(by_hand), rel=1e-4)
