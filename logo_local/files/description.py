"""What an adapter says of itself in one line: the description in its GGUF file or on its card."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import AdapterError
from . import paw
from .folder import CONFIG_FILE
from .gguf_bounds import GgufError, first_line, open_adapter, text_at
from .model_card import CARD, MOST, card_fields
from .text_file import decoded, read_start

DESCRIPTION_KEY = "general.description"
FILE = "description.txt"
# What is no sentence in a card: headings, lists, tables, pictures, quotes, code, rules, comments.
_MARKUP = re.compile(r"[#>|<!\[*`=-]")


def description_of(origin: Path, in_file: str | None = None) -> str:
    """The first line that describes the adapter `origin`, a GGUF file or a PEFT folder.

    From a text file beside it (NAME.description.txt, or description.txt in a folder); else
    `general.description` of a GGUF file, the specification in a .paw file, `description` in a
    folder's config or card, or the first sentence of the card that is no markup. "" where there is
    none, or where it cannot be read. `in_file` is what the GGUF file says, if that is known:
    reading its header takes some 20 ms.
    """
    try:
        text = _beside(origin)
        if not text and origin.suffix.lower() == ".gguf" and in_file is not None:
            text = in_file
        elif not text:
            text = _of_folder(origin) if origin.is_dir() else _of_file(origin)
    except (AdapterError, GgufError, OSError, ValueError, RecursionError):
        return ""
    return first_line(text)


def _beside(origin: Path) -> str:
    file = origin / FILE if origin.is_dir() else origin.with_suffix(f".{FILE}")
    return decoded(read_start(file, MOST)) if file.is_file() else ""


def _of_folder(folder: Path) -> str:
    """From the files of a PEFT folder, the shortest way first."""
    config, card = folder / CONFIG_FILE, folder / CARD
    fields = json.loads(read_start(config, MOST)) if config.is_file() else {}
    said = fields.get("description") if isinstance(fields, dict) else ""
    if not (isinstance(said, str) and said) and card.is_file():
        said = card_fields(card).get("description") or _of_card(card)
    return said if isinstance(said, str) else ""


def _of_file(path: Path) -> str:
    if path.suffix.lower() == paw.SUFFIX:
        return paw.specification(path)
    return text_at(open_adapter(path), DESCRIPTION_KEY)


def _of_card(card: Path) -> str:
    if not card.is_file():
        return ""
    text = read_start(card, MOST).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    if text.startswith("---\n"):
        text = text[4:].partition("\n---")[2].partition("\n")[2]
    lines = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).splitlines()
    return next((line for line in lines if line.strip() and not _MARKUP.match(line.strip())), "")
