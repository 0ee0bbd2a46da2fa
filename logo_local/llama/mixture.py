"""Adapters inside llama.cpp: loading them, bounding their memory, blending them on a context.

A mixture is a list of (adapter, weight). llama.cpp adds, in every adapted module,
sum_i w_i * scaling_i * B_i A_i x to W x, which is the paper's output mixture exactly: of the
adapters one by one ("scales"), or of their stack ("stacked"), which costs less.
"""

from __future__ import annotations

import ctypes
import logging
from collections import OrderedDict
from collections.abc import Sequence
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
from .model import LoadedModel
from .native import load_adapter
from .stack_buffer import StackBuffer

log = logging.getLogger(__name__)

# An existing buffer is used for a smaller mixture while it takes at most so many times its bytes.
SLACK = 1.5

Mixture: TypeAlias = Sequence[tuple[AdapterFile, float]]
MixtureKey: TypeAlias = frozenset[tuple[AdapterFile, float]]


def mixture_key(mixture: Mixture) -> MixtureKey:
    """What cached keys and values belong to: the adapters, as they are on disk, and the weights."""
    return frozenset(mixture)


class ResidentAdapters:
    """The adapters that llama.cpp holds for one model, at most `memory` bytes of them.

    Above the bound the least recently used leave, but never one that a context uses: two contexts
    with different mixtures may together exceed it. An adapter is known by its `AdapterFile`, so a
    rewritten file is loaded anew. `reserved` bytes of the bound are somebody else's.
    """

    def __init__(self, model: Any, memory: int) -> None:
        self._model = model
        self.memory = memory
        self.reserved = 0
        self._handles: OrderedDict[AdapterFile, Any] = OrderedDict()
        self._in_use: dict[int, frozenset[AdapterFile]] = {}

    def size(self) -> int:
        """The size of what is resident, in bytes, and of what is reserved."""
        return self.reserved + sum(adapter.n_bytes for adapter in self._handles)

    @property
    def names(self) -> tuple[str, ...]:
        """The resident adapters, least recently used first."""
        return tuple(adapter.name for adapter in self._handles)

    def set_on(self, ctx: Any, mixture: Mixture) -> None:
        """Make `mixture` what the next decode in `ctx` runs under; an empty one is the base.

        Does not touch the context's keys and values: whoever decodes must not reuse those of
        another mixture. Raises PoolError when the mixture exceeds the bound by itself.
        """
        wanted = [adapter for adapter, _ in mixture]
        size = sum(adapter.n_bytes for adapter in wanted)
        if size > self.memory:
            raise AdapterMemoryError(
                f"this mixture of {len(wanted)} adapters takes {size:,} bytes and "
                f"{self.memory:,} are allowed",
                hint="raise --adapter-memory, or lower --top-k",
            )
        # Unset first: an adapter that a context still uses must not be freed, and llama.cpp
        # would take a new adapter at a freed one's address for the old one.
        if not set(wanted) >= self._in_use.get(ctx, frozenset()):
            set_adapters(ctx, [], [])
        self._in_use[ctx] = frozenset(wanted)
        self.make_room(sum(a.n_bytes for a in wanted if a not in self._handles))
        handles = [self._load(adapter) for adapter in wanted]
        set_adapters(ctx, handles, [weight for _, weight in mixture])

    def make_room(self, n_bytes: int) -> None:
        """Let adapters that no context uses leave until so many bytes more are within the bound."""
        used = frozenset[AdapterFile]().union(*self._in_use.values())
        for old in [old for old in self._handles if old not in used]:
            if self.size() + n_bytes <= self.memory:
                break
            llama_cpp.llama_adapter_lora_free(self._handles.pop(old))

    def _load(self, adapter: AdapterFile) -> Any:
        if adapter not in self._handles:
            adapter.check_unchanged()  # llama.cpp must not see what was not checked
            handle = load_adapter(self._model, adapter.path)
            if not handle:
                raise AdapterError(
                    f"llama.cpp refused the adapter {adapter.name} ({adapter.path})",
                    hint="the file may have changed since it was checked: run logo-local check",
                )
            self._handles[adapter] = handle
        self._handles.move_to_end(adapter)
        return self._handles[adapter]

    def forget(self, ctx: Any) -> None:
        """Take all adapters off `ctx`, which is about to be freed."""
        if self._in_use.pop(ctx, None):
            set_adapters(ctx, [], [])

    def close(self) -> None:
        """Free every adapter; call it after the contexts that used them are freed or forgotten."""
        while self._handles:
            llama_cpp.llama_adapter_lora_free(self._handles.popitem()[1])
        self._in_use.clear()


def set_adapters(ctx: Any, handles: Sequence[Any], weights: Sequence[float]) -> None:
    """Make these loaded adapters, by llama.cpp's handles, all that `ctx` has."""
    n = len(handles)
    array = (llama_cpp.llama_adapter_lora_p_ctypes * n)(*handles)
    if llama_cpp.llama_set_adapters_lora(ctx, array, n, (ctypes.c_float * n)(*weights)) != 0:
        raise NativeError(
            "llama.cpp could not set the mixture's adapters", hint="try a lower --top-k"
        )


class Mixer:
    """Sets mixtures on the context that generates, in one of two ways.

    `way` is "scales", "stacked", or "auto", which is stacked wherever that is possible; a buffer
    stores what the adapters store, or rounds it to Q8_0 with `stored_as` "q8_0". Buffers count
    within the residents' bound, and the least recently used leave.
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
            None  # the buffer on the context, and its content
        )

    def way_of(self, adapters: Sequence[AdapterFile]) -> str:
        """How a mixture of `adapters` is or will be made: "none", "scales" or "stacked"."""
        if not adapters:
            return "none"
        if self.way != "auto":
            return self.way
        size = total_bytes(stacked_modules(adapters), self._type_of(adapters))
        return "stacked" if size <= self._residents.memory else "scales"

    def set(self, mixture: Mixture) -> str:
        """Make `mixture` what the next decode runs under; returns the way, as `way_of` does.

        The context's keys and values stay as they are. Should this fail, the context has the base
        alone. Raises PoolError when the mixture exceeds the bound by itself, AdapterError for a
        file that has changed since it was checked.
        """
        try:
            for adapter, _ in mixture:
                adapter.check_unchanged()  # what is loaded too: the user has another in mind
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
        found = storable_type(self._stored_as, stacked_modules(adapters), exact)
        if found != self._stored_as:
            log.warning("the mixture is stored exactly: its rows are no multiples of 32")
            self._stored_as = "native"
        return found

    def _set_stack(self, mixture: Mixture) -> None:
        key = mixture_key(mixture)
        if self._on is not None and self._on[1] == key:
            return
        # By name, so that the same set is stacked alike whatever its weights.
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
        """A buffer that these adapters fit in without much waste, made if there is none."""
        need, dtype = stacked_modules(adapters), self._type_of(adapters)
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
        """Leave the base alone on the context, so that any buffer may go or be written to."""
        set_adapters(self._ctx, [], [])
        self._residents.forget(self._ctx)
        self._on = None

    def _close_buffers(self, n_bytes: int) -> None:
        """Let buffers go, the least recently used first, until they take at most `n_bytes`."""
        while self._buffers and self._residents.reserved > n_bytes:
            buffer = self._buffers.pop(0)
            self._residents.reserved -= buffer.n_bytes
            buffer.close()

    def close(self) -> None:
        """Free all buffers, while the context and the model are still there."""
        self._take_off()
        self._close_buffers(-1)
