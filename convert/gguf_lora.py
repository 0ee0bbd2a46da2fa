"""Write a GGUF LoRA file atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from ..errors import ConversionError
from ..files.digest import sha256_of_all
from ..files.folder import weights_in
from ..files.lora_writer import lora_writer
from ..files.whole_file import written_whole
from .plan import Conversion, Progress, Row, n_stored_bytes

# Part of the key under which converted adapters are cached: increment it if the same adapter
# would be written differently.
CONVERTER_VERSION = 2

_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "auto": gguf.LlamaFileType.GUESSED,
}


def write_gguf_lora(conversion: Conversion, progress: Progress | None = None) -> None:
    """Write what `conversion` plans to its `out`.

    The file is replaced atomically. One tensor is in memory at a time. `progress` is called with
    the number of tensors written and their total.

    Raises ConversionError if writing or reading fails; no partial file is left.
    """
    out = conversion.out
    try:
        with written_whole(out) as unfinished:
            _write(conversion, unfinished, progress)
    except OSError as error:
        full_or_forbidden = "check the free disk space, and the permissions of the folder"
        changed = "convert again when nothing else writes to the adapter's folder"
        raise ConversionError(
            f"cannot make {out}: {error.strerror or error}",
            hint=full_or_forbidden if error.errno else changed,
        ) from error


def _write(conversion: Conversion, path: Path, progress: Progress | None) -> None:
    with lora_writer(path, conversion.architecture, conversion.lora_alpha) as writer:
        writer.add_name(conversion.name)
        writer.add_file_type(_FILE_TYPES[conversion.outtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if conversion.invocation_tokens:
            writer.add_key_value(
                gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS,
                list(conversion.invocation_tokens),
                gguf.GGUFValueType.ARRAY,
                gguf.GGUFValueType.UINT32,  # the only type that llama.cpp accepts
            )
        writer.add_uint32("logo_local.converter_version", CONVERTER_VERSION)
        source = sha256_of_all(weights_in(conversion.source))
        writer.add_string("logo_local.source_sha256", source)
        if "general.base_model.0.name" in conversion.provenance:
            writer.add_base_model_count(1)
        for key, value in conversion.provenance.items():
            writer.add_string(key, value)
        for row in conversion.rows:
            for name, shape, type_name in _parts(row):
                writer.add_tensor_info(
                    name,
                    shape,
                    np.dtype(np.float32),  # ignored, because the GGUF type is given
                    n_stored_bytes(shape, type_name),
                    raw_dtype=gguf.GGMLQuantizationType[type_name.upper()],
                )
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        n_tensors = 2 * len(conversion.rows)
        for done, data in enumerate(_stored(conversion)):
            writer.write_tensor_data(data)
            if progress:
                progress(done + 1, n_tensors)
        writer.flush()
        for file in writer.fout or ():
            os.fsync(file.fileno())


def _parts(row: Row) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{row.target}.lora_a", row.module.a.shape, row.types[0]
    yield f"{row.target}.lora_b", row.b_shape, row.types[1]


def _stored(conversion: Conversion) -> Iterator[npt.NDArray[np.generic]]:
    """A and B of every row, in file order, each in its GGUF type."""
    for row in conversion.rows:
        a = row.module.a.read()  # (rank, d_in)
        b = row.module.b.read()  # (d_out, rank)
        if row.order is not None:
            b = row.order.apply(b)
        if row.factor != 1.0:  # one rounding, not two
            b = (b.astype(np.float64) * row.factor).astype(np.float32)
        for values, type_name in zip((a, b), row.types, strict=True):
            kind = gguf.GGMLQuantizationType[type_name.upper()]
            yield gguf.quants.quantize(values, kind)
