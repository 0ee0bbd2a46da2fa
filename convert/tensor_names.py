"""From a Hugging Face module name to the GGUF weight it became.

The names come from the gguf package's own table, so they follow llama.cpp. What is not known there
for the base's architecture has no GGUF name; nothing is guessed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import gguf

if TYPE_CHECKING:
    from ..base_model import BaseModel

_ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
_BLOCK_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class TensorNames:
    """The GGUF names of one base model's weights."""

    def __init__(self, base: BaseModel) -> None:
        self._n_blocks = base.n_blocks
        self._map = gguf.get_tensor_name_map(_ARCHITECTURES[base.architecture], base.n_blocks)

    def target(self, module: str) -> str | None:
        """The GGUF weight of `module` (as in `model.layers.0.mlp.up_proj`), or None."""
        name = self._map.get_name(module)
        return None if name is None else f"{name}.weight"

    def in_block(self, module: str, kind: str) -> str:
        """The GGUF weight `kind` ("attn_q") of the block that `module` lies in, or would lie in."""
        number = _BLOCK_NUMBER.search(module)
        return f"blk.{number[0] if number else '?'}.{kind}.weight"

    def why_unknown(self, module: str) -> str:
        """What to tell the user about a module for which `target` is None."""
        number = _BLOCK_NUMBER.search(module)
        if number and int(number[0]) >= self._n_blocks:
            first = module[: number.start()] + "0" + module[number.end() :]
            if self.target(first):
                return f"layer {number[0]} is beyond the base's {self._n_blocks} layers"
        return "the base's architecture has no such layer"
