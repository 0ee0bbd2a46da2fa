"""The engine: a `llama_cpp.Llama` that chooses and blends LoRA adapters for every prompt.

Data flow: tokens, hidden states, scores, route, mixture, text. `create_chat_completion` and
`create_completion` compute a route and generate with it; `generate` alone computes its own.
Sampling, grammars, chat templates, tool calls, streaming and stop words are llama_cpp's.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_cpp import Llama, llama_vocab_is_eog
from llama_cpp.llama_types import ChatCompletionRequestMessage
from typing_extensions import Unpack

from . import config
from .convert import FOR_POOL
from .errors import MixtureError, PromptError
from .files.base_model import BaseModel
from .files.pool import Pool
from .hidden_states import FloatArray
from .llama.api_check import check_api
from .llama.chat_templates import UsableTemplates
from .llama.devices import free_gpu_memory, placed
from .llama.interrupts import StoppableLoad, interrupts_held, stoppable
from .llama.llama_errors import Closed, loading, problems_of, rounded_up
from .llama.logprobs import WithLogprobs
from .llama.mixture import Mixer, Mixture, MixtureKey, ResidentAdapters, mixture_key
from .llama.model import LoadedModel
from .llama.options import ChatOptions, CompletionOptions, like
from .llama.reader import PromptReader
from .llama.state_cache import Conversations
from .progress import Stages, ms_since
from .routed import PHASES, Given, Routed
from .routing.index import block_number
from .routing.route import Route
from .routing.router import Progress, Router, check_target
from .routing.settings import DEFAULT_N_CTX, DEFAULTS, Routing, RoutingSettings


class _Stopped(Exception):
    """Raised to stop the evaluation of a prompt."""


class LoGo(Routed, WithLogprobs):
    """`llama_cpp.Llama` with a folder of LoRA adapters, routed and blended for every prompt.

    Every completion has ["logo"]: the route and the timings in milliseconds. A stream has it, and
    ["usage"], in the chunk with the finish reason. `on_route`, if set, is called with the route of
    an answer before the prompt is evaluated. `usage` counts the tokens of the current or last
    answer. `should_stop` is called before every token and every batch of a prompt, in the
    generating thread; if it returns True, the answer ends with the finish reason "length". Changes
    in the adapter folder are detected at the next prompt, and logged.

    Not thread-safe, except for setting `should_stop`.
    """

    should_stop: Callable[[], bool] = staticmethod(lambda: False)
    metadata, model_params = UsableTemplates(), StoppableLoad()

    def __init__(
        self,
        model_path: str | Path,
        adapters: str | Path | None = None,
        *,
        signal: str = DEFAULTS.signal,
        top_k: int = DEFAULTS.top_k,
        probe: str = DEFAULTS.probe,
        layer: int = DEFAULTS.layer,
        tap: str = DEFAULTS.tap,
        mixture: str = DEFAULTS.mixture,
        mixture_type: str = DEFAULTS.mixture_type,
        keep_route: float = DEFAULTS.keep_route,
        prefill: str = DEFAULTS.prefill,
        adapter_memory: int | str = DEFAULTS.adapter_memory,
        cache_memory: int | str = DEFAULTS.cache_memory,
        self_profile: bool | str = DEFAULTS.self_profile,
        past: bool = DEFAULTS.past,
        links_out: bool = True,
        escape_special: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        n_ctx: int | None = None,
        verbose: bool = False,
        **llama: Any,
    ) -> None:
        """Load the model and check the adapters.

        Args:
            model_path: A GGUF file, or "demo" for SmolLM2-135M and adapters for it.
            adapters: A folder of GGUF LoRA files and PEFT folders; it may be empty. Or None.
            signal: How scores are computed: a name in `routing.registry`, or "auto", the default.
            top_k: The maximum number of adapters in a route.
            probe: "one-pass", or "each": one evaluation with each adapter.
            layer: The block that the paper's signals read; negative numbers count from the end.
            tap: "input" of the projection, or "residual", the state before the block's norm.
            mixture: "scales" (separate adapters), "stacked" (as one, which is faster) or "auto".
            mixture_type: The dtype of the stack: "native", that of the adapters, or "q8_0".
            keep_route: How much weights may change in a conversation without a new route.
            prefill: "mixture", or "base": the prompt is evaluated without adapters.
            adapter_memory: The memory limit for adapters in bytes: a number, "512M", or "auto".
            cache_memory: The prompt cache for other mixtures in bytes; 0 disables it.
            self_profile: Whether adapters without examples generate some: True, False or "kept".
            past: Whether to store statistics of your prompts' norms.
            links_out: Whether adapters may be links to files outside the folder.
            escape_special: Whether control tokens in messages (<|im_end|>) are treated as text.
            chat_template_kwargs: Additional variables for the chat template.
            progress: Called with (stage, done, total) while adapters are read and converted.
            n_ctx: Context length in tokens; by default the training context, at most 4096.
            verbose: Whether llama.cpp prints its log.
            **llama: Further arguments of `llama_cpp.Llama`. By default all layers are placed on the
                GPU, if llama.cpp has one; n_gpu_layers=0 uses the CPU only.

        Raises SettingsError, ModelError or PoolError, if possible before the weights are loaded.
        """
        given, started = locals(), time.perf_counter()
        if str(model_path) == "demo":
            model_path, adapters = config.demo_model(), adapters or config.demo_adapters()
        self._settings = RoutingSettings(**{name: given[name] for name in vars(DEFAULTS)})
        self._settings.check(other_problems=problems_of(llama))
        check_api()
        self._progress = Stages(progress or (lambda _stage, _done, _total: None))
        self.base = BaseModel.read(model_path)
        block_number(layer, self.base)
        self.pool = Pool.open(
            adapters,
            self.base,
            cache=config.cache_dir(),
            converter=FOR_POOL,
            progress=self._progress,
            may_be_empty=True,
            links_out=links_out,
        )
        check_target(self.pool, self._settings)
        n_ctx = min(DEFAULT_N_CTX, self.base.n_ctx_train) if n_ctx is None else n_ctx
        llama = placed(llama)
        with loading(model_path, n_ctx, self.base, offloads=llama["n_gpu_layers"] != 0):
            super().__init__(
                model_path=str(model_path),
                n_ctx=rounded_up(n_ctx),
                verbose=verbose,
                **llama,
            )
        self._set_up(LoadedModel(self, escape_special, chat_template_kwargs))
        self.timings_ms["load"] = ms_since(started)

    def _set_up(self, loaded: LoadedModel) -> None:
        """Create the routing and mixing parts after the model is loaded."""
        settings, self.loaded = self._settings, loaded
        memory = settings.memory_within(free_gpu_memory(self.model_params))
        self._residents = ResidentAdapters(loaded.pointer, memory)
        kinds = {"way": settings.mixture, "stored_as": settings.mixture_type}
        self.mixer = Mixer(loaded, self.ctx, self._residents, **kinds)
        self._conversations = Conversations(loaded, settings.cache_bytes)
        whole, states = settings.prefill == "base", self._conversations.cache
        self.reader = PromptReader(loaded, self._residents, whole=whole, states=states)
        self.router = Router(self.pool, self.reader, settings, self._progress)
        self._kv_key: MixtureKey | None = mixture_key(())  # of the context's keys and values
        # Freed in this order, before the model and its own context.
        for part in (self.mixer, self.reader, loaded, self.router, self._residents)[::-1]:
            self._stack.callback(part.close)
        self.pool.resident = self._residents.size
        self.timings_ms = dict.fromkeys(PHASES, 0.0)
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0}
        self.last_route: Route | None = None
        self.on_route: Callable[[Route], None] | None = None
        self._turn = 0  # number of prompts evaluated in the context

    # Answers

    @like(Llama.create_chat_completion)
    def create_chat_completion(
        self,
        messages: list[ChatCompletionRequestMessage],
        *,
        routing: Routing | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[ChatOptions],
    ) -> Any:
        """As in llama_cpp, with ["logo"] in the result.

        `top_k` applies to tokens; `routing` has the routing options of this call:
        {"signal": "norm", "top_k": 3} or {"weights": {"sort-words": 1.0}}; see `route`.
        `chat_template_kwargs` are passed to the chat template, e.g. {"enable_thinking": False}.
        Raises PromptError, SettingsError, UnknownAdapterError or AdapterError.
        """
        complete, messages = super().create_chat_completion, self.loaded.to_send(messages)
        with self.loaded.template_settings(chat_template_kwargs):
            return self._answer(messages, routing, lambda: complete(messages, **options))

    @like(Llama.create_completion)
    def create_completion(
        self,
        prompt: str | list[int],
        *,
        routing: Routing | None = None,
        **options: Unpack[CompletionOptions],
    ) -> Any:
        """As in llama_cpp, with ["logo"] in the result; see `create_chat_completion`."""
        suffix = options.get("suffix")
        text = prompt + suffix if isinstance(prompt, str) and suffix else prompt
        complete = super().create_completion
        return self._answer(text, routing, lambda: complete(prompt, **options))

    def _answer(self, prompt: Any, routing: Routing | None, complete: Callable[[], Any]) -> Any:
        """Route `prompt`, unless a route is given, and complete it with that route."""
        given = self._given if routing is None else None
        if given is None:
            given = self._route_to_answer(prompt, routing)
        with self._under(given), self.loaded.reading_prompt():
            result = complete()
        if not isinstance(result, dict):
            return self._chunks(result, given)
        result["logo"] = self._logo()
        return result

    def _chunks(self, chunks: Iterator[dict[str, Any]], given: Given) -> Iterator[dict[str, Any]]:
        """The chunks of a stream, all generated with one route; llama_cpp starts on first use."""
        while True:
            with self._under(given), self.loaded.reading_prompt():
                chunk = next(chunks, None)
            if chunk is None:
                return
            if any(choice.get("finish_reason") for choice in chunk["choices"]):
                chunk["logo"] = self._logo()
                chunk["usage"] = {**self.usage, "total_tokens": sum(self.usage.values())}
            yield chunk

    # Generation

    def generate(  # passes all parameters to the parent
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """As in the parent, with the given route, or with a new one for `tokens`.

        Cached keys and values are only reused for the same mixture. With reset=False, the tokens
        are appended to those in the context, and all of them are routed. Raises PromptError when
        an earlier answer is continued after another prompt has started.
        """
        options = inspect.signature(Llama.generate).bind(self, tokens, *args, **kwargs).arguments
        prompt = [int(token) for token in tokens]
        if not options.pop("reset", True):
            prompt = [*self._input_ids.tolist(), *prompt]
        del options["self"], options["tokens"]
        given = self._given if self._given is not None else self._route_to_answer(prompt)
        self._turn += 1
        self.usage = {"prompt_tokens": len(prompt), "completion_tokens": 0}
        try:
            self._adopt(given, prompt)
            yield from self._generate(super().generate(prompt, **options))
        except _Stopped:
            return

    def _generate(
        self, parent: Generator[int, Sequence[int] | None, None]
    ) -> Generator[int, Sequence[int] | None, None]:
        """The tokens of `parent`, timed and counted, until another prompt starts."""
        turn, phase, more = self._turn, "prefill", None
        try:
            while not self.should_stop():
                started = time.perf_counter()
                try:
                    token = parent.send(more)
                except StopIteration:
                    return
                self.timings_ms[phase] += ms_since(started)
                phase = "decode"
                if not llama_vocab_is_eog(self._model.vocab, token):  # as the parent counts
                    self.usage["completion_tokens"] += 1
                more = yield token
                if turn != self._turn:
                    raise PromptError(
                        "another prompt was begun before this answer was finished",
                        hint="read or close a stream before the next prompt, or use two engines",
                    )
        finally:
            parent.close()

    def _adopt(self, given: Given, prompt: list[int]) -> None:
        """Use this route for the next generation."""
        route = given.route
        self._forget_timings()
        self.timings_ms |= given.made_ms
        adapters = self._refreshed(route)
        by_base = self._settings.prefill == "base" and not route.is_base
        if by_base:
            started = time.perf_counter()
            self._read_by_base(prompt)
            self.timings_ms["prefill"] = ms_since(started)
        started = time.perf_counter()
        mixture = list(zip(adapters, route.applied.values(), strict=True))
        way = self._set_mixture(mixture, None if by_base else prompt)
        self.timings_ms["mixture"] = ms_since(started)
        self.last_route = replace(route, mixture=way)
        if self.on_route is not None:
            self.on_route(self.last_route)

    def _set_mixture(self, mixture: Mixture, prompt: Sequence[int] | None) -> str:
        """Set `mixture` for the next generation; returns the way, like `Mixer.set`.

        Restores the cached keys and values of `prompt`; without one, they stay unchanged.
        """
        key, before = mixture_key(mixture), self._kv_key
        self._kv_key = None  # in case one of these fails
        if prompt is not None:
            self._conversations.change(before, key, prompt)
        way = self.mixer.set(mixture)
        self._kv_key = key
        return way

    def _read_by_base(self, prompt: list[int]) -> None:
        """Fill the context with the base's keys and values of `prompt`, from the probe if cached.

        The parent then evaluates the last token again, with the mixture that is set by then.
        """
        if self.reader.copy_prompt(prompt):
            self.input_ids[: len(prompt)] = prompt
            self.n_tokens, self._requires_eval = len(prompt), True
        else:
            self._set_mixture([], [])
            self.eval(prompt)
            self._requires_eval = True  # the logits belong to the base

    def eval(self, tokens: Sequence[int]) -> None:
        """As in the parent, batch by batch, until `should_stop`.

        After an error, the context is empty. Raises MixtureError if the mixture produces NaN.
        """
        for start in range(0, len(tokens), self.n_batch):
            if self.should_stop():
                raise _Stopped
            counted = False
            try:
                batch = tokens[start : start + self.n_batch]
                with interrupts_held(), stoppable(self.ctx, len(batch)):
                    super().eval(batch)
                    counted = True
            finally:
                if not counted:
                    self._forget_all()
        if not self.loaded.is_finite():
            self._forget_all()
            raise MixtureError(
                "the mixture makes numbers that are not finite",
                hint="smaller weights may help; logo-local check looks at the adapters",
            )

    def _forget_all(self) -> None:
        """Drop the keys and values, whose mixture may be unknown."""
        self.loaded.forget_generated()
        self.reset()
        self._kv_key = None

    # Tokens, vectors and states

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> Any:
        """As in the parent, but raises ContextError for a prompt that is too long in bytes."""
        self.loaded.check_size(text)
        return super().tokenize(text, add_bos, special)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent, without adapters; raises SettingsError without embedding=True."""
        self.loaded.check_embedding()
        self._set_mixture([], [])
        return super().embed(*args, **kwargs)

    def embeddings(self, texts: Sequence[str]) -> tuple[list[FloatArray], int]:
        """One vector (n_embd,) of norm 1 for each text, and the total number of tokens.

        Computed without adapters, with the pooling of the model's metadata, else with mean pooling.
        Does not need `embedding=True`, and keeps the conversation. Raises PromptError for a text
        that is empty or longer than the context.
        """
        return self.reader.embeddings(texts, self.base.n_embd)

    def save_state(self) -> Any:
        """As in the parent; the state includes the key of its mixture."""
        state = super().save_state()
        state.logo_mixture = self._kv_key
        return state

    def load_state(self, state: Any) -> None:
        """As in the parent; keys and values of another mixture are not reused."""
        self._kv_key = None  # in case the parent fails
        super().load_state(state)
        self._kv_key = getattr(state, "logo_mixture", None)

    # Lifecycle

    def close(self) -> None:
        """Free contexts, adapters and model; may be called twice. Later use raises PromptError."""
        if hasattr(self, "_stack"):  # missing if the parent was never initialised
            super().close()
            # llama_cpp would pass these to llama.cpp as null pointers, which crashes the process.
            self._model = self._ctx = self.tokenizer_ = Closed()
