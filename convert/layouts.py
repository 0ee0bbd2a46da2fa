"""How llama.cpp orders a layer's rows, where this differs from Hugging Face.

Rows of W are rows of lora_B, so lora_B needs the row order that the base's weights got in their
conversion. Where a layer became several weights, each gets its rows of lora_B and all of lora_A. To
support another architecture, look at what llama.cpp's converter does to its tensors
(`modify_tensors`, conversion/*.py) and add a line to `LAYOUTS`; if the rows are unchanged, use
`Layout()`. Then add it to tests/families.py, which tests it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..files.base_model import BaseModel

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class RowOrder:
    """Row i of the output is row `indices[i]` of PEFT's file; `text` describes the order.

    There are fewer indices than rows if a layer becomes several weights.
    """

    indices: npt.NDArray[np.intp] = field(repr=False, compare=False)  # described by the text
    text: str

    def apply(self, rows: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """`rows` (..., d_out, rank) in this order."""
        return np.take(rows, self.indices, axis=-2)


# Maps the base and the number of rows to their order; None: unchanged. Raises ValueError with the
# reason if there is none.
Reorder: TypeAlias = Callable[["BaseModel", int], "RowOrder | None"]


@dataclass(frozen=True)
class Layout:
    """The changes to the layers of one architecture.

    `rows` are the layers whose rows are reordered, by the last part of a Hugging Face module's
    name. `parts` are the layers that become several weights of a block, or one that is not in
    gguf's tables, by the end of the module's name: the GGUF names of the weights within a block
    ("attn_q"), each with its rows (None: all, unchanged).
    """

    rows: Mapping[str, Reorder] = field(default_factory=dict)
    parts: Mapping[str, tuple[tuple[str, Reorder | None], ...]] = field(default_factory=dict)


def halves_interleaved(d_out: int, n_heads: int) -> npt.NDArray[np.intp]:
    """In each head row i is followed by row i + d/2; d is the head's width d_out / n_heads."""
    if d_out % (2 * n_heads):
        raise ValueError(f"{d_out} rows do not form {n_heads} heads of even width")
    rows = np.arange(d_out).reshape(n_heads, 2, -1)  # (head, half, pair)
    ordered: npt.NDArray[np.intp] = rows.swapaxes(1, 2).ravel()
    return ordered


def parts_apart(d_out: int, n_groups: int, sizes: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Change groups of heads q.. k v, q.. k v, .. into all q, all k, all v.

    A group has sum(sizes) heads: sizes[0] of the first part, then sizes[1] of the second, ...
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


def even_rows_first(d_out: int, n_heads: int, n_rotary: int) -> npt.NDArray[np.intp]:
    """In each head the even rows of the first `n_rotary`, then their odd rows, then the rest."""
    if d_out % n_heads or n_rotary % 2 or not 0 < n_rotary <= d_out // n_heads:
        raise ValueError(f"{d_out} rows do not form {n_heads} heads with {n_rotary} rotary rows")
    rows = np.arange(d_out).reshape(n_heads, -1)  # (head, row)
    rotary, rest = rows[:, :n_rotary], rows[:, n_rotary:]
    return np.concatenate([rotary[:, ::2], rotary[:, 1::2], rest], axis=1).ravel()


def _multimodal_rotary(n_heads: Callable[[BaseModel], int]) -> Reorder:
    """Reorder only if the base has M-RoPE: the same architecture exists without it (GLM-4)."""

    def order(base: BaseModel, d_out: int) -> RowOrder | None:
        if not base.has_mrope:
            return None
        heads = n_heads(base)
        return RowOrder(even_rows_first(d_out, heads, base.n_rotary), f"M-RoPE rows, {heads} heads")

    return order


def _qkv_by_head(base: BaseModel, d_out: int) -> RowOrder:
    """Each head has its query, key and value next to each other."""
    order = parts_apart(d_out, base.n_head, (1, 1, 1))
    return RowOrder(order, f"queries, keys, values apart, {base.n_head} heads")


def _qkv_by_group(base: BaseModel, d_out: int) -> RowOrder:
    """Several queries share a key and a value, which follow them."""
    order = parts_apart(d_out, base.n_head_kv, (base.n_head // base.n_head_kv, 1, 1))
    return RowOrder(order, f"queries, keys, values apart, {base.n_head_kv} groups")


def _share(number: int, n_parts: int) -> Reorder:
    """One of `n_parts` consecutive parts of the same size."""

    def order(base: BaseModel, d_out: int) -> RowOrder:
        if d_out % n_parts:
            raise ValueError(f"{d_out} rows do not form {n_parts} parts")
        rows = np.arange(d_out).reshape(n_parts, -1)[number]
        return RowOrder(rows, f"rows {rows[0]} to {rows[-1]} of {d_out}")

    return order


def _qkv_part(part: int, n_groups: Callable[[BaseModel], int]) -> Reorder:
    """The queries (0), keys (1) or values (2) of a layer with groups q.. k.. v..

    Queries and keys are then put in the order for ggml's rotary embedding.
    """

    def order(base: BaseModel, d_out: int) -> RowOrder:
        heads = (base.n_head, base.n_head_kv, base.n_head_kv)
        groups = n_groups(base)
        apart = parts_apart(d_out, groups, tuple(n // groups for n in heads))
        width = d_out // sum(heads)
        start = width * sum(heads[:part])
        rows = apart[start : start + width * heads[part]]
        name = ("queries", "keys", "values")[part]
        if part == 2:
            return RowOrder(rows, f"{name} of {groups} groups")
        rotary = rows[halves_interleaved(len(rows), heads[part])]
        return RowOrder(rotary, f"{name} of {groups} groups, rotary rows, {heads[part]} heads")

    return order


def _qkv_parts(n_groups: Callable[[BaseModel], int]) -> tuple[tuple[str, Reorder | None], ...]:
    return tuple((f"attn_{kind}", _qkv_part(i, n_groups)) for i, kind in enumerate("qkv"))


# In Hugging Face's order the two rows of a rotary pair are (i, i + d/2); for some architectures
# ggml needs them next to each other.
_ROTARY = {
    "q_proj": _rotary(lambda base: base.n_head),
    "k_proj": _rotary(lambda base: base.n_head_kv),
}

_MULTIMODAL_ROTARY = {
    "q_proj": _multimodal_rotary(lambda base: base.n_head),
    "k_proj": _multimodal_rotary(lambda base: base.n_head_kv),
}

# Experts in transformers 5: gate and up are one parameter.
_EXPERTS: Mapping[str, tuple[tuple[str, Reorder | None], ...]] = {
    "experts.gate_up_proj": (("ffn_gate_exps", _share(0, 2)), ("ffn_up_exps", _share(1, 2))),
    "experts.down_proj": (("ffn_down_exps", None),),
}
_GRANITE_MOE: Mapping[str, tuple[tuple[str, Reorder | None], ...]] = {
    **_EXPERTS,
    "block_sparse_moe.input_linear": _EXPERTS["experts.gate_up_proj"],  # in transformers 4
    "block_sparse_moe.router": (("ffn_gate_inp", None),),
    "shared_mlp.input_linear": (("ffn_gate_shexp", _share(0, 2)), ("ffn_up_shexp", _share(1, 2))),
}

LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("arcee", "granite", "mistral3", "olmo", "smollm3"), Layout(_ROTARY)),
    "llama": Layout(_ROTARY, _EXPERTS),
    "granitemoe": Layout(_ROTARY, _GRANITE_MOE),
    **dict.fromkeys(("olmoe", "qwen2moe", "qwen3moe"), Layout(parts=_EXPERTS)),
    **dict.fromkeys(("bloom", "gptneox"), Layout({"query_key_value": _qkv_by_head})),
    "glm4": Layout(_MULTIMODAL_ROTARY),
    "falcon": Layout({"query_key_value": _qkv_by_group}),
    "internlm2": Layout(parts={"attention.wqkv": _qkv_parts(lambda base: base.n_head_kv)}),
    "baichuan": Layout(parts={"self_attn.W_pack": _qkv_parts(lambda base: 1)}),
    **dict.fromkeys(
        (
            *("apertus", "chatglm", "cohere2", "command-r", "ernie4_5", "exaone"),
            *("exaone4", "gemma", "gemma2", "gemma3", "gpt2", "hunyuan-dense", "jais2"),
            *("lfm2", "mpt", "nemotron", "olmo2", "phi2", "phi3", "qwen2", "qwen2vl", "qwen3"),
            *("qwen3vl", "seed_oss", "stablelm", "starcoder", "starcoder2"),
        ),
        Layout(),
    ),
}


# Architectures that were tested and cannot be used, and why.
REFUSED: dict[str, str] = {
    "deepseek2": "llama.cpp's graph for it (latent attention) makes no use of adapters",
}


def parts_of(architecture: str, module: str) -> tuple[tuple[str, Reorder | None], ...]:
    """The weights within a block that Hugging Face's `module` becomes, with the rows of each.

    Empty if it is the single weight in gguf's tables. The architecture must be one of `LAYOUTS`.
    """
    for ending, parts in LAYOUTS[architecture].parts.items():
        if module.endswith(f".{ending}"):
            return parts
    return ()


def reorder_of(architecture: str, module: str) -> Reorder | None:
    """The row order function for Hugging Face's `module`; None: unchanged.

    The architecture must be one of `LAYOUTS`.
    """
    return LAYOUTS[architecture].rows.get(module.rpartition(".")[2])
