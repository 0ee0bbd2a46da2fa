"""One adapter inside llama.cpp whose weights are overwritten for every mixture.

llama.cpp runs a stack of k adapters about as fast as one (see `stacking`), yet it only takes
adapters from files. So an empty one of the right shape is loaded once, its tensors are looked
for in the graph, and from then on a mixture is made by writing into them.

Source: our own; the tensors of a loaded adapter keep their addresses (llama.cpp, as carried by
llama-cpp-python 0.3.36, src/llama-adapter.cpp).
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

from .adapter_file import CAN_SHARE_FILES, AdapterFile
from .errors import AdapterError, NativeError
from .native import Tensor, WeightFinder, quantized_q8_0
from .probe import ProbeContext
from .stacking import StackedModule, common_factor, put_a, put_b, total_bytes

FINDING_CONTEXT = 32  # tokens; the context that looks for the tensors decodes one


class Slot:
    """A loaded adapter of the shape `modules`, stored as `dtype` ("f16", "f32" or "q8_0").

    `handle` is llama.cpp's; it is the caller's to set it on contexts, and to `close` the slot when
    none has it. Zero until `fill`ed. Raises NativeError when llama.cpp lays its tensors out
    otherwise than this was written for.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        architecture: str,
        modules: Mapping[str, StackedModule],
        dtype: str,
    ) -> None:
        self.modules, self.dtype = dict(modules), dtype
        self.n_bytes = total_bytes(modules, dtype)
        self._held: list[AdapterFile] = []  # whose B's lie in the slot, in this order
        self._n_threads = max(1, params.n_threads_batch) if CAN_SHARE_FILES else 1
        self.handle: Any = None
        with tempfile.TemporaryDirectory(prefix="logo-local-") as folder:
            path = Path(folder) / "empty.gguf"
            _write_empty(path, architecture, modules, dtype)
            self.handle = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
        if not self.handle:
            raise NativeError(
                "llama.cpp could not make an adapter to blend others in",
                hint="there may be too little memory: use --mixture scales, or a lower --top-k",
            )
        try:
            self._tensors = _find_tensors(model, params, self.handle)
        except BaseException:
            self.close()
            raise

    def fill(self, mixture: Sequence[tuple[AdapterFile, float]]) -> float:
        """Make the slot the blend of `mixture`; returns the scale to set it with.

        Where it holds the same adapters, only the A's are written. Should reading them fail, the
        slot holds no mixture, and must be filled again before it is used. Raises AdapterError
        for a file that has changed since it was checked or cannot be read.
        """
        adapters = [adapter for adapter, _ in mixture]
        same = adapters == self._held and self.dtype != "q8_0"
        self._held = []
        scale = common_factor(w * one.scaling(t) for one, w in mixture for t in one.modules)
        with ExitStack() as stack:
            sources = []
            for adapter, weight in mixture:
                try:
                    file = stack.enter_context(adapter.path.open("rb", buffering=0))
                except OSError as error:
                    raise _unreadable(adapter, error) from error
                sources.append((adapter, weight / scale, file))
            workers = stack.enter_context(ThreadPoolExecutor(self._n_threads))
            tasks = [
                workers.submit(self._fill_module, target, sources, a_only=same)
                for target in self.modules
            ]
            for task in tasks:
                task.result()
        for adapter in adapters:
            adapter.check_unchanged()
        self._held = adapters
        return scale

    def _fill_module(
        self,
        target: str,
        sources: Sequence[tuple[AdapterFile, float, BinaryIO]],
        *,
        a_only: bool,
    ) -> None:
        if f"{target}.lora_a" not in self._tensors:
            return  # llama.cpp never uses an adapter at this weight
        module = self.modules[target]
        a = self._room(f"{target}.lora_a", module.a_shape)
        b = None if a_only else self._room(f"{target}.lora_b", module.b_shape)
        start = 0
        for adapter, weight, file in sources:
            if target not in adapter.modules:
                continue
            try:
                values_a, values_b = adapter.stored(file, target)
            except OSError as error:
                raise _unreadable(adapter, error) from error
            if b is not None:
                put_b(b, start, values_b)
            start = put_a(a, module.a_axis, start, values_a, weight * adapter.scaling(target))
        # What is left of B is multiplied with zero; it is finite, whatever was there before.
        left = a[..., start:, :] if module.a_axis == -2 else a[..., start:]
        left[...] = 0
        self._put_back(f"{target}.lora_a", a)
        if b is not None:
            self._put_back(f"{target}.lora_b", b)

    def _room(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Where the numbers of a tensor are to be written: its own memory if that can be."""
        memory = None if self.dtype == "q8_0" else self._tensors[name].memory()
        if memory is None:
            return np.zeros(shape, np.float16 if self.dtype == "f16" else np.float32)
        return memory.view(np.float16 if self.dtype == "f16" else np.float32).reshape(shape)

    def _put_back(self, name: str, values: npt.NDArray[Any]) -> None:
        tensor = self._tensors[name]
        if self.dtype == "q8_0":
            tensor.write(quantized_q8_0(values))
        elif tensor.memory() is None:
            tensor.write(values)

    def close(self) -> None:
        """Free the adapter, which no context may still have."""
        if self.handle is not None:
            llama_cpp.llama_adapter_lora_free(self.handle)
            self.handle = None


def _unreadable(adapter: AdapterFile, error: OSError) -> AdapterError:
    return AdapterError(
        f"{adapter.path} cannot be read: {error.strerror}", hint="rescan the folder"
    )


def _write_empty(
    path: Path, architecture: str, modules: Mapping[str, StackedModule], dtype: str
) -> None:
    """A GGUF LoRA file of zeros, which takes no room on disks that know sparse files."""
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)  # llama.cpp then applies no alpha/rank
    n_bytes = 0
    for target, module in modules.items():
        for side, shape in (("lora_a", module.a_shape), ("lora_b", module.b_shape)):
            size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, kind)))
            writer.add_tensor_info(f"{target}.{side}", shape, np.dtype(np.float32), size, kind)
            n_bytes += gguf.GGUFWriter.ggml_pad(size, writer.data_alignment)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        header = file.seek(0, os.SEEK_END)
        file.truncate(gguf.GGUFWriter.ggml_pad(header, writer.data_alignment) + n_bytes)


def _find_tensors(model: Any, params: Any, handle: Any) -> dict[str, Tensor]:
    """Where the graph has the tensors of the adapter `handle`, by name; decodes one token."""
    own = type(params).from_buffer_copy(params)
    own.n_ctx = FINDING_CONTEXT
    finder = WeightFinder()
    context = ProbeContext(model, own, finder)
    try:
        array = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handle)
        llama_cpp.llama_set_adapters_lora(context.ctx, array, 1, (ctypes.c_float * 1)(1.0))
        context.decode([0])
        llama_cpp.llama_set_adapters_lora(context.ctx, array, 0, (ctypes.c_float * 0)())
    finally:
        context.close()
    found = finder.found
    alone = [name for name in found if name.rpartition(".")[0] + ".lora_b" not in found]
    if not found or alone:
        raise NativeError(
            "the tensors of an adapter are not to be found in llama.cpp's graph",
            hint="use --mixture scales",
        )
    return found
