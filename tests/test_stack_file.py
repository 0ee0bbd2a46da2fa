"""Matrices in a file: what is kept, what is made anew, and files that are damaged."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logo_local.routing.stack_file import MAGIC, stacked

D = 6


def matrix(name):
    """Another one for each name, of one to three rows."""
    rng = np.random.default_rng(sum(name.encode()))
    return rng.standard_normal((1 + len(name) % 3, D), np.float32)


def made_from(path, names):
    """The stack, and the names whose matrices had to be made."""
    made = []

    def make(i):
        made.append(names[i])
        return matrix(names[i])

    return stacked(path, names, D, make), made


def check(stack, names):
    assert stack.matrix.dtype == np.float32
    assert len(stack.starts) == len(names)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(stack.part(i), matrix(name))


names = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=6, unique=True)


@given(st.lists(names, min_size=1, max_size=4))
def test_whatever_came_before_the_stack_is_right_and_nothing_is_made_twice(tmp_path_factory, many):
    path = tmp_path_factory.mktemp("stack") / "x.stack"
    before = set()
    for wanted in many:
        stack, made = made_from(path, wanted)
        check(stack, wanted)
        assert set(made) == set(wanted) - before
        before = set(wanted)


def test_without_a_path_all_is_in_memory():
    stack, made = made_from(None, ["a", "bb"])
    check(stack, ["a", "bb"])
    assert made == ["a", "bb"]


def test_what_was_read_stays_when_the_file_is_written_anew(tmp_path):
    old, _ = made_from(tmp_path / "x", ["a", "bb"])
    new, made = made_from(tmp_path / "x", ["bb", "ccc"])
    check(old, ["a", "bb"])
    check(new, ["bb", "ccc"])
    assert made == ["ccc"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_was_read_stays_when_another_program_truncates_the_file(tmp_path):
    made_from(tmp_path / "x", ["a", "bb"])
    stack, made = made_from(tmp_path / "x", ["a", "bb"])
    assert made == []
    os.truncate(tmp_path / "x", 0)  # a process that has it mapped would end here, by SIGBUS
    check(stack, ["a", "bb"])


def flipped(data, at):
    """One bit of one byte is the other."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "a bit in a number": lambda data: flipped(data, len(data) - 20),
    "a bit in a name": lambda data: flipped(data, data.index(b'"bb"') + 1),
    "a bit in the checksum": lambda data: flipped(data, len(data) - 1),
    "a block of zeros": lambda data: data[:-64] + bytes(60) + data[-4:],
    "empty": lambda data: b"",
    "another file": lambda data: b"GGUF" + data[4:],
    "cut": lambda data: data[:-4],
    "longer": lambda data: data + bytes(4),
    "cut in the header": lambda data: data[:30],
    "a header without end": lambda data: MAGIC + b"\xff" * 8 + data[16:],
    "no JSON": lambda data: data[:16] + b"?" + data[17:],
    "a name less": lambda data: data.replace(b'["a", "bb"]', b'["a"]      '),
    "starts out of order": lambda data: data.replace(b"[0, 2]", b"[0,99]"),
    "no starts": lambda data: data.replace(b"starts", b"stards"),
    "another width": lambda data: data.replace(b'"d_in": 6', b'"d_in": 7'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(tmp_path, damage, caplog):
    path = tmp_path / "x"
    made_from(path, ["a", "bb"])
    good = path.read_bytes()
    path.write_bytes(DAMAGE[damage](good))
    assert path.read_bytes() != good
    stack, made = made_from(path, ["a", "bb"])
    check(stack, ["a", "bb"])
    assert made == ["a", "bb"]
    assert "is damaged and will be recreated" in caplog.text
    assert path.read_bytes() == good


def test_a_disk_that_takes_nothing_costs_time_only(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    stack, _ = made_from(tmp_path / "file" / "x", ["a", "bb"])
    check(stack, ["a", "bb"])
    assert "cannot be written, and is made at each start" in caplog.text
