"""Adapters in llama.cpp: loading, memory limit, and mixtures on a context.

A mixture is a list of (adapter, weight). llama.cpp adds, in every adapted module,
sum_i w_i * scaling_i * B_i A_i x to W x, which is exactly the paper's output mixture. It computes
this from single adapters ("scales"), or from their stack ("stacked"), which is faster.
"""

from __future__ import annotations

import ctypes
import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import llama_cpp

from ..errors import AdapterError, AdapterMemoryError, NativeError
from ..files.adapter_file import AdapterFile
from ..files.stacking import (
    StackedModule,
    covers,
    native_type,
    stacked_modules,
    storable_type,
    total_bytes,
)
from .devices import gpus
from .model import LoadedModel
from .native import load_adapter
from .stack_buffer import StackBuffer

log = logging.getLogger(__name__)

# A buffer is reused for a smaller mixture if it is at most this many times larger in bytes.
SLACK = 1.5

Mixture: TypeAlias = Sequence[tuple[AdapterFile, float]]
MixtureKey: TypeAlias = frozenset[tuple[AdapterFile, float]]


def mixture_key(mixture: Mixture) -> MixtureKey:
    """The cache key for keys and values: the adapters, as on disk, and the weights."""
    return frozenset(mixture)


class ResidentAdapters:
    """The adapters that llama.cpp has loaded for one model, at most `memory` bytes.

    Above the limit the least recently used are freed, but never one that a context uses: two
    contexts with different mixtures may together exceed the limit. The key of an adapter is its
    `AdapterFile`, so a rewritten file is reloaded. `reserved` bytes of the limit are not available.
    """

    def __init__(self, model: Any, memory: int) -> None:
        self._model = model
        self.memory = memory
        self.reserved = 0
        self._handles: OrderedDict[AdapterFile, Any] = OrderedDict()
        self._in_use: dict[int, frozenset[AdapterFile]] = {}

    def size(self) -> int:
        """The bytes of resident adapters plus the reserved bytes."""
        return self.reserved + sum(adapter.n_bytes for adapter in self._handles)

    @property
    def names(self) -> tuple[str, ...]:
        """The resident adapters, least recently used first."""
        return tuple(adapter.name for adapter in self._handles)

    def set_on(self, ctx: Any, mixture: Mixture) -> None:
        """Set `mixture` for the next decode in `ctx`; an empty one is the base.

        Does not change the context's keys and values: the caller must not reuse those of another
        mixture. Raises PoolError if the mixture alone exceeds the limit.
        """
        wanted = [adapter for adapter, _ in mixture]
        size = sum(adapter.n_bytes for adapter in wanted)
        if size > self.memory:
            raise AdapterMemoryError(
                f"this mixture of {len(wanted)} adapters takes {size:,} bytes and "
                f"{self.memory:,} are allowed",
                hint="raise --adapter-memory, or lower --top-k",
            )
        # Unset first: an adapter in use must not be freed, and llama.cpp would mistake a new
        # adapter at a freed one's address for the old one.
        if not set(wanted) >= self._in_use.get(ctx, frozenset()):
            set_adapters(ctx, [], [])
        self._in_use[ctx] = frozenset(wanted)
        self.make_room(sum(a.n_bytes for a in wanted if a not in self._handles))
        handles = [self._load(adapter) for adapter in wanted]
        set_adapters(ctx, handles, [weight for _, weight in mixture])

    def make_room(self, n_bytes: int) -> None:
        """Free adapters that no context uses until `n_bytes` more fit within the limit."""
        used = frozenset[AdapterFile]().union(*self._in_use.values())
        for old in [old for old in self._handles if old not in used]:
            if self.size() + n_bytes <= self.memory:
                break
            llama_cpp.llama_adapter_lora_free(self._handles.pop(old))

    def _load(self, adapter: AdapterFile) -> Any:
        if adapter not in self._handles:
            adapter.check_unchanged()  # llama.cpp must only load checked files
            handle = load_adapter(self._model, adapter.path)
            if not handle:
                raise AdapterError(
                    f"llama.cpp refused the adapter {adapter.name} ({adapter.path})",
                    hint="the file may have changed since it was checked: run logo-local check"
                    + (", or a GPU's memory is full: lower --adapter-memory" if gpus() else ""),
                )
            self._handles[adapter] = handle
        self._handles.move_to_end(adapter)
        return self._handles[adapter]

    def forget(self, ctx: Any) -> None:
        """Remove all adapters from `ctx`, which is about to be freed."""
        if self._in_use.pop(ctx, None):
            set_adapters(ctx, [], [])

    def close(self) -> None:
        """Free every adapter; call it after the contexts that used them are freed or forgotten."""
        while self._handles:
            llama_cpp.llama_adapter_lora_free(self._handles.popitem()[1])
        self._in_use.clear()


@cache
def rank_step() -> int:
    """How many numbers llama.cpp multiplies at a time on this CPU.

    GGML_F16_STEP and GGML_F32_STEP of ggml/src/ggml-cpu/simd-mappings.h.
    """
    return 64 if b"AVX512 = 1" in llama_cpp.llama_print_system_info() else 32


def set_adapters(ctx: Any, handles: Sequence[Any], weights: Sequence[float]) -> None:
    """Replace all adapters of `ctx` by these, given as llama.cpp's handles."""
    n = len(handles)
    array = (llama_cpp.llama_adapter_lora_p_ctypes * n)(*handles)
    if llama_cpp.llama_set_adapters_lora(ctx, array, n, (ctypes.c_float * n)(*weights)) != 0:
        raise NativeError(
            "llama.cpp could not set the mixture's adapters", hint="try a lower --top-k"
        )


class Mixer:
    """Sets mixtures on the generating context, in one of two ways.

    `way` is "scales", "stacked", or "auto", which uses "stacked" if possible. A buffer has the
    dtype of the adapters, or Q8_0 with `stored_as` "q8_0". Buffers count towards the residents'
    limit; the least recently used are freed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ctx: Any,
        residents: ResidentAdapters,
        *,
        way: str = "auto",
        stored_as: str = "native",
    ) -> None:
        self._loaded, self._ctx, self._residents = loaded, ctx, residents
        self.way, self._stored_as = way, stored_as
        self._buffers: list[StackBuffer] = []  # least recently used first
        self._on: tuple[StackBuffer, MixtureKey] | None = (
            None  # the buffer set on the context, and its content
        )

    def way_of(self, adapters: Sequence[AdapterFile]) -> str:
        """The way used for a mixture of `adapters`: "none", "scales" or "stacked"."""
        if not adapters:
            return "none"
        if self.way != "auto":
            return self.way
        size = total_bytes(stacked_modules(adapters, rank_step()), self._type_of(adapters))
        return "stacked" if size <= self._residents.memory else "scales"

    def set(self, mixture: Mixture) -> str:
        """Set `mixture` for the next decode; returns the way, like `way_of`.

        The context's keys and values do not change. On an error, the context has no adapters.
        Raises PoolError if the mixture alone exceeds the limit, AdapterError for a file that has
        changed since it was checked.
        """
        try:
            for adapter, _ in mixture:
                adapter.check_unchanged()  # also if loaded: the user may have replaced it
        except AdapterError:
            self._take_off()
            raise
        way = self.way_of([adapter for adapter, _ in mixture])
        if way == "stacked":
            try:
                self._set_stack(mixture)
            except NativeError as error:
                if self.way != "auto":
                    raise
                log.warning("adapters are set one by one, which is slower: %s", error)
                self.way = way = "scales"
        if way != "stacked":
            if self._on is not None:
                self._take_off()
            size = sum(adapter.n_bytes for adapter, _ in mixture)
            self._close_buffers(self._residents.memory - size)
            self._residents.set_on(self._ctx, mixture)
        return way

    def _type_of(self, adapters: Sequence[AdapterFile]) -> str:
        exact = native_type(adapters)
        if self._stored_as == "native":
            return exact
        found = storable_type(self._stored_as, stacked_modules(adapters, rank_step()), exact)
        if found != self._stored_as:
            log.warning("the mixture is stored exactly: its rows are no multiples of 32")
            self._stored_as = "native"
        return found

    def _set_stack(self, mixture: Mixture) -> None:
        key = mixture_key(mixture)
        if self._on is not None and self._on[1] == key:
            return
        # By name, so that the same set has the same stack for any weights.
        ordered = sorted(mixture, key=lambda pair: pair[0].name)
        buffer = self._buffer_for([adapter for adapter, _ in ordered])
        try:
            self._on = None
            scale = buffer.fill(ordered)
        except BaseException:
            self._take_off()
            raise
        self._residents.forget(self._ctx)
        set_adapters(self._ctx, [buffer.handle], [scale])
        self._on = (buffer, key)

    def _buffer_for(self, adapters: Sequence[AdapterFile]) -> StackBuffer:
        """A buffer that fits these adapters without much waste, created if there is none."""
        need, dtype = stacked_modules(adapters, rank_step()), self._type_of(adapters)
        size = total_bytes(need, dtype)
        fitting = [
            buffer
            for buffer in self._buffers
            if buffer.dtype == dtype
            and covers(buffer.modules, need)
            and buffer.n_bytes <= SLACK * size
        ]
        if fitting:
            buffer = min(fitting, key=lambda buffer: buffer.n_bytes)
            self._buffers.remove(buffer)
        else:
            buffer = self._make_buffer(need, dtype, size)
        self._buffers.append(buffer)
        return buffer

    def _make_buffer(self, need: dict[str, StackedModule], dtype: str, size: int) -> StackBuffer:
        residents = self._residents
        if size > residents.memory:
            raise AdapterMemoryError(
                f"this mixture takes {size:,} bytes and {residents.memory:,} are allowed",
                hint="raise --adapter-memory, or lower --top-k",
            )
        self._take_off()
        self._close_buffers(residents.memory - size)
        residents.make_room(size)
        buffer = StackBuffer(self._loaded, need, dtype)
        residents.reserved += size
        return buffer

    def _take_off(self) -> None:
        """Remove all adapters from the context, so that buffers can be freed or written to."""
        set_adapters(self._ctx, [], [])
        self._residents.forget(self._ctx)
        self._on = None

    def _close_buffers(self, n_bytes: int) -> None:
        """Free buffers, the least recently used first, until they take at most `n_bytes`."""
        while self._buffers and self._residents.reserved > n_bytes:
            buffer = self._buffers.pop(0)
            self._residents.reserved -= buffer.n_bytes
            buffer.close()

    def close(self) -> None:
        """Free all buffers; call it before the context and the model are freed."""
        self._take_off()
        self._close_buffers(-1)
