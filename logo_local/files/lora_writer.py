"""Write GGUF LoRA files; the only module that knows their header."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf


@contextmanager
def lora_writer(path: Path, architecture: str, lora_alpha: float = 0.0) -> Iterator[Any]:
    """gguf's writer of a LoRA file for a base of `architecture`, closed at the end of the block.

    With `lora_alpha` 0 llama.cpp does not apply alpha/rank: the factors include the scaling. The
    caller adds keys and tensors ("blk.0.attn_q.weight.lora_a") and writes them.
    """
    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora_alpha)
        yield writer
    finally:
        writer.close()


def write_added(writer: Any) -> None:
    """Write the header and all tensors that were added with their data."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
