"""Example prompts of adapters, without answers.

They come from a text file next to the adapter (`NAME.prompts.txt`, or `prompts.txt` in a PEFT
folder: one prompt per line), from `examples` or `widget` in the metadata of the README.md in a
PEFT folder, and from the user: `logo-local profile`, or a pin in a chat. The user's prompts are
stored in the user's data folder by the adapter's content, so a renamed file keeps them. Adapter
folders are never written to.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..files.model_card import CARD, card_fields
from ..files.text_file import decoded, is_encodable, read_start
from ..files.whole_file import write_whole

log = logging.getLogger(__name__)

_writing = threading.Lock()  # engines in several threads may add prompts at once

MOST = 1 << 20  # bytes read from a file; later examples are skipped with a warning


def read_prompts(path: Path) -> list[str]:
    """The prompts in `path`: one per line, or the `context` of each line of a .jsonl file.

    Skips empty lines, and lines of a text file that start with #. Raises PromptError, listing
    every invalid line, if the file cannot be read.
    """
    try:
        raw = read_start(path, MOST + 1)
        text = decoded(_whole_lines(path, raw))
    except OSError as error:
        raise PromptError(
            f"the prompts {path} cannot be read: {error.strerror}",
            hint="give a text file with one example prompt a line",
        ) from error
    except ValueError as error:
        raise PromptError(
            f"the prompts {path} cannot be used: {error}",
            hint="give a text file with one example prompt a line",
        ) from error
    if path.suffix != ".jsonl":
        lines = text.splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    prompts, problems = _contexts(text)
    if problems:
        raise PromptError(
            f"the prompts {path} cannot be used",
            problems=problems,
            hint='a line looks like this: {"context": "Sort these words: pear, fig"}',
        )
    return prompts


def _contexts(text: str) -> tuple[list[str], list[str]]:
    """The prompts in JSON lines, and the errors of invalid lines."""
    prompts, problems = [], []
    # Only line feeds end a line: a JSON string may contain other separators unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            context = json.loads(line)["context"]
        except (ValueError, KeyError, TypeError, RecursionError):
            context = None
        if isinstance(context, str) and context.strip() and is_encodable(context):
            prompts.append(context.strip())
        else:
            problems.append(f"line {number} is not an object with a text `context`")
    return prompts, problems


def _whole_lines(path: Path, raw: bytes) -> bytes:
    """`raw` up to the last line that ends within `MOST` bytes; warns if lines are skipped."""
    if len(raw) <= MOST:
        return raw
    whole = raw[: raw.rfind(b"\n", 0, MOST) + 1]
    n_lines = whole.count(b"\n")
    log.warning(
        "%s is larger than %d MiB: only its first %d lines are read", path, MOST >> 20, n_lines
    )
    return whole


def prompts_beside(origin: Path) -> list[str]:
    """The example prompts next to the adapter `origin`, a GGUF file or a PEFT folder.

    A file that cannot be used is logged and skipped; the adapter itself stays usable.
    """
    if origin.is_dir():
        files, card = [origin / "prompts.txt", origin / "prompts.jsonl"], origin / CARD
    else:
        files = [origin.with_suffix(".prompts.txt"), origin.with_suffix(".prompts.jsonl")]
        card = None
    found: list[str] = []
    for file in files:
        if file.is_file():
            try:
                found += read_prompts(file)
            except PromptError as error:
                log.warning("%s", "; ".join([error.message, *error.problems]))
    if card is not None and card.is_file():
        found += _card_examples(card)
    return list(dict.fromkeys(found))


def _card_examples(card: Path) -> list[str]:
    """`examples` and `widget` in the YAML metadata of a Hugging Face model card."""
    fields = card_fields(card)
    entries = [*_list(fields.get("examples")), *_list(fields.get("widget"))]
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in entries]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class TaughtPrompts:
    """The prompts that the user added, one .jsonl file per adapter in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __bool__(self) -> bool:
        """Whether any adapter has prompts."""
        return self.folder.is_dir() and any(self.folder.iterdir())

    def path(self, key: str) -> Path:
        """The file of the adapter whose content has the sha256 `key`; it may not exist."""
        return self.folder / f"{key[:32]}.jsonl"

    def read(self, key: str) -> list[str]:
        """The prompts of this adapter, oldest first.

        Damaged lines and unreadable files are skipped with a warning.
        """
        path = self.path(key)
        try:
            text = read_start(path, -1).decode("utf-8", "replace") if path.exists() else ""
        except OSError as error:
            log.warning("what was taught in %s cannot be read: %s", path, error.strerror)
            return []
        prompts, problems = _contexts(text)
        if problems:
            log.warning("%s is damaged: %s", path, "; ".join(problems))
        return prompts

    def add(self, key: str, prompts: Iterable[str]) -> int:
        """Store the `prompts` that are not stored yet; returns how many are new."""
        with _writing:
            known = self.read(key)
            new = [p for p in dict.fromkeys(prompts) if p not in known]
            self._write(key, [*known, *new])
        return len(new)

    def forget(self, key: str, *, last: bool = False) -> int:
        """Delete all prompts of this adapter, or only the `last`; returns how many."""
        with _writing:
            known = self.read(key)
            kept = known[:-1] if last else []
            self._write(key, kept)
        return len(known) - len(kept)

    def _write(self, key: str, prompts: Sequence[str]) -> None:
        path = self.path(key)
        if not prompts:
            path.unlink(missing_ok=True)
            return
        lines = (json.dumps({"context": p}, ensure_ascii=False) + "\n" for p in prompts)
        write_whole(path, "".join(lines).encode())
