"""The engine: a `llama_cpp.Llama` that chooses and blends LoRA adapters for every prompt.

A prompt's way: tokens -> probe -> hidden vector -> signals -> scores -> route -> mixture -> text.
The route is made when a new prompt reaches `generate`; sampling, grammars, chat templates, tool
calls, streaming and stop words are the parent's. No printing, no files beyond the pool's cache.
"""

from __future__ import annotations

import inspect
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llama_cpp import Llama, llama_vocab_is_eog

from . import config
from .errors import AdapterError, PromptError
from .files.base_model import BaseModel
from .files.pool import Pool
from .llama.api_check import check_api
from .llama.embedding import Embedder
from .llama.interrupts import interrupts_held
from .llama.llama_errors import check_context, model_errors, problems_of, prompt_errors
from .llama.mixed_llama import Stopped
from .llama.mixture import Mixer, Mixture, ResidentAdapters
from .progress import Stages
from .routed_llama import Messages, Progress, RoutedLlama
from .routing.index import block_number
from .routing.route import Route, kept
from .routing.router import Router, current_index
from .routing.signals import FloatArray
from .settings import (
    DEFAULT_ADAPTER_MEMORY,
    DEFAULT_LAYER,
    DEFAULT_N_CTX,
    DEFAULT_TOP_K,
    RoutingSettings,
)

log = logging.getLogger(__name__)

_opening = threading.Lock()

N_CTX_STEP = 256  # GGML_PAD of n_ctx in llama.cpp's src/llama-context.cpp


class LoGo(RoutedLlama):
    """`llama_cpp.Llama` with a folder of LoRA adapters, routed and blended for every prompt.

    `model_path` is a GGUF file, or "demo" for the bundled model, whose adapters are then the
    default. `adapters` is a folder of GGUF LoRA files and PEFT folders. `signal` is one of
    `settings.SIGNAL_NAMES`, of which "auto" is the best for the pool at hand; `probe` "one-pass" or
    "each"; `tap` "input" or "residual"; `layer` the block that is probed, negative from the
    end; `top_k` the most adapters that a route holds; `mixture` "scales" (adapters one by one),
    "fused" (as one stack, which is faster) or "auto", stored as `mixture_type` "exact" or "q8_0";
    `keep_route` by how much the weights of a conversation's adapters may change without a new
    route; `prefill` "mixture", or "base", where the prompt is read by the base alone and only what
    follows is made under the mixture; `adapter_memory` the bytes of adapters that llama.cpp may
    hold, as a number, like "512M", or "auto", a quarter of what is free. `self_profile` says if
    adapters without example prompts are asked what they are for (True, False, or "kept": only what
    is known already counts), `past` whether what prompts do to adapters is remembered, in a few
    numbers and no words; `links_out` whether adapters may be links to elsewhere; `escape_special`
    whether control tokens that are written in messages (<|im_end|>) are text there, and
    `chat_template_kwargs` what the chat template is given beside messages. `progress` is
    called with (stage, done, total) while adapters are read, converted and indexed. Everything
    else, under a name that it has there, goes to `llama_cpp.Llama`; unlike there, `n_ctx` is by
    default 4096 or what the model was trained with, whichever is less, and `verbose` is off.

    Every completion carries ["logo"]: the route and the timings in milliseconds; a stream carries
    it in the chunk that has the finish reason, and ["usage"] there, too. `on_route`, where it is
    set, is called with the route of an answer before the prompt is read under it; `usage` counts
    the tokens of the last answer as far as it has come. Not safe to use from two threads at once,
    but for setting `should_stop`.

    Raises SettingsError, ModelError or PoolError; what can be seen without the weights is seen
    before they are loaded. Adapters that come into the folder, or go, are noticed at the next
    prompt, with a line in the log.
    """

    def __init__(
        self,
        model_path: str | Path,
        adapters: str | Path | None = None,
        *,
        signal: str = "auto",
        top_k: int = DEFAULT_TOP_K,
        probe: str = "one-pass",
        layer: int = DEFAULT_LAYER,
        tap: str = "input",
        mixture: str = "auto",
        mixture_type: str = "exact",
        keep_route: float = 0.0,
        prefill: str = "mixture",
        adapter_memory: int | str = DEFAULT_ADAPTER_MEMORY,
        self_profile: bool | str = True,
        past: bool = True,
        links_out: bool = True,
        escape_special: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        n_ctx: int | None = None,
        verbose: bool = False,
        **llama: Any,
    ) -> None:
        started = time.perf_counter()
        if str(model_path) == "demo":
            model_path, adapters = config.demo_model(), adapters or config.demo_adapters()
        routing = RoutingSettings(
            signal=signal,
            top_k=top_k,
            probe=probe,
            layer=layer,
            tap=tap,
            mixture=mixture,
            mixture_type=mixture_type,
            keep_route=keep_route,
            prefill=prefill,
            adapter_memory=adapter_memory,
            self_profile=self_profile,
            past=past,
        )
        routing.check(other_problems=problems_of(adapters, llama))
        check_api()
        self._settings = routing
        self.escape_special, self._template_kwargs = escape_special, chat_template_kwargs or {}
        self._progress = progress = Stages(progress or (lambda _stage, _done, _total: None))
        self.base = BaseModel.read(model_path)
        block_number(layer, self.base)
        self.pool = Pool.open(
            Path(str(adapters)),
            self.base,
            cache=config.cache_dir(),
            progress=progress,
            links_out=links_out,
        )
        index = None
        if probe == "one-pass":
            index = current_index(None, self.pool, layer, self.signal)

        if n_ctx is None:
            n_ctx = min(DEFAULT_N_CTX, self.base.n_ctx_train)
        # llama_cpp redirects the process's output while it loads, which two threads must not do at
        # once: each would restore what the other has redirected.
        check_context(n_ctx, self.base)
        with _opening, model_errors(model_path), interrupts_held():
            super().__init__(
                model_path=str(model_path),
                # llama.cpp rounds it up itself, and the parent's arrays would be too short.
                n_ctx=math.ceil(n_ctx / N_CTX_STEP) * N_CTX_STEP,
                verbose=verbose,
                **llama,
            )
        self._residents = ResidentAdapters(self.model, routing.memory)
        self.mixer = Mixer(
            self.model,
            self.context_params,
            self.ctx,
            self.base.architecture,
            self._residents,
            way=mixture,
            stored_as=mixture_type,
        )
        self.timings_ms: dict[str, float] = dict.fromkeys(
            ("load", "probe", "score", "mixture", "prefill", "decode"), 0.0
        )
        myself = weakref.ref(self)  # the parent's memory is freed as soon as nobody holds it
        self._router = Router(
            self.model,
            self.context_params,
            pool=self.pool,
            residents=self._residents,
            settings=routing,
            as_prompt=lambda text: _alive(myself).tokens_of_text(text),
            as_text=lambda tokens: _alive(myself).text_of(tokens),
            progress=progress,
            timings_ms=self.timings_ms,
            index=index,
        )
        self._embedder: Embedder | None = None
        self._stack.callback(_free, self._residents, self._router, self.mixer)
        self.pool.resident = self._residents.size

        self.last_route: Route | None = None
        self.on_route: Callable[[Route], None] | None = None
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0}
        self._fixed: Route | None = None
        self._asked: Sequence[Messages] = ()
        self._turn = 0  # counts the prompts that reached the context
        self.timings_ms["load"] = _ms_since(started)

    # Generation

    def generate(  # the parent's parameters, whatever they are, pass through
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Route `tokens`, set the mixture, and generate as the parent does.

        Cached keys and values are reused only where they were made under the same mixture. With
        reset=False the tokens follow those that the context holds, and all of them are routed.
        Once another prompt was begun, going on with an earlier answer is a PromptError.
        """
        given = inspect.signature(Llama.generate).bind(self, tokens, *args, **kwargs)
        prompt = [int(token) for token in tokens]
        if not given.arguments.pop("reset", True):
            prompt = [*self._input_ids.tolist(), *prompt]
        options = {k: v for k, v in given.arguments.items() if k not in ("self", "tokens")}
        return self._generate(prompt, self._fixed, self._asked, options)

    def _generate(
        self,
        prompt: list[int],
        given: Route | None,
        parts: Sequence[Messages],
        options: Mapping[str, Any],
    ) -> Generator[int, Sequence[int] | None, None]:
        self.stop_at(prompt)
        self._turn += 1
        turn = self._turn
        self.usage = {"prompt_tokens": len(prompt), "completion_tokens": 0}
        self._forget_timings()
        if given is None or not given.is_base:
            self._renew_pool()
        try:
            try:
                self._route_and_adopt(prompt, given, parts)
            except AdapterError as error:
                if not self._renew_pool(forced=True):
                    raise
                log.debug("once more, after %s", error)
                self._route_and_adopt(prompt, given, parts)
        except Stopped:  # where the base reads the prompt
            return
        parent = super().generate(prompt, **options)
        phase, more = "prefill", None
        try:
            while True:
                started = time.perf_counter()
                try:
                    if self.should_stop():
                        return
                    token = parent.send(more)
                except (StopIteration, Stopped):
                    return
                self.timings_ms[phase] += _ms_since(started)
                phase = "decode"
                if not llama_vocab_is_eog(self._model.vocab, token):  # the parent counts so, too
                    self.usage["completion_tokens"] += 1
                more = yield token
                if turn != self._turn:
                    raise PromptError(
                        "another prompt was begun before this answer was finished",
                        hint="read or close a stream before the next prompt, or use two engines",
                    )
        finally:
            parent.close()

    def _route_and_adopt(
        self, prompt: list[int], given: Route | None, parts: Sequence[Messages]
    ) -> None:
        route = given
        if route is None:
            tolerance = self._settings.keep_route
            route = kept(self._route_tokens(prompt, parts), self.last_route, tolerance)
        by_base = self._settings.prefill == "base" and not route.is_base
        if by_base:
            started = time.perf_counter()
            self.read_by_base(prompt, partial(self._router.copy_prompt, prompt))
            self.timings_ms["prefill"] = _ms_since(started)
        self._adopt(route, keys_are_right=by_base)
        if given is None:
            self._router.remember()

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent, with ["logo"] added to the result."""
        return self._with_logo((), super().create_completion, *args, **kwargs)

    def create_chat_completion(
        self,
        messages: Any,
        *args: Any,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in the parent, with ["logo"] added to the result; see `route` for what is routed.

        The model's chat template is given `chat_template_kwargs`: enable_thinking, for instance.
        """
        messages = self.messages_to_send(messages)
        parts: Sequence[Messages] = ()
        if self._fixed is None and not self._tokens_only:
            parts = self._parts(messages)
        with self.template_settings({**self._template_kwargs, **(chat_template_kwargs or {})}):
            return self._with_logo(parts, super().create_chat_completion, messages, *args, **kwargs)

    def embeddings(self, texts: Sequence[str]) -> tuple[list[FloatArray], int]:
        """One vector (n_embd,) of norm 1 for each text, and the number of tokens in all.

        By the base model alone, pooled as its file says, else by the mean over its tokens. Needs
        no `embedding=True`, and leaves the conversation as it is. PromptError for a text that is
        empty or longer than the context.
        """
        if self._embedder is None:
            pooling = self.metadata.get(f"{self.base.architecture}.pooling_type")
            self._embedder = Embedder(self.model, self.context_params, self.base, pooling)
            self._stack.callback(self._embedder.close)  # before the model goes
        tokens = [self.tokenize(text.encode()) for text in texts]
        return [self._embedder.embed(one) for one in tokens], sum(map(len, tokens))

    def _adopt(self, route: Route, *, keys_are_right: bool = False) -> None:
        for name in route.names:
            self.pool.check_current(name)
        mixture: Mixture = [
            (self.pool.adapters[name], weight) for name, weight in route.applied.items()
        ]
        started = time.perf_counter()
        way = self.set_mixture(mixture, keys_are_right=keys_are_right)
        self.timings_ms["mixture"] = _ms_since(started)
        self.last_route = replace(route, mixture=way)
        if self.on_route is not None:
            self.on_route(self.last_route)

    def _with_logo(
        self, parts: Sequence[Messages], call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        # The completion that a chat completion makes of itself is routed as the latter is.
        before = self._asked, self.is_prompt
        self._asked = asked = parts or before[0]
        self.is_prompt = True
        try:
            with prompt_errors():
                result = call(*args, **kwargs)
        finally:
            self._asked, self.is_prompt = before
        if isinstance(result, dict):
            result["logo"] = self._logo()
            return result
        return self._stream_with_logo(result, self._fixed, asked)

    def _stream_with_logo(
        self, chunks: Iterator[dict[str, Any]], given: Route | None, asked: Sequence[Messages]
    ) -> Iterator[dict[str, Any]]:
        """`chunks`, routed as when they were asked for: the parent begins at the first."""
        while True:
            before = self._fixed, self._asked
            self._fixed, self._asked = given, asked
            try:
                with prompt_errors():
                    chunk = next(chunks, None)
            finally:
                self._fixed, self._asked = before
            if chunk is None:
                return
            if any(choice.get("finish_reason") for choice in chunk["choices"]):
                chunk["logo"] = self._logo()
                chunk["usage"] = {**self.usage, "total_tokens": sum(self.usage.values())}
            yield chunk

    def _logo(self) -> dict[str, Any]:
        route = self.last_route or Route()
        return {"route": route.as_dict(), "timings_ms": dict(self.timings_ms)}

    # Lifecycle

    def close(self) -> None:
        """Free the contexts, the adapters and the model. May be called twice."""
        if hasattr(self, "_stack"):  # not there when the parent was never initialised
            super().close()

    def __enter__(self) -> LoGo:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _free(residents: ResidentAdapters, router: Router, mixer: Mixer) -> None:
    """Free the probes, then the adapters, while the model and its context are still there."""
    mixer.close()
    router.close()
    residents.close()


def _alive(engine: weakref.ref[LoGo]) -> LoGo:
    """The engine, which is there: it is what calls its router."""
    found = engine()
    assert found is not None
    return found


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
