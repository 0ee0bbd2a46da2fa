"""Looking at a prompt before answering it: contexts of their own that share the model's weights.

`HiddenProbe` runs the base model once and stops at the block that is probed (the paper's way).
`EachProbe` evaluates the prompt once with each adapter (always possible, N times the cost).
Neither touches the context that generates, which therefore carries no callback.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from ..errors import ContextError, NativeError, PromptError
from ..llama.interrupts import interrupts_held, make_context
from ..llama.native import EvalCallback, Place, Reading, Tap
from .signals import FloatArray


class ProbeContext:
    """A llama.cpp context for reading only; `params` are the generating context's parameters."""

    def __init__(self, model: Any, params: Any, tap: EvalCallback | None = None) -> None:
        own = type(params).from_buffer_copy(params)
        # One decode must be one micro-batch: a tap stops the whole of it.
        own.n_batch = own.n_ubatch = min(params.n_batch, params.n_ubatch)
        own.embeddings = False
        own.n_seq_max = 1
        if tap is not None:
            tap.attach(own)
        self.tap = tap
        self.n_batch: int = own.n_batch
        self.ctx = make_context(model, own)
        if self.ctx is None:
            raise NativeError(
                "llama.cpp could not make a second context for the probe",
                hint="there may be too little memory: try a smaller --ctx-size",
            )
        self.n_ctx: int = llama_cpp.llama_n_ctx(self.ctx)
        self._memory = llama_cpp.llama_get_memory(self.ctx)

    def forget_after(self, n_tokens: int) -> bool:
        """Drop the keys and values behind the first `n_tokens`; False if the model cannot."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, 0, n_tokens, -1))

    def clear(self) -> None:
        """Drop all keys and values."""
        llama_cpp.llama_memory_clear(self._memory, True)

    def decode(self, tokens: Sequence[int]) -> None:
        """Evaluate `tokens` behind those already there, in pieces of a micro-batch."""
        for start in range(0, len(tokens), self.n_batch):
            piece = tokens[start : start + self.n_batch]
            array = (llama_cpp.llama_token * len(piece))(*piece)
            if self.tap is not None:
                self.tap.start()
            with interrupts_held():
                code = llama_cpp.llama_decode(
                    self.ctx, llama_cpp.llama_batch_get_one(array, len(piece))
                )
            if code != 0:
                raise NativeError(
                    f"llama_decode returned {code} while probing the prompt",
                    hint="there may be too little memory: try a smaller --ctx-size",
                )
            if self.tap is not None:
                self.tap.check()

    def copy_to(self, ctx: Any) -> bool:
        """Give another context of the same model these keys and values; False if it refuses."""
        size = llama_cpp.llama_state_seq_get_size(self.ctx, 0)
        state = (ctypes.c_uint8 * size)()
        n = llama_cpp.llama_state_seq_get_data(self.ctx, state, size, 0)
        return bool(n == size == llama_cpp.llama_state_seq_set_data(ctx, state, size, 0))

    def close(self) -> None:
        """Free the context. It must not outlive its model."""
        if self.ctx is not None:
            llama_cpp.llama_free(self.ctx)
            self.ctx = None


def _checked(tokens: Sequence[int], n_ctx: int) -> list[int]:
    if not tokens:
        raise PromptError("the prompt is empty", hint="there is nothing to choose adapters by")
    if len(tokens) > n_ctx:
        raise ContextError(
            f"the prompt has {len(tokens)} tokens and the context holds {n_ctx}",
            hint="shorten it, or give a larger --ctx-size",
        )
    return list(tokens)


class HiddenProbe:
    """One pass of the base model over a prompt: yields what the weights at `places` receive.

    Keys and values stay, so that a longer version of the same prompt costs only its new tokens.
    The pass ends at the last of the places; `whole` ones go through all blocks, so that their
    keys and values are of use to others.
    """

    def __init__(
        self, model: Any, params: Any, places: Sequence[Place], *, whole: bool = False
    ) -> None:
        self.places, self.whole = tuple(places), whole
        self._tap = Tap(places, whole=whole)
        self._context = ProbeContext(model, params, self._tap)
        self._seen: list[int] = []
        self._rows: dict[Place, FloatArray] = {}

    def read(self, tokens: Sequence[int]) -> Reading:
        """The hidden vectors (n_tokens, d_in) float32 of all `tokens`, by place.

        Raises PromptError for an empty prompt or one longer than the context.
        """
        prompt = _checked(tokens, self._context.n_ctx)
        if prompt == self._seen:
            # Not evaluated again: another kernel would round otherwise, and the same prompt
            # must have the same route.
            return self._rows
        # The last token is always evaluated, so that there is something to read.
        keep = min(_common_prefix(self._seen, prompt), len(prompt) - 1)
        self._seen = []  # until the decode has succeeded, nothing is known of the cache
        if not self._context.forget_after(keep):
            self._context.clear()
            keep = 0
        pieces: dict[Place, list[FloatArray]] = {
            place: [rows[:keep]] for place, rows in self._rows.items() if keep
        }
        for start in range(keep, len(prompt), self._context.n_batch):
            self._context.decode(prompt[start : start + self._context.n_batch])
            for place, rows in self._tap.take().items():
                pieces.setdefault(place, []).append(rows)
        self._rows = {place: np.concatenate(rows) for place, rows in pieces.items()}
        self._seen = prompt
        return self._rows

    def copy_to(self, ctx: Any, tokens: Sequence[int]) -> bool:
        """Give `ctx` the keys and values of `tokens`; False unless these were read last, whole."""
        return self.whole and list(tokens) == self._seen and self._context.copy_to(ctx)

    def close(self) -> None:
        """Free the context."""
        self._context.close()


class EachProbe:
    """The prompt's next-token logits, under whatever adapters are set on `context`."""

    def __init__(self, model: Any, params: Any) -> None:
        self._context = ProbeContext(model, params)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    @property
    def ctx(self) -> Any:
        """The llama.cpp context, for setting adapters on it."""
        return self._context.ctx

    def logits(self, tokens: Sequence[int]) -> FloatArray:
        """The logits (n_vocab,) float32 behind the last of `tokens`, evaluated from scratch."""
        prompt = _checked(tokens, self._context.n_ctx)
        self._context.clear()
        self._context.decode(prompt)
        pointer = llama_cpp.llama_get_logits_ith(self._context.ctx, -1)
        # Copied: llama.cpp's own memory is overwritten by the next decode.
        logits = np.empty(self.n_vocab, dtype=np.float32)  # (n_vocab,)
        logits[:] = np.ctypeslib.as_array(pointer, shape=logits.shape)
        return logits

    def close(self) -> None:
        """Free the context."""
        self._context.close()


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` have in common from the start."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
