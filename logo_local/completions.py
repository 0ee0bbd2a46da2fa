"""Requests to an engine, shared by the command line, the chat and the demo.

An engine is any object with the interface `Engine` below, such as `LoGo` or `FakeLoGo`. This module
does not print and does not import llama_cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, cast

from .files.base_model import BaseModel
from .files.pool import Pool
from .hidden_states import FloatArray
from .routing.route import Route
from .routing.settings import Routing, RoutingSettings

Message = dict[str, str]
Prompt = str | list[Message]


class Engine(Protocol):
    """The part of `LoGo` that the programs use."""

    base: BaseModel
    pool: Pool
    last_route: Route | None
    on_route: Callable[[Route], None] | None
    usage: dict[str, int]
    timings_ms: dict[str, float]
    metadata: dict[str, str]
    should_stop: Callable[[], bool]

    @property
    def routing(self) -> RoutingSettings: ...  # noqa: D102
    def configure(  # noqa: D102
        self,
        *,
        signal: str | None = None,
        top_k: int | None = None,
        mixture: str | None = None,
        keep_route: float | None = None,
    ) -> None: ...
    def create_completion(self, prompt: str | list[int], **options: Any) -> Any: ...  # noqa: D102
    def create_chat_completion(self, messages: Any, **options: Any) -> Any: ...  # noqa: D102
    def teach(self, name: str, prompts: Sequence[str]) -> int: ...  # noqa: D102
    def unteach(self, name: str, *, last: bool = False) -> int: ...  # noqa: D102
    def examples(self, name: str) -> list[str]: ...  # noqa: D102
    def without_profile(self) -> list[str]: ...  # noqa: D102
    def make_self_profiles(self) -> None: ...  # noqa: D102
    def n_ctx(self) -> int: ...  # noqa: D102
    def tokens_of(self, prompt: Any) -> list[int]: ...  # noqa: D102
    def route(self, prompt: Any, *, routing: Routing | None = None) -> Route: ...  # noqa: D102
    def read_ahead(self, prompt: Any) -> None: ...  # noqa: D102
    def signal_scores(  # noqa: D102
        self, prompt: Any, signals: Sequence[str]
    ) -> dict[str, dict[str, float]]: ...
    def base_only(self) -> AbstractContextManager[None]: ...  # noqa: D102
    def under(self, weights: Mapping[str, float]) -> AbstractContextManager[None]: ...  # noqa: D102
    def embeddings(self, texts: Sequence[str]) -> tuple[list[FloatArray], int]: ...  # noqa: D102
    def n_vocab(self) -> int: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


# The fields of `Sampling` that are options of the commands, under the same names.
SAMPLED = ("max_tokens", "temp", "top_p", "min_p", "repeat_penalty")


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated: at most `max_tokens`, at temperature `temp` (0 is greedy).

    `top_p` and `min_p` exclude unlikely tokens, `repeat_penalty` above 1 makes repeated tokens less
    likely. An answer ends before any text in `stop`. `seed` makes it reproducible; None uses the
    engine's seed. All but the first two have llama_cpp's defaults.
    """

    max_tokens: int = 512
    temp: float = 0.0
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def options(self) -> dict[str, Any]:
        """The options under llama_cpp's names, without those that are its defaults."""
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temp}
        for one in fields(self)[2:]:
            value = getattr(self, one.name)
            if value != one.default:
                options[one.name] = list(value) if isinstance(value, tuple) else value
        return options


@dataclass
class Answer:
    """An answer so far; complete when the stream that fills it has ended.

    `finish` is the finish reason: "stop", or "length" if the token limit or the context was
    reached; empty until then. `logo` has the route and the timings (see `LoGo`), `usage` the token
    counts.
    """

    text: str = ""
    finish: str = ""
    logo: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)


def has_chat_template(llm: Engine) -> bool:
    """Whether the model's file has a chat template.

    Without one, llama_cpp would use Llama 2's without a warning, which is wrong for most models.
    """
    return "tokenizer.chat_template" in llm.metadata


def as_prompt(llm: Engine, text: str, *, raw: bool = False, system: str | None = None) -> Prompt:
    """`text` as a chat message after `system`; as text if `raw` or without a template."""
    if raw or not has_chat_template(llm):
        return text
    return [*system_messages(system), {"role": "user", "content": text}]


def system_messages(system: str | None) -> list[Message]:
    """The start of a conversation: the system message, if there is one."""
    return [{"role": "system", "content": system}] if system else []


def routing_of(
    *,
    weights: Mapping[str, float] | None = None,
    signal: str | None = None,
    top_k: int | None = None,
) -> Routing:
    """The `routing` of a call, with the arguments that are not None."""
    given = {"weights": weights, "signal": signal, "top_k": top_k}
    return cast("Routing", {name: value for name, value in given.items() if value is not None})


def create(llm: Engine, prompt: Prompt, options: Mapping[str, Any]) -> Any:
    """Create a completion of a text, or a chat completion of messages, with llama_cpp's `options`.

    They may include `routing`.
    """
    if isinstance(prompt, str):
        return llm.create_completion(prompt, **options)
    return llm.create_chat_completion(messages=prompt, **options)


def piece_of(chunk: Mapping[str, Any]) -> str:
    """The text that a chunk of a stream adds to the answer; may be empty."""
    choice = chunk["choices"][0]
    return (choice["text"] if "text" in choice else choice["delta"].get("content")) or ""


def complete(llm: Engine, prompt: Prompt, sampling: Sampling) -> Answer:
    """Return the complete answer."""
    result = create(llm, prompt, {**sampling.options(), "stream": False})
    choice = result["choices"][0]
    text = choice["text"] if isinstance(prompt, str) else choice["message"]["content"]
    return Answer(text or "", choice["finish_reason"] or "", result["logo"], result["usage"])


def stream(llm: Engine, prompt: Prompt, sampling: Sampling, into: Answer) -> Iterator[str]:
    """Yield the answer in pieces, and collect it in `into`."""
    for chunk in create(llm, prompt, {**sampling.options(), "stream": True}):
        into.logo = chunk.get("logo", into.logo)
        into.usage = chunk.get("usage", into.usage)
        into.finish = chunk["choices"][0].get("finish_reason") or into.finish
        if piece := piece_of(chunk):
            into.text += piece
            yield piece
