"""The metadata of a model card: YAML between two --- lines in a README.md, as on Hugging Face."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from .text_file import read_start

log = logging.getLogger(__name__)

CARD = "README.md"
MOST = 1 << 20  # bytes of a card that are read


def card_fields(card: Path) -> dict[str, Any]:
    """The metadata fields of `card`; empty if it has none or they are not valid YAML.

    Raises OSError if the file cannot be read.
    """
    text = read_start(card, MOST).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    head, end, _ = text[4:].partition("\n---")
    try:
        fields = yaml.safe_load(head) if end else None
    except (yaml.YAMLError, RecursionError, ValueError):
        log.warning("the head of %s is not YAML, and is not used", card)
        return {}
    return fields if isinstance(fields, dict) else {}
