"""GGUF files packed by hand, so that tests can write what gguf's own writer refuses to.

`Gguf` holds the parts of a file as plain lists that a test may spoil before `pack()`;
`adapter()` gives a sound LoRA for the base of `base_model()`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from logo_local.files.base_model import BaseModel

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
T_F32, T_F16, T_Q4_0, T_Q8_0, T_I32, T_BF16 = 0, 1, 2, 8, 26, 30

_SCALARS = {
    U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f",
    BOOL: "<?", U64: "<Q", I64: "<q", F64: "<d",
}  # fmt: skip


def text(value: str | bytes) -> bytes:
    """A GGUF string: its length in 8 bytes, then its bytes."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(kind: int, value: object) -> bytes:
    """One value; an array is given as (kind of the elements, sequence)."""
    if kind == STRING:
        return text(value)  # type: ignore[arg-type]
    if kind == ARRAY:
        inner, values = value  # type: ignore[misc]
        head = struct.pack("<IQ", inner, len(values))
        return head + b"".join(value_bytes(inner, one) for one in values)
    return struct.pack(_SCALARS[kind], value)


@dataclass
class Tensor:
    """`dims` in GGUF order (innermost first). `offset` None: where the writer would put it."""

    name: str | bytes
    dims: Sequence[int]
    data: bytes
    kind: int = T_F32
    offset: int | None = None
    n_dims: int | None = None


@dataclass
class Gguf:
    """Keys are (name, kind, value), or (name, kind, bytes) to be taken as they are."""

    keys: list[tuple[str, int, object]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32

    def set(self, name: str, kind: int, value: object) -> Gguf:
        """Give `name` another type and value, at its place."""
        entry = (name, kind, value)
        if name in [key[0] for key in self.keys]:
            self.keys = [entry if key[0] == name else key for key in self.keys]
        else:
            self.keys.append(entry)
        return self

    def without(self, name: str) -> Gguf:
        """Drop the key or the tensor `name`."""
        self.keys = [key for key in self.keys if key[0] != name]
        self.tensors = [tensor for tensor in self.tensors if tensor.name != name]
        return self

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def parts(self) -> dict[str, bytes]:
        """The file in order, by the name of each part: the boundaries to cut at."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        parts = {
            "magic": self.magic,
            "version": struct.pack("<I", self.version),
            "tensor count": struct.pack("<Q", n_tensors),
            "key count": struct.pack("<Q", n_keys),
        }
        for i, (name, kind, value) in enumerate(self.keys):
            parts[f"key {i} name"] = text(name)
            parts[f"key {i} type"] = struct.pack("<I", kind)
            raw = isinstance(value, bytes) and kind != STRING
            parts[f"key {i} value"] = value if raw else value_bytes(kind, value)  # type: ignore[assignment]
        at = 0
        for i, tensor in enumerate(self.tensors):
            offset = at if tensor.offset is None else tensor.offset
            n_dims = len(tensor.dims) if tensor.n_dims is None else tensor.n_dims
            parts[f"tensor {i} name"] = text(tensor.name)
            parts[f"tensor {i} dims"] = struct.pack(f"<I{len(tensor.dims)}Q", n_dims, *tensor.dims)
            parts[f"tensor {i} type"] = struct.pack("<I", tensor.kind)
            parts[f"tensor {i} offset"] = struct.pack("<Q", offset)
            at += len(tensor.data) + -len(tensor.data) % self.alignment
        parts["padding"] = bytes(-sum(map(len, parts.values())) % self.alignment)
        for i, tensor in enumerate(self.tensors):
            parts[f"tensor {i} data"] = tensor.data + bytes(-len(tensor.data) % self.alignment)
        return parts

    def pack(self) -> bytes:
        return b"".join(self.parts().values())


D, D_FF, N_VOCAB, N_EXPERT = 64, 96, 50, 4


def base_model(**changes: object) -> BaseModel:
    """A base of two blocks with a stack of experts; there is no file behind it."""
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_VOCAB, D),
        "output.weight": (N_VOCAB, D),
    }
    for block in range(2):
        tensors |= {
            f"blk.{block}.attn_norm.weight": (D,),
            f"blk.{block}.attn_q.weight": (D, D),
            f"blk.{block}.attn_v.weight": (D // 2, D),
            f"blk.{block}.ffn_down.weight": (D, D_FF),
            f"blk.{block}.ffn_up_exps.weight": (N_EXPERT, D_FF, D),
        }
    fields: dict[str, object] = {
        "path": Path("base.gguf"), "architecture": "llama", "name": "tiny base", "n_blocks": 2,
        "n_embd": D, "n_head": 4, "n_head_kv": 2, "n_expert": N_EXPERT, "n_ctx_train": 512,
        "tensors": tensors,
    }  # fmt: skip
    return BaseModel(**(fields | changes))  # type: ignore[arg-type]


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def f32(name: str, array: np.ndarray) -> Tensor:
    """A float32 tensor of the array's shape."""
    return Tensor(name, tuple(reversed(array.shape)), array.astype("<f4").tobytes())


def pair(target: str, a: np.ndarray, b: np.ndarray) -> list[Tensor]:
    return [f32(f"{target}.lora_a", a), f32(f"{target}.lora_b", b)]


def adapter(rank: int = 4, *, seed: int = 0, alpha: float = 8.0) -> Gguf:
    """A sound adapter: attn_q and attn_v of both blocks, float32."""
    rng = np.random.default_rng(seed)
    file = Gguf(
        keys=[
            ("general.architecture", STRING, "llama"),
            ("general.type", STRING, "adapter"),
            ("adapter.type", STRING, "lora"),
            ("adapter.lora.alpha", F32, alpha),
            ("general.name", STRING, "sound"),
        ]
    )
    for block in range(2):
        for kind, d_out in (("attn_q", D), ("attn_v", D // 2)):
            target = f"blk.{block}.{kind}.weight"
            file.tensors += pair(target, floats(rng, rank, D), floats(rng, d_out, rank))
    return file
