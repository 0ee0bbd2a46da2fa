"""The origin of a converted adapter, written as metadata into the GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from ..files.gguf_bounds import printable
from ..files.model_card import CARD, card_fields

LONGEST = 256  # characters; limit for values from other people's files


def said_by_config(config: Mapping[str, Any]) -> dict[str, str]:
    """The origin according to the adapter's config, by GGUF key."""
    keys = {
        "general.base_model.0.name": "base_model_name_or_path",
        "logo_local.task_type": "task_type",
        "logo_local.peft_version": "peft_version",
    }
    return {key: text for key, name in keys.items() if (text := _text(config.get(name)))}


def said_by_mlx(config: Mapping[str, Any]) -> dict[str, str]:
    """The same for an mlx-lm adapter's config."""
    text = _text(config.get("model"))
    return {"general.base_model.0.name": text} if text else {}


def said_by_card(folder: Path) -> dict[str, str]:
    """The licence in the adapter's card, by GGUF key; empty if there is none."""
    try:
        text = _text(card_fields(folder / CARD).get("license"))
    except OSError:
        return {}
    return {gguf.Keys.General.LICENSE: text} if text else {}


def _text(value: object) -> str:
    return printable(value)[:LONGEST] if isinstance(value, str) else ""
