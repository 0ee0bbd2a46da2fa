"""`logo-local cache`: line 16 of what people bring."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner
from peft_folder import factors, write_peft
from random_gguf import write_adapter

from logo_local.commands.cli import cli
from logo_local.convert import FOR_POOL
from logo_local.files.base_model import BaseModel
from logo_local.files.cache_file import keep
from logo_local.files.pool import Pool
from logo_local.routing.profile_store import FORMAT


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache"


def call(*args):
    result = CliRunner().invoke(cli, args, prog_name="logo-local")
    assert result.exit_code == 0, result.output
    return result


def parts():
    return {part["name"]: part for part in json.loads(call("cache", "--json").stdout)["parts"]}


def make_pool(folder, base, cache):
    """A pool of a GGUF file and a PEFT folder, with an index."""
    folder.mkdir()
    tensors = factors({"model.layers.0.self_attn.q_proj": (64, 64)}, seed=len(folder.name))
    peft = write_peft(folder / "peft", tensors)
    for file in (write_adapter(folder / "one.gguf", seed=1), *peft.iterdir()):
        os.utime(file, (1, 1))  # one that was just written is not trusted
    pool = Pool.open(folder, BaseModel.read(base), cache=cache, converter=FOR_POOL)
    pool.index_folder.mkdir(parents=True)
    (pool.index_folder / "x.stack").write_bytes(bytes(100))
    return pool


def test_an_empty_cache(cache):
    assert {part["n_bytes"] for part in parts().values()} == {0}
    assert call("cache", "clear").stderr == "removed 0 entries, 0 B\n"
    assert call("cache", "clear", "--all").stderr == "removed 0 entries, 0 B\n"
    assert not cache.exists()


def test_what_belongs_to_a_pool_that_is_gone_is_removed(cache, tmp_path, random_base):
    kept = make_pool(tmp_path / "kept", random_base, cache)
    gone = make_pool(tmp_path / "gone-away", random_base, cache)
    keep(cache / "profiles" / f"model-{FORMAT}" / "a.vectors.npy", b"new")
    keep(cache / "profiles" / "model-0" / "a.vectors.npy", b"old")
    assert [part["unused"] for part in parts().values()] == [0, 0, 0, 1]
    shutil.rmtree(tmp_path / "gone-away")
    found = parts()
    assert [part["entries"] for part in found.values()] == [2, 2, 2, 2]
    assert [part["unused"] for part in found.values()] == [1, 1, 1, 1]
    table = call("cache").stdout.splitlines()
    assert table[0].split() == ["part", "entries", "size", "unused", "content"]
    assert table[3].split()[:6] == ["index", "2", "200", "B", "100", "B"]
    assert call("cache", "clear").stderr.startswith("removed 4 entries, ")
    assert [part["entries"] for part in parts().values()] == [1, 1, 1, 1]
    assert kept.adapters["peft"].path.exists()
    assert kept.index_folder.exists()
    assert not gone.adapters["peft"].path.exists()
    assert not gone.index_folder.exists()
    assert not kept.rescan()  # what is left is what was in use


def test_clear_all_leaves_what_is_not_of_the_cache(cache, tmp_path, random_base):
    make_pool(tmp_path / "kept", random_base, cache)
    (cache / "mine.txt").write_text("precious")
    assert call("cache", "clear", "--all").stderr.startswith("removed 3 entries")
    assert [part["entries"] for part in parts().values()] == [0, 0, 0, 0]
    assert (cache / "mine.txt").read_text() == "precious"


def test_a_damaged_index_is_unused(cache):
    (cache / "checked").mkdir(parents=True)
    (cache / "checked" / "a.json").write_text("{")
    assert parts()["checked"]["unused"] == 1
