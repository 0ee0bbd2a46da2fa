"""Text embeddings: the base model's output after its last block, pooled and normalised.

Uses a separate context without adapters, so the generating context keeps its conversation.
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
    """Computes vectors (n_embd,) with the Euclidean norm 1.

    Pooling follows the model's metadata. The default is the mean over the tokens, as for text
    generation models, whose vectors compare texts only roughly. The length of a text is limited by
    the size of the generating context.
    """

    def __init__(self, loaded: LoadedModel, n_embd: int, pooling: str | None) -> None:
        self._pooling = int(pooling) if pooling and int(pooling) in _POOLED else _MEAN
        self._n_embd = n_embd
        # Pooled here, not by llama.cpp, because a text may need several batches.
        self._context = loaded.context("for embeddings", embeddings=True, pooling_type=0)

    def embed(self, tokens: Sequence[int]) -> FloatArray:
        """The vector (n_embd,) float32 of one text; PromptError if it is empty or too long."""
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
    """Pool states (n_tokens, n_embd) to one vector (n_embd,) of norm 1, or of zeros."""
    vector: FloatArray
    if pooling == _FIRST:
        vector = states[0]
    elif pooling == _LAST:
        vector = states[-1]
    else:
        vector = states.mean(axis=0)
    norm = float(np.linalg.norm(vector))
    return vector if norm == 0 else np.divide(vector, np.float32(norm))
