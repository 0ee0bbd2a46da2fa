"""The one-line description of an adapter, from its GGUF file or its model card."""

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
# Lines of a card that are not sentences: headings, lists, tables, images, quotes, code, rules.
_MARKUP = re.compile(r"[#>|<!\[*`=-]")


def description_of(origin: Path, in_file: str | None = None) -> str:
    """The first line that describes the adapter `origin`, a GGUF file or a PEFT folder.

    Sources, in this order: a text file next to it (NAME.description.txt, or description.txt in a
    folder); `general.description` of a GGUF file, the specification in a .paw file, or
    `description` in a folder's config or card; the first sentence of the card. Returns "" if
    there is none or it cannot be read. Pass `in_file`, the description in the GGUF file, if it is
    known: reading the header takes about 20 ms.
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
    """From the files of a PEFT folder, the cheapest source first."""
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
