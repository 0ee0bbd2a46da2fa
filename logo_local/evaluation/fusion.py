"""Fusion by averaged parameters, for comparison with the mixture.

A mixture adds outputs, sum_i w_i scaling_i B_i A_i x. Fusion averages A and B separately,
A = sum_i w_i A_i and B = sum_i w_i scaling_i B_i, and uses the single adapter B A, which also has
the cross terms B_i A_j. Source: the comparison in LoGo, arXiv 2511.07129.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..completions import Engine, Prompt, Sampling, complete
from ..files.adapter_file import AdapterFile
from ..files.lora_writer import lora_writer, write_added
from ..files.stored_values import FloatArray
from .methods import Weights

_EMBEDDING = "token_embd.weight"


def fused_factors(
    adapters: Mapping[str, AdapterFile], weights: Weights, target: str
) -> tuple[FloatArray, FloatArray]:
    """The average A (rank, d_in) and B (d_out, rank) at `target`; B includes the scaling.

    The rank is the largest at this target; smaller ones are padded with zeros, and an adapter
    without this target counts as zero. Stacked experts are the first axis. Raises KeyError if no
    adapter has the target.
    """
    sum_a: FloatArray | None = None
    sum_b: FloatArray | None = None
    having = {n: w for n, w in weights.items() if target in adapters[n].modules}
    rank = max((adapters[name].modules[target].rank for name in having), default=0)
    for name, weight in having.items():
        a, b = adapters[name].factors(target)  # (rank_i, d_in), (d_out, rank_i)
        missing = rank - adapters[name].modules[target].rank
        whole = [(0, 0)] * (a.ndim - 2)
        a = weight * np.pad(a, [*whole, (0, missing), (0, 0)])  # (rank, d_in)
        b = weight * adapters[name].scaling(target) * np.pad(b, [*whole, (0, 0), (0, missing)])
        sum_a = a if sum_a is None else sum_a + a
        sum_b = b if sum_b is None else sum_b + b
    if sum_a is None or sum_b is None:
        raise KeyError(target)
    return sum_a.astype(np.float32), sum_b.astype(np.float32)


def write_fused(
    path: Path, architecture: str, adapters: Mapping[str, AdapterFile], weights: Weights
) -> None:
    """Write the average of `adapters` by `weights` as one GGUF LoRA file, in float32."""
    targets = dict.fromkeys(target for name in weights for target in adapters[name].modules)
    with lora_writer(path, architecture) as writer:  # B already includes the scaling
        for target in targets:
            a, b = fused_factors(adapters, weights, target)
            # llama.cpp looks up rows of an embedding's A, so it is stored transposed.
            a = np.ascontiguousarray(a.T) if target.endswith(_EMBEDDING) else a
            writer.add_tensor(f"{target}.lora_a", a)
            writer.add_tensor(f"{target}.lora_b", b)
        write_added(writer)


class Fusion:
    """Answers with averaged parameters, using a second engine on a folder with the average.

    `open_engine` opens an engine for the same base on a folder of adapters. A context manager: on
    exit, it closes the engine and deletes the folder.
    """

    def __init__(
        self,
        adapters: Mapping[str, AdapterFile],
        architecture: str,
        open_engine: Callable[[Path], Engine],
    ) -> None:
        self._adapters, self._architecture = adapters, architecture
        self._folder = tempfile.TemporaryDirectory(prefix="logo-local-")
        self._count = 0
        try:
            self._put(dict.fromkeys(list(adapters)[:1], 1.0))  # the folder must not be empty
            self._llm = open_engine(Path(self._folder.name))
        except BaseException:
            self._folder.cleanup()
            raise

    def answer(self, prompt: Prompt, weights: Weights, sampling: Sampling) -> str:
        """The answer to `prompt` with the average by `weights`, which must not be empty."""
        name = self._put(weights)
        self._llm.pool.rescan()
        with self._llm.under({name: 1.0}):
            return complete(self._llm, prompt, sampling).text

    def _put(self, weights: Weights) -> str:
        """Make the average the only adapter in the folder; returns its name."""
        # A new name each time: a file rewritten within one clock tick looks unchanged.
        folder, name = Path(self._folder.name), f"fused-{self._count}"
        self._count += 1
        before = list(folder.iterdir())
        write_fused(folder / f"{name}.gguf", self._architecture, self._adapters, weights)
        for path in before:
            path.unlink()
        return name

    def __enter__(self) -> Fusion:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._llm.close()
        self._folder.cleanup()
