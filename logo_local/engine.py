"""The engine: a `llama_cpp.Llama` that chooses and blends LoRA adapters for every prompt.

A prompt's way: tokens -> probe -> hidden vector -> signals -> scores -> route -> mixture -> text.
The route is made when a new prompt reaches `generate`; sampling, grammars, chat templates, tool
calls, streaming and stop words are the parent's. No printing, no files beyond the pool's cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from llama_cpp import Llama

from . import config
from .base_model import BaseModel
from .errors import ModelError, PromptError, SettingsError
from .index import RoutingIndex, block_number, choose_target
from .mixture import Mixture, MixtureKey, ResidentAdapters, mixture_key
from .pool import Pool
from .probe import EachProbe, HiddenProbe
from .routing import Route, select
from .signals import SIGNALS, entropy

PROBES = ("one-pass", "each")
TAPS = ("input", "residual")
MIXTURES = ("auto", "scales")
SIGNAL_NAMES = ("auto", *SIGNALS)

DEFAULT_TOP_K = 3
DEFAULT_N_CTX = 4096
DEFAULT_ADAPTER_MEMORY = 2 << 30  # bytes

Progress = Callable[[str, int, int], None]


class _PromptSeen(Exception):
    """Carries a prompt's tokens out of the parent, when only they are wanted."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class LoGo(Llama):  # type: ignore[misc]
    """`llama_cpp.Llama` with a folder of LoRA adapters, routed and blended for every prompt.

    `model_path` is a GGUF file, or "demo" for the bundled model, whose adapters are then the
    default. `adapters` is a folder of GGUF LoRA files and PEFT folders. `signal` is "norm",
    "entropy" or "auto"; `probe` "one-pass" or "each"; `tap` "input" or "residual"; `layer` the
    block that is probed, negative from the end; `top_k` the most adapters that a route holds;
    `adapter_memory` the bytes of adapters that llama.cpp may hold. `progress` is called with
    (stage, done, total) while adapters are converted and indexed. Everything else goes to
    `llama_cpp.Llama`; unlike there, `n_ctx` is by default 4096 or what the model was trained
    with, whichever is less, and `verbose` is off.

    Every completion carries ["logo"]: the route and the timings in milliseconds; a stream carries
    it in the chunk that has the finish reason. Not safe to use from two threads at once.

    Raises SettingsError, ModelError or PoolError before any weights are loaded.
    """

    _seed: int  # the parent's

    def __init__(
        self,
        model_path: str | Path,
        adapters: str | Path | None = None,
        *,
        signal: str = "auto",
        top_k: int = DEFAULT_TOP_K,
        probe: str = "one-pass",
        layer: int = -1,
        tap: str = "input",
        mixture: str = "auto",
        adapter_memory: int = DEFAULT_ADAPTER_MEMORY,
        progress: Progress | None = None,
        n_ctx: int | None = None,
        verbose: bool = False,
        **llama: Any,
    ) -> None:
        started = time.perf_counter()
        if str(model_path) == "demo":
            model_path, adapters = config.demo_model(), adapters or config.demo_adapters()
        self._signal, self._probe_kind = _checked_options(
            signal, probe, tap, mixture, top_k, adapter_memory, adapters, llama
        )
        self.top_k = top_k
        self._layer, self._residual = layer, tap == "residual"
        self._progress = progress or (lambda _stage, _done, _total: None)
        self.base = BaseModel.read(model_path)
        block_number(layer, self.base)
        self.pool = Pool.open(
            Path(str(adapters)),
            self.base,
            cache=config.cache_dir(),
            progress=lambda done, total, _name: self._progress("reading adapters", done, total),
        )
        self._index: RoutingIndex | None = None
        if self._probe_kind == "one-pass":
            self._index = self._current_index()

        with _model_errors(model_path):
            super().__init__(
                model_path=str(model_path),
                n_ctx=min(DEFAULT_N_CTX, self.base.n_ctx_train) if n_ctx is None else n_ctx,
                verbose=verbose,
                **llama,
            )
        self._residents = ResidentAdapters(self.model, adapter_memory)
        self._stack.callback(self._residents.close)
        self._stack.callback(self._close_probes)
        self._hidden_probe: HiddenProbe | None = None
        self._each_probe: EachProbe | None = None

        self.last_route: Route | None = None
        # What the context's keys and values were made under; None when that is unknown.
        self._kv_key: MixtureKey | None = mixture_key(())
        self._fixed: Route | None = None  # what `under` asks for
        self._tokens_only = False
        self.timings_ms: dict[str, float] = dict.fromkeys(
            ("load", "probe", "score", "mixture", "prefill", "decode"), 0.0
        )
        self.timings_ms["load"] = _ms_since(started)

    # Routing

    def route(self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]) -> Route:
        """The route for `prompt`: a string, chat messages, or token ids. Generates nothing.

        A string is tokenised as `create_completion` does it, messages go through the model's chat
        template. The cached conversation stays as it is. Raises PromptError for a prompt that is
        empty or longer than the context.
        """
        return self._route_tokens(self._tokens_of(prompt))

    @contextmanager
    def under(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Within this block every prompt is answered under these `weights`, by adapter name.

        Nothing is probed. The weights are used as they are, whatever they sum to; none at all is
        the base model alone. Raises PoolError for a name that is not in the pool.
        """
        for name in weights:
            self.pool.check_name(name)
        ordered = sorted(weights.items(), key=lambda item: -item[1])
        before, self._fixed = (
            self._fixed,
            Route(
                names=tuple(name for name, _ in ordered),
                scores=tuple(weight for _, weight in ordered),
                weights=tuple(weight for _, weight in ordered),
                mixture="scales" if ordered else "none",
            ),
        )
        try:
            yield
        finally:
            self._fixed = before

    def base_only(self) -> AbstractContextManager[None]:
        """Within this block the base model answers alone, and nothing is probed."""
        return self.under({})

    def _route_tokens(self, tokens: list[int]) -> Route:
        if self._probe_kind == "each":
            target, scores = None, self._scores_each(tokens)
        else:
            target, scores = self._scores_one_pass(tokens)
        return select(
            scores,
            self.top_k,
            signal=self._signal,
            probe=self._probe_kind,
            target=target,
            mixture="scales",
        )

    def _scores_one_pass(self, tokens: list[int]) -> tuple[str, dict[str, float]]:
        self._index = index = self._current_index()
        if self._hidden_probe is None or self._hidden_probe.target != index.target:
            if self._hidden_probe is not None:
                self._hidden_probe.close()
            self._hidden_probe = HiddenProbe(
                self.model, self.context_params, index.target, residual=self._residual
            )
        started = time.perf_counter()
        h = self._hidden_probe.hidden(tokens)  # (d_in,)
        self.timings_ms["probe"] = _ms_since(started)
        started = time.perf_counter()
        scores = index.scores(h, self._signal)
        self.timings_ms["score"] = _ms_since(started)
        wanted = self.pool.candidates
        return index.target, {name: scores[name] for name in wanted if name in scores}

    def _scores_each(self, tokens: list[int]) -> dict[str, float]:
        if self._each_probe is None:
            self._each_probe = EachProbe(self.model, self.context_params)
        probe, scores = self._each_probe, {}
        started = time.perf_counter()
        for name in self.pool.candidates:
            self._residents.set_on(probe.ctx, [(self.pool.adapters[name], 1.0)])
            scores[name] = entropy(probe.logits(tokens))
        self._residents.forget(probe.ctx)
        self.timings_ms["probe"], self.timings_ms["score"] = _ms_since(started), 0.0
        return scores

    def _current_index(self) -> RoutingIndex:
        """The index of the pool as it is now; built again when the pool has changed."""
        index, adapters = self._index, self.pool.adapters
        if index is not None and index.adapters is adapters:
            return index
        return RoutingIndex.build(
            adapters,
            choose_target(adapters, self.base, self._layer),
            previous=index,
            progress=lambda done, total: self._progress("indexing adapters", done, total),
        )

    # Generation

    def generate(  # the parent's parameters, whatever they are, pass through
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Route `tokens`, set the mixture, and generate as the parent does.

        Cached keys and values are reused only where they were made under the same mixture.
        """
        prompt = list(tokens)
        if self._tokens_only:
            raise _PromptSeen(prompt)
        self._adopt(self._route_tokens(prompt) if self._fixed is None else self._fixed)
        parent = super().generate(prompt, *args, **kwargs)
        self.timings_ms["prefill"] = self.timings_ms["decode"] = 0.0
        phase, more = "prefill", None
        try:
            while True:
                started = time.perf_counter()
                try:
                    token = parent.send(more)
                except StopIteration:
                    return
                self.timings_ms[phase] += _ms_since(started)
                phase = "decode"
                more = yield token
        finally:
            parent.close()

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent, with ["logo"] added to the result."""
        return self._with_logo(super().create_completion, *args, **kwargs)

    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent, with ["logo"] added to the result."""
        return self._with_logo(super().create_chat_completion, *args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent, by the base model alone."""
        self._adopt(Route())
        return super().embed(*args, **kwargs)

    def _adopt(self, route: Route) -> None:
        mixture: Mixture = [
            (self.pool.adapters[name], weight)
            for name, weight in zip(route.names, route.weights, strict=True)
        ]
        started = time.perf_counter()
        self._residents.set_on(self.ctx, mixture)
        key = mixture_key(mixture)
        if key != self._kv_key:
            self.reset()  # the parent then evaluates the whole prompt
            self._kv_key = key
        self.timings_ms["mixture"] = _ms_since(started)
        self.last_route = route

    def save_state(self) -> Any:
        """As in the parent; the state remembers the mixture that made it."""
        state = super().save_state()
        state.logo_mixture = self._kv_key
        return state

    def load_state(self, state: Any) -> None:
        """As in the parent; under another mixture the state's keys and values are not reused."""
        super().load_state(state)
        self._kv_key = getattr(state, "logo_mixture", None)

    def _with_logo(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with _prompt_errors():
            result = call(*args, **kwargs)
        if isinstance(result, dict):
            result["logo"] = self._logo()
            return result
        return self._stream_with_logo(result)

    def _stream_with_logo(self, chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        with _prompt_errors():
            for chunk in chunks:
                if any(choice.get("finish_reason") for choice in chunk["choices"]):
                    chunk["logo"] = self._logo()
                yield chunk

    def _logo(self) -> dict[str, Any]:
        route = self.last_route or Route()
        return {"route": route.as_dict(), "timings_ms": dict(self.timings_ms)}

    def _tokens_of(self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens that generation would see; the parent makes them and is stopped there."""
        if not isinstance(prompt, str) and not (prompt and isinstance(prompt[0], Mapping)):
            return [int(token) for token in prompt]  # type: ignore[arg-type]
        seed = self._seed  # a completion draws a new one
        self._tokens_only = True
        try:
            if isinstance(prompt, str):
                self.create_completion(prompt, max_tokens=1)
            else:
                self.create_chat_completion(messages=prompt, max_tokens=1)
        except _PromptSeen as seen:
            return seen.tokens
        finally:
            self._seed, self._tokens_only = seed, False
        raise AssertionError("the parent answered without generating")

    # Lifecycle

    def close(self) -> None:
        """Free the contexts, the adapters and the model. May be called twice."""
        if hasattr(self, "_stack"):  # not there when the parent was never initialised
            super().close()

    def __enter__(self) -> LoGo:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _close_probes(self) -> None:
        self._residents.forget(self.ctx)
        for probe in (self._hidden_probe, self._each_probe):
            if probe is not None:
                probe.close()


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


@contextmanager
def _model_errors(path: str | Path) -> Iterator[None]:
    """Translate the parent's bare ValueError for a model or a context that cannot be made."""
    try:
        yield
    except ValueError as error:
        raise ModelError(
            f"llama.cpp cannot use {path}: {error}",
            hint="is the file whole, does this llama.cpp know its architecture, "
            "and does --ctx-size fit into memory?",
        ) from error


@contextmanager
def _prompt_errors() -> Iterator[None]:
    """Translate the parent's bare ValueError for a prompt that does not fit the context."""
    try:
        yield
    except ValueError as error:
        if "exceed context window" not in str(error):
            raise
        raise PromptError(
            f"the prompt does not fit: {error}",
            hint="shorten it, or give a larger --ctx-size",
        ) from error


def _checked_options(
    signal: str,
    probe: str,
    tap: str,
    mixture: str,
    top_k: int,
    adapter_memory: int,
    adapters: str | Path | None,
    llama: Mapping[str, Any],
) -> tuple[str, str]:
    """The signal and the probe to use; raises one SettingsError with all that is wrong."""
    problems = [
        f"{option} is {value!r}, and can be {', '.join(allowed)}"
        for option, value, allowed in (
            ("signal", signal, SIGNAL_NAMES),
            ("probe", probe, PROBES),
            ("tap", tap, TAPS),
            ("mixture", mixture, MIXTURES),
        )
        if value not in allowed
    ]
    if probe == "each" and signal not in ("auto", "entropy"):
        problems.append(f"signal {signal!r} is not defined for probe 'each', only 'entropy' is")
    if top_k < 1:
        problems.append(f"top_k is {top_k}, and must be at least 1")
    if adapter_memory < 1:
        problems.append(f"adapter_memory is {adapter_memory} bytes, and must be positive")
    if adapters is None:
        problems.append("adapters names no folder")
    if "lora_path" in llama:
        problems.append("lora_path cannot be given: put that adapter into the adapters folder")
    if problems:
        raise SettingsError("the engine's settings cannot be used", problems=problems)
    if signal == "auto":
        signal = "entropy" if probe == "each" else "norm"
    return signal, probe
