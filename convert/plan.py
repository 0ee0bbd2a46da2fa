"""Plan and check a conversion before anything is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

from ..errors import ConversionError
from ..files.adapter_file import ALORA
from ..files.base_model import BaseModel
from .joined import Placed
from .layouts import RowOrder
from .mlx_reader import is_mlx, read_mlx
from .peft_config import Findings
from .peft_reader import Factor, PeftAdapter, PeftModule, read_peft
from .placing import WRONG_BASE, other_parts, placed_in

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")
_F16_MAX = float(np.finfo(np.float16).max)
_LARGEST = {"f16": _F16_MAX, "q8_0": 127 * _F16_MAX}  # q8_0: 127 times a scale in f16
_F32_MAX = float(np.finfo(np.float32).max)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """One adapted weight: its source, its target, and the changes.

    A has shape (rank, d_in), B (d_out, rank); see PeftModule for an embedding and experts. Several
    rows may have one module. `factor` is applied to B when it is written (1.0: unchanged), `order`
    is the order of the written rows of B (None: all, unchanged), `types` are the GGUF types of A
    and B in the file.
    """

    module: PeftModule
    target: str
    factor: float
    order: RowOrder | None
    types: tuple[str, str]

    @property
    def peft_name(self) -> str:
        """The layer's name in the Hugging Face model."""
        return self.module.name

    @property
    def rank(self) -> int:
        """The rank of A and B."""
        return self.module.rank

    @property
    def scaling(self) -> float:
        """The factor that PEFT applies to B A x."""
        return self.module.scaling

    @property
    def d_in(self) -> int:
        """The width of the layer's input."""
        return self.module.layer_shape[0 if self.module.embedding else -1]

    @property
    def d_out(self) -> int:
        """The width of the weight's output."""
        return self.b_shape[-2]

    @property
    def b_shape(self) -> tuple[int, ...]:
        """The shape of B as written."""
        *experts, d_out, rank = self.module.b.shape
        return (*experts, d_out if self.order is None else len(self.order.indices), rank)

    @property
    def transform(self) -> str:
        """What is done to B, as text for a table; empty if it is unchanged."""
        parts = [self.module.made_of] if self.module.made_of else []
        if self.order is not None:
            parts.append(self.order.text)
        if self.factor != 1.0:
            parts.append(f"B x {self.factor:.6g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Conversion:
    """A conversion that is possible, or was done: the plan that `--dry-run` prints.

    `lora_alpha` is the number in the GGUF file from which llama.cpp computes each layer's factor
    lora_alpha / rank; the rest of a layer's scaling is in its row's `factor`. `notes` are remarks
    for the user. `n_bytes` is the size of all tensors in the file, `provenance` the metadata about
    the adapter's origin, by GGUF key. `invocation_tokens` are those of an activated LoRA.
    """

    source: Path
    out: Path
    name: str
    architecture: str
    outtype: str
    lora_alpha: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    n_bytes: int
    provenance: Mapping[str, str] = field(default_factory=dict)
    invocation_tokens: tuple[int, ...] = ()

    @property
    def rank_text(self) -> str:
        """The ranks as text: `8`, or `4-16` if they differ."""
        ranks = sorted({row.rank for row in self.rows})
        return f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def plan_conversion(
    source: str | Path,
    base: str | Path | BaseModel,
    out: str | Path,
    outtype: str = "f16",
    progress: Progress | None = None,
    *,
    to_run: bool = False,
    text_part: bool = False,
) -> Conversion:
    """Plan how the PEFT or mlx-lm adapter in folder `source` becomes the GGUF LoRA file `out`.

    Reads every tensor once (to find NaN and numbers that `outtype` cannot represent) and writes
    nothing. `progress` is called with the number of tensors checked and their total. With `to_run`
    an activated LoRA is an error: GGUF supports it, but this runtime does not. With `text_part`
    layers for images or sound are skipped; a text prompt does not use them.

    Raises ConversionError with all problems, ModelError if `base` is a path without a model,
    ValueError for an outtype that is not in `OUTTYPES`.
    """
    if outtype not in OUTTYPES:
        raise ValueError(f"outtype is {outtype!r}; it must be one of {', '.join(OUTTYPES)}")
    source, out = Path(source), Path(out)
    if not isinstance(base, BaseModel):
        base = BaseModel.read(base)
    adapter = _read(source)
    findings = adapter.findings
    _check_destination(source, base, out, findings)
    if adapter.invocation_tokens and to_run:
        findings.add(
            ALORA, "logo-local convert writes it for llama.cpp's own programs, which have them"
        )
    _check_tokens(adapter.invocation_tokens, base, findings)
    placed = placed_in(base, adapter, findings, text_part=text_part)
    lora_alpha = _shared_alpha([module for module, _, _ in placed])
    rows, largest_b = _rows(placed, lora_alpha, outtype, findings, progress)
    if findings.problems:
        raise ConversionError(
            f"cannot convert {source}",
            problems=findings.problems,
            hint=findings.hint,
            details=findings.details,
        )
    places = {name: place for place, name in enumerate(base.tensors)}
    rows.sort(key=lambda row: places[row.target])
    return Conversion(
        source=source,
        out=out,
        name=adapter.name,
        architecture=base.architecture,
        outtype=outtype,
        lora_alpha=lora_alpha,
        rows=tuple(rows),
        notes=tuple(_notes(adapter, rows, largest_b, outtype, text_part=text_part)),
        n_bytes=sum(
            n_stored_bytes(shape, type_name)
            for row in rows
            for shape, type_name in zip((row.module.a.shape, row.b_shape), row.types, strict=True)
        ),
        provenance=adapter.provenance,
        invocation_tokens=adapter.invocation_tokens,
    )


def _read(source: Path) -> PeftAdapter:
    """The adapter in a folder, trained with PEFT or mlx-lm."""
    if not source.is_dir():
        what = "is a file" if source.exists() else "does not exist"
        raise ConversionError(
            f"cannot convert {source}: it {what}",
            hint="give the folder that holds adapter_config.json and adapter_model.safetensors",
        )
    return read_mlx(source) if is_mlx(source) else read_peft(source)


def _rows(
    placed: Sequence[Placed],
    lora_alpha: float,
    outtype: str,
    findings: Findings,
    progress: Progress | None,
) -> tuple[list[Row], float]:
    """The rows of a conversion, with every number checked, and the largest magnitude in any B."""
    rows: list[Row] = []
    broken: list[str] = []
    largest_b = 0.0
    checked: set[str] = set()
    for done, (module, target, order) in enumerate(placed):
        same = np.float32(module.effective_alpha) == np.float32(lora_alpha)
        factor = 1.0 if same else module.effective_alpha / lora_alpha
        types = _gguf_type(module.a, outtype), _gguf_type(module.b, outtype)
        row = Row(module, target, factor, order, types)
        if module.name not in checked:  # the parts of a layer have the same numbers
            largest_b = max(largest_b, _check_values(row, findings, broken))
        checked.add(module.name)
        rows.append(row)
        if progress:
            progress(2 * (done + 1), 2 * len(placed))
    if broken:  # usually all tensors are broken, or none
        more = f", and so have {len(broken) - 1} more" if len(broken) > 1 else ""
        findings.add(
            f"{broken[0]} has numbers that are not finite (NaN or infinity){more}",
            "the training run broke down; use an earlier checkpoint",
        )
    return rows, largest_b


def _notes(
    adapter: PeftAdapter, rows: Sequence[Row], largest_b: float, outtype: str, *, text_part: bool
) -> list[str]:
    """Remarks on a possible conversion."""
    notes = list(adapter.notes)
    if text_part and (left_out := other_parts(adapter)):
        notes.append(f"left out, as not of the text part: {left_out}")
    if adapter.invocation_tokens:
        notes.append(f"{ALORA} by logo-local, but by llama.cpp's own programs")
    if largest_b == 0.0:
        notes.append("every lora_B is zero: the adapter changes nothing (was it trained?)")
    if outtype == "q8_0" and any("f16" in row.types for row in rows):
        notes.append("rows whose length is no multiple of 32 are stored as f16, not q8_0")
    return notes


def n_stored_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """The size in bytes of a tensor of this shape in the GGUF type `type_name`."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name.upper()]]
    return math.prod(shape) // int(block) * int(size)


def _check_destination(source: Path, base: BaseModel, out: Path, findings: Findings) -> None:
    if out.is_dir():
        findings.add(f"{out} is a folder", "give the name of the file to write")
    elif not out.parent.is_dir():
        findings.add(f"the folder {out.parent} does not exist", "make it first")
    elif out.exists() and (out.samefile(base.path) if base.path.exists() else False):
        findings.add(f"{out} is the base model, which would be overwritten")
    elif out.exists() and any(out.samefile(path) for path in source.iterdir() if path.exists()):
        findings.add(f"{out} is part of the adapter, which would be overwritten")


def _check_tokens(tokens: tuple[int, ...], base: BaseModel, findings: Findings) -> None:
    n_vocab = base.tensors.get("token_embd.weight", (2**31,))[0]
    beyond = [token for token in tokens if token >= n_vocab]
    if beyond:
        findings.add(
            f"alora_invocation_tokens: the base has {n_vocab} tokens, and no token {beyond[0]}",
            WRONG_BASE,
        )


def _shared_alpha(modules: list[PeftModule]) -> float:
    """The effective alpha (as float32) that most modules have.

    A GGUF LoRA has one alpha for all layers. With this choice as few layers as possible are
    rescaled: none, unless alpha_pattern, or rsLoRA with several ranks, is used.
    """
    counts = Counter(float(np.float32(module.effective_alpha)) for module in modules)
    return counts.most_common(1)[0][0] if counts else 1.0


def _gguf_type(tensor: Factor, outtype: str) -> str:
    """`outtype`, or f16 if the rows do not fill q8_0's blocks of 32, as in llama.cpp.

    With "auto" the stored type of the tensor; float32 if that is wider.
    """
    if outtype == "auto":
        return {"F16": "f16", "BF16": "bf16"}.get(tensor.dtype, "f32")
    return "f16" if outtype == "q8_0" and tensor.shape[-1] % 32 else outtype


def _check_values(row: Row, findings: Findings, broken: list[str]) -> float:
    """Check for numbers that cannot be written. Returns the largest magnitude in B.

    Tensors with NaN or infinity are added to `broken`.
    """
    largest = 0.0
    for part, tensor, type_name in zip("AB", (row.module.a, row.module.b), row.types, strict=True):
        try:
            largest = float(np.abs(tensor.read()).max())
        except OSError as error:
            findings.add(f"{row.peft_name}: lora_{part} cannot be read: {error}")
            return 0.0
        if not math.isfinite(largest):  # NaN spreads through max
            broken.append(f"{row.peft_name}: lora_{part}")
            continue
        written = largest * (abs(row.factor) if part == "B" else 1.0)
        if written > _LARGEST.get(type_name, _F32_MAX):
            findings.add(
                f"{row.peft_name}: lora_{part} has numbers up to {written:.3g}, "
                f"too large for {type_name}",
                "convert with outtype bf16 or f32",
            )
    return largest
