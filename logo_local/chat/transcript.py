"""Chat files of /save and /load: JSON, with messages in OpenAI's format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..completions import Message
from ..errors import LogoError
from ..files.text_file import read_start
from ..files.whole_file import written_whole

FORMAT = "logo-local chat"
VERSION = 1
_KEYS = {"format", "version", "model", "messages", "settings", "pinned", "off"}


@dataclass(frozen=True)
class Transcript:
    """A conversation: `messages` alternate between user and assistant, without the system message.

    `settings` are those of /set by name, including the system message; `pinned` and `off` are
    names of adapters.
    """

    model: str
    messages: tuple[Message, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    pinned: tuple[str, ...] = ()
    off: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "messages": list(self.messages),
            "settings": dict(self.settings),
            "pinned": list(self.pinned),
            "off": list(self.off),
        }


def parsed(value: object) -> Transcript:
    """The transcript that `as_dict` wrote, from JSON; ValueError with all problems otherwise.

    Does not check whether the settings and the adapters can be used.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f'it has no "format": "{FORMAT}"')
    if value.get("version") != VERSION:
        raise ValueError(f"its version is {value.get('version')!r}, and known is {VERSION}")
    problems = [f"there is no {key!r} in a chat" for key in value if key not in _KEYS]
    model, settings = value.get("model", ""), value.get("settings", {})
    if not isinstance(model, str):
        problems.append("model must be a text")
    if not isinstance(settings, dict):
        problems.append("settings must be an object")
    for key in ("pinned", "off"):
        if not _texts(value.get(key, [])):
            problems.append(f"{key} must be a list of names")
    messages = value.get("messages")
    if not isinstance(messages, list):
        problems.append("messages must be a list")
    else:
        problems += _problems_of(messages)
    if problems:
        raise ValueError("; ".join(problems))
    return Transcript(
        model,
        tuple({"role": m["role"], "content": m["content"]} for m in messages or ()),
        settings,
        tuple(value.get("pinned", ())),
        tuple(value.get("off", ())),
    )


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _problems_of(messages: list[object]) -> list[str]:
    for i, message in enumerate(messages):
        role = "assistant" if i % 2 else "user"
        if (
            not isinstance(message, dict)
            or message.keys() != {"role", "content"}
            or not isinstance(message["content"], str)
        ):
            return [f'message {i + 1} must be {{"role": "{role}", "content": "..."}}']
        if message["role"] != role:
            return [f"message {i + 1} is by {message['role']!r}, and it is the {role}'s turn"]
    return ["the last message has no answer"] if len(messages) % 2 else []


def load(path: Path) -> Transcript:
    """The transcript in a file; LogoError if it cannot be read or is not a transcript."""
    try:
        return _read(path)
    except ValueError as error:
        raise LogoError(
            f"{path} is not a chat saved with /save: {error}", hint="nothing was loaded"
        ) from error
    except OSError as error:
        raise LogoError(
            f"{path} cannot be read: {error.strerror}", hint="Tab completes names of files"
        ) from error


def _read(path: Path) -> Transcript:
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    try:
        value = json.loads(read_start(path, -1).decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no tokens
    except UnicodeError as error:
        raise ValueError("it is not text in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError("it is not JSON") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return parsed(value)


def save(transcript: Transcript, path: Path) -> None:
    """Write it atomically; an earlier transcript is replaced.

    LogoError if `path` is another kind of file, which is not changed, or cannot be written.
    """
    content = json.dumps(transcript.as_dict(), indent=2, ensure_ascii=False) + "\n"
    path = Path(os.path.realpath(path))  # keep a link
    try:
        if path.exists():
            _read(path)
        with written_whole(path) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    except ValueError as error:
        raise LogoError(
            f"{path} exists and is not a chat saved with /save: {error}", hint="choose another name"
        ) from error
    except OSError as error:
        raise LogoError(
            f"{path} cannot be written: {error.strerror}",
            hint="check that the folder exists and that you may write to it",
        ) from error
