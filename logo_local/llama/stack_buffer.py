"""A llama.cpp adapter whose weights are overwritten for every mixture.

llama.cpp runs a stack of k adapters about as fast as one (see `stacking`), but it only loads
adapters from files. So an empty one of the right shape is loaded once, its tensors are located in
the graph, and each mixture is then written into them.

Source: our own; the tensors of a loaded adapter keep their addresses (llama.cpp in
llama-cpp-python 0.3.36, src/llama-adapter.cpp).
"""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import AdapterError, NativeError
from ..files.adapter_file import AdapterFile
from ..files.lora_writer import lora_writer
from ..files.stacking import StackedModule, common_factor, put_a, put_b, total_bytes
from ..files.stored_values import CAN_SHARE_FILES
from .model import LoadedModel
from .native import Tensor, load_adapter, quantized_q8_0, scaled_f16, widened
from .taps import WeightFinder

log = logging.getLogger(__name__)

FINDING_CONTEXT = 32  # tokens; the context that locates the tensors decodes one


@dataclass(frozen=True)
class _Source:
    """An opened adapter of a mixture; it begins at `starts` in each module's stack."""

    adapter: AdapterFile
    file: BinaryIO
    weight: float
    starts: Mapping[str, int]


_Arrays: TypeAlias = dict[tuple[str, str], "npt.NDArray[Any]"]  # by target and side


class StackBuffer:
    """A loaded adapter of the shape `modules`, stored as `dtype` ("f16", "f32" or "q8_0").

    `handle` is llama.cpp's; the caller sets it on contexts, and closes the buffer when no context
    uses it. Zero until `fill` is called. Raises NativeError if llama.cpp's tensor layout is not
    the expected one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        modules: Mapping[str, StackedModule],
        dtype: str,
    ) -> None:
        self.modules, self.dtype = dict(modules), dtype
        self.n_bytes = total_bytes(modules, dtype)
        self._held: list[AdapterFile] = []  # whose B's are in the buffer, in this order
        self._n_threads = max(1, loaded.params.n_threads_batch) if CAN_SHARE_FILES else 1
        self._writing = threading.Lock()
        self.handle: Any = None
        try:
            with tempfile.TemporaryDirectory(prefix="logo-local-") as folder:
                path = Path(folder) / "empty.gguf"
                _write_empty(path, loaded.architecture, modules, dtype)
                self.handle = load_adapter(loaded.pointer, path)
        except OSError as error:
            raise NativeError(
                f"no file can be made in {tempfile.gettempdir()}: {error.strerror}",
                hint="set TMPDIR to a folder with space, or use --mixture scales",
            ) from error
        if not self.handle:
            raise NativeError(
                "llama.cpp could not make an adapter to blend others in",
                hint="there may be too little memory: use --mixture scales, or a lower --top-k",
            )
        try:
            self._tensors = _find_tensors(loaded, self.handle)
            idle = [target for target in modules if _name(target, "a") not in self._tensors]
            if idle:
                log.warning(
                    "llama.cpp makes no use of adapters at %d of %d weights, such as %s",
                    len(idle),
                    len(modules),
                    idle[0],
                )
            self._in_place = dtype != "q8_0" and all(
                tensor.memory() is not None for tensor in self._tensors.values()
            )
        except BaseException:
            self.close()
            raise

    def fill(self, mixture: Sequence[tuple[AdapterFile, float]]) -> float:
        """Write `mixture` into the buffer; returns the scale to set it with.

        For the same adapters as before, only the tensors that depend on the weights are written.
        If reading fails, the buffer is invalid and must be filled again before use. Raises
        AdapterError for a file that has changed since it was checked or cannot be read.
        """
        adapters = [adapter for adapter, _ in mixture]
        same = adapters == self._held
        self._held = []
        scale = common_factor(w * one.scaling(t) for one, w in mixture for t in one.modules)
        with ExitStack() as stack:
            sources = []
            starts = dict.fromkeys(self.modules, 0)
            for adapter, weight in mixture:
                try:
                    file = stack.enter_context(adapter.path.open("rb", buffering=0))
                except OSError as error:
                    raise _unreadable(adapter, error) from error
                sources.append(_Source(adapter, file, weight / scale, dict(starts)))
                for target, module in adapter.modules.items():
                    starts[target] += module.rank
            workers = stack.enter_context(ThreadPoolExecutor(self._n_threads))
            if self._in_place:
                # By adapter, so that its scaling table stays in the CPU cache.
                arrays = self._arrays(self.modules, scaled_only=same)
                work = [workers.submit(self._add, source, arrays) for source in sources]
            else:
                work = [
                    workers.submit(self._fill_module, target, sources, scaled_only=same)
                    for target in self.modules
                ]
            for task in work:
                task.result()
            if self._in_place:
                for target, start in starts.items():
                    self._end(target, arrays, start)
        for adapter in adapters:
            adapter.check_unchanged()
        self._held = adapters
        return scale

    def _fill_module(self, target: str, sources: Sequence[_Source], *, scaled_only: bool) -> None:
        arrays = self._arrays([target], scaled_only=scaled_only)
        for source in sources:
            self._add(source, arrays)
        for (_, side), values in arrays.items():
            stored = quantized_q8_0(values) if self.dtype == "q8_0" else values
            with self._writing:  # not every backend can copy from several threads at once
                self._tensors[_name(target, side)].write(stored)

    def _add(self, source: _Source, arrays: _Arrays) -> None:
        """Write one adapter's part into `arrays`."""
        adapter = source.adapter
        for (target, side), array in arrays.items():
            if target not in adapter.modules:
                continue
            try:
                values = adapter.stored(source.file, target, side)
            except OSError as error:
                raise _unreadable(adapter, error) from error
            start, module = source.starts[target], self.modules[target]
            factor = source.weight * adapter.scaling(target) if side == module.scaled else 1.0
            if values.dtype == np.float16 and array.dtype == np.float32:
                values = widened(values)
            elif values.dtype == np.float16 and factor != 1.0:
                scaled = scaled_f16(values, factor)
                values, factor = (values, factor) if scaled is None else (scaled, 1.0)
            if side == "b":
                put_b(array, start, values, factor)
            else:
                put_a(array, module.a_axis, start, values, factor)

    def _end(self, target: str, arrays: _Arrays, start: int) -> None:
        # Unused values of B are multiplied by these zeros, and are always finite.
        array = arrays.get((target, "a"))
        if array is not None:
            left = (
                array[..., start:, :] if self.modules[target].a_axis == -2 else array[..., start:]
            )
            left[...] = 0

    def _arrays(self, targets: Iterable[str], *, scaled_only: bool) -> _Arrays:
        """The arrays to write to: the tensors' own memory, or zeros that are copied later."""
        arrays = {}
        for target in targets:
            module = self.modules[target]
            for side, shape in (("a", module.a_shape), ("b", module.b_shape)):
                # llama.cpp does not apply adapters to weights that are not in its graph.
                tensor = self._tensors.get(_name(target, side))
                if tensor is not None and not (scaled_only and side != module.scaled):
                    numbers = np.float16 if self.dtype == "f16" else np.float32
                    memory = tensor.memory() if self._in_place else None
                    arrays[target, side] = (
                        np.zeros(shape, numbers)
                        if memory is None
                        else memory.view(numbers).reshape(shape)
                    )
        return arrays

    def close(self) -> None:
        """Free the adapter; no context may still use it."""
        if self.handle is not None:
            llama_cpp.llama_adapter_lora_free(self.handle)
            self.handle = None


def _name(target: str, side: str) -> str:
    return f"{target}.lora_{side}"


def _unreadable(adapter: AdapterFile, error: OSError) -> AdapterError:
    return AdapterError(
        f"{adapter.path} cannot be read: {error.strerror}", hint="rescan the folder"
    )


def _write_empty(
    path: Path, architecture: str, modules: Mapping[str, StackedModule], dtype: str
) -> None:
    """Write a GGUF LoRA file of zeros, as a sparse file if the file system supports it."""
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    n_bytes = 0
    with lora_writer(path, architecture) as writer:
        for target, module in modules.items():
            for side, shape in (("lora_a", module.a_shape), ("lora_b", module.b_shape)):
                size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, kind)))
                writer.add_tensor_info(f"{target}.{side}", shape, np.dtype(np.float32), size, kind)
                n_bytes += gguf.GGUFWriter.ggml_pad(size, writer.data_alignment)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    with path.open("r+b") as file:
        header = file.seek(0, os.SEEK_END)
        file.truncate(gguf.GGUFWriter.ggml_pad(header, writer.data_alignment) + n_bytes)


def _find_tensors(loaded: LoadedModel, handle: Any) -> dict[str, Tensor]:
    """The tensors of the adapter `handle` in the graph, by name; decodes a token once or twice.

    If only some layers are on a GPU, llama.cpp copies adapters at the boundary to it, until their
    buffers are marked as weights.
    """
    finder = WeightFinder()
    array = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handle)
    context = loaded.context("to find tensors", callback=finder, n_ctx=FINDING_CONTEXT)
    try:
        for scale in (1.0, 2.0):  # another one, or the graph would be reused
            llama_cpp.llama_set_adapters_lora(context.ctx, array, 1, (ctypes.c_float * 1)(scale))
            context.decode([0])
            for tensor in finder.found.values():
                tensor.mark_as_weight()
            if not finder.copied:
                break
        llama_cpp.llama_set_adapters_lora(context.ctx, array, 0, (ctypes.c_float * 0)())
    finally:
        context.close()
    found = finder.found
    alone = [name for name in found if name.rpartition(".")[0] + ".lora_b" not in found]
    if not found or alone or finder.copied:
        raise NativeError(
            "the tensors of an adapter were not found in llama.cpp's graph",
            hint="use --mixture scales",
        )
    return found
