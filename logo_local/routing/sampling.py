"""Letting a model write by itself: several texts at once, seeded, and how likely texts are.

Asked of base + adapter, the texts show what the adapter was trained on; see `profiles`. A context
of its own; the sampled distribution is llama.cpp's, at a temperature, without any other filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from ..errors import NativeError
from ..llama.interrupts import make_context
from .signals import FloatArray

BATCH = 128  # tokens in one decode: the logits of all of them are held, n_vocab floats each


@dataclass(frozen=True)
class Sample:
    """One sampled text: its tokens, without the prefix and without an end of generation.

    `log_likelihood` is the sum of the natural logarithms of their probabilities at temperature 1
    under what they were sampled from.
    """

    tokens: tuple[int, ...]
    log_likelihood: float


class BatchContext:
    """A llama.cpp context for `n` texts side by side, of at most `length` tokens each."""

    def __init__(self, model: Any, params: Any, n: int, length: int) -> None:
        own = type(params).from_buffer_copy(params)
        own.n_seq_max = n
        own.kv_unified = True  # the texts share n * length places
        own.n_ctx = n * length
        own.n_batch = own.n_ubatch = min(BATCH, own.n_ctx)
        own.embeddings = False
        self.n, self.length = n, length
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.ctx = make_context(model, own)
        if self.ctx is None:
            raise NativeError(
                f"llama.cpp could not make a context for {n} texts side by side",
                hint="there may be too little memory: try a smaller --ctx-size",
            )
        self._n_batch: int = own.n_batch
        self._batch = llama_cpp.llama_batch_init(own.n_batch, 0, 1)

    def clear(self) -> None:
        """Drop all keys and values."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), True)

    def decode(self, tokens: Sequence[tuple[int, int, int]]) -> Iterator[FloatArray]:
        """Evaluate (token, position, text) triples; yields the logits (n, n_vocab) piece by piece.

        Each row is a copy, the logits behind one token, in the order of `tokens`.
        """
        for start in range(0, len(tokens), self._n_batch):
            piece = tokens[start : start + self._n_batch]
            batch = self._batch
            batch.n_tokens = len(piece)
            for i, (token, position, text) in enumerate(piece):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, text
            code = llama_cpp.llama_decode(self.ctx, batch)
            if code != 0:
                raise NativeError(
                    f"llama_decode returned {code} while reading texts side by side",
                    hint="there may be too little memory: try a smaller --ctx-size",
                )
            pointer = llama_cpp.llama_get_logits(self.ctx)
            yield np.ctypeslib.as_array(pointer, shape=(len(piece), self.n_vocab)).copy()

    def sample(self, prefix: Sequence[int], seed: int, temperature: float = 0.8) -> list[Sample]:
        """`n` texts behind `prefix`, each until an end of generation or until it is full.

        The same seed gives the same texts on the same machine and build.
        """
        rng = np.random.default_rng(seed)
        self.clear()
        for _ in self.decode([(t, i, s) for s in range(self.n) for i, t in enumerate(prefix[:-1])]):
            pass
        texts: list[list[int]] = [[] for _ in range(self.n)]
        likelihoods = [0.0] * self.n
        last = dict.fromkeys(range(self.n), prefix[-1])
        for position in range(len(prefix) - 1, self.length):
            going = list(last)
            if not going:
                break
            step = [(last[text], position, text) for text in going]
            logits = np.concatenate(list(self.decode(step)))  # (n_going, n_vocab)
            drawn = _draw(logits / np.float32(temperature), rng)  # (n_going,)
            gained = _log_probabilities(logits, drawn)  # (n_going,)
            for text, token, gain in zip(going, drawn.tolist(), gained.tolist(), strict=True):
                if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                    del last[text]
                else:
                    likelihoods[text] += gain
                    texts[text].append(token)
                    last[text] = token
        return [Sample(tuple(t), li) for t, li in zip(texts, likelihoods, strict=True)]

    def log_likelihood(self, tokens: Sequence[int], n_given: int = 1) -> float:
        """The log-likelihood in nats of `tokens` behind the first `n_given` of them, summed.

        Tokens beyond the context's `length` are left out.
        """
        tokens = list(tokens[: self.length])
        self.clear()
        total, position = 0.0, 0
        for logits in self.decode([(t, i, 0) for i, t in enumerate(tokens)]):
            first = max(position, n_given - 1)
            last = min(position + len(logits), len(tokens) - 1)
            if first < last:
                rows = logits[first - position : last - position]  # (n, n_vocab)
                following = np.array(tokens[first + 1 : last + 1])  # (n,)
                total += float(_log_probabilities(rows, following).sum())
            position += len(logits)
        return total

    def close(self) -> None:
        """Free the context. It must not outlive its model."""
        if self.ctx is not None:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self.ctx)
            self.ctx = None


def _draw(logits: FloatArray, rng: np.random.Generator) -> Any:
    """One index a row (n,) int64, from softmax(logits (n, n_vocab))."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))  # (n, n_vocab)
    cumulative = np.cumsum(p, axis=1, dtype=np.float64)  # (n, n_vocab)
    threshold = rng.random(len(logits)) * cumulative[:, -1]  # (n,)
    # The last index, should rounding leave the threshold at the very end.
    return np.minimum((cumulative <= threshold[:, None]).sum(axis=1), logits.shape[1] - 1)


def _log_probabilities(logits: FloatArray, tokens: Any) -> Any:
    """ln softmax(logits (n, n_vocab))[tokens (n,)], (n,) float64."""
    wide = logits.astype(np.float64)
    highest = wide.max(axis=1)  # (n,)
    normaliser = highest + np.log(np.exp(wide - highest[:, None]).sum(axis=1))  # (n,)
    return wide[np.arange(len(wide)), tokens] - normaliser
