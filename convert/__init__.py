"""Convert a PEFT LoRA folder to a GGUF LoRA file. Of the base model only its GGUF is needed.

    plan_conversion(source, base, out)   read and check everything, write nothing
    convert_adapter(source, base, out)   the same, then write the file

Needs neither torch nor transformers nor llama.cpp. See docs/converter.md for what is supported.
"""

from __future__ import annotations

# The folder is at the top level of the repository, where a bare `import convert` would find it.
if __name__ != "logo_local.convert":
    raise ImportError("this package is logo_local.convert; it cannot be imported by another name")

from pathlib import Path

from ..files.base_model import BaseModel
from ..files.converted import Converter
from .gguf_lora import CONVERTER_VERSION, write_gguf_lora
from .plan import OUTTYPES, Conversion, Progress, Row, plan_conversion

__all__ = [
    "CONVERTER_VERSION",
    "FOR_POOL",
    "OUTTYPES",
    "Conversion",
    "Row",
    "convert_adapter",
    "plan_conversion",
]


def convert_adapter(
    source: str | Path,
    base: str | Path | BaseModel,
    out: str | Path,
    outtype: str = "f16",
    progress: Progress | None = None,
    *,
    to_run: bool = False,
) -> Conversion:
    """Convert the PEFT LoRA adapter in folder `source` to the GGUF LoRA file `out`.

    `base` is the GGUF model that the adapter is for, in any quantisation. `outtype` is one of
    `OUTTYPES`. An existing file `out` is replaced atomically. `progress` is called with the
    steps done and their total: each tensor is checked, then each is written. With `to_run`,
    adapters that this runtime cannot run are refused, although GGUF supports them: activated LoRA.

    Returns the conversion. Raises ConversionError with all problems at once, and ModelError if
    `base` cannot be read; in both cases nothing is written.
    """

    def second_half(done: int, total: int) -> None:
        if progress:
            progress(total + done, 2 * total)

    def first_half(done: int, total: int) -> None:
        if progress:
            progress(done, 2 * total)

    conversion = plan_conversion(source, base, out, outtype, first_half, to_run=to_run)
    write_gguf_lora(conversion, second_half)
    return conversion


def _convert_to_run(
    source: Path, base: BaseModel, out: Path, outtype: str, progress: Progress | None
) -> tuple[str, ...]:
    return tuple(convert_adapter(source, base, out, outtype, progress, to_run=True).notes)


# The converter of adapter folders for a `Pool`.
FOR_POOL = Converter(CONVERTER_VERSION, _convert_to_run)
