"""Adapters inside llama.cpp: loading them, bounding their memory, blending them on a context.

A mixture is a list of (adapter, weight). llama.cpp adds, in every adapted module,
sum_i w_i * scaling_i * B_i A_i x to W x, which is the paper's output mixture exactly.
"""

from __future__ import annotations

import ctypes
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias

import llama_cpp

from .adapter_file import AdapterFile
from .errors import AdapterError, NativeError, PoolError

Mixture: TypeAlias = Sequence[tuple[AdapterFile, float]]
MixtureKey: TypeAlias = frozenset[tuple[AdapterFile, float]]


def mixture_key(mixture: Mixture) -> MixtureKey:
    """What cached keys and values belong to: the adapters, as they are on disk, and the weights."""
    return frozenset(mixture)


class ResidentAdapters:
    """The adapters that llama.cpp holds for one model, at most `memory` bytes of them.

    Above the bound the least recently used leave, but never one that a context uses: two contexts
    with different mixtures may together exceed it. An adapter is known by its `AdapterFile`, so a
    rewritten file is loaded anew.
    """

    def __init__(self, model: Any, memory: int) -> None:
        self._model = model
        self.memory = memory
        self._handles: OrderedDict[AdapterFile, Any] = OrderedDict()
        self._in_use: dict[int, frozenset[AdapterFile]] = {}

    def size(self) -> int:
        """The size of what is resident, in bytes."""
        return sum(adapter.n_bytes for adapter in self._handles)

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
            raise PoolError(
                f"this mixture of {len(wanted)} adapters takes {size:,} bytes and "
                f"{self.memory:,} are allowed",
                hint="raise --adapter-memory, or lower --top-k",
            )
        # Unset first: an adapter that a context still uses must not be freed, and llama.cpp
        # would take a new adapter at a freed one's address for the old one.
        if not set(wanted) >= self._in_use.get(ctx, frozenset()):
            self._set(ctx, [], [])
        self._in_use[ctx] = frozenset(wanted)
        self._make_room(sum(a.n_bytes for a in wanted if a not in self._handles))
        handles = [self._load(adapter) for adapter in wanted]
        self._set(ctx, handles, [weight for _, weight in mixture])

    def _make_room(self, n_bytes: int) -> None:
        used = frozenset[AdapterFile]().union(*self._in_use.values())
        for old in [old for old in self._handles if old not in used]:
            if self.size() + n_bytes <= self.memory:
                break
            llama_cpp.llama_adapter_lora_free(self._handles.pop(old))

    def _load(self, adapter: AdapterFile) -> Any:
        if adapter not in self._handles:
            adapter.check_unchanged()  # llama.cpp must not see what was not checked
            handle = llama_cpp.llama_adapter_lora_init(self._model, os.fsencode(adapter.path))
            if not handle:
                raise AdapterError(
                    f"llama.cpp refused the adapter {adapter.name} ({adapter.path})",
                    hint="the file may have changed since it was checked: run logo-local check",
                )
            self._handles[adapter] = handle
        self._handles.move_to_end(adapter)
        return self._handles[adapter]

    @staticmethod
    def _set(ctx: Any, handles: Sequence[Any], weights: Sequence[float]) -> None:
        n = len(handles)
        array = (llama_cpp.llama_adapter_lora_p_ctypes * n)(*handles)
        if llama_cpp.llama_set_adapters_lora(ctx, array, n, (ctypes.c_float * n)(*weights)) != 0:
            raise NativeError(
                "llama.cpp could not set the mixture's adapters", hint="try a lower --top-k"
            )

    def forget(self, ctx: Any) -> None:
        """Take all adapters off `ctx`, which is about to be freed."""
        if self._in_use.pop(ctx, None):
            self._set(ctx, [], [])

    def close(self) -> None:
        """Free every adapter; call it after the contexts that used them are freed or forgotten."""
        while self._handles:
            llama_cpp.llama_adapter_lora_free(self._handles.popitem()[1])
        self._in_use.clear()
