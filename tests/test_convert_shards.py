"""Adapters whose weights lie in several files: read as one, and everything that can be wrong."""

import errno
import json
import os

import numpy as np
import pytest
from peft_folder import factor_name, factors, write_peft
from safetensors.numpy import load_file, save_file

from logo_local.console.report import check_json
from logo_local.convert import FOR_POOL, convert_adapter
from logo_local.errors import AdapterError, ConversionError
from logo_local.files.base_model import BaseModel
from logo_local.files.digest import sha256_of, sha256_of_all
from logo_local.files.file_index import content_key
from logo_local.files.folder import INDEX_FILES, kind_of, scan, stamp_of
from logo_local.files.pool import Pool

SHAPES = {
    "model.layers.0.self_attn.q_proj": (64, 64),
    "model.layers.1.self_attn.k_proj": (32, 64),
    "model.layers.2.mlp.up_proj": (96, 64),
}
NAMES = sorted(factors(SHAPES))
ONE, TWO, THREE = (f"adapter_model-{i:05}-of-00003.safetensors" for i in (1, 2, 3))
INDEX, GENERAL_INDEX = INDEX_FILES


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


def write_shards(folder, index=INDEX):
    """The adapter of `SHAPES` in three files, a module's factors apart, and an index if named."""
    write_peft(folder, factors(SHAPES))
    (folder / "adapter_model.safetensors").unlink()
    where = {name: (ONE, TWO, THREE)[i % 3] for i, name in enumerate(NAMES)}
    for shard in (ONE, TWO, THREE):
        tensors = {n: v for n, v in factors(SHAPES).items() if where[n] == shard}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    if index:
        write_index(folder, where, index)
    return folder


def write_index(folder, where, name=INDEX):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": where}))


def where_in(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


@pytest.fixture
def sharded(tmp_path):
    return write_shards(tmp_path / "pool" / "sharded")


def problems_of(folder, base):
    with pytest.raises(ConversionError) as caught:
        convert_adapter(folder, base, folder.parent / "x.gguf")
    assert not (folder.parent / "x.gguf").exists()
    return list(caught.value.problems), caught.value.hint


@pytest.mark.parametrize("index", [INDEX, GENERAL_INDEX, None])
def test_shards_are_the_same_adapter_as_one_file(index, base, tmp_path):
    whole = write_peft(tmp_path / "whole" / "same", factors(SHAPES))
    parts = write_shards(tmp_path / "parts" / "same", index)
    for folder in (whole, parts):
        conversion = convert_adapter(folder, base, folder.with_suffix(".gguf"), "f32")
        assert not conversion.notes
    # but for the sha256 of the source, 64 digits somewhere in the file
    sources = [sha256_of(whole / "adapter_model.safetensors"), content_key(parts)]
    one, other = (
        folder.with_suffix(".gguf").read_bytes().replace(source.encode(), b"")
        for folder, source in zip((whole, parts), sources, strict=True)
    )
    assert one == other


def test_the_index_of_a_whole_model_beside_them_is_not_theirs(base, tmp_path):
    folder = write_shards(tmp_path / "x", None)
    write_index(folder, {"model.norm.weight": "model-00001-of-00002.safetensors"}, GENERAL_INDEX)
    assert len(convert_adapter(folder, base, tmp_path / "x.gguf").rows) == 3


def test_one_file_goes_before_shards_and_says_so(base, sharded):
    write_peft(sharded, factors(dict(list(SHAPES.items())[:1])))
    conversion = convert_adapter(sharded, base, sharded.with_suffix(".gguf"))
    assert [row.target for row in conversion.rows] == ["blk.0.attn_q.weight"]
    assert [note for note in conversion.notes if ONE in note and "is not looked at" in note]


def test_a_pickle_beside_shards_is_not_looked_at(base, sharded):
    (sharded / "adapter_model.bin").write_bytes(b"whatever")
    (note,) = convert_adapter(sharded, base, sharded.with_suffix(".gguf")).notes
    assert note == "adapter_model.bin lies beside the weights and is not looked at"


# What can be wrong: a function that breaks the folder, and what must be said


def missing(folder):
    (folder / TWO).unlink()


def missing_without_index(folder):
    (folder / INDEX).unlink()
    (folder / TWO).unlink()


def two_missing_without_index(folder):
    missing_without_index(folder)
    (folder / THREE).unlink()


def of_two_saves(folder):
    (folder / INDEX).unlink()
    (folder / THREE).rename(folder / THREE.replace("00003-of-00003", "00004-of-00004"))


def one_too_many(folder):
    (folder / INDEX).unlink()
    save_file({"more": np.ones(3)}, folder / ONE.replace("00001", "00000"))


def left_over(folder):
    save_file({"more": np.ones(3)}, folder / ONE.replace("of-00003", "of-00009"))


def absent_from_its_shard(folder):
    where = where_in(folder)
    where[NAMES[0]] = TWO  # it lies in the first
    write_index(folder, where)


def absent_from_all(folder):
    write_index(folder, where_in(folder) | {"model.nothing": ONE})


def not_in_the_index(folder):
    where = where_in(folder)
    del where[NAMES[0]]
    write_index(folder, where)


def in_two_shards(folder):
    tensors = load_file(folder / TWO) | {NAMES[0]: load_file(folder / ONE)[NAMES[0]]}
    save_file(tensors, folder / TWO)


def copied_into_another(folder):
    save_file(load_file(folder / ONE) | load_file(folder / TWO), folder / TWO)


def in_two_shards_without_index(folder):
    in_two_shards(folder)
    (folder / INDEX).unlink()


def a_path_outside(folder):
    (folder / ONE).rename(folder.parent / "outside.safetensors")
    where = {n: "../outside.safetensors" if f == ONE else f for n, f in where_in(folder).items()}
    write_index(folder, where)


def an_absolute_path(folder):
    where = {n: str(folder / f) if f == ONE else f for n, f in where_in(folder).items()}
    write_index(folder, where)


def a_path_inside(folder):
    (folder / "below").mkdir()
    (folder / ONE).rename(folder / "below" / ONE)
    write_index(folder, {n: f"below/{f}" if f == ONE else f for n, f in where_in(folder).items()})


def a_pickle_in_the_index(folder):
    write_index(folder, dict.fromkeys(NAMES, "adapter_model-00001-of-00003.bin"))


def control_characters(folder):
    write_index(folder, where_in(folder) | {"x": "\x1b[31m"})


def no_json(folder):
    (folder / INDEX).write_text("{")


def deep_json(folder):
    (folder / INDEX).write_text("[" * 100_000)


def binary(folder):
    (folder / INDEX).write_bytes(b"\xff\xfe")


def a_list(folder):
    (folder / INDEX).write_text("[]")


def no_map(folder):
    (folder / INDEX).write_text("{}")


def a_map_to_numbers(folder):
    write_index(folder, dict.fromkeys(NAMES, 1))


def an_empty_map(folder):
    write_index(folder, {})


def cut_short(folder):
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-10])


def a_folder_named_so(folder):
    (folder / TWO).unlink()
    (folder / TWO).mkdir()


def only_the_index(folder):
    for shard in (ONE, TWO, THREE):
        (folder / shard).unlink()


def pickled_shards(folder):
    only_the_index(folder)
    (folder / INDEX).unlink()
    (folder / "adapter_model-00001-of-00002.bin").touch()


WRONG = {
    missing: f"{TWO} is missing, which {INDEX} names",
    missing_without_index: "of its 3 shards number 2 is missing",
    two_missing_without_index: "of its 3 shards number 2 (and 1 more) is missing",
    of_two_saves: "its shards are of several saves, of 3 and 4 files",
    one_too_many: "4 shards are there, whose names say 3",
    left_over: f"adapter_model-00001-of-00009.safetensors is not named by {INDEX}",
    absent_from_its_shard: f"{NAMES[0]} is not in {TWO}, as {INDEX} says",
    absent_from_all: f"model.nothing is not in {ONE}, as {INDEX} says",
    not_in_the_index: f"{NAMES[0]} in {ONE} is not in {INDEX}",
    in_two_shards: f"{NAMES[0]} is in {ONE} and {TWO}",
    in_two_shards_without_index: f"{NAMES[0]} is in {ONE} and {TWO}",
    copied_into_another: f"{NAMES[0]} (and 1 more) is in {ONE} and {TWO}",
    a_path_outside: f"{INDEX} names '../outside.safetensors', where adapter_model-00001",
    an_absolute_path: f"/sharded/{ONE}', where adapter_model-00001",
    a_path_inside: f"{INDEX} names 'below/{ONE}', where",
    a_pickle_in_the_index: "names 'adapter_model-00001-of-00003.bin', where",
    control_characters: "names '\\x1b[31m', where",
    no_json: f"{INDEX} cannot be read",
    deep_json: f"{INDEX} cannot be read",
    binary: f"{INDEX} cannot be read",
    a_list: f"{INDEX} has no weight_map",
    no_map: f"{INDEX} has no weight_map",
    a_map_to_numbers: f"{INDEX} has no weight_map",
    an_empty_map: f"{INDEX} names no tensors",
    cut_short: f"{TWO} cannot be read",
    a_folder_named_so: f"{TWO} is missing",
    only_the_index: f"{ONE} (and 2 more) is missing",
    pickled_shards: "adapter_model-00001-of-00002.bin is a pickle",
}


@pytest.mark.parametrize("breaks", WRONG, ids=lambda breaks: breaks.__name__)
def test_what_is_wrong_is_a_finding(breaks, sharded, base):
    breaks(sharded)
    problems, hint = problems_of(sharded, base)
    assert [line for line in problems if WRONG[breaks] in line], problems
    assert all(line.isprintable() for line in problems)
    assert hint


def test_everything_wrong_with_shards_is_said_at_once(sharded, base):
    missing(sharded)
    left_over(sharded)
    (sharded / ONE).write_bytes(b"")
    said = "\n".join(problems_of(sharded, base)[0])
    for part in (f"{TWO} is missing", "of-00009.safetensors is not named", f"{ONE} cannot be read"):
        assert part in said


@pytest.mark.parametrize("breaks", [missing, missing_without_index, cut_short])
def test_what_a_lost_shard_leaves_alone_has_no_line_of_its_own(breaks, sharded, base):
    breaks(sharded)
    assert len(problems_of(sharded, base)[0]) == 1


def test_links_to_shards_are_followed(sharded, base, tmp_path):
    """As the hub's cache has it: names in one folder, the files in another."""
    (tmp_path / "blobs").mkdir()
    for i, shard in enumerate((ONE, TWO, THREE)):
        (sharded / shard).rename(tmp_path / "blobs" / str(i))
        (sharded / shard).symlink_to(tmp_path / "blobs" / str(i))
    assert len(convert_adapter(sharded, base, tmp_path / "x.gguf").rows) == 3


def test_a_folder_that_may_not_be_listed_may_hold_one_file(base, sharded, monkeypatch):
    def forbidden(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    (sharded / INDEX).unlink()
    monkeypatch.setattr(os, "listdir", forbidden)
    assert problems_of(sharded, base)[0] == ["no adapter_model.safetensors in it"]
    write_peft(sharded, factors(SHAPES))
    assert len(convert_adapter(sharded, base, sharded.with_suffix(".gguf")).rows) == 3


# In a pool


def changed(path, tensors=None, seconds=10):
    """Write the file with other numbers of the same size, later."""
    stat = path.stat()
    save_file(
        {name: values + 1 for name, values in (tensors or load_file(path)).items()},
        path,
        metadata={"format": "pt"},
    )
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + seconds * 10**9))


@pytest.mark.parametrize("shard", [ONE, TWO, THREE])
@pytest.mark.parametrize("index", [INDEX, GENERAL_INDEX, None])
def test_a_pool_has_one_adapter_and_sees_when_a_shard_changes(shard, index, base, tmp_path):
    folder = write_shards(tmp_path / "pool" / "mine", index)
    for path in folder.iterdir():  # settled: the file index trusts them
        os.utime(path, (1, 1))

    def opened():
        return Pool.open(tmp_path / "pool", base, cache=tmp_path / "cache", converter=FOR_POOL)

    pool = opened()
    assert pool.names == ("mine",)
    assert pool.problems == ()
    assert [row["kind"] for row in check_json(pool)] == ["peft"]
    first = pool.adapters["mine"]
    key = content_key(folder)
    assert pool.content_key("mine") == key
    pool.save()
    assert opened().adapters["mine"] == first
    changed(folder / shard)
    assert pool.rescan().changed == ("mine",)
    assert pool.adapters["mine"].path != first.path
    assert pool.content_key("mine") == content_key(folder) != key
    assert opened().adapters["mine"] == pool.adapters["mine"]


@pytest.mark.parametrize("index", [INDEX, GENERAL_INDEX])
def test_a_pool_sees_when_the_index_changes(index, base, tmp_path):
    """What was converted under another index is not taken from the cache."""
    folder = write_shards(tmp_path / "pool" / "mine", index)
    write_peft(tmp_path / "pool" / "other", factors(SHAPES, seed=5))
    pool = Pool.open(tmp_path / "pool", base, cache=tmp_path / "cache", converter=FOR_POOL)
    assert pool.names == ("mine", "other")
    where = json.loads((folder / index).read_text())["weight_map"]
    write_index(folder, where | {"model.nothing": ONE}, index)
    assert pool.rescan().removed == ("mine",)
    (problem,) = pool.problems
    assert f"model.nothing is not in {ONE}" in problem.reason


def test_a_shard_that_comes_later_is_noticed(base, sharded, tmp_path):
    (sharded / TWO).rename(tmp_path / TWO)
    write_peft(sharded.parent / "other", factors(SHAPES, seed=5))
    pool = Pool.open(sharded.parent, base, cache=tmp_path / "cache", converter=FOR_POOL)
    assert pool.names == ("other",)
    (problem,) = pool.problems
    assert f"{TWO} is missing" in problem.reason
    assert not pool.has_changed()
    (tmp_path / TWO).rename(sharded / TWO)
    assert pool.has_changed()
    assert pool.rescan().added == ("sharded",)


def test_the_stamp_of_a_scan_is_the_one_that_is_compared(sharded):
    ((entry,), problems) = scan(sharded.parent)
    assert problems == []
    assert entry.stamp == stamp_of(sharded)
    assert len(entry.stamp) == 5  # config, index, three shards
    assert kind_of(sharded) == "peft"


def test_shards_without_a_config_are_mentioned(base, sharded, tmp_path):
    (sharded / "adapter_config.json").unlink()
    _, (problem,) = scan(sharded.parent)
    assert problem.reason == "it holds adapter weights but no adapter_config.json"


def test_the_digest_of_several_files_goes_by_order_and_content(tmp_path):
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    before = sha256_of_all([one, two])
    assert sha256_of_all([one]) == sha256_of(one)
    assert len({before, sha256_of_all([two, one]), sha256_of(one), sha256_of(two)}) == 4
    two.write_bytes(b"3")
    assert sha256_of_all([one, two]) != before


def test_the_content_of_a_folder_without_weights(tmp_path):
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors cannot be read"):
        content_key(tmp_path)


def test_factors_of_a_module_may_lie_in_two_shards():
    first = factor_name("model.layers.0.self_attn.q_proj", "A")
    second = factor_name("model.layers.0.self_attn.q_proj", "B")
    assert NAMES.index(first) % 3 != NAMES.index(second) % 3
