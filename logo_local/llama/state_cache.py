"""A prompt cache: states of contexts in memory, so that keys and values are not computed again.

The state of a context depends on its tokens and on the adapters they were evaluated with. Before
it is overwritten, it is copied with llama.cpp's `llama_state_seq_get_data`. When a prompt with the
same adapters begins with the same tokens, it is copied back. Copying takes a few microseconds per
token, evaluation some milliseconds.

llama.cpp can also hold several sequences in one context. We do not use this: attention would run
over the cells of all of them, and memory for all is allocated when the context is created.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..prefix import common_prefix
from .model import LoadedModel, can_go_back

# Fewer tokens are evaluated again: they are a single, fast batch.
LEAST_TOKENS = 32


@dataclass(frozen=True, eq=False)
class State:
    """The state of a context's first sequence: `tokens` evaluated under `key`.

    `data` are llama.cpp's own bytes. `extra` is the caller's data.
    """

    key: Hashable
    tokens: list[int]
    data: npt.NDArray[np.uint8]
    extra: Any = None


class Found(NamedTuple):
    """A state, and the number of its tokens that a prompt can reuse."""

    state: State
    n_tokens: int


class StateCache:
    """An LRU cache of context states of one model, at most `memory` bytes.

    With `can_cut` False, as for recurrent models and sliding windows, a state can only be reused by
    prompts that begin with all of its tokens. Not thread-safe. An exception or Ctrl+C in any method
    leaves the cache unchanged, or without some of its states.
    """

    def __init__(self, memory: int, *, can_cut: bool = True) -> None:
        self.memory, self._can_cut = memory, can_cut
        self._states: list[State] = []  # least recently used first

    @property
    def n_bytes(self) -> int:
        """The bytes of all states."""
        return sum(state.data.nbytes for state in self._states)

    def __len__(self) -> int:
        return len(self._states)

    def keep(self, ctx: Any, key: Hashable, tokens: Sequence[int], extra: Any = None) -> None:
        """Cache the state of `ctx`, which holds `tokens`, unless it is cached or does not fit.

        Drops later tokens from `ctx`. Caches nothing if `ctx` holds other tokens.
        """
        held = list(tokens)
        if not self.memory or len(held) < LEAST_TOKENS:
            return
        for state in self._states:
            if state.key == key and self._covers(state.tokens, held):
                self._use(state)
                return
        if not _is_cut(ctx, len(held)):
            return
        size = llama_cpp.llama_state_seq_get_size(ctx, 0)
        if not 0 < size <= self.memory:
            return
        self._states = [
            old for old in self._states if old.key != key or not self._covers(held, old.tokens)
        ]
        while self.n_bytes + size > self.memory:
            del self._states[0]
        data = np.empty(size, np.uint8)  # (size,)
        if llama_cpp.llama_state_seq_get_data(ctx, _pointer(data), size, 0) == size:
            self._states.append(State(key, held, data, extra))

    def find(self, key: Hashable, prompt: Sequence[int], more_than: int = 0) -> Found | None:
        """The state under `key` with the most tokens that `prompt` can reuse.

        At least LEAST_TOKENS more than `more_than`, and always fewer than the prompt has: its last
        token is evaluated for its logits. The state can be restored even after it was evicted.
        """
        wanted = list(prompt)
        usable = [
            Found(state, self._usable(state, wanted)) for state in self._states if state.key == key
        ]
        best = max(usable, key=lambda found: found.n_tokens, default=None)
        if best is None or best.n_tokens < more_than + LEAST_TOKENS:
            return None
        self._use(best.state)
        return best

    def restore(self, ctx: Any, found: Found) -> bool:
        """Restore the state in `ctx`; False and an empty context if llama.cpp refuses."""
        state, n_tokens = found
        size = state.data.nbytes
        memory = llama_cpp.llama_get_memory(ctx)
        llama_cpp.llama_memory_clear(memory, False)
        done = llama_cpp.llama_state_seq_set_data(ctx, _pointer(state.data), size, 0) == size
        if not (done and _is_cut(ctx, n_tokens)):
            llama_cpp.llama_memory_clear(memory, True)
            self._states = [other for other in self._states if other is not state]
            return False
        return True

    def clear(self) -> None:
        """Drop all states."""
        self._states = []

    def _usable(self, state: State, prompt: list[int]) -> int:
        common = min(common_prefix(state.tokens, prompt), len(prompt) - 1)
        return common if self._can_cut or common == len(state.tokens) else 0

    def _covers(self, tokens: list[int], others: list[int]) -> bool:
        """Whether a state of `tokens` can replace a state of `others`."""
        if not self._can_cut:
            return tokens == others
        return tokens[: len(others)] == others

    def _use(self, state: State) -> None:
        self._states = [*(old for old in self._states if old is not state), state]


class Conversations:
    """Switches the generating context to a prompt under some adapters.

    Caches up to `memory` bytes of states; none with logits_all, because states have no logits.
    """

    def __init__(self, loaded: LoadedModel, memory: int) -> None:
        self._loaded = loaded
        self.cache = StateCache(0 if loaded.llama._logits_all else memory, can_cut=loaded.can_cut)

    def change(self, before: Hashable | None, key: Hashable, prompt: Sequence[int]) -> None:
        """Make the context hold as much of `prompt` under `key` as is cached, and nothing else.

        `before` is the key of its current tokens; None if unknown.
        """
        llama = self._loaded.llama
        held, wanted = llama._input_ids.tolist(), list(prompt)
        common = common_prefix(held, wanted) if key == before else 0
        if common < len(held) and not can_go_back(llama.ctx):
            common = 0
        found = self.cache.find(key, wanted, more_than=common)
        # If the same prompt is only answered again, its state is not copied.
        if before is not None and (found or 2 * common < len(held)):
            self.cache.keep(llama.ctx, before, held)
        if common == 0 or found:
            llama.reset()  # what is not restored is evaluated again
        if found is None:
            return
        if self.cache.restore(llama.ctx, found):
            llama.input_ids[: found.n_tokens] = found.state.tokens[: found.n_tokens]
            llama.n_tokens = found.n_tokens  # the logits belong to another prompt; see `reset`


def _is_cut(ctx: Any, n_tokens: int) -> bool:
    """Truncate `ctx` to its first `n_tokens`; returns whether it then holds exactly these."""
    memory = llama_cpp.llama_get_memory(ctx)
    return bool(
        llama_cpp.llama_memory_seq_rm(memory, 0, n_tokens, -1)
        and llama_cpp.llama_memory_seq_pos_max(memory, 0) == n_tokens - 1
    )


def _pointer(data: npt.NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
