"""Read an adapter trained with mlx-lm: adapter_config.json and adapters.safetensors.

There a layer adds scale * (x A) B with A (d_in, rank) and B (rank, d_out): both are transposed
here, and scale is what PEFT calls scaling. Like `peft_reader`, it never raises for a bad adapter.

Source of the format: ml-explore/mlx-lm, mlx_lm/tuner/lora.py and mlx_lm/lora.py.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..files.folder import MLX_WEIGHTS_FILE, weights_in
from ..files.text_file import read_text
from .peft_config import CONFIG_FILE, Findings, number_of
from .peft_reader import PeftAdapter, PeftModule
from .provenance import said_by_card, said_by_mlx
from .stored import StoredTensor, read_header

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ab])")


def is_mlx(folder: Path) -> bool:
    """Whether the weight files in `folder` have mlx-lm's names, and not PEFT's."""
    return (folder / MLX_WEIGHTS_FILE).is_file() and weights_in(folder)[0].name == MLX_WEIGHTS_FILE


def read_mlx(folder: Path) -> PeftAdapter:
    """Read the mlx-lm adapter in `folder`, in PEFT's terms."""
    findings = Findings()
    config = _read_config(folder, findings)
    scale = _scale(config, findings)
    parts: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for tensor in read_header(folder / MLX_WEIGHTS_FILE, findings):
        match = _FACTOR.fullmatch(tensor.name)
        if match is None:
            findings.add(f"{tensor.name}: not a LoRA factor")
        else:
            parts[match["module"]][match["part"]] = tensor
    modules = [
        module
        for name, pair in sorted(parts.items())
        if (module := _module(name, pair, scale, findings)) is not None
    ]
    if not parts and not findings.problems:
        findings.add(f"{MLX_WEIGHTS_FILE} holds no LoRA factors")
    provenance = {**said_by_mlx(config), **said_by_card(folder)}
    name = os.path.basename(os.path.abspath(folder))
    notes = _notes(config, scale)
    return PeftAdapter(folder, name, tuple(modules), findings, notes, provenance)


def _read_config(folder: Path, findings: Findings) -> dict[str, Any]:
    try:
        config = json.loads(read_text(folder / CONFIG_FILE))
    except (OSError, ValueError, RecursionError) as error:
        findings.add(f"{CONFIG_FILE} cannot be read: {error}")
        return {}
    if not isinstance(config, dict):
        findings.add(f"{CONFIG_FILE} is not a JSON object")
        return {}
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora" or config.get("use_dora"):
        kind = "dora" if config.get("use_dora") else kind
        findings.add(
            f"fine_tune_type is {kind!r}; only lora can be converted",
            "mlx_lm.fuse merges it into the base, which can then be converted as a whole",
        )
    return config


def _scale(config: dict[str, Any], findings: Findings) -> float:
    parameters = config.get("lora_parameters")
    found = parameters.get("scale") if isinstance(parameters, dict) else None
    sound = isinstance(found, (int, float)) and not isinstance(found, bool)
    scale = float(found or 0) if sound else 0.0
    if 1e-20 < abs(scale) < 1e20:
        return scale
    if not findings.problems:  # without a readable config the scale is missing too
        findings.add(f"lora_parameters: scale is {found!r}; it must be a number other than 0")
    return 1.0


def _notes(config: dict[str, Any], scale: float) -> tuple[str, ...]:
    """A remark if the config has an alpha: releases of mlx-lm interpret it in two ways."""
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        return ()
    alpha, rank = number_of(parameters.get("alpha")), number_of(parameters.get("rank"))
    if not (alpha and rank) or scale * alpha / rank == scale:
        return ()
    other = scale * alpha / rank
    return (
        f"lora_parameters has alpha {alpha:g} beside scale {scale:g}: mlx-lm of April to June 2024 "
        f"trained with scale * alpha / rank = {other:g}, later releases with {scale:g}, which is "
        f"taken here; if it was trained then, set scale to {other:g} and remove alpha",
    )


def _module(
    name: str, pair: dict[str, StoredTensor], scale: float, findings: Findings
) -> PeftModule | None:
    if len(pair) < 2:
        (there,) = pair
        findings.add(f"{name} has lora_{there} without lora_{'b' if there == 'a' else 'a'}")
        return None
    a, b = pair["a"], pair["b"]
    shapes = f"lora_a {a.shape}, lora_b {b.shape}"
    if len(a.shape) == 3:
        findings.add(f"{name}: LoRA of a stack of experts is not supported")
    elif name.endswith("embed_tokens"):
        findings.add(f"{name}: LoRA of an embedding, which is not supported")
    elif len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        findings.add(f"{name}: {shapes}: they do not belong together")
    elif 0 in a.shape or 0 in b.shape:
        findings.add(f"{name}: {shapes}: a dimension is 0")
    else:
        rank = a.shape[1]
        turned = [tensor.turned(1, 0) for tensor in (a, b)]
        return PeftModule(name, turned[0], turned[1], rank, scale, scale * rank)
    return None
