"""The cache: damage is seen, nothing in it is needed, and nothing half done stays."""

import os
import threading

import numpy as np
import pytest
from random_gguf import write_adapter

from logo_local import LoGo
from logo_local.files import cache_file
from logo_local.files.cache_file import keep, kept
from logo_local.routing.baselines import Baselines
from logo_local.routing.profile_store import ProfileStore
from logo_local.routing.z_norms import ZNorms

DAMAGE = {
    "a bit": lambda data: data[:20] + bytes([data[20] ^ 4]) + data[21:],
    "zeros": lambda data: data[:10] + bytes(20) + data[30:],
    "cut": lambda data: data[:-1],
    "empty": lambda data: b"",
    "no checksum": lambda data: data[: data.rindex(b"\nsha256 ")],
    "longer": lambda data: data + b"x",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen(tmp_path, damage, caplog):
    path = tmp_path / "folder" / "x"
    content = bytes(range(200))
    assert keep(path, content)
    assert kept(path) == content
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert kept(path) is None
    assert "is damaged and will be recreated" in caplog.text


def test_what_is_not_there_is_no_damage(tmp_path, caplog):
    assert kept(tmp_path / "none") is None
    assert caplog.text == ""


def vector(text, _form):
    return np.full(8, len(text), np.float32)


@pytest.mark.parametrize("at", [3, 10, -80, -2])
def test_damaged_vectors_are_made_again(tmp_path, random_base, at):
    """The first is in the header of the array, of which numpy reads whatever stands there."""
    store = ProfileStore(tmp_path, random_base)
    store.of_prompts(["a", "bb"], (), vector, "chat")
    (path,) = store.folder.iterdir()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    made = []

    def again(text, form):
        made.append(text)
        return vector(text, form)

    store.of_prompts(["a", "bb"], (), again, "chat")
    assert made == ["a", "bb"]
    store.of_prompts(["a", "bb"], (), lambda _text, _form: pytest.fail("made again"), "chat")


def test_damaged_samples_are_made_again(tmp_path, random_base):
    store = ProfileStore(tmp_path, random_base)
    store.of_samples("k", lambda: (["one text"], 0.5), vector, "chat")
    path = next(store.folder.glob("*.samples.json"))
    path.write_bytes(path.read_bytes().replace(b"one text", b"two text"))
    made = []
    store.of_samples("k", lambda: (made.append(1), (["one text"], 0.5))[1], vector, "chat")
    assert made == [1]


@pytest.fixture
def unwritable(tmp_path, monkeypatch):
    """A home where no cache can be made: a file stands in its place."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").write_text("a file")
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(home))
    monkeypatch.setattr(cache_file, "_warned", set())
    return home


def test_profiles_work_without_a_cache_and_one_line_says_so(
    unwritable, random_base, tmp_path, caplog
):
    folder = tmp_path / "adapters"
    folder.mkdir()
    for seed in range(3):
        write_adapter(folder / f"a{seed}.gguf", seed)
        (folder / f"a{seed}.prompts.txt").write_text(f"a prompt {seed}\nanother one\n")
    llm = LoGo(random_base, folder, n_ctx=256, past=False, signal="profile")
    try:
        assert len(llm.route("a prompt 1").all_scores) == 3
    finally:
        llm.close()
    lines = [line for line in caplog.messages if "profiles" in line]
    assert len(lines) == 1
    assert "cannot be written, so it is made at each start" in lines[0]


def test_generic_texts_count_all_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "generic.npz"
    norms = ZNorms({}, (), Baselines(path))
    monkeypatch.setattr(ZNorms, "unmeasured", ("a",), raising=False)
    values = iter(np.arange(40.0))
    monkeypatch.setattr(
        ZNorms, "_norms", lambda self, reading, names: {"a": np.full(3, next(values))}
    )
    monkeypatch.setattr(ZNorms, "_keys", {"a": "key"}, raising=False)
    norms.unmeasured = ("a",)

    def interrupted():
        yield from range(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        norms.measure(interrupted())
    assert not path.exists()
    values = iter(np.arange(40.0))
    norms.unmeasured = ("a",)
    norms.measure(range(40))
    mean, _ = Baselines(path).moments("key", 3)
    np.testing.assert_allclose(mean, 19.5)
    assert os.listdir(tmp_path) == ["generic.npz"]


def test_threads_that_write_one_file_at_once_all_can(tmp_path):
    """Names of unfinished files differ by more than the process."""
    paths = [tmp_path / "x", tmp_path / "baselines.npz"]
    failures = []

    def write(number):
        baselines = Baselines(paths[1])
        try:
            for _ in range(50):
                assert keep(paths[0], bytes([number]) * 5000)
                baselines.add({"a": np.ones(3)})
                baselines.save()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set(kept(paths[0]))) == 1
    assert sorted(os.listdir(tmp_path)) == ["baselines.npz", "x"]
