"""The routing index: which projection is probed, what is read, what a score is."""

import logging

import pytest
from random_gguf import write_adapter

from logo_local.adapter_file import read_adapter
from logo_local.base_model import BaseModel
from logo_local.errors import PoolError, SettingsError
from logo_local.index import RoutingIndex, block_number, choose_target


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
    assert "--layer" in caught.value.hint


def test_an_adapter_without_the_target_is_named_and_has_no_score(pool_of, caplog):
    pool, base = pool_of(a=UP, b=UP, quiet=Q)
    with caplog.at_level(logging.WARNING):
        index = RoutingIndex.build(pool, choose_target(pool, base))
    assert index.entries.keys() == {"a", "b"}
    assert "quiet takes no part in routing" in caplog.text


def test_entries_of_unchanged_files_are_taken_over(pool_of):
    pool, base = pool_of(a={}, b={})
    target = choose_target(pool, base)
    seen = []
    first = RoutingIndex.build(pool, target, progress=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]
    changed = {"a": pool["a"], **pool_of(b={"rank": 3}, c={})[0]}  # b is written anew
    second = RoutingIndex.build(changed, target, previous=first)
    assert second.entries["a"] is first.entries["a"]
    assert second.entries["b"] is not first.entries["b"]
    assert second.entries.keys() == {"a", "b", "c"}
    other = RoutingIndex.build(changed, "blk.0.attn_q.weight", previous=second)
    assert other.entries["a"] is not first.entries["a"]
