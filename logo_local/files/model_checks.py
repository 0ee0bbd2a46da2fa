"""Checks of a base model's file for errors on which llama.cpp would end the process.

Types and ranges of the keys that every model has, and the types of tensors; the limits are those of
llama.cpp's src/llama-hparams.h and ggml.h. The quality of the weights is not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_MAX_BLOCKS = _MAX_EXPERTS = 512
_MAX_WIDTH = 1 << 20
_MAX_CONTEXT = 2**31 - 1
_ROPE_SCALINGS = frozenset({"none", "linear", "yarn", "longrope"})
# Types in which no weight of a model is stored.
_NO_WEIGHTS = frozenset({"I8", "I16", "I32", "I64", "F64"})
_VECTOR_TYPES = frozenset({"F32", "F16"})  # the types of rows that ggml can add and multiply

# By the end of the key: the minimum and maximum, and whether one value per block is allowed.
_NUMBERS: Mapping[str, tuple[int, int, bool]] = {
    "block_count": (1, _MAX_BLOCKS, False),
    "embedding_length": (1, _MAX_WIDTH, False),
    "context_length": (1, _MAX_CONTEXT, False),
    "attention.head_count": (0, 1 << 16, True),
    "attention.head_count_kv": (0, 1 << 16, True),
    "feed_forward_length": (0, 1 << 24, True),
    "expert_count": (0, _MAX_EXPERTS, False),
    "expert_used_count": (0, _MAX_EXPERTS, True),
    "rope.dimension_count": (0, 1 << 16, False),
    "attention.key_length": (0, 1 << 16, False),
    "attention.value_length": (0, 1 << 16, False),
    "vocab_size": (0, 1 << 26, False),
}
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")


def problems_of_keys(arch: str, fields: Mapping[str, Any]) -> list[str]:
    """The problems of the keys of architecture `arch`, one line each."""
    problems = []
    for name, (least, most, per_block) in _NUMBERS.items():
        key = f"{arch}.{name}"
        if key in fields:
            problems += _number_problems(key, fields[key], least, most, per_block=per_block)
    for name in _EPSILONS:
        value = fields.get(f"{arch}.{name}", 1e-5)
        if not isinstance(value, float) or not math.isfinite(value) or not 0 <= value < 1:
            problems.append(f"{arch}.{name} is {value!r}, and must be a number from 0 to 1")
    used, experts = fields.get(f"{arch}.expert_used_count"), fields.get(f"{arch}.expert_count")
    if isinstance(used, int) and isinstance(experts, int) and used > experts:
        problems.append(f"{arch}.expert_used_count is {used}, and there are {experts} experts")
    problems += _known(fields, f"{arch}.rope.scaling.type", _ROPE_SCALINGS)
    tokenizer = fields.get("tokenizer.ggml.model", "")  # llama.cpp itself refuses unknown names
    if not isinstance(tokenizer, str):
        problems.append(f"tokenizer.ggml.model is {str(tokenizer)[:40]!r}, and must be a text")
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        problems.append(f"general.alignment is {alignment!r}, and must be a power of two from 8 on")
    return problems


def problems_of_tensors(tensors: Iterable[tuple[str, int, str]]) -> list[str]:
    """The problems of tensors, given by name, number of dimensions, and ggml type."""
    found: dict[str, list[str]] = {}
    for name, n_dims, kind in tensors:
        if kind in _NO_WEIGHTS:
            found.setdefault(f"is stored as {kind}, which no weight is", []).append(name)
        elif n_dims <= 1 and name.startswith(("blk.", "output_norm")) and kind not in _VECTOR_TYPES:
            why = f"is a vector stored as {kind}, which llama.cpp cannot compute with"
            found.setdefault(why, []).append(name)
    lines = []
    for why, names in found.items():
        more = f" (and {len(names) - 1} more like this)" if len(names) > 1 else ""
        lines.append(f"{names[0]} {why}{more}")
    return lines


def _number_problems(key: str, value: Any, least: int, most: int, *, per_block: bool) -> list[str]:
    values = value if per_block and isinstance(value, list) else [value]
    is_sound: Callable[[Any], bool] = lambda one: (  # noqa: E731  # bool is an int
        isinstance(one, int) and not isinstance(one, bool) and least <= one <= most
    )
    if all(map(is_sound, values)) and values:
        return []
    wrong = next((one for one in values if not is_sound(one)), values)
    shown = repr(wrong) if len(repr(wrong)) < 40 else repr(wrong)[:37] + "..."
    return [f"{key} is {shown}, and must be a whole number from {least} to {most:,}"]


def _known(fields: Mapping[str, Any], key: str, known: frozenset[str]) -> list[str]:
    value = fields.get(key)
    if value is None or (isinstance(value, str) and value in known):
        return []
    return [f"{key} is {str(value)[:40]!r}, and must be one of {', '.join(sorted(known))}"]
