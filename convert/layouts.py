"""How llama.cpp stores a layer's rows, where that differs from Hugging Face's order.

Rows of W are rows of lora_B, so whatever order the base's rows were put in when it was converted
must be that of lora_B. To support another architecture, add a line to `LAYOUTS`, after looking at
what llama.cpp's converter does to that architecture's tensors (`modify_tensors`, conversion/*.py);
one whose rows it leaves alone needs `Layout()`. Then add it to tests/families.py, which proves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..base_model import BaseModel

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class RowOrder:
    """Row i of what is written is row `indices[i]` of what PEFT saved; `text` says it in words."""

    indices: npt.NDArray[np.intp] = field(repr=False, compare=False)  # the text says as much
    text: str

    def apply(self, rows: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """`rows` (d_out, ...) in this order."""
        return rows[self.indices]


# From the base and the number of rows to their order. ValueError says why they have none.
Reorder: TypeAlias = Callable[["BaseModel", int], RowOrder]


@dataclass(frozen=True)
class Layout:
    """What one architecture does to its rows, by the last part of a Hugging Face module's name."""

    rows: Mapping[str, Reorder] = field(default_factory=dict)


def halves_interleaved(d_out: int, n_heads: int) -> npt.NDArray[np.intp]:
    """In each head row i is followed by row i + d/2; d is the head's width d_out / n_heads."""
    if d_out % (2 * n_heads):
        raise ValueError(f"{d_out} rows do not form {n_heads} heads of even width")
    rows = np.arange(d_out).reshape(n_heads, 2, -1)  # (head, half, pair)
    ordered: npt.NDArray[np.intp] = rows.swapaxes(1, 2).ravel()
    return ordered


def parts_apart(d_out: int, n_groups: int, sizes: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Groups of heads q.. k v, q.. k v, .. become all q, all k, all v.

    A group holds sum(sizes) heads: sizes[0] of the first part, then sizes[1] of the second, ...
    """
    n_heads = n_groups * sum(sizes)
    if d_out % n_heads:
        raise ValueError(f"{d_out} rows do not form {n_heads} heads of queries, keys and values")
    rows = np.arange(d_out).reshape(n_groups, sum(sizes), -1)  # (group, head, row)
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([part.ravel() for part in parts])


def _rotary(n_heads: Callable[[BaseModel], int]) -> Reorder:
    def order(base: BaseModel, d_out: int) -> RowOrder:
        heads = n_heads(base)
        return RowOrder(halves_interleaved(d_out, heads), f"rotary rows, {heads} heads")

    return order


def _qkv_by_head(base: BaseModel, d_out: int) -> RowOrder:
    """Each head has its query, key and value side by side."""
    order = parts_apart(d_out, base.n_head, (1, 1, 1))
    return RowOrder(order, f"queries, keys, values apart, {base.n_head} heads")


def _qkv_by_group(base: BaseModel, d_out: int) -> RowOrder:
    """Several queries share a key and a value, which follow them."""
    order = parts_apart(d_out, base.n_head_kv, (base.n_head // base.n_head_kv, 1, 1))
    return RowOrder(order, f"queries, keys, values apart, {base.n_head_kv} groups")


# Hugging Face keeps a head's rotary pairs (i, i + d/2) apart; ggml's graph for some architectures
# wants them side by side.
_ROTARY = Layout(
    {
        "q_proj": _rotary(lambda base: base.n_head),
        "k_proj": _rotary(lambda base: base.n_head_kv),
    }
)
_AS_IT_IS = Layout()

LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(
        ("arcee", "granite", "granitemoe", "llama", "mistral3", "olmo", "smollm3"), _ROTARY
    ),
    **dict.fromkeys(("bloom", "gptneox"), Layout({"query_key_value": _qkv_by_head})),
    "falcon": Layout({"query_key_value": _qkv_by_group}),
    **dict.fromkeys(
        (
            *("apertus", "chatglm", "cohere2", "command-r", "ernie4_5", "exaone"),
            *("exaone4", "gemma", "gemma2", "gemma3", "glm4", "gpt2", "hunyuan-dense", "jais2"),
            *("lfm2", "mpt", "nemotron", "olmo2", "olmoe", "phi2", "phi3", "qwen2", "qwen2moe"),
            *(
                "qwen2vl",
                "qwen3",
                "qwen3moe",
                "qwen3vl",
                "seed_oss",
                "stablelm",
                "starcoder",
                "starcoder2",
            ),
        ),
        _AS_IT_IS,
    ),
}


# Architectures that were tried and cannot be used, and why.
REFUSED: dict[str, str] = {
    "deepseek2": "llama.cpp's graph for it (latent attention) makes no use of adapters",
}


def row_order(base: BaseModel, module: str, d_out: int) -> RowOrder | None:
    """How the rows of Hugging Face's `module` are to be reordered; None: left as they are.

    The architecture must be one of `LAYOUTS`. Raises ValueError where so many rows have no such
    order.
    """
    reorder = LAYOUTS[base.architecture].rows.get(module.rpartition(".")[2])
    return None if reorder is None else reorder(base, d_out)
