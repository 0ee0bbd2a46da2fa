"""Merge several adapters into one GGUF LoRA file, for any program that uses llama.cpp.

Exact: the rank of the file is the sum of their ranks (see `stacking`). With a smaller rank it is
the best approximation of that rank, by the singular values of the sum; the loss is reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import AdapterError, ConversionError, LogoError
from ..files.adapter_file import AdapterFile, read_adapter
from ..files.base_model import BaseModel
from ..files.lora_writer import lora_writer, write_added
from ..files.stored_values import FloatArray
from ..files.whole_file import written_whole

OUTTYPES = ("f32", "f16")


@dataclass(frozen=True)
class Merged:
    """The merged file. `ranks` are the smallest and largest rank of its modules, `lost` the largest
    share of a module's update, by its Frobenius norm, that a smaller rank drops.
    """

    out: Path
    n_modules: int
    ranks: tuple[int, int]
    lost: float

    @property
    def line(self) -> str:
        """A summary in one line."""
        low, high = self.ranks
        rank = f"rank {low}" if low == high else f"ranks {low} to {high}"
        lost = f", up to {self.lost:.1%} of a layer's update left out" if self.lost else ", exact"
        return f"{self.out}: {self.n_modules} layers, {rank}{lost}"


def merge(
    parts: Sequence[tuple[Path, float]],
    base: BaseModel,
    out: Path,
    *,
    outtype: str = "f16",
    rank: int | None = None,
) -> Merged:
    """Write sum_i weight_i * adapter_i for `base` to the file `out`, atomically.

    `parts` are GGUF LoRA files or PEFT folders with their weights. Raises ConversionError, with
    every part that cannot be used, and if a smaller `rank` is requested and an adapter is on an
    embedding or on experts.
    """
    with _opened([path for path, _ in parts], base) as adapters:
        mixture = list(zip(adapters, [weight for _, weight in parts], strict=True))
        targets = [t for t in base.tensors if any(t in one.modules for one in adapters)]
        if rank is not None:
            flat = [t for t in targets if "_exps." in t or t.startswith("token_embd.")]
            if flat:
                raise ConversionError(
                    f"{flat[0]} cannot be given a smaller rank", hint="leave --rank out"
                )
        try:
            with written_whole(out) as unfinished:
                merged = _write(mixture, targets, base.architecture, unfinished, outtype, rank)
        except OSError as error:
            raise ConversionError(
                f"cannot make {out}: {error.strerror or error}",
                hint="check the free disk space, and the permissions of the folder",
            ) from error
    return Merged(out, len(targets), *merged)


@contextmanager
def _opened(paths: Sequence[Path], base: BaseModel) -> Iterator[list[AdapterFile]]:
    """The checked adapters; PEFT folders are converted into a temporary folder."""
    from . import convert_adapter

    with tempfile.TemporaryDirectory(prefix="logo-local-") as scratch:
        adapters, problems = [], []
        hint = ""
        for i, path in enumerate(paths):
            try:
                if path.is_dir():
                    file = Path(scratch) / f"{i}.gguf"
                    convert_adapter(path, base, file, "f32", to_run=True)
                    adapters.append(read_adapter(file, base))
                else:
                    adapters.append(read_adapter(path, base))
            except LogoError as error:
                problems += [f"{path}: {reason}" for reason in error.problems or (error.message,)]
                hint = hint or error.hint
        if problems:
            raise ConversionError("nothing was merged", problems=problems, hint=hint)
        yield adapters


def _write(
    mixture: Sequence[tuple[AdapterFile, float]],
    targets: Sequence[str],
    architecture: str,
    path: Path,
    outtype: str,
    rank: int | None,
) -> tuple[tuple[int, int], float]:
    numbers = np.dtype(np.float32 if outtype == "f32" else np.float16)
    ranks, lost = [], 0.0
    with lora_writer(path, architecture) as writer:  # the factors are in A
        names = ", ".join(f"{weight:g} {adapter.name}" for adapter, weight in mixture)
        writer.add_string("logo_local.merged", names)
        for target in targets:
            a, b = _stacked(mixture, target)
            if rank is not None:
                a, b, share = truncated(a, b, rank)
                lost = max(lost, share)
            ranks.append(b.shape[-1])
            for side, values in (("lora_a", a), ("lora_b", b)):
                with np.errstate(over="ignore"):  # checked right below
                    stored = values.astype(numbers)
                if not np.isfinite(stored).all():
                    raise ConversionError(
                        f"{target}.{side} has numbers that are too large for {outtype}",
                        hint="write it with --outtype f32",
                    )
                writer.add_tensor(f"{target}.{side}", stored)
        write_added(writer)
    return (min(ranks), max(ranks)), lost


def _stacked(
    mixture: Sequence[tuple[AdapterFile, float]], target: str
) -> tuple[FloatArray, FloatArray]:
    """All A's stacked vertically, times their factors, and all B's side by side, float32."""
    a_parts, b_parts = [], []
    axis = -1 if target.startswith("token_embd.") else -2
    for adapter, weight in mixture:
        if target in adapter.modules:
            with adapter.path.open("rb") as file:
                adapter.check_unchanged()
                a, b = (adapter.stored(file, target, side) for side in "ab")
            a_parts.append(np.float32(weight * adapter.scaling(target)) * a.astype(np.float32))
            b_parts.append(b.astype(np.float32))
    return np.concatenate(a_parts, axis=axis), np.concatenate(b_parts, axis=-1)


def truncated(a: FloatArray, b: FloatArray, rank: int) -> tuple[FloatArray, FloatArray, float]:
    """The best approximation of B A of at most `rank`, as A and B, and the lost share of its norm.

    `a` (r, d_in), `b` (d_out, r). By the singular values of B A, computed on an r x r matrix:
    B = Q_b R_b and A^T = Q_a R_a, so B A = Q_b (R_b R_a^T) Q_a^T (Eckart and Young).
    """
    q_b, r_b = np.linalg.qr(b.astype(np.float64))  # (d_out, r), (r, r)
    q_a, r_a = np.linalg.qr(a.astype(np.float64).T)  # (d_in, r), (r, r)
    u, s, vt = np.linalg.svd(r_b @ r_a.T)  # (r, r), (r,), (r, r)
    n = max(1, min(rank, int(np.count_nonzero(s > s[0] * 1e-12)) or 1))
    half = np.sqrt(s[:n])
    new_b = (q_b @ u[:, :n]) * half  # (d_out, n)
    new_a = half[:, None] * (vt[:n] @ q_a.T)  # (n, d_in)
    total = float(np.linalg.norm(s))
    lost = float(np.linalg.norm(s[n:])) / total if total else 0.0
    return new_a.astype(np.float32), new_b.astype(np.float32), lost if lost > 1e-7 else 0.0


def parsed(text: str) -> tuple[Path, float]:
    """Parse "PATH=0.6" into an adapter and its weight. Raises AdapterError for anything else."""
    path, equals, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = float("nan")
    if not (equals and path and np.isfinite(weight)):
        raise AdapterError(
            f"{text!r} is no adapter with a weight", hint="write it like --merge adapter.gguf=0.6"
        )
    return Path(path), weight
