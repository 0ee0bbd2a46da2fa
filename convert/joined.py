"""Layers that are separate in Hugging Face's model and one weight in the base's GGUF file.

llama.cpp's converter makes such files with --fuse-qkv: the rows of queries, keys and values, each
in their usual order, are concatenated. The rows of B are concatenated in the same way:

    [B_q A_q; B_k A_k; B_v A_v] x = [B_q 0 0; 0 B_k 0; 0 0 B_v] [A_q; A_k; A_v] x

Layers that are not adapted have rows of zeros.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .assembled import Assembled, Piece
from .layouts import RowOrder
from .peft_reader import PeftModule

if TYPE_CHECKING:
    from ..files.base_model import BaseModel

# A module, the GGUF weight that it adapts, and the rows of its B there (None: all, unchanged).
Placed: TypeAlias = tuple[PeftModule, str, RowOrder | None]


@dataclass(frozen=True)
class Share:
    """The rows of one of several layers in a joined weight, from `start` on."""

    whole: str
    start: int
    shape: tuple[int, int]  # (d_out, d_in) of the layer


def shares_of(base: BaseModel) -> dict[str, Share]:
    """The parts of the base's joined weights, by the name that each would have separately."""
    shares = {}
    heads = (base.n_head, base.n_head_kv, base.n_head_kv)
    for name, shape in base.tensors.items():
        before, is_joined, after = name.partition(".attn_qkv.")
        if is_joined and after == "weight" and shape[0] % sum(heads) == 0:
            width, start = shape[0] // sum(heads), 0
            for kind, n in zip("qkv", heads, strict=True):
                shares[f"{before}.attn_{kind}.weight"] = Share(name, start, (n * width, shape[1]))
                start += n * width
    return shares


def with_joined(placed: Sequence[Placed], base: BaseModel) -> list[Placed]:
    """`placed`, with the parts of each joined weight combined into one module."""
    shares = shares_of(base)
    others, parts = [], defaultdict(list)
    for one in placed:
        if one[1] in base.tensors:
            others.append(one)
        else:
            parts[shares[one[1]].whole].append(one)
    joined = [(_joined(some, shares, base.tensors[whole]), whole) for whole, some in parts.items()]
    return [*others, *((module, whole, None) for module, whole in joined)]


def _joined(
    parts: Sequence[Placed], shares: dict[str, Share], shape: tuple[int, ...]
) -> PeftModule:
    """One module with the most common scaling of the parts, and the sum of their ranks."""
    parts = sorted(parts, key=lambda one: shares[one[1]].start)
    modules = [module for module, *_ in parts]
    scaling = Counter(module.scaling for module in modules).most_common(1)[0][0]
    rank = sum(module.rank for module in modules)
    a: list[Piece] = []
    b: list[Piece] = []
    for module, target, order in parts:
        first = sum(piece.factor.shape[0] for piece in a)
        a.append(Piece(module.a, (first, 0)))
        at = (shares[target].start, first)
        b.append(Piece(module.b, at, module.scaling / scaling, order))
    kinds = " + ".join(target.split(".")[-2] for _, target, _ in parts)
    orders = [order.text for _, _, order in parts if order is not None]
    layers = "+".join(module.name.rpartition(".")[2] for module in modules)
    return PeftModule(
        name=f"{modules[0].name.rpartition('.')[0]}.{layers}",
        a=Assembled((rank, shape[1]), tuple(a)),
        b=Assembled((shape[0], rank), tuple(b)),
        rank=rank,
        scaling=scaling,
        effective_alpha=scaling * rank,
        made_of=", ".join([f"rows of {kinds}", *orders]),
    )
