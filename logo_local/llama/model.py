"""A model loaded by llama_cpp: its tokens, its parameters, and its contexts.

`LoadedModel` owns the contexts that probe, sample and embed; the generating context belongs to
llama_cpp. Messages are tokenised by llama_cpp's own chat handlers, so that routing and generation
read the same tokens.
"""

from __future__ import annotations

import ctypes
import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, cast

import llama_cpp
from jinja2 import TemplateError
from llama_cpp import Llama
from llama_cpp.llama_chat_format import get_chat_completion_handler

from ..errors import ContextError, NativeError, PromptError, SettingsError
from .chat_templates import handler_with
from .conversation import Message, Prompt, are_messages, conversation_parts
from .devices import too_little_memory
from .interrupts import interrupts_held, make_context, stoppable
from .llama_errors import prompt_errors
from .native import EvalCallback
from .special_tokens import control_tokens, escaped


class Context:
    """A llama.cpp context besides the generating one; created by `LoadedModel.context`.

    `ctx` is llama.cpp's pointer, `n_batch` the tokens of one decode. Not thread-safe.
    """

    def __init__(
        self, ctx: Any, n_batch: int, callback: EvalCallback | None, forget: Callable[[], None]
    ) -> None:
        self.ctx, self.n_batch = ctx, n_batch
        self.n_ctx: int = llama_cpp.llama_n_ctx(ctx)
        self._memory = llama_cpp.llama_get_memory(ctx)
        self._callback, self._forget = callback, forget

    def forget_after(self, n_tokens: int) -> bool:
        """Drop the keys and values after the first `n_tokens`; False if that is not possible."""
        if n_tokens <= llama_cpp.llama_memory_seq_pos_max(self._memory, 0) and not can_go_back(
            self.ctx
        ):
            return False
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, 0, n_tokens, -1))

    def clear(self) -> None:
        """Drop all keys and values."""
        llama_cpp.llama_memory_clear(self._memory, True)

    def decode(self, tokens: Sequence[int]) -> None:
        """Evaluate `tokens`, at most `n_batch`, after those already in the context.

        Raises NativeError, or the error of the context's callback.
        """
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        self.decode_batch(llama_cpp.llama_batch_get_one(array, len(tokens)))

    def decode_batch(self, batch: Any) -> None:
        """Evaluate one of llama.cpp's own batches; raises like `decode`."""
        if self._callback is not None:
            self._callback.start()
        with interrupts_held(), stoppable(self.ctx, batch.n_tokens):
            code = llama_cpp.llama_decode(self.ctx, batch)
        if code != 0:
            raise NativeError(
                f"llama_decode returned {code} while reading a prompt",
                hint=too_little_memory(),
            )
        if self._callback is not None:
            self._callback.check()

    def pieces(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """`tokens` in pieces of at most `n_batch`."""
        for start in range(0, len(tokens), self.n_batch):
            yield tokens[start : start + self.n_batch]

    def copy_to(self, ctx: Any) -> bool:
        """Copy the keys and values to another context of the same model; False if refused."""
        size = llama_cpp.llama_state_seq_get_size(self.ctx, 0)
        state = (ctypes.c_uint8 * size)()
        n = llama_cpp.llama_state_seq_get_data(self.ctx, state, size, 0)
        return bool(n == size == llama_cpp.llama_state_seq_set_data(ctx, state, size, 0))

    def close(self) -> None:
        """Free the context. May be called twice."""
        if self.ctx is not None:
            llama_cpp.llama_free(self.ctx)
            self.ctx = None
            self._forget()


class LoadedModel:
    """The model of a `llama_cpp.Llama`, which is not kept alive.

    `pointer` is llama.cpp's model, `params` the parameters of the generating context. With
    `escape_special`, control tokens in messages are treated as text. `template_kwargs` are passed
    to the chat template of every conversation. `close` frees all open contexts; call it before the
    model is freed.
    """

    def __init__(
        self,
        llama: Llama,
        escape_special: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._llama = weakref.ref(llama)
        self.pointer = llama.model
        self.params = llama.context_params
        self.architecture = str(llama.metadata.get("general.architecture", ""))
        self._has_experts = f"{self.architecture}.expert_count" in llama.metadata
        self.has_template = "tokenizer.chat_template" in llama.metadata
        self._vocab = llama_cpp.llama_model_get_vocab(self.pointer)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._open: list[Context] = []
        self._escape_special = escape_special
        self._template_kwargs = dict(template_kwargs or {})
        self._reads_prompt = False  # whether text being tokenised must fit the context

    @property
    def llama(self) -> Llama:
        """The llama_cpp object; it exists, because it is the caller."""
        llama = self._llama()
        assert llama is not None
        return llama

    @cached_property
    def can_cut(self) -> bool:
        """Whether a copied state of a text can be continued from any earlier position.

        Recurrent models have a single state for the whole text, and with a sliding window llama.cpp
        copies only the part that the next token attends to.
        """
        return not (
            llama_cpp.llama_model_is_recurrent(self.pointer)
            or llama_cpp.llama_model_is_hybrid(self.pointer)
            or llama_cpp.llama_model_n_swa(self.pointer)
        )

    # Contexts

    def context(
        self, purpose: str, *, callback: EvalCallback | None = None, **changes: Any
    ) -> Context:
        """A new context with the generating context's parameters, except for `changes`.

        One decode is one micro-batch, because a callback stops a whole micro-batch. `purpose` is
        part of the NativeError if llama.cpp cannot create the context.
        """
        own = type(self.params).from_buffer_copy(self.params)
        own.n_batch = own.n_ubatch = min(self.params.n_batch, self.params.n_ubatch)
        own.embeddings, own.n_seq_max = False, 1
        for name, value in changes.items():
            setattr(own, name, value)
        if callback is not None:
            callback.attach(own)
            # The CPU's experts are copied to a GPU by their numbers in the graph, which are not
            # computed once a callback has ended the pass: llama.cpp would end the process.
            own.op_offload = own.op_offload and not self._has_experts
        ctx = make_context(self.pointer, own)
        if ctx is None:
            raise NativeError(
                f"llama.cpp could not make a context {purpose}",
                hint=too_little_memory(),
            )
        context = Context(ctx, own.n_batch, callback, lambda: self._open.remove(context))
        self._open.append(context)
        return context

    def close(self) -> None:
        """Free all contexts. May be called twice."""
        for context in list(self._open):
            context.close()

    def is_finite(self) -> bool:
        """Whether the generating context's last logits are numbers."""
        logits = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return not logits or math.isfinite(logits[0])  # if one is NaN, all are

    def check_embedding(self) -> None:
        """Raise SettingsError if the generating context does not compute embeddings."""
        self.llama.n_ctx()  # raises PromptError for a closed engine
        if not self.params.embeddings:
            raise SettingsError(
                "this engine was opened without embedding=True, which embed and create_embedding "
                "need",
                hint="llm.embeddings(texts) needs no setting, and returns vectors of norm 1",
            )

    def forget_generated(self) -> None:
        """Drop the generating context's keys and values, including the data in memory.

        Masked values that are NaN would still spread, because 0 times NaN is NaN.
        """
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llama.ctx), True)

    # Tokens

    @contextmanager
    def template_settings(self, settings: Mapping[str, Any] | None) -> Iterator[None]:
        """Pass these variables to the model's chat template, in addition to the engine's own.

        Raises PromptError if the model has no template.
        """
        llama = self.llama
        before = llama.chat_handler, self._template_kwargs
        self._template_kwargs = {**self._template_kwargs, **(settings or {})}
        try:
            if self._template_kwargs:
                llama.chat_handler = handler_with(llama, self._template_kwargs)
            yield
        finally:
            llama.chat_handler, self._template_kwargs = before

    def to_send(self, messages: Any) -> Any:
        """`messages` for the template; with `escape_special`, without control tokens."""
        tokens = self._control_tokens if self._escape_special else None
        return messages if tokens is None else escaped(messages, tokens)

    @cached_property
    def _control_tokens(self) -> re.Pattern[str] | None:
        return control_tokens(self._vocab)

    @contextmanager
    def reading_prompt(self) -> Iterator[None]:
        """Require texts to fit the context, and translate llama_cpp's errors to PromptErrors."""
        before, self._reads_prompt = self._reads_prompt, True
        try:
            with prompt_errors():
                yield
        finally:
            self._reads_prompt = before

    def tokens_of(self, prompt: Prompt) -> list[int]:
        """The tokens of a string, of chat messages or of token ids, as generation reads them.

        Raises PromptError if they do not fit the context, or if the chat template rejects the
        messages.
        """
        with self.reading_prompt():
            if isinstance(prompt, str):
                tokens = self._tokens_of_string(prompt)
            elif are_messages(prompt):
                tokens = self._tokens_of_messages(cast("Sequence[Message]", prompt))
            else:
                tokens = [int(token) for token in prompt]  # type: ignore[arg-type]
        n_ctx = self.llama.n_ctx()
        if len(tokens) >= n_ctx:
            raise ContextError(
                f"the prompt does not fit: {len(tokens)} tokens, and the context holds {n_ctx}",
                hint="shorten it, or give a larger --ctx-size",
            )
        return tokens

    def check_size(self, text: bytes) -> None:
        """Raise ContextError for a prompt with more bytes than the context's tokens can represent.

        Some tokenizers take quadratic time and cannot be interrupted: 160 KB without spaces take
        half a minute.
        """
        n_ctx: int = self.llama.n_ctx()
        if not self._reads_prompt or len(text) <= 4 * n_ctx:  # no need to read the vocabulary
            return
        n_bytes = n_ctx * self.longest_token
        if len(text) > n_bytes and self._keeps_text:
            raise ContextError(
                f"the prompt does not fit: {len(text):,} bytes, where {n_ctx} tokens have "
                f"at most {n_bytes:,}",
                hint="shorten it, or give a larger --ctx-size",
            )

    @cached_property
    def _keeps_text(self) -> bool:
        """Whether tokens preserve all text; some tokenizers drop white space."""
        return llama_cpp.llama_vocab_type(self._vocab) in (
            llama_cpp.LLAMA_VOCAB_TYPE_SPM,
            llama_cpp.LLAMA_VOCAB_TYPE_BPE,
        )

    @cached_property
    def longest_token(self) -> int:
        """The length of the longest token's text in bytes. Takes about 0.2 s for 250,000 tokens."""
        lengths = (len(llama_cpp.llama_vocab_get_text(self._vocab, i)) for i in range(self.n_vocab))
        return max(lengths, default=1)

    def tokens_of_text(self, text: str) -> list[int]:
        """The tokens of a text as a chat message, or as plain text if no template accepts it."""
        if self.has_template:
            with suppress(PromptError):
                return self.tokens_of([{"role": "user", "content": text}])
        return self.tokens_of(text)

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of tokens, with surrounding white space stripped."""
        text: str = self.llama.detokenize(list(tokens)).decode("utf-8", "replace")
        return text.strip()

    def first_token(self) -> int:
        """A token that can start an empty text."""
        llama = self.llama
        candidates = (llama.token_bos(), llama.token_eos(), llama.token_nl())
        return int(next((token for token in candidates if token >= 0), 0))

    def _tokens_of_string(self, prompt: str) -> list[int]:
        """As in `Llama.create_completion`: the text is tokenised without BOS, then the tokens that
        the model requires are added around it.
        """
        llama, model = self.llama, self.llama._model
        cls, sep, bos = model.token_cls(), model.token_sep(), llama.token_bos()
        begin = cls if cls != -1 else bos
        before = [begin] if model.add_bos_token() and begin != -1 else []
        after = [sep] if sep != -1 else [llama.token_eos()] if model.add_eos_token() else []
        text = llama.tokenize(prompt.encode(), add_bos=False, special=True) if prompt else []
        return [*before, *text, *after]

    def _tokens_of_messages(self, messages: Sequence[Message]) -> list[int]:
        """Uses llama_cpp's own chat handler with a stand-in that captures the prompt."""
        llama = self.llama
        keeper = _PromptKeeper(llama)
        with self.template_settings(None):
            handler = (
                llama.chat_handler
                or llama._chat_handlers.get(llama.chat_format)
                or get_chat_completion_handler(llama.chat_format)
            )
            handler(llama=keeper, messages=list(self.to_send(messages)), max_tokens=1)
        prompt = keeper.prompt
        return self._tokens_of_string(prompt) if isinstance(prompt, str) else list(prompt or [])

    def prompts_to_route(self, prompt: Prompt) -> Iterator[list[int]]:
        """The token lists to route for `prompt`, to be tried in order until an adapter fits.

        For a conversation: the user's last message alone, because other messages hide its topic;
        then the messages before it, the latest first. Any other prompt is routed unchanged, and so
        is a conversation if the chat template rejects its last message alone.
        """
        parts = conversation_parts(prompt)
        if not parts:
            yield self.tokens_of(prompt)
        for number, part in enumerate(parts):
            try:
                tokens = self.tokens_of(part)
            except (PromptError, TypeError, TemplateError):
                if number == 0:  # the template may require a system message
                    yield self.tokens_of(prompt)
                return
            yield tokens


class _PromptKeeper:
    """Replaces the `Llama` of a chat handler; stores the first prompt."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self.prompt: str | list[int] | None = None

    def create_completion(self, prompt: str | list[int], **_options: Any) -> dict[str, Any]:
        """Store `prompt`, and return an empty answer."""
        self.prompt = prompt if self.prompt is None else self.prompt
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return {"id": "", "created": 0, "model": "", "choices": [choice], "usage": usage}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)


def can_go_back(ctx: Any) -> bool:
    """Whether a context can be continued from any earlier position.

    False for recurrent models, and if a sliding window has dropped all but its end: llama.cpp
    then truncates the context without reporting that the rest is incomplete.
    """
    memory = llama_cpp.llama_get_memory(ctx)
    return bool(llama_cpp.llama_memory_seq_pos_min(memory, 0) <= 0)
