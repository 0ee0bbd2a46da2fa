"""How llama.cpp stores a layer's rows, where that differs from Hugging Face's order.

Rows of W are rows of lora_B, so whatever was done to the base's weights when it was converted must
be done to lora_B. To support another architecture, add a line to `LAYOUTS`, after looking at what
llama.cpp's converter does to that architecture's tensors; one that does nothing needs `Layout()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..base_model import BaseModel

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Layout:
    """What one architecture does to its weights.

    `rotary` maps the last part of a Hugging Face module name to the field of BaseModel that says
    how many heads its rows form; within each head the two halves are interleaved.
    """

    rotary: Mapping[str, str] = field(default_factory=dict)


LAYOUTS: dict[str, Layout] = {
    # Hugging Face keeps a head's rotary pairs (i, i + d/2) apart, ggml's llama graph side by side.
    "llama": Layout(rotary={"q_proj": "n_head", "k_proj": "n_head_kv"}),
    "qwen2": Layout(),
}


def rotary_heads(base: BaseModel, module: str) -> int:
    """How many heads the rows of Hugging Face's `module` form, 0 where no reordering is needed.

    The architecture must be one of `LAYOUTS`.
    """
    attribute = LAYOUTS[base.architecture].rotary.get(module.rpartition(".")[2])
    return int(getattr(base, attribute)) if attribute else 0


def interleave_halves(rows: npt.NDArray[Scalar], n_heads: int) -> npt.NDArray[Scalar]:
    """Reorder rows (d_out, ...) so that in each head row i is followed by row i + d/2.

    d is the head's width d_out / n_heads, which must be a whole, even number.
    """
    d_out = rows.shape[0]
    halves = rows.reshape(n_heads, 2, d_out // n_heads // 2, -1)  # (head, half, pair, rest)
    ordered: npt.NDArray[Scalar] = halves.swapaxes(1, 2).reshape(rows.shape)
    return ordered
