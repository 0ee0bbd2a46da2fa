"""Chats in files: what is written, what is read back, and what is refused."""

import json
import os
import re

import pytest

from logo_local.chat.transcript import Transcript, load, parsed, save
from logo_local.errors import LogoError

TURN = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "yes\n\u20ac"}]
CHAT = Transcript("demo", tuple(TURN), {"temp": 0.5, "stop": ["END"]}, ("a",), ("b",))
PLAIN = {"format": "logo-local chat", "version": 1, "messages": TURN}


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "chat.json"
    save(CHAT, path)
    assert load(path) == CHAT
    made = json.loads(path.read_text(encoding="utf-8"))
    assert made["messages"] == TURN
    assert (made["format"], made["version"], made["model"]) == ("logo-local chat", 1, "demo")
    save(Transcript("other", ()), path)  # over an earlier one
    assert load(path) == Transcript("other", ())
    assert os.listdir(tmp_path) == ["chat.json"]


def test_settings_and_adapters_may_be_missing():
    assert parsed(PLAIN) == Transcript("", tuple(TURN))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], 'no "format"'),
        ({"messages": TURN}, 'no "format"'),
        ({**PLAIN, "version": 2}, "version is 2"),
        ({**PLAIN, "messages": "one"}, "messages must be a list"),
        ({**PLAIN, "messages": None}, "messages must be a list"),
        ({**PLAIN, "messages": TURN[:1]}, "the last message has no answer"),
        ({**PLAIN, "messages": TURN[1:]}, "message 1 is by 'assistant'"),
        ({**PLAIN, "messages": [TURN[0], TURN[0]]}, "message 2 is by 'user'"),
        ({**PLAIN, "messages": [TURN[0], "yes"]}, "message 2 must be"),
        ({**PLAIN, "messages": [{"role": "user", "content": ["x"]}]}, "message 1 must be"),
        ({**PLAIN, "messages": [{**TURN[0], "name": "x"}]}, "message 1 must be"),
        ({**PLAIN, "settings": []}, "settings must be an object"),
        ({**PLAIN, "pinned": "a"}, "pinned must be a list of names"),
        ({**PLAIN, "off": [1]}, "off must be a list of names"),
        ({**PLAIN, "model": 1, "more": 2}, "there is no 'more' in a chat; model must be"),
    ],
)
def test_what_is_no_chat(value, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        parsed(value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({**PLAIN, "messages": [TURN[0], {**TURN[1], "content": "\ud800"}]}).encode(),
    ],
)
def test_a_file_that_is_no_chat_is_neither_read_nor_replaced(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(LogoError, match="not a chat saved with /save"):
        load(path)
    with pytest.raises(LogoError, match="not a chat saved with /save"):
        save(CHAT, path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_folder_and_a_pipe_are_no_chats(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        for call in (load, lambda path: save(CHAT, path)):
            with pytest.raises(LogoError, match="it is not a file"):
                call(path)
    with pytest.raises(LogoError, match="cannot be read"):
        load(tmp_path / "none")
    with pytest.raises(LogoError, match="cannot be written"):
        save(CHAT, tmp_path / "none" / "chat.json")


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "chat.json")
    save(CHAT, tmp_path / "link")
    save(CHAT, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "chat.json") == CHAT
