"""Asks the base model which of a few lines fits a prompt; the answer is one token."""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp
import numpy as np

from ..errors import ContextError, NativeError
from ..hidden_states import FloatArray
from ..prefix import common_prefix
from .model import LoadedModel

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_QUESTION = (
    "Here is a list of tools.\n{menu}\n\nWhich tool is made for the following request? "
    "Answer with its letter.\n\nRequest: {request}"
)
_RAW_END = "\n\nAnswer:"


class Menu:
    """A separate context that keeps the keys and values of the list for the next prompt.

    Not thread-safe.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._context = loaded.context("for the list of adapters")
        self._seen: list[int] = []
        self._empty: dict[tuple[str, ...], FloatArray] = {}  # logits for an empty request

    def logits(self, lines: Sequence[str], request: str) -> FloatArray:
        """The gain (n,) in nats of each of at most 26 `lines` as the answer for `request`.

        Relative to an empty request, because some letters are always likelier than others. Costs
        one pass over the request, and over the list if it has changed. Raises ContextError if both
        together are longer than the context.
        """
        key = tuple(lines)
        if key not in self._empty:
            self._empty = {key: self._of(lines, "")}
        return self._of(lines, request) - self._empty[key]

    def _of(self, lines: Sequence[str], request: str) -> FloatArray:
        menu = "\n".join(f"{label}. {line}" for label, line in zip(LABELS, lines, strict=False))
        content = _QUESTION.replace("{menu}", menu).replace("{request}", request)
        loaded = self._loaded
        chat = loaded.has_template
        try:
            tokens = loaded.tokens_of(
                [{"role": "user", "content": content}] if chat else content + _RAW_END
            )
        except ContextError as error:
            raise ContextError(
                f"the list of {len(lines)} adapters and the prompt do not fit into the context",
                hint="give a larger --ctx-size",
            ) from error
        start = min(common_prefix(self._seen, tokens), len(tokens) - 1)
        if not self._context.forget_after(start):
            self._context.clear()
            start = 0
        self._seen = []
        for piece in self._context.pieces(tokens[start:]):
            self._context.decode(piece)
        self._seen = tokens
        pointer = llama_cpp.llama_get_logits_ith(self._context.ctx, -1)
        every = np.ctypeslib.as_array(pointer, shape=(loaded.n_vocab,))
        return np.array(every[self._labels(len(lines), "" if chat else " ")], dtype=np.float32)

    def _labels(self, n: int, before: str) -> list[int]:
        llama = self._loaded.llama
        found = [llama.tokenize(f"{before}{x}".encode(), add_bos=False)[-1] for x in LABELS[:n]]
        if len(set(found)) < n:
            raise NativeError(
                "the model's tokenizer has no token for each letter",
                hint="choose another --signal than ask-base",
            )
        return found

    def close(self) -> None:
        """Free the context."""
        self._context.close()
