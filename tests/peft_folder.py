"""PEFT LoRA folders written by hand, good and bad, and GGUF LoRA files read back. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import serialize_file
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "use_rslora": False,
    "target_modules": ["q_proj"],
}


def factor_name(module: str, part: str) -> str:
    """The name PEFT gives to `lora_A` or `lora_B` of a module such as `model.layers.0.mlp.x`."""
    return f"base_model.model.{module}.lora_{part}.weight"


def factors(
    modules: Mapping[str, tuple[int, int]], rank: int = 4, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random float32 A (rank, d_in) and B (d_out, rank) for modules of shape (d_out, d_in)."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (d_out, d_in) in modules.items():
        for part, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
            tensors[factor_name(module, part)] = rng.normal(size=shape).astype(np.float32)
    return tensors


def write_peft(folder: Path, tensors: Mapping[str, np.ndarray], **config: object) -> Path:
    """A PEFT folder with these tensors and `CONFIG`, changed by `config`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def save_as(path: Path, dtype: str, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file whose raw bytes are declared to be of a type that numpy may not have."""
    from safetensors import TensorSpec

    width = {"bfloat16": 2, "float8_e4m3fn": 1}[dtype]
    specs = {}
    for name, values in tensors.items():
        assert values.dtype.itemsize == width
        specs[name] = TensorSpec(
            dtype=dtype,
            shape=values.shape,
            data_ptr=values.ctypes.data,
            data_len=values.nbytes,
        )
    serialize_file(specs, str(path), None)


def read_lora(path: Path) -> tuple[float, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """adapter.lora.alpha, and A (rank, d_in) and B (d_out, rank) as float32 by GGUF weight."""
    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    targets = sorted({name.rpartition(".")[0] for name in tensors})
    return alpha, {t: (tensors[f"{t}.lora_a"], tensors[f"{t}.lora_b"]) for t in targets}
