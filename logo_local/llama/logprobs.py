"""Log probabilities of an answer's tokens, without llama_cpp's `logits_all`.

llama_cpp computes them from the logits of all positions, stored for the whole context: 4,096 tokens
with a vocabulary of 49,152 take 0.8 GB. Here, the logits of the last position are read after each
sampled token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
from llama_cpp import Llama

from ..hidden_states import FloatArray


class Sampled(NamedTuple):
    """A token of an answer: text, log probability, and those of the most likely tokens."""

    text: str
    logprob: float
    top: dict[str, float]
    start: int  # offset of its text in the answer, in bytes


def log_softmax(logits: FloatArray) -> FloatArray:
    """The log probabilities (n_vocab,), float64, of `logits` (n_vocab,)."""
    shifted = logits.astype(np.float64) - np.max(logits)  # (n_vocab,)
    result: FloatArray = shifted - np.log(np.sum(np.exp(shifted)))
    return result


def highest(values: FloatArray, n: int) -> list[int]:
    """The indices of the `n` highest of `values` (n_vocab,), highest first."""
    n = min(n, len(values))
    if not n:
        return []
    places = np.argpartition(values, -n)[-n:]  # (n,)
    return [int(place) for place in places[np.argsort(-values[places], kind="stable")]]


class Recorder:
    """Records the sampled tokens of one answer, with `n_top` others for each."""

    def __init__(self, llama: Llama, n_top: int) -> None:
        self._llama, self._n_top = llama, n_top
        self._tokens: list[int] = []
        self._sampled: deque[Sampled] = deque()
        self._n_bytes = 0  # of the tokens
        self._taken = 0  # bytes of text passed to `take`

    def add(self, token: int) -> None:
        """Record a token just sampled from the context's last logits."""
        vocab = self._llama._model.vocab
        if llama_cpp.llama_vocab_is_eog(vocab, token):
            return
        pointer = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),))
        logprobs = log_softmax(logits)
        top = {self._text([one]): float(logprobs[one]) for one in highest(logprobs, self._n_top)}
        data = self._llama.detokenize([token], prev_tokens=self._tokens)
        text = data.decode("utf-8", "replace")
        self._sampled.append(Sampled(text, float(logprobs[token]), top, self._n_bytes))
        self._tokens.append(token)
        self._n_bytes += len(data)

    def take(self, text: str) -> dict[str, Any]:
        """The tokens of the next piece of the answer, in the format of OpenAI's completions.

        These are the tokens whose text begins in the piece. Tokens after a stop word are in none.
        """
        offset, self._taken = self._taken, self._taken + len(text.encode())
        found = []
        while self._sampled and self._sampled[0].start < self._taken:
            found.append(self._sampled.popleft())
        return {
            "tokens": [one.text for one in found],
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": [one.top for one in found],
            "text_offset": [max(one.start, offset) for one in found],
        }

    def _text(self, tokens: list[int]) -> str:
        data: bytes = self._llama.detokenize(tokens, prev_tokens=self._tokens)
        return data.decode("utf-8", "replace")


class WithLogprobs(Llama):  # type: ignore[misc]  # llama_cpp comes without types
    """`llama_cpp.Llama` with log probabilities in completions without `logits_all`.

    They are the model's, before temperature, penalties and grammars.
    """

    _recorder: Recorder | None = None

    def create_chat_completion(self, *args: Any, **options: Any) -> Any:
        """As in the parent; `logprobs` alone returns those of the sampled tokens."""
        if options.get("logprobs") and options.get("top_logprobs") is None:
            options["top_logprobs"] = 0  # the parent would omit them
        return super().create_chat_completion(*args, **options)

    def create_completion(self, *args: Any, **options: Any) -> Any:
        """As in the parent, which handles `logprobs` itself if it has all logits."""
        if options.get("logprobs") is None or self._logits_all:
            self._recorder = None
            return super().create_completion(*args, **options)
        recorder = Recorder(self, options.pop("logprobs"))
        complete = super().create_completion
        if options.get("stream"):
            return self._recorded(lambda: complete(*args, **options), recorder)
        self._recorder = recorder
        try:
            answer = complete(*args, **options)
        finally:
            self._recorder = None
        choice = answer["choices"][0]
        choice["logprobs"] = recorder.take(choice["text"])
        return answer

    def _recorded(
        self, complete: Callable[[], Iterator[dict[str, Any]]], recorder: Recorder
    ) -> Iterator[dict[str, Any]]:
        chunks = complete()
        while True:
            self._recorder = recorder  # other generations may have run since
            try:
                chunk = next(chunks, None)
            finally:
                self._recorder = None
            if chunk is None:
                return
            choice = chunk["choices"][0]
            found = recorder.take(choice["text"])
            choice["logprobs"] = found if found["tokens"] else None
            yield chunk

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """As in the parent, with log probabilities recorded if requested."""
        parent = super().generate(tokens, *args, **kwargs)
        more = None
        try:
            while True:
                try:
                    token = parent.send(more)
                except StopIteration:
                    return
                if self._recorder is not None:
                    self._recorder.add(token)
                more = yield token
        finally:
            parent.close()
