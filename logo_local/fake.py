"""A fake engine for tests of this package and of programs built on it.

    llm = FakeLoGo({"sort-words": 3.1, "reverse": 0.2}, answers=["apple pear"])
    llm.create_chat_completion(messages=[{"role": "user", "content": "sort: pear apple"}])
    assert llm.history[0].prompt == "sort: pear apple"

Needs no model, no llama_cpp and no files. Routes are computed from scripted scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import PromptError
from .files.adapter_file import AdapterFile, Module
from .files.base_model import BaseModel
from .files.pool import Changes, Pool
from .files.stored_values import TensorPlace
from .hidden_states import FloatArray
from .routing.route import Route, fixed, select
from .routing.settings import Routing, RoutingSettings, check_routing

# A piece of an answer: text, an exception to raise at this point, or a function that returns the
# text when it is reached (and may block).
Piece = str | BaseException | Callable[[], str]
Scores = Mapping[str, float] | Callable[[str], Mapping[str, float]]
Answers = Sequence[str | Sequence[Piece]] | Callable[[str, Route], str]
SignalScores = Mapping[str, Mapping[str, float]]

# The module of every fake adapter: rank 4, in a file that does not exist.
_A, _B = TensorPlace(0, 1024, "F32", (4, 64)), TensorPlace(1024, 1024, "F32", (64, 4))
_MODULES = {"blk.3.attn_q.weight": Module(4, 64, 64, "F32", 0, _A, _B)}


@dataclass(frozen=True)
class Call:
    """A recorded call: the method's name, the last prompt text, and the options."""

    method: str
    prompt: str
    messages: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


class _FakePool(Pool):
    """A pool without a folder."""

    def rescan(self, **_: Any) -> Changes:
        return Changes((), (), ())


class FakeLoGo:
    """The interface of `LoGo` with scripted scores and answers.

    `scores` maps adapters to scores, or is a function from the prompt's text to such a mapping
    (then `names` lists the adapters); `by_signal` overrides it for single signals. `answers` are
    returned in order, and the last one is repeated. An answer is a text, or a sequence of pieces:
    texts, exceptions to raise, or functions to call. `answers` may also be a function from the
    prompt's text and the route to the text. `should_stop` is called before each piece.
    `chat_template` says whether the fake model has one. Calls are recorded in `history`, those of
    `read_ahead` in `ahead`. `opened`, a factory with `LoGo`'s parameters, stores these in
    `settings`.

    Token counts, also in `usage`, are word counts. An answer has the finish reason "length" if it
    has `max_tokens` words or more, though it is not truncated, or if `should_stop` ended it. A
    prompt of `n_ctx` words or more raises PromptError. Temperature and seed are only recorded.
    """

    def __init__(
        self,
        scores: Scores,
        answers: Answers = ("",),
        *,
        names: Sequence[str] = (),
        top_k: int = 3,
        chat_template: bool = True,
        n_ctx: int = 4096,
        by_signal: SignalScores | None = None,
    ) -> None:
        self._scores = scores
        self._by_signal = by_signal or {}
        self._answers = answers if callable(answers) else list(answers)
        self.should_stop: Callable[[], bool] = lambda: False
        self.routing = RoutingSettings(top_k=top_k)
        self._n_ctx = n_ctx
        self.base = BaseModel(Path("fake.gguf"), "llama", "fake", 4, 64, 4, 2, 0, 256, {})
        if isinstance(scores, Mapping):
            names = tuple(scores)
        self.pool: Pool = _FakePool(
            folder=Path("adapters"),
            base=self.base,
            cache=Path("cache"),
            adapters={
                n: AdapterFile(n, Path(f"{n}.gguf"), 8.0, _MODULES, 2048, 0) for n in sorted(names)
            },
        )
        self.metadata = {"tokenizer.chat_template": "fake"} if chat_template else {}
        self.last_route: Route | None = None
        self.on_route: Callable[[Route], None] | None = None
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0}
        self.timings_ms = dict.fromkeys(
            ("load", "probe", "score", "mixture", "prefill", "decode"), 0.0
        )
        self.history: list[Call] = []
        self.ahead: list[Call] = []
        self.taught: dict[str, list[str]] = {}
        self.unprofiled: list[str] = []
        self.settings: dict[str, Any] = {}
        self.closed = False
        self._stopped = False
        self._given: Route | None = None

    def opened(self, model_path: str | Path, adapters: Any = None, **settings: Any) -> FakeLoGo:
        """Replaces `LoGo(...)`: stores the parameters in `settings` and returns this object."""
        self.settings = {"model_path": str(model_path), "adapters": adapters, **settings}
        known = self.routing.__dataclass_fields__.keys() & settings
        self.routing = replace(self.routing, **{name: settings[name] for name in known})
        return self

    def configure(self, **settings: Any) -> None:
        """Change `routing` or raise SettingsError; only top_k has an effect."""
        given = {name: value for name, value in settings.items() if value is not None}
        routing = replace(self.routing, **given)
        routing.check()
        self.routing = routing

    def n_ctx(self) -> int:
        """The context size in words."""
        return self._n_ctx

    def tokens_of(self, prompt: Any) -> list[int]:
        """One number per word of all messages; PromptError if there are too many."""
        texts = [prompt] if isinstance(prompt, str) else [str(m["content"]) for m in prompt]
        n = sum(len(text.split()) for text in texts)
        if n >= self._n_ctx:
            raise PromptError(f"the prompt does not fit: {n} of {self._n_ctx}", hint="shorten it")
        return list(range(n))

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Store `prompts` in `taught`; does not change scores."""
        self.pool.check_name(name)
        known = self.taught.setdefault(name, [])
        new = [prompt for prompt in prompts if prompt not in known]
        known += new
        return len(new)

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Delete prompts from `taught`."""
        self.pool.check_name(name)
        known = self.taught.pop(name, [])
        if last and known[:-1]:
            self.taught[name] = known[:-1]
        return 1 if last and known else len(known)

    def examples(self, name: str) -> list[str]:
        """The prompts in `taught`."""
        self.pool.check_name(name)
        return list(self.taught.get(name, []))

    def without_profile(self) -> list[str]:
        """The names in `unprofiled`."""
        return list(self.unprofiled)

    def make_self_profiles(self) -> None:
        """Remove the names in `unprofiled`, one by one."""
        while self.unprofiled:
            del self.unprofiled[0]

    def route(self, prompt: Any, *, routing: Routing | None = None) -> Route:
        """The route from the scripted scores of the pool's candidates."""
        self._check(routing)
        options = {} if routing is None else {"routing": routing}
        self.history.append(Call("route", *_seen(prompt), options))
        return self._route(_seen(prompt)[0], routing)

    def read_ahead(self, prompt: Any) -> None:
        """Recorded in `ahead`, not in `history`."""
        self.ahead.append(Call("read_ahead", *_seen(prompt)))

    def signal_scores(self, prompt: Any, signals: Sequence[str]) -> dict[str, dict[str, float]]:
        """The scripted scores of the pool's candidates by each of `signals`."""
        text = _seen(prompt)[0]
        return {
            signal: self._wanted(
                self._by_signal[signal] if signal in self._by_signal else self._scores_for(text)
            )
            for signal in signals
        }

    def __call__(self, prompt: str, **options: Any) -> Any:
        """The same as `create_completion`."""
        return self.create_completion(prompt, **options)

    def create_completion(self, prompt: str | list[int], **options: Any) -> Any:
        """llama_cpp's completion dictionary, or its chunks, with ["logo"]."""
        prompt = _seen(prompt)[0]
        self._check(options.get("routing"))
        self.history.append(Call("create_completion", prompt, (), options))
        self.tokens_of(prompt)
        return self._answer(prompt, options, lambda text: {"text": text}, lambda t: {"text": t})

    def create_chat_completion(self, messages: Any, **options: Any) -> Any:
        """llama_cpp's chat completion dictionary, or its chunks, with ["logo"]."""
        text, copied = _seen(messages)
        self._check(options.get("routing"))
        self.history.append(Call("create_chat_completion", text, copied, options))
        self.tokens_of(copied)
        return self._answer(
            text,
            options,
            lambda text: {"message": {"role": "assistant", "content": text}},
            lambda text: {"delta": {"content": text} if text else {}},
        )

    @contextmanager
    def under(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Use these weights in every route within this block."""
        for name in weights:
            self.pool.check_name(name)
        before, self._given = self._given, fixed(weights)
        try:
            yield
        finally:
            self._given = before

    def base_only(self) -> AbstractContextManager[None]:
        """Use no adapters within this block."""
        return self.under({})

    def embeddings(self, texts: Sequence[str]) -> tuple[list[FloatArray], int]:
        """Vectors of two numbers: the counts of words and of characters."""
        vectors = [np.array([len(t.split()), len(t)], np.float32) for t in texts]
        return vectors, sum(len(text.split()) for text in texts)

    def n_vocab(self) -> int:
        """A vocabulary of 100."""
        return 100

    def close(self) -> None:
        """Record that it was closed."""
        self.closed = True

    def __enter__(self) -> FakeLoGo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scores_for(self, text: str) -> Mapping[str, float]:
        return self._scores if isinstance(self._scores, Mapping) else self._scores(text)

    def _wanted(self, scores: Mapping[str, float]) -> dict[str, float]:
        return {name: scores[name] for name in self.pool.candidates if name in scores}

    def _check(self, routing: Routing | None) -> None:
        check_routing(routing)
        for name in (routing or {}).get("weights") or ():
            self.pool.check_name(name)

    def _route(self, text: str, routing: Routing | None = None) -> Route:
        given = routing or {}
        weights, signal = given.get("weights"), given.get("signal") or self.routing.signal
        if weights is not None:
            return fixed(weights)
        route = select(
            self._wanted(self._scores_for(text)),
            given.get("top_k") or self.routing.top_k,
            signal="norm" if signal == "auto" else self.routing.resolved(signal),
            probe="one-pass",
            target="blk.3.attn_q.weight",
        )
        return replace(route, mixture="stacked" if route.names else "none")

    def _answer(
        self,
        prompt: str,
        options: Mapping[str, Any],
        whole: Callable[[str], dict[str, Any]],
        part: Callable[[str], dict[str, Any]],
    ) -> Any:
        routing = options.get("routing")
        given = self._given if routing is None else None
        self.last_route = self._route(prompt, routing) if given is None else given
        if self.on_route is not None:
            self.on_route(self.last_route)
        if callable(self._answers):
            answer: str | Sequence[Piece] = self._answers(prompt, self.last_route)
        else:
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        pieces = self._counted(prompt, [answer] if isinstance(answer, str) else list(answer))
        logo = {"route": self.last_route.as_dict(), "timings_ms": dict(self.timings_ms)}
        limit = options.get("max_tokens")
        if options.get("stream"):
            return self._chunks(pieces, part, logo, limit)
        text = "".join(pieces)
        return {
            "choices": [{"index": 0, **whole(text), "finish_reason": self._finish(limit)}],
            "usage": {**self.usage, "total_tokens": sum(self.usage.values())},
            "logo": logo,
        }

    def _counted(self, prompt: str, pieces: Sequence[Piece]) -> Iterator[str]:
        """The texts of an answer, counted in `usage` one by one."""
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 0}
        self.usage, self._stopped = usage, False
        for piece in pieces:
            self._stopped = self.should_stop()
            if self._stopped:
                return
            if isinstance(piece, BaseException):
                raise piece
            text = piece() if callable(piece) else piece
            usage["completion_tokens"] += len(text.split())
            yield text

    def _finish(self, limit: int | None) -> str:
        n = self.usage["completion_tokens"]
        return "length" if self._stopped or (limit is not None and n >= limit) else "stop"

    def _chunks(
        self,
        pieces: Iterator[str],
        part: Callable[[str], dict[str, Any]],
        logo: Mapping[str, Any],
        limit: int | None,
    ) -> Iterator[dict[str, Any]]:
        for text in pieces:
            yield {"choices": [{"index": 0, **part(text), "finish_reason": None}]}
        usage = {**self.usage, "total_tokens": sum(self.usage.values())}
        choice = {"index": 0, **part(""), "finish_reason": self._finish(limit)}
        yield {"choices": [choice], "logo": logo, "usage": usage}


def _seen(prompt: Any) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """The text of a prompt, and a copy of its messages, because callers may extend the list."""
    if isinstance(prompt, str):
        return prompt, ()
    messages = list(prompt)
    if messages and isinstance(messages[-1], Mapping):
        return str(messages[-1]["content"]), tuple(dict(message) for message in messages)
    return " ".join(str(token) for token in messages), ()
