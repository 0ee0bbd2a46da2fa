"""Files that are whole or not there: failures, kills, and what others are writing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from peft_folder import factors, write_peft

from logo_local.convert import FOR_POOL, convert_adapter
from logo_local.files.base_model import BaseModel
from logo_local.files.pool import Pool
from logo_local.files.whole_file import written_whole

SHAPES = {"model.layers.0.self_attn.q_proj": (64, 64)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_comes_when_the_block_ends(tmp_path):
    out = tmp_path / "x"
    out.write_text("old")
    with written_whole(out) as unfinished:
        unfinished.write_text("new")
        assert out.read_text() == "old"
        assert unfinished.name.startswith(".x.")  # hidden: a folder of adapters passes it over
    assert out.read_text() == "new"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("failure", [OSError("full"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failure_leaves_what_was_there(failure, tmp_path):
    out = tmp_path / "x"
    out.write_text("old")

    def fail():
        with written_whole(out) as unfinished:
            unfinished.write_text("new")
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert out.read_text() == "old"
    assert names(tmp_path) == ["x"]


def a_process_that_is_no_more():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert not psutil.pid_exists(done.pid)
    return done.pid


def test_only_what_the_dead_of_this_machine_left_is_removed(tmp_path):
    with written_whole(tmp_path / "y") as unfinished:
        ours = unfinished.name
        unfinished.touch()
    dead = ours.replace(f"-{os.getpid()}-", f"-{a_process_that_is_no_more()}-")
    impossible = ours.replace(f"-{os.getpid()}-", f"-{10**30}-")
    elsewhere = dead.replace(".y.", ".y.of-another-machine-")
    others = [ours, elsewhere, ".hidden.tmp", "notes.tmp", dead.removesuffix(".tmp")]
    for name in (*others, dead, impossible):
        (tmp_path / name).touch()
    with written_whole(tmp_path / "x") as unfinished:
        unfinished.touch()
    assert names(tmp_path) == sorted([*others, "x", "y"])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "no" / "x") as unfinished:
        unfinished.touch()


# A conversion that is killed when its file is complete and not yet in its place

KILLED = """
import os, signal, sys
from logo_local import convert
from logo_local.files import base_model, pool
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL


needs_kill = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")


@needs_kill
def test_a_conversion_that_is_killed_leaves_nothing_once_another_ran(random_base, tmp_path):
    source = write_peft(tmp_path / "source", factors(SHAPES))
    out = tmp_path / "out" / "x.gguf"
    out.parent.mkdir()
    code = KILLED + "convert.convert_adapter(*sys.argv[1:])"
    killed(code, source, random_base, out)
    (leftover,) = names(out.parent)
    assert leftover.endswith(".tmp")  # and so not mistaken for an adapter
    convert_adapter(source, random_base, out)
    assert names(out.parent) == ["x.gguf"]


@needs_kill
def test_a_pool_that_was_killed_while_it_converted_opens_as_if_nothing_was(random_base, tmp_path):
    folder, cache = tmp_path / "pool", tmp_path / "cache"
    for i in range(2):
        write_peft(folder / f"ad{i}", factors(SHAPES, seed=i))
    base = BaseModel.read(random_base)
    code = KILLED + (
        "pool.Pool.open(sys.argv[1], base_model.BaseModel.read(sys.argv[2]), cache=sys.argv[3],"
        " converter=convert.FOR_POOL)"
    )
    killed(code, folder, random_base, cache)
    assert [Path(name).suffix for name in names(cache / "converted")] == [".tmp"]
    assert Pool.open(folder, base, cache=cache, converter=FOR_POOL).names == ("ad0", "ad1")
    assert [Path(name).suffix for name in names(cache / "converted")] == [".gguf", ".gguf"]
