"""The implementation of `routing.reader.Reader` on llama.cpp.

Provides hidden states of one pass of the base, logits and likelihoods under single adapters, and
texts generated with an adapter. Contexts are created on first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from ..errors import PromptError
from ..files.adapter_file import AdapterFile
from ..hidden_states import FloatArray, Framed, Place, Reading
from ..prefix import common_prefix
from .conversation import Prompt
from .embedding import Embedder
from .menu import Menu
from .mixture import ResidentAdapters
from .model import LoadedModel
from .probe import EachProbe, HiddenProbe
from .sampling import BatchContext
from .state_cache import StateCache

# Texts sampled for a self-profile: the number of rounds, of texts in parallel, and of tokens per
# text at most. Each starts with the prompt template's head.
ROUNDS, SIDE_BY_SIDE, SAMPLE_LENGTH = 3, 8, 64
SEED = 2511
# Appended to a raw prompt, so that its last token represents the expected kind of answer.
RAW_SUFFIX = "\n\nAnswer:"
LEAST_LENGTH = 256  # minimum size of the context for likelihoods, in tokens


class PromptReader:
    """Reads prompts for one engine. With `whole`, a pass goes through all blocks of the base.

    Conversations are cached in `states`. Not thread-safe.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        residents: ResidentAdapters,
        *,
        whole: bool = False,
        states: StateCache | None = None,
    ) -> None:
        self._loaded, self._residents, self._whole = loaded, residents, whole
        self._states = states
        self._hidden: HiddenProbe | None = None
        self._each: EachProbe | None = None
        self._texts: BatchContext | None = None
        self._menu: Menu | None = None
        self._around: tuple[list[int], list[int]] | None = None
        self._embedder: Embedder | None = None  # closed with the model's other contexts

    def prompts_to_route(self, prompt: Prompt) -> Iterator[list[int]]:
        """As `LoadedModel.prompts_to_route`; with `whole`, only the complete prompt."""
        if self._whole:
            return iter([self._loaded.tokens_of(prompt)])
        return self._loaded.prompts_to_route(prompt)

    def frame(self, tokens: Sequence[int]) -> Framed:
        """A prompt split into the user's text and the chat template around it.

        A prompt without the template is a raw prompt.
        """
        n, loaded = len(tokens), self._loaded
        if self._template_works:
            head, tail = self._template_tokens()
            start, end = len(head), n - len(tail)
            if start <= end and [*tokens[:start], *tokens[end:]] == [*head, *tail]:
                return Framed(tuple(tokens), start, end, "chat")
        suffix = loaded.llama.tokenize(RAW_SUFFIX.encode(), add_bos=False)
        if n + len(suffix) > loaded.llama.n_ctx():
            suffix = []
        start = int(n > 1 and tokens[0] == loaded.llama.token_bos())
        return Framed((*tokens, *suffix), start, n, "raw")

    def frame_text(self, text: str, form: str) -> Framed:
        """A text as the only chat message, or as a raw prompt if no template accepts it."""
        of_chat = form == "chat" and self._template_works
        tokens = self._loaded.tokens_of([{"role": "user", "content": text}] if of_chat else text)
        return self.frame(tokens)

    @cached_property
    def _template_works(self) -> bool:
        """Whether the model has a chat template that accepts a single user message."""
        try:
            return bool(
                self._loaded.has_template
                and self._loaded.tokens_of([{"role": "user", "content": "a"}])
            )
        except PromptError:
            return False

    def _template_tokens(self) -> tuple[list[int], list[int]]:
        """The tokens that the template puts before and after a single message."""
        if self._around is None:
            one, other = (self._loaded.tokens_of_text(text) for text in ("a", "7"))
            tail = common_prefix(one[::-1], other[::-1])
            self._around = one[: common_prefix(one, other)], one[len(one) - tail :]
        return self._around

    def read(self, prompt: Framed | Sequence[int], places: Sequence[Place]) -> Reading:
        """The inputs of the weights at `places` in one pass of the base over a prompt.

        Raises PromptError for an empty prompt or one longer than the context.
        """
        if self._hidden is None:
            self._hidden = HiddenProbe(self._loaded, whole=self._whole, states=self._states)
        return self._hidden.read(prompt, places)

    def copy_prompt(self, tokens: Sequence[int]) -> bool:
        """Copy the base's keys and values of the prompt read last to the generating context.

        False if `tokens` is another prompt, or its pass did not go through all blocks.
        """
        ctx = self._loaded.llama.ctx
        return self._hidden is not None and self._hidden.copy_to(ctx, tokens)

    def logits(
        self, tokens: Sequence[int], adapters: Sequence[AdapterFile]
    ) -> Iterator[FloatArray]:
        """The next-token logits (n_vocab,) of a prompt under each adapter alone, in this order."""
        if self._each is None:
            self._each = EachProbe(self._loaded)
        try:
            for adapter in adapters:
                self._residents.set_on(self._each.ctx, [(adapter, 1.0)])
                yield self._each.logits(tokens)
        finally:
            self._residents.forget(self._each.ctx)

    def gains(self, tokens: Sequence[int], adapters: Sequence[AdapterFile]) -> list[float]:
        """The prompt's log-likelihood gain over the base, in nats, for each adapter."""
        texts = self._texts
        if texts is None or texts.length < len(tokens):
            if texts is not None:
                texts.close()
            texts = self._texts = BatchContext(self._loaded, 1, max(LEAST_LENGTH, len(tokens)))
        found = []
        try:
            base = texts.log_likelihood(tokens)
            for adapter in adapters:
                self._residents.set_on(texts.ctx, [(adapter, 1.0)])
                found.append(texts.log_likelihood(tokens) - base)
        finally:
            self._residents.forget(texts.ctx)
        return found

    def menu_logits(self, tokens: Sequence[int], lines: Sequence[str]) -> FloatArray:
        """How much likelier (n,) the base finds each of `lines` with a prompt than without."""
        if self._menu is None:
            self._menu = Menu(self._loaded)
        framed = self.frame(tokens)
        request = self._loaded.text_of(framed.tokens[framed.start : framed.end])
        return self._menu.logits(lines, request)

    def written_by(self, adapter: AdapterFile) -> tuple[list[str], float]:
        """Texts generated with this adapter, and their gain over the base in nats per token."""
        head = self._head()
        context = BatchContext(self._loaded, SIDE_BY_SIDE, SAMPLE_LENGTH)
        try:
            self._residents.set_on(context.ctx, [(adapter, 1.0)])
            drawn = [context.sample(head, SEED + i) for i in range(ROUNDS)]
            samples = [sample for batch in drawn for sample in batch if sample.tokens]
            self._residents.forget(context.ctx)
            base = [context.log_likelihood([*head, *s.tokens], len(head)) for s in samples]
        finally:
            self._residents.forget(context.ctx)
            context.close()
        n_tokens = max(sum(len(sample.tokens) for sample in samples), 1)
        gain = (sum(sample.log_likelihood for sample in samples) - sum(base)) / n_tokens
        texts = [self._loaded.text_of(sample.tokens) for sample in samples]
        return [text for text in texts if text], gain

    def embeddings(self, texts: Sequence[str], n_embd: int) -> tuple[list[FloatArray], int]:
        """One vector (n_embd,) for each text (see `Embedder`), and the total number of tokens."""
        loaded = self._loaded
        with loaded.reading_prompt():
            tokens = [loaded.llama.tokenize(text.encode()) for text in texts]
        if self._embedder is None:
            pooling = loaded.llama.metadata.get(f"{loaded.architecture}.pooling_type")
            self._embedder = Embedder(loaded, n_embd, pooling)
        return [self._embedder.embed(text) for text in tokens], sum(map(len, tokens))

    def _head(self) -> list[int]:
        """The start of every prompt: the template's head, or a text's first token."""
        return self._template_tokens()[0] or [self._loaded.first_token()]

    def close(self) -> None:
        """Free the contexts; call it before the adapters and the model are freed."""
        for context in (self._hidden, self._each, self._texts, self._menu):
            if context is not None:
                context.close()
        self._hidden = self._each = self._texts = self._menu = None
