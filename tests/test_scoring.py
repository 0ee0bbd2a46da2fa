"""From one reading to the scores of a pool: each signal on adapters whose scores are known."""

import numpy as np
import pytest
from random_gguf import WIDTH, write_adapter

from logo_local import hidden_states
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.hidden_states import Hidden, Place
from logo_local.routing.baselines import ENOUGH, Baselines
from logo_local.routing.descriptions import Descriptions
from logo_local.routing.index import RoutingIndex, choose_target
from logo_local.routing.profiles import Profile
from logo_local.routing.registry import Need, signals
from logo_local.routing.scorers.profiles import CLEARLY
from logo_local.routing.scoring import Compared, Scorer, answer_places, profile_vector, read_places
from logo_local.routing.signals import norm, projection_output, sharpened
from logo_local.routing.z_norms import ZNorms, adapter_key


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
    places = [
        *read_places(base),
        *answer_places(base),
        Place(f"blk.{base.n_blocks - 1}.attn_q.weight"),
    ]
    return {
        place: Hidden.of((rng.standard_normal((6, WIDTH)) + offset).astype(np.float32))
        for place in dict.fromkeys(places)
    }


@pytest.fixture
def scorer(base, adapters):
    index = RoutingIndex.build(adapters, choose_target(adapters, base))
    norms = ZNorms(adapters, read_places(base))
    norms.measure(generic(base))
    return Scorer(adapters, base, index, Place(index.target), norms)


def generic(base):
    return [reading(base, seed) for seed in range(ENOUGH)]


def profile_around(scorer, base, offset, **more):
    vectors = [profile_vector(reading(base, 50 + i, offset), base) for i in range(4)]
    return Profile(np.stack(vectors), **more)


def profiles(scorer, base, **more):
    return {n: profile_around(scorer, base, subject(i), **more) for i, n in enumerate("abc")}


def test_blocks_are_read_from_the_first_on(base):
    assert [place.target for place in read_places(base)] == [
        f"blk.{block}.attn_q.weight"
        for block in range(2)  # of three: the last is about the answer
    ]


def test_the_answer_is_read_in_late_blocks(base):
    assert [place.target for place in answer_places(base)] == ["blk.2.attn_q.weight"]


def test_a_vector_has_all_parts_at_length_one(base):
    read = reading(base, 9)
    vector = profile_vector(read, base)
    parts = vector.reshape(-1, WIDTH)
    n = len(read_places(base))
    assert len(parts) == 3 * n + len(answer_places(base))
    assert np.linalg.norm(parts, axis=1) == pytest.approx(1.0)
    first = read[read_places(base)[0]]
    for at, part in ((0, first.mean), (n, first.first), (2 * n, first.final)):
        assert parts[at] == pytest.approx(part / np.linalg.norm(part))
    last = read[answer_places(base)[0]].last
    assert parts[3 * n] == pytest.approx(last / np.linalg.norm(last))


def test_the_papers_norm_is_that_of_each_projection_output(scorer, base, adapters):
    read = reading(base, 9)
    h = read[scorer.place].last
    for name, score in scorer.fit("norm", read).scores.items():
        a, b = adapters[name].factors(scorer.place.target)
        o = projection_output(h, a, b, adapters[name].scaling(scorer.place.target))
        assert score == pytest.approx(norm(o))


def test_only_the_last_token_counts_for_the_signals_at_one_place(scorer, base):
    read = reading(base, 9)
    changed = {place: Hidden.of(hidden.rows.copy()) for place, hidden in read.items()}
    for hidden in changed.values():
        hidden.rows[:-1] += 1
    for signal in ("norm", "entropy", "relative", "arrow", "spectr"):
        assert scorer.fit(signal, read).scores == scorer.fit(signal, changed).scores


@pytest.mark.parametrize(
    "signal", [n for n, about in signals().items() if not about.needs & {Need.EACH, Need.MENU}]
)
def test_every_signal_gives_scores_that_a_route_can_use(scorer, base, signal):
    scorer.prompts = {
        name: profile_around(scorer, base, subject(i)) for i, name in enumerate("abc")
    }
    scorer.samples = profiles(scorer, base, source="samples", gain=0.5)
    vectors = {name: profile.vectors for name, profile in scorer.prompts.items()}
    scorer.descriptions = Descriptions.fit(vectors, vectors["a"] + 1)
    scores = scorer.fit(signal, reading(base, 9)).scores
    assert scores.keys() == {"a", "b", "c"}
    assert all(np.isfinite(score) and score >= 0 for score in scores.values())


def test_z_norm_is_zero_for_what_is_usual(scorer, base):
    mean = np.mean([list(scorer.z_norms.scores(one).values()) for one in generic(base)])
    assert mean == pytest.approx(0.0, abs=1e-4)
    loud = {place: Hidden.of(3 * hidden.rows) for place, hidden in reading(base, 9).items()}
    assert min(scorer.z_norms.scores(loud).values()) > 1


def test_z_norm_compares_adapters_of_different_modules(base, tmp_path):
    settings = {"all": {}, "q-only": {"kinds": ("attn_q",)}, "one-block": {"blocks": (0,)}}
    adapters = {
        name: read_adapter(write_adapter(tmp_path / f"{name}.gguf", seed=i, **more), base)
        for i, (name, more) in enumerate(settings.items())
    }
    index = RoutingIndex.build(adapters, choose_target(adapters, base))
    norms = ZNorms(adapters, read_places(base))
    assert norms.scores(reading(base, 9)) == {}  # nothing is known of what is usual
    assert norms.unmeasured == tuple(adapters)
    norms.measure(generic(base))
    assert norms.unmeasured == ()
    assert norms.scores(reading(base, 9)).keys() == adapters.keys()
    scorer = Scorer(adapters, base, index, Place(index.target), norms)
    assert "one-block" not in scorer.fit("norm", reading(base, 9)).scores


def test_a_profile_finds_its_own_kind_of_text(scorer, base):
    scorer.prompts = {
        name: profile_around(scorer, base, subject(i)) for i, name in enumerate("abc")
    }
    for i, name in enumerate("abc"):
        scores = scorer.fit("profile", reading(base, 99, subject(i))).scores
        assert max(scores, key=scores.get) == name


def test_a_text_unlike_every_profile_fits_none(scorer, base):
    scorer.prompts = {
        name: profile_around(scorer, base, subject(i)) for i, name in enumerate("abc")
    }
    scorer.general = profile_around(scorer, base, subject(7)).vectors
    fit = scorer.fit("profile", reading(base, 99, -5 * subject(1)))
    assert set(fit.scores.values()) == {0.0}
    assert fit.reason.startswith("no adapter matches: the nearest is ")
    own = scorer.fit("profile", reading(base, 51, subject(1)))
    assert own.scores == {"a": 0.0, "b": 1.0, "c": 0.0}
    assert own.reason.startswith("b matches (match ")


def test_samples_that_say_nothing_are_not_used(scorer, base):
    scorer.samples = {
        "a": profile_around(scorer, base, 0.0, source="samples", gain=0.5),
        "b": profile_around(scorer, base, 1.0, source="samples", gain=0.0),  # the base's own
        "c": profile_around(scorer, base, 1.0, source="samples", gain=9.0),  # no language
    }
    assert scorer.fit("self-profile", reading(base, 9)).scores.keys() == {"a"}
    assert scorer.fit("combined", reading(base, 9)).scores.keys() == {"a", "b", "c"}


def test_auto_asks_adapters_without_prompts(scorer, base):
    scorer.prompts = {"a": profile_around(scorer, base, 0.0)}
    assert scorer.wants_samples("auto") == ["b", "c"]
    scorer.prompts = profiles(scorer, base)
    assert scorer.wants_samples("auto") == []
    assert scorer.wants_samples("combined") == ["a", "b", "c"]
    assert not scorer.wants_generic("profile")


def test_adapters_without_a_profile_are_never_chosen(scorer, base):
    scorer.prompts = {"a": profile_around(scorer, base, subject(0))}
    scorer.general = profile_around(scorer, base, subject(7)).vectors
    near, far = reading(base, 99, subject(0)), reading(base, 99, subject(7))
    assert scorer.fit("mixed", near).scores == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert set(scorer.fit("mixed", far).scores.values()) == {0.0}


def test_baselines_are_wanted_by_signals_with_norms_only(scorer, base):
    scorer.samples = {"c": profile_around(scorer, base, 0.0, source="samples", gain=0.5)}
    assert not scorer.wants_generic("auto")
    assert scorer.wants_generic("combined")
    assert scorer.wants_generic("z-norm")


def test_combined_takes_norms_where_no_profile_fits(scorer, base, monkeypatch):
    scorer.samples = {"a": profile_around(scorer, base, subject(0), source="samples", gain=0.5)}
    scorer.general = profile_around(scorer, base, subject(7)).vectors
    monkeypatch.setattr(scorer.z_norms, "scores", lambda _r, _n: {"b": 2.0, "c": -1.0})
    near, far = reading(base, 99, subject(0)), reading(base, 99, subject(7))
    assert scorer.fit("combined", near).scores == pytest.approx({"a": 1.0, "b": 0.0, "c": 0.0})
    assert scorer.fit("combined", far).scores == pytest.approx(
        {"a": 0.0, "b": 1.0, "c": 0.0}, abs=1e-6
    )


def test_a_share_that_changes_nothing_is_none():
    shares = sharpened({"a": 1.0, "b": 0.9, "c": 0.2}, 0.1)
    assert shares == pytest.approx({"a": 0.73, "b": 0.27, "c": 0.0}, abs=0.01)
    assert shares["c"] == 0.0
    assert sharpened({}, 0.1) == {}


@pytest.mark.parametrize(
    ("matches", "fitting"),
    [
        ((0.9, 0.9), {"a", "b"}),
        ((0.9, 0.3), {"a"}),
        ((0.5, 0.5), {"a", "b"}),
        ((0.49, 0.9), set()),  # what is further away is not chosen instead
    ],
)
def test_the_nearest_adapter_decides_whether_a_prompt_fits(
    scorer, base, monkeypatch, matches, fitting
):
    compared = [Compared(n, -1.0, m, 0.5) for n, m in zip("ab", matches, strict=True)]
    monkeypatch.setattr(scorer, "compared", lambda _r, _s: compared)
    scores = scorer.fit("profile", reading(base, 9)).scores
    assert {name for name, score in scores.items() if score} == fitting


@pytest.mark.parametrize(
    ("match", "sure"),
    [(0.5 + CLEARLY + 0.01, True), (0.5 + CLEARLY - 0.01, False), (0.4, False)],
)
def test_how_sure_a_message_is(scorer, base, monkeypatch, match, sure):
    compared = [Compared("a", -1.0, match, 0.5, False), Compared("b", -2.0, 0.0, 0.5, True)]
    monkeypatch.setattr(scorer, "compared", lambda _r, _s: compared)
    for signal in ("profile", "mixed"):
        fit = scorer.fit(signal, reading(base, 9))
        assert (fit.sure, fit.continues) == (sure, {"b"})


def test_some_adapters_alone_have_the_same_z_norms(scorer, base):
    everything = scorer.z_norms.scores(reading(base, 9))
    assert scorer.z_norms.scores(reading(base, 9), ["b"]) == pytest.approx({"b": everything["b"]})
    assert scorer.z_norms.scores(reading(base, 9), []) == {}


def test_of_a_long_prompt_some_tokens_are_looked_at(scorer, base, monkeypatch):
    rng = np.random.default_rng(3)
    rows = {
        place: rng.standard_normal((1000, WIDTH)).astype(np.float32) for place in read_places(base)
    }
    few = scorer.z_norms.scores({place: Hidden.of(one) for place, one in rows.items()})
    monkeypatch.setattr(hidden_states, "MOST_ROWS", 1000)
    every = scorer.z_norms.scores({place: Hidden.of(one) for place, one in rows.items()})
    assert few != every
    assert few == pytest.approx(every, abs=1.0)  # of one standard deviation


def test_past_prompts_take_the_place_of_generic_ones(scorer, base, adapters, tmp_path):
    """What every prompt of this user does is usual, also where generic texts do not do it."""
    now = reading(base, 5, subject(0))
    by_generic = scorer.z_norms.scores(now)
    past = scorer.z_norms._past = Baselines(tmp_path / "past.npz")
    for seed in range(ENOUGH):
        assert scorer.z_norms.scores(now) == by_generic  # too few yet
        scorer.z_norms.scores(reading(base, 100 + seed, subject(0)))
        scorer.z_norms.remember()
        scorer.z_norms.remember()  # one prompt counts once
    by_past = scorer.z_norms.scores(now)
    assert max(map(abs, by_past.values())) < 2 < max(map(abs, by_generic.values()))
    mean, _ = past.moments(adapter_key(adapters["a"]), 6)
    rows = [reading(base, 100 + seed, subject(0)) for seed in range(ENOUGH)]
    place = read_places(base)[0]
    a, b = adapters["a"].factors("blk.0.attn_q.weight")
    scaling = adapters["a"].scaling("blk.0.attn_q.weight")
    by_hand = [
        np.log(
            np.sqrt(
                np.mean([norm(projection_output(h, a, b, scaling)) ** 2 for h in r[place].rows])
            )
        )
        for r in rows
    ]
    assert mean[0] == pytest.approx(np.mean(by_hand), rel=1e-4)
