"""Texts as vectors: what the base model makes of them behind its last block, pooled and normed.

A context of its own, without adapters: the generating one keeps its conversation.
"""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp
import numpy as np

from ..errors import ContextError, NativeError, PromptError
from ..hidden_states import FloatArray
from .model import LoadedModel
from .probe import DAMAGED, NOT_FINITE

_MEAN, _FIRST, _LAST = 1, 2, 3  # enum llama_pooling_type in llama.h
_POOLED = {_MEAN: "mean", _FIRST: "first", _LAST: "last"}


class Embedder:
    """Makes vectors of `n_embd` numbers with the Euclidean norm 1.

    Pooled as the model's file says, by the mean over the tokens where it says nothing, as for
    models that were made to write: their vectors compare texts roughly. `params` are those of the
    generating context, whose length bounds a text.
    """

    def __init__(self, loaded: LoadedModel, n_embd: int, pooling: str | None) -> None:
        self._pooling = int(pooling) if pooling and int(pooling) in _POOLED else _MEAN
        self._n_embd = n_embd
        # Pooled here, not by llama.cpp: a text may take several batches.
        self._context = loaded.context("for embeddings", embeddings=True, pooling_type=0)

    def embed(self, tokens: Sequence[int]) -> FloatArray:
        """The vector (n_embd,), float32, of one text. PromptError where it is empty or too long."""
        n_ctx = self._context.n_ctx
        if not 0 < len(tokens) <= n_ctx:
            raise (ContextError if tokens else PromptError)(
                f"a text has {len(tokens)} tokens, and may have 1 to {n_ctx}",
                hint="shorten it, or give a larger --ctx-size",
            )
        self._context.clear()
        states = []
        for piece in self._context.pieces(tokens):
            self._context.decode(piece)
            pointer = llama_cpp.llama_get_embeddings(self._context.ctx)
            shape = (len(piece), self._n_embd)
            states.append(np.ctypeslib.as_array(pointer, shape=shape).copy())
            if not np.isfinite(states[-1]).all():
                raise NativeError(NOT_FINITE, hint=DAMAGED)
        return pooled(np.concatenate(states), self._pooling)


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
