"""The position of a tensor in a GGUF file, and its values."""

from __future__ import annotations

import os
from typing import BinaryIO, NamedTuple, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize, quant_shape_to_byte_shape

FloatArray = npt.NDArray[np.float32]
StoredArray: TypeAlias = "npt.NDArray[np.float16] | npt.NDArray[np.float32]"

# Whether threads can read at an offset without moving a shared file position: not on Windows.
CAN_SHARE_FILES = hasattr(os, "pread")

# The types that llama.cpp can multiply and gguf can dequantise.
TENSOR_TYPES = frozenset(
    {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"}
    | {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}
)


class TensorPlace(NamedTuple):
    """The place of one tensor in its file: byte offset from the start of the tensors' data, byte
    count, ggml type, numpy shape.
    """

    offset: int
    n_bytes: int
    dtype: str
    shape: tuple[int, ...]


def values_at(file: BinaryIO, start: int, place: TensorPlace) -> FloatArray:
    """The tensor's values as float32, in its own shape."""
    with np.errstate(all="ignore"):  # a signalling NaN would warn; it is counted instead
        return stored_at(file, start, place).astype(np.float32)


def stored_at(file: BinaryIO, start: int, place: TensorPlace) -> StoredArray:
    """The tensor's values, float16 if they are stored so and otherwise float32."""
    if CAN_SHARE_FILES:
        data = os.pread(file.fileno(), place.n_bytes, start + place.offset)
    else:
        file.seek(start + place.offset)
        data = file.read(place.n_bytes)
    if len(data) != place.n_bytes:
        raise OSError(0, "it became shorter while it was read")
    if place.dtype in ("F32", "F16"):
        kind = np.dtype("<f4" if place.dtype == "F32" else "<f2")
        return np.frombuffer(data, kind).reshape(place.shape)
    qtype = gguf.GGMLQuantizationType[place.dtype]
    blocks = np.frombuffer(data, np.uint8).reshape(quant_shape_to_byte_shape(place.shape, qtype))
    with np.errstate(all="ignore"):
        return np.asarray(dequantize(blocks, qtype), dtype=np.float32)
