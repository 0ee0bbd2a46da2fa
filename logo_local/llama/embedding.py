"""Texts as vectors: what the base model makes of them behind its last block, pooled and normed.

A context of its own, without adapters: the generating one keeps its conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from ..errors import ContextError, NativeError, PromptError
from ..files.base_model import BaseModel
from ..routing.signals import FloatArray
from .interrupts import make_context

_MEAN, _FIRST, _LAST = 1, 2, 3  # enum llama_pooling_type in llama.h
_POOLED = {_MEAN: "mean", _FIRST: "first", _LAST: "last"}


class Embedder:
    """Makes vectors of `n_embd` numbers with the Euclidean norm 1.

    Pooled as the model's file says, by the mean over the tokens where it says nothing, as for
    models that were made to write: their vectors compare texts roughly. `params` are those of the
    generating context, whose length bounds a text.
    """

    def __init__(self, model: Any, params: Any, base: BaseModel, pooling: str | None) -> None:
        own = type(params).from_buffer_copy(params)
        own.embeddings, own.n_seq_max = True, 1
        own.pooling_type = 0  # per token: a text may take several batches
        own.n_batch = own.n_ubatch = min(params.n_batch, params.n_ubatch)
        self._pooling = int(pooling) if pooling and int(pooling) in _POOLED else _MEAN
        self._n_embd = base.n_embd
        self._n_batch: int = own.n_batch
        self.ctx = make_context(model, own)
        if self.ctx is None:
            raise NativeError(
                "llama.cpp could not make a context for embeddings",
                hint="there may be too little memory: try a smaller --ctx-size",
            )
        self._n_ctx: int = llama_cpp.llama_n_ctx(self.ctx)

    def embed(self, tokens: Sequence[int]) -> FloatArray:
        """The vector (n_embd,), float32, of one text. PromptError where it is empty or too long."""
        if not 0 < len(tokens) <= self._n_ctx:
            raise (ContextError if tokens else PromptError)(
                f"a text has {len(tokens)} tokens, and may have 1 to {self._n_ctx}",
                hint="shorten it, or give a larger --ctx-size",
            )
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), True)
        pieces = []
        for start in range(0, len(tokens), self._n_batch):
            piece = tokens[start : start + self._n_batch]
            array = (llama_cpp.llama_token * len(piece))(*piece)
            code = llama_cpp.llama_decode(
                self.ctx, llama_cpp.llama_batch_get_one(array, len(piece))
            )
            if code != 0:
                raise NativeError(f"llama_decode returned {code} while reading a text")
            pointer = llama_cpp.llama_get_embeddings(self.ctx)
            shape = (len(piece), self._n_embd)
            pieces.append(np.ctypeslib.as_array(pointer, shape=shape).copy())
        return pooled(np.concatenate(pieces), self._pooling)

    def close(self) -> None:
        """Free the context. It must not outlive its model."""
        if self.ctx is not None:
            llama_cpp.llama_free(self.ctx)
            self.ctx = None


def pooled(states: FloatArray, pooling: int) -> FloatArray:
    """States (n_tokens, n_embd) as one vector (n_embd,) of norm 1; of zeros, where they are."""
    vector: FloatArray
    if pooling == _FIRST:
        vector = states[0]
    elif pooling == _LAST:
        vector = states[-1]
    else:
        vector = states.mean(axis=0)
    norm = float(np.linalg.norm(vector))
    return vector if norm == 0 else np.divide(vector, np.float32(norm))
