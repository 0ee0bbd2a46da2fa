"""Samples several texts in parallel with a seed, and computes the likelihood of texts.

Texts sampled from base + adapter show what the adapter was trained on; see `profiles`. Uses a
separate context. Sampling applies a temperature to llama.cpp's logits and no other filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from ..hidden_states import FloatArray
from .model import LoadedModel

BATCH = 128  # tokens in one decode; their logits are all in memory, n_vocab floats each


@dataclass(frozen=True)
class Sample:
    """One sampled text: its tokens, without the prefix and without an end of generation.

    `log_likelihood` is the sum of the tokens' log probabilities, in nats, at temperature 1, under
    the model and adapter that they were sampled from.
    """

    tokens: tuple[int, ...]
    log_likelihood: float


class BatchContext:
    """A llama.cpp context for `n` texts in parallel, of at most `length` tokens each."""

    def __init__(self, loaded: LoadedModel, n: int, length: int) -> None:
        self.n, self.length, self._n_vocab = n, length, loaded.n_vocab
        self._vocab = llama_cpp.llama_model_get_vocab(loaded.pointer)
        batch = min(BATCH, n * length)
        self._context = loaded.context(
            "for texts side by side",
            n_seq_max=n,
            kv_unified=True,  # the texts share n * length cells
            n_ctx=n * length,
            n_batch=batch,
            n_ubatch=batch,
        )
        self._batch = llama_cpp.llama_batch_init(batch, 0, 1)

    @property
    def ctx(self) -> Any:
        """The llama.cpp context, for setting adapters on it."""
        return self._context.ctx

    def decode(self, tokens: Sequence[tuple[int, int, int]]) -> Iterator[FloatArray]:
        """Evaluate (token, position, text) triples; yields logits (n, n_vocab) batch by batch.

        Each row is a copy of the logits after one token, in the order of `tokens`.
        """
        for start in range(0, len(tokens), self._context.n_batch):
            piece = tokens[start : start + self._context.n_batch]
            batch = self._batch
            batch.n_tokens = len(piece)
            for i, (token, position, text) in enumerate(piece):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, text
            self._context.decode_batch(batch)
            pointer = llama_cpp.llama_get_logits(self.ctx)
            yield np.ctypeslib.as_array(pointer, shape=(len(piece), self._n_vocab)).copy()

    def sample(self, prefix: Sequence[int], seed: int, temperature: float = 0.8) -> list[Sample]:
        """Sample `n` texts after `prefix`, each up to an end of generation or `length` tokens.

        The same seed gives the same texts on the same machine and build.
        """
        rng = np.random.default_rng(seed)
        self._context.clear()
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
        """The summed log-likelihood in nats of `tokens` after the first `n_given`.

        Tokens beyond the context's `length` are skipped.
        """
        tokens = list(tokens[: self.length])
        self._context.clear()
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
        """Free the context. May be called twice."""
        if self.ctx is not None:
            llama_cpp.llama_batch_free(self._batch)
            self._context.close()


def _draw(logits: FloatArray, rng: np.random.Generator) -> Any:
    """One index per row, (n,) int64, drawn from softmax(logits (n, n_vocab))."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))  # (n, n_vocab)
    cumulative = np.cumsum(p, axis=1, dtype=np.float64)  # (n, n_vocab)
    threshold = rng.random(len(logits)) * cumulative[:, -1]  # (n,)
    # At most the last index: by rounding, the threshold may equal the total.
    return np.minimum((cumulative <= threshold[:, None]).sum(axis=1), logits.shape[1] - 1)


def _log_probabilities(logits: FloatArray, tokens: Any) -> Any:
    """ln softmax(logits (n, n_vocab))[tokens (n,)], (n,) float64."""
    wide = logits.astype(np.float64)
    highest = wide.max(axis=1)  # (n,)
    normaliser = highest + np.log(np.exp(wide - highest[:, None]).sum(axis=1))  # (n,)
    return wide[np.arange(len(wide)), tokens] - normaliser
