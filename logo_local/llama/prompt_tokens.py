"""From a prompt of any kind to the tokens that generation would see.

llama_cpp makes them on its way to `generate`: templates, special tokens, chat handlers. Rather than
do all that again, the way is gone until there, and no further.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import llama_cpp
from llama_cpp import Llama

from ..errors import ContextError, PromptError
from .chat_templates import handler_with, with_usable_templates
from .special_tokens import control_tokens, escaped


class PromptSeen(Exception):
    """Carries a prompt's tokens out of the parent, when only they are wanted."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class PromptTokens(Llama):  # type: ignore[misc]
    """A `llama_cpp.Llama` that can say what it would evaluate.

    Whoever overrides `generate` calls `stop_at` with the prompt, first of all.
    """

    _seed: int  # the parent's, and so is the next
    cache: Any
    escape_special = False
    is_prompt = False  # whether what is tokenised now must fit the context
    chat_handler: Any
    _tokens_only = False
    _metadata: dict[str, str]

    @property
    def metadata(self) -> dict[str, str]:
        """The keys of the model's file, which the parent sets; see `chat_templates`."""
        return self._metadata

    @metadata.setter
    def metadata(self, found: dict[str, str]) -> None:
        self._metadata = with_usable_templates(found)

    def messages_to_send(self, messages: Any) -> Any:
        """`messages` as the template gets them: with `escape_special`, without control tokens."""
        tokens = self._control_tokens if self.escape_special else None
        return messages if tokens is None else escaped(messages, tokens)

    @cached_property
    def _control_tokens(self) -> re.Pattern[str] | None:
        return control_tokens(self._model.vocab)

    @contextmanager
    def template_settings(self, settings: Mapping[str, Any] | None) -> Iterator[None]:
        """Within this block the model's own chat template knows these names.

        PromptError where the model brings no template.
        """
        if not settings:
            yield
            return
        before = self.chat_handler
        self.chat_handler = handler_with(self, settings)
        try:
            yield
        finally:
            self.chat_handler = before

    def stop_at(self, prompt: list[int]) -> None:
        """Do not go on to generate where only the tokens are wanted."""
        if self._tokens_only:
            raise PromptSeen(prompt)

    def tokens_of(self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens of a string, of chat messages or of token ids, as generation would see it."""
        if not isinstance(prompt, str) and not (len(prompt) and isinstance(prompt[0], Mapping)):
            return [int(token) for token in prompt]  # type: ignore[arg-type]
        # A completion draws a new seed, and may load a cached state before it generates.
        seed, cache = self._seed, self.cache
        self._tokens_only, self.cache = True, None
        try:
            if isinstance(prompt, str):
                self.create_completion(prompt, max_tokens=1)
            else:
                self.create_chat_completion(messages=prompt, max_tokens=1)
        except PromptSeen as seen:
            return seen.tokens
        finally:
            self._seed, self.cache, self._tokens_only = seed, cache, False
        raise AssertionError("the parent answered without generating")

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As in the parent, but of a prompt ContextError where it has more bytes than can fit.

        Some tokenizers take a time that grows with the square of the length, and nothing can end
        them: 160 KB without spaces take half a minute.
        """
        if (
            not self.is_prompt or len(text) <= 4 * self.n_ctx()
        ):  # short enough without a look at the vocabulary
            return super().tokenize(text, add_bos, special)  # type: ignore[no-any-return]
        n_bytes = self.n_ctx() * self.longest_token
        if len(text) > n_bytes and self._keeps_text:
            raise ContextError(
                f"the prompt does not fit: {len(text):,} bytes, where {self.n_ctx()} tokens have "
                f"at most {n_bytes:,}",
                hint="shorten it, or give a larger --ctx-size",
            )
        tokens: list[int] = super().tokenize(text, add_bos, special)
        return tokens

    @cached_property
    def _keeps_text(self) -> bool:
        """Whether tokens hold all of a text; some tokenizers drop white space."""
        return llama_cpp.llama_vocab_type(self._model.vocab) in (
            llama_cpp.LLAMA_VOCAB_TYPE_SPM,
            llama_cpp.LLAMA_VOCAB_TYPE_BPE,
        )

    @cached_property
    def longest_token(self) -> int:
        """The bytes of the longest token's text. Takes some 0.2 s for 250,000 tokens, once."""
        vocab = self._model.vocab
        lengths = (len(llama_cpp.llama_vocab_get_text(vocab, i)) for i in range(self.n_vocab()))
        return max(lengths, default=1)

    def tokens_of_text(self, text: str) -> list[int]:
        """The tokens of a text as a chat message, or as it is where no template takes it."""
        if "tokenizer.chat_template" in self.metadata:
            with suppress(PromptError):
                return self.tokens_of([{"role": "user", "content": text}])
        return self.tokens_of(text)

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without white space around it."""
        text: str = self.detokenize(list(tokens)).decode("utf-8", "replace")
        return text.strip()
