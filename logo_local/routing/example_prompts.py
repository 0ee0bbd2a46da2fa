"""Example prompts of adapters: what people say an adapter is for, without answers.

They come from a text file beside the adapter (`NAME.prompts.txt`, or `prompts.txt` in a PEFT
folder: one prompt a line), from `examples` or `widget` in the head of the card in a PEFT folder
(README.md), and from the user: `logo-local profile`, or a pin in a chat. The user's lie in the
user's own folder by the adapter's content, so that a renamed file keeps them; nothing is written
beside an adapter.
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

_writing = threading.Lock()  # engines in several threads may be taught at once

MOST = 1 << 20  # bytes of a file that are read; examples beyond are left out with a warning


def read_prompts(path: Path) -> list[str]:
    """The prompts in `path`: one a line, or, in a .jsonl file, the `context` of each line.

    Empty lines, and lines of a text file that start with #, are passed over. Raises PromptError,
    with every bad line, for a file that cannot be read.
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
    """The prompts in JSON lines, and what is wrong with the others."""
    prompts, problems = [], []
    # Only line feeds end a line here: a JSON string may hold other separators as they are.
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
    """`raw` up to the last line that ends within `MOST` bytes; a warning says what is left out."""
    if len(raw) <= MOST:
        return raw
    whole = raw[: raw.rfind(b"\n", 0, MOST) + 1]
    n_lines = whole.count(b"\n")
    log.warning(
        "%s is larger than %d MiB: only its first %d lines are read", path, MOST >> 20, n_lines
    )
    return whole


def prompts_beside(origin: Path) -> list[str]:
    """The example prompts that lie with the adapter `origin`, a GGUF file or a PEFT folder.

    A file that cannot be used is named in the log and passed over: the adapter itself is fine.
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
    """`examples` and `widget` in the YAML head of a model card, as Hugging Face writes them."""
    fields = card_fields(card)
    entries = [*_list(fields.get("examples")), *_list(fields.get("widget"))]
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in entries]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class TaughtPrompts:
    """The prompts that the user gave, one .jsonl file an adapter in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __bool__(self) -> bool:
        """Whether anything was given for any adapter."""
        return self.folder.is_dir() and any(self.folder.iterdir())

    def path(self, key: str) -> Path:
        """The file of the adapter whose content has the sha256 `key`; it need not exist."""
        return self.folder / f"{key[:32]}.jsonl"

    def read(self, key: str) -> list[str]:
        """What was given for this adapter, oldest first; nothing is an empty list.

        Lines that are damaged are passed over with a warning, and so is a file that cannot be read:
        routing goes on without them.
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
        """Remember `prompts` that are not there yet; the number of those that are new."""
        with _writing:
            known = self.read(key)
            new = [p for p in dict.fromkeys(prompts) if p not in known]
            self._write(key, [*known, *new])
        return len(new)

    def forget(self, key: str, *, last: bool = False) -> int:
        """Remove all that was given for this adapter, or the `last` prompt; how many went."""
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
