"""What is remembered about adapter files: when it is trusted, and a cache that is damaged."""

import json
import os
import shutil

import pytest
from random_gguf import write_adapter

from logo_local.errors import AdapterError
from logo_local.files import file_index
from logo_local.files import pool as pool_module
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.files.cache_file import keep, kept
from logo_local.files.file_index import FileIndex, content_key
from logo_local.files.folder import stamp_of
from logo_local.files.pool import Pool


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


@pytest.fixture
def folder(tmp_path, random_adapters):
    """Adapters that are an hour old."""
    for path in shutil.copytree(random_adapters, tmp_path / "adapters").iterdir():
        age(path)
    return tmp_path / "adapters"


def age(path, seconds=3600):
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.fixture
def opened(folder, base, tmp_path, monkeypatch):
    """opened(): the pool, and the names of the files that were read and checked for it."""
    read = []

    def noted(path, base):
        read.append(path.name)
        return read_adapter(path, base)

    monkeypatch.setattr(pool_module, "read_adapter", noted)

    def make():
        read.clear()
        return Pool.open(folder, base, cache=tmp_path / "cache"), sorted(read)

    return make


ALL = [f"ad{i}.gguf" for i in range(5)]


def test_what_was_checked_is_not_read_again(opened):
    first, read = opened()
    assert read == ALL
    second, read = opened()
    assert read == []
    assert second.adapters == first.adapters
    for name, adapter in second.adapters.items():
        assert adapter.modules == first.adapters[name].modules
        a, b = adapter.factors("blk.0.attn_q.weight")
        assert a.shape[0] == b.shape[1] == adapter.modules["blk.0.attn_q.weight"].rank


def test_what_was_written_to_is_read_again_and_the_rest_is_not(opened, folder):
    opened()
    write_adapter(folder / "ad1.gguf", 99)
    write_adapter(folder / "new.gguf", 98)
    assert opened()[1] == ["ad1.gguf", "new.gguf"]
    # Both were so young that a second write might have the same time: they are not trusted yet.
    assert opened()[1] == ["ad1.gguf", "new.gguf"]
    age(folder / "ad1.gguf")
    assert opened()[1] == ["ad1.gguf", "new.gguf"]
    assert opened()[1] == ["new.gguf"]


def test_adapters_of_one_shape_share_what_describes_them(tmp_path, base):
    index = FileIndex(tmp_path, tmp_path, "base")
    found = [
        index.add(path, stamp_of(path), read_adapter(path, base))
        for path in (write_adapter(tmp_path / f"{i}.gguf", i) for i in range(3))
    ]
    assert found[0].modules is found[1].modules is found[2].modules


def test_a_converted_form_that_is_gone_or_another_is_not_trusted(tmp_path, base):
    origin, converted = (write_adapter(tmp_path / f"{name}.gguf", 1) for name in "oc")
    age(origin)
    index = FileIndex(tmp_path / "cache", tmp_path, "base")
    index.add(origin, stamp_of(origin), read_adapter(converted, base))
    assert index.find(origin, stamp_of(origin)).adapter.path == converted
    write_adapter(converted, 2, rank=5)
    assert index.find(origin, stamp_of(origin)) is None
    converted.unlink()
    assert index.find(origin, stamp_of(origin)) is None


def test_contents_are_hashed_once(opened, folder, monkeypatch):
    first, _ = opened()
    key = first.content_key("ad1")
    assert key == content_key(folder / "ad1.gguf")
    first.save()
    monkeypatch.setattr(pool_module, "content_key", lambda _: pytest.fail("hashed again"))
    second, _ = opened()
    assert second.content_key("ad1") == key
    monkeypatch.undo()
    write_adapter(folder / "ad1.gguf", 99)
    second.rescan()
    assert second.content_key("ad1") == content_key(folder / "ad1.gguf") != key


def test_a_file_that_cannot_be_hashed_is_named(tmp_path):
    with pytest.raises(AdapterError, match="nowhere"):
        content_key(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"F32"', "7"),
        lambda text: json.dumps({**json.loads(text), "layouts": []}),
        lambda text: json.dumps({**json.loads(text), "layouts": [{"x": [1]}]}),
        lambda text: json.dumps({**json.loads(text), "files": {"x": 1}}),
        lambda text: "\0" * 100,
    ],
)
def test_a_damaged_ledger_means_checking_again(opened, tmp_path, damage, caplog):
    opened()
    (path,) = (tmp_path / "cache" / "checked").iterdir()
    good = kept(path).decode()
    assert damage(good) != good
    assert keep(path, damage(good).encode())  # with a right checksum: another program's, perhaps
    pool, read = opened()
    assert read == ALL
    assert "adapters are checked again" in caplog.text
    assert all(one.factors("blk.0.attn_q.weight") for one in pool.adapters.values())
    assert opened()[1] == []


def test_a_ledger_of_another_format_is_not_looked_at(opened, monkeypatch):
    opened()
    monkeypatch.setattr(file_index, "FORMAT", file_index.FORMAT + 1)
    assert opened()[1] == ALL


def test_a_disk_that_takes_nothing_costs_time_only(folder, base, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    pool = Pool.open(folder, base, cache=tmp_path / "file")
    assert len(pool.adapters) == 5
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_changed_byte_in_a_ledger_means_checking_again(opened, tmp_path, at, caplog):
    opened()
    (path,) = (tmp_path / "cache" / "checked").iterdir()
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)
    assert opened()[1] == ALL
    assert "is damaged and will be recreated" in caplog.text
    assert opened()[1] == []


def test_the_description_in_a_file_is_remembered(opened, folder):
    """A pool of a thousand files would read a thousand headers before the first answer."""
    write_adapter(folder / "ad1.gguf", 7, description="Sorts words.\nMore.")
    age(folder / "ad1.gguf")
    for read in (ALL, []):
        pool, found = opened()
        assert found == read
        assert {n: a.description for n, a in pool.adapters.items() if a.description} == {
            "ad1": "Sorts words."
        }
