"""Where a chat's lines come from, without a terminal; test_chat_terminal.py has one."""

import io
import os
import stat
import sys

import pytest

from logo_local.chat import lines, reading
from logo_local.chat.editor import history, newer_half


@pytest.mark.parametrize(
    ("text", "still_open", "message"),
    [
        ("hello ", False, "hello"),
        ('"""', True, None),
        ('"""a\n', True, None),
        ('"""a\nb"""', False, "a\nb"),
        ('"""\n  a\n\n"""  ', False, "  a\n"),
        ('""""""', False, ""),
        ('a """', False, 'a """'),
        ('/set system """', True, None),
        ('/set system """\na\nb"""', False, "/set system a\nb"),
        ('/teach """', False, '/teach """'),
    ],
)
def test_three_quotation_marks(text, still_open, message):
    assert lines.is_open(text) == still_open
    if not still_open:
        assert lines.unwrapped(text) == message


def test_without_a_screen_lines_are_read_as_they_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo"))
    read = reading.reader(lambda text: (0, []))
    assert [read(">>> ") for _ in range(3)] == ["one", "", "two"]
    with pytest.raises(EOFError):
        read(">>> ")
    assert capsys.readouterr() == ("", "")


def test_a_dumb_terminal_gets_a_prompt_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    read = reading.reader(lambda text: (0, []))
    assert read(">>> ") == "caf\ufffd"
    with pytest.raises(EOFError):
        read(">>> ")
    assert capsys.readouterr().out == ">>> >>> \n"


def entries(made):
    return list(made.load_history_strings())


def test_the_history_is_a_private_file(tmp_path):
    path = tmp_path / "data" / "chat_history"
    history(path).store_string("one\ntwo")
    history(path).store_string("three")
    assert entries(history(path)) == ["three", "one\ntwo"]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_written_is_said(tmp_path, capsys):
    (tmp_path / "data").touch()
    made = history(tmp_path / "data" / "chat_history")
    made.store_string("one")
    assert "The input history is not saved" in capsys.readouterr().err
    assert entries(made) == ["one"]


def test_a_disk_that_fills_up_ends_nothing(tmp_path):
    made = history(tmp_path / "chat_history")
    os.remove(tmp_path / "chat_history")
    (tmp_path / "chat_history").mkdir()
    made.store_string("one")


def test_the_older_half_of_a_long_history_goes(tmp_path):
    path = tmp_path / "chat_history"
    made = history(path)
    for i in range(40):
        made.store_string(f"entry {i}\n" + "x" * 50_000)
    before = entries(made)
    kept = entries(history(path))
    assert kept == before[: len(kept)]
    assert 15 <= len(kept) <= 20
    assert newer_half(b"x" * 100) == b""
