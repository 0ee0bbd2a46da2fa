"""Recognise an adapter that was made for another base model.

Such an adapter has wrong shapes at every layer. Its layers together show the width and the number
of blocks of that base, which is one line instead of one for each layer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .base_model import BaseModel

_BLOCK = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.weight")
# Layers whose input has the width of the model, and layers whose output has.
_WIDE_INPUT = frozenset({"attn_q", "attn_k", "attn_v", "attn_qkv", "ffn_gate", "ffn_up"})
_WIDE_OUTPUT = frozenset({"attn_output", "ffn_down"})


def made_for(base: BaseModel, layers: Iterable[tuple[str, int, int]], said: str = "") -> str:
    """One line about the model that `layers` were made for; empty if they are as wide as `base`.

    `layers` are GGUF names with d_in and d_out, each 0 if unknown; `said` is what the adapter
    says about its base.
    """
    blocks: set[int] = set()
    widths: Counter[int] = Counter()
    for target, d_in, d_out in layers:
        match = _BLOCK.fullmatch(target)
        if match is None:
            continue
        blocks.add(int(match[1]))
        width = d_in if match[2] in _WIDE_INPUT else d_out if match[2] in _WIDE_OUTPUT else 0
        if width:
            widths[width] += 1
    n_blocks = max(blocks, default=-1) + 1
    width = widths.most_common(1)[0][0] if widths else base.n_embd
    if width == base.n_embd and n_blocks <= base.n_blocks:
        return ""
    at_least = "at least " if len(blocks) < n_blocks else ""
    line = (
        f"made for a model {width} wide with {at_least}{n_blocks} blocks; "
        f"this one is {base.n_embd} wide with {base.n_blocks}"
    )
    return f"{line} ({said})" if said else line
