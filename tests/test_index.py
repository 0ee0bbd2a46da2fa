"""The routing index: which projection is probed, what is read, what a score is."""

import logging

import numpy as np
import pytest
from random_gguf import EXPERTS, WIDTH, write_adapter, write_base

from logo_local.errors import PoolError, SettingsError
from logo_local.files.adapter_file import AdapterFile, read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.routing.index import RoutingIndex, block_number, choose_target
from logo_local.routing.signals import norm, projection_output


@pytest.fixture
def pool_of(tmp_path, random_base):
    """pool_of(name=settings of write_adapter, ...): checked adapters by name."""
    base = BaseModel.read(random_base)

    def make(**adapters):
        return {
            name: read_adapter(write_adapter(tmp_path / f"{name}.gguf", seed, **settings), base)
            for seed, (name, settings) in enumerate(adapters.items())
        }, base

    return make


@pytest.mark.parametrize(("layer", "block"), [(0, 0), (2, 2), (-1, 2), (-3, 0)])
def test_layers_count_from_both_ends(random_base, layer, block):
    assert block_number(layer, BaseModel.read(random_base)) == block


@pytest.mark.parametrize("layer", [3, -4, 99])
def test_a_layer_beyond_the_model_says_what_there_is(random_base, layer):
    with pytest.raises(SettingsError, match="3 blocks") as caught:
        block_number(layer, BaseModel.read(random_base))
    assert "-3 to 2" in caught.value.hint


Q, K, UP = {"kinds": ("attn_q",)}, {"kinds": ("attn_k",)}, {"kinds": ("ffn_up",)}


@pytest.mark.parametrize(
    ("adapters", "kind"),
    [
        ({"a": {}, "b": {}}, "attn_q"),  # all seven: q, as in the paper
        ({"a": UP, "b": K, "c": UP}, "ffn_up"),  # no q: what most of the pool has
        ({"a": UP, "b": UP, "c": Q}, "ffn_up"),  # q, but most have another
        ({"a": UP, "b": Q}, "attn_q"),  # as many: q wins
        ({"a": UP, "b": K}, "attn_k"),  # as many, no q: by name, so that it never wavers
    ],
)
def test_the_target_is_what_most_of_the_pool_adapts(pool_of, adapters, kind):
    pool, base = pool_of(**adapters)
    assert choose_target(pool, base) == f"blk.2.{kind}.weight"
    assert choose_target(pool, base, layer=0) == f"blk.0.{kind}.weight"


def test_a_block_that_nobody_adapts_is_an_error(pool_of):
    pool, base = pool_of(a={"blocks": (0, 1)})
    assert choose_target(pool, base, layer=1) == "blk.1.attn_q.weight"
    with pytest.raises(PoolError, match="block 2") as caught:
        choose_target(pool, base)
    assert "layer chooses" in caught.value.hint


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_block_of_which_experts_alone_are_adapted_says_so(tmp_path, elsewhere):
    base = BaseModel.read(write_base(tmp_path / "base.gguf", shape=EXPERTS))
    experts = {"kinds": ("ffn_up_exps", "ffn_down_exps"), "shape": EXPERTS}
    paths = [write_adapter(tmp_path / "experts.gguf", 0, **experts)]
    if elsewhere:
        paths.append(write_adapter(tmp_path / "q.gguf", 1, **Q, blocks=(0,), shape=EXPERTS))
    pool = {path.stem: read_adapter(path, base) for path in paths}
    with pytest.raises(PoolError) as caught:
        choose_target(pool, base)
    assert caught.value.message == (
        "adapters touch only the experts of block 2, which cannot be probed"
    )
    assert "--signal each-entropy" in caught.value.hint
    assert ("layer chooses" in caught.value.hint) == elsewhere  # no other block would do either
    if elsewhere:
        assert choose_target(pool, base, layer=0) == "blk.0.attn_q.weight"


def test_an_adapter_without_the_target_is_named_and_has_no_score(pool_of, caplog):
    pool, base = pool_of(a=UP, b=UP, quiet=Q)
    with caplog.at_level(logging.WARNING):
        index = RoutingIndex.build(pool, choose_target(pool, base))
    assert index.entries.keys() == {"a", "b"}
    assert "quiet takes no part in routing" in caplog.text


def test_norms_are_those_of_the_outputs(pool_of):
    pool, base = pool_of(a={"rank": 3}, b={"rank": 5, "alpha": 2.0}, quiet=K)
    index = RoutingIndex.build(pool, choose_target(pool, base))
    h = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    expected = {
        name: norm(projection_output(h, e.a, e.b, e.scaling)) for name, e in index.entries.items()
    }
    assert index.norms(h) == pytest.approx(expected, rel=1e-5)
    assert RoutingIndex("blk.0.nothing.weight", pool).norms(h) == {}


def test_what_was_made_is_kept_and_what_is_new_is_added(pool_of, tmp_path, monkeypatch):
    pool, base = pool_of(a={}, b={})
    target, folder = choose_target(pool, base), tmp_path / "index"
    h = np.ones(WIDTH, np.float32)
    first = RoutingIndex.build(pool, target, folder).norms(h)
    made = []
    factors = AdapterFile.factors

    def noted(self, target):
        made.append(self.name)
        return factors(self, target)

    monkeypatch.setattr(AdapterFile, "factors", noted)
    assert RoutingIndex.build(pool, target, folder).norms(h) == first
    assert not made
    grown = {"a": pool["a"], **pool_of(b={"rank": 3}, c={})[0]}  # b is written anew
    norms = RoutingIndex.build(grown, target, folder).norms(h)
    assert made == ["b", "c"]
    assert norms["a"] == pytest.approx(first["a"])
    assert norms.keys() == {"a", "b", "c"}
    made.clear()
    only = RoutingIndex.build({"c": grown["c"]}, target, folder).norms(h)
    assert only == pytest.approx({"c": norms["c"]})
    assert not made
