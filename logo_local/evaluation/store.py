"""The results of an evaluation, in memory and in a folder, so that it can be resumed.

    settings.json   the settings that the results depend on
    scores.jsonl    a line for each prompt: every adapter's score by every signal
    answers.jsonl   a line for each prompt and method: weights, answer, metrics

Lines are appended one by one; a truncated line is dropped and computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..errors import SettingsError
from ..files.whole_file import write_whole

_SETTINGS, _SCORES, _ANSWERS = "settings.json", "scores.jsonl", "answers.jsonl"


@dataclass(frozen=True)
class Scored:
    """One prompt's scores by signal and adapter; `out` if its own adapter was excluded."""

    task: str
    line: int
    out: bool
    scores: Mapping[str, Mapping[str, float]]
    default: Mapping[str, float]  # the weights of the engine's own route

    @property
    def key(self) -> tuple[str, int, bool]:
        """The key in the store."""
        return self.task, self.line, self.out


@dataclass(frozen=True)
class Answered:
    """One prompt's answer by one method; `out` if the prompt's own adapter was excluded."""

    task: str
    line: int
    out: bool
    method: str
    weights: Mapping[str, float]
    first: str | None
    text: str
    metrics: Mapping[str, float]

    @property
    def key(self) -> tuple[str, int, bool, str]:
        """The key in the store."""
        return self.task, self.line, self.out, self.method


@dataclass
class Store:
    """The results `scored` and `answered`, by key. Without a folder, in memory only."""

    scored: dict[tuple[str, int, bool], Scored] = field(default_factory=dict)
    answered: dict[tuple[str, int, bool, str], Answered] = field(default_factory=dict)
    _files: dict[type, TextIO] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> Store:
        """Resume the evaluation in `folder`, which must have the same `settings`.

        `settings` must be JSON-ready. A missing or empty folder is initialised. Raises
        SettingsError for a folder with other settings, naming every difference, and for a folder
        that is not from an evaluation.
        """
        _check_settings(folder, settings)
        store = cls()
        for scored in _kept(folder / _SCORES, Scored):
            store.scored[scored.key] = scored
        for answered in _kept(folder / _ANSWERS, Answered):
            store.answered[answered.key] = answered
        for kind, name in ((Scored, _SCORES), (Answered, _ANSWERS)):
            store._files[kind] = (folder / name).open("a", encoding="utf-8")
        return store

    def add(self, done: Scored | Answered) -> None:
        """Store results, and write them to disk immediately."""
        if isinstance(done, Scored):
            self.scored[done.key] = done
        else:
            self.answered[done.key] = done
        file = self._files.get(type(done))
        if file is not None:
            file.write(json.dumps(asdict(done), ensure_ascii=False) + "\n")
            file.flush()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    hint = "choose another --out, or delete this folder to start over"
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is not a folder", hint="choose another --out")
    path = folder / _SETTINGS
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise SettingsError(
                f"{folder} holds other things than an evaluation", hint="choose another --out"
            )
        write_whole(path, (json.dumps(settings, indent=2) + "\n").encode())
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"{path} cannot be read: it is not JSON", hint=hint) from error
    now = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    differences = [
        f"{name}: {_short(before.get(name))} there, {_short(now.get(name))} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise SettingsError(
            f"{folder} holds an evaluation with other settings", problems=differences, hint=hint
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _kept(path: Path, kind: type[Any]) -> list[Any]:
    """The complete lines of `path`; a truncated last line is removed from the file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    kept = []
    for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
        try:
            kept.append(kind(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise SettingsError(
                f"{path}, line {number} cannot be read",
                hint="delete that line, and what it held is made again",
            ) from error
    return kept
