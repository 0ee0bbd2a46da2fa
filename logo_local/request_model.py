"""The pydantic models of requests, shared by the server and JSON lines.

Unknown fields and wrong types are rejected; values are not converted. `problems_of` describes
validation errors for both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from .completions import routing_of
from .routing import registry
from .routing.settings import DEFAULTS, Routing

MAX_SEED = 2**32 - 2  # the last 32-bit value means a random seed in llama.cpp
_MAX_STOPS = 16
_MAX_INT = 2**31 - 1  # of llama.cpp
_SEEDS = 2**63
_MAX_FIELDS = 256  # of one object, because each may be a problem
_MAX_PROBLEMS = 100
LORA_WITHOUT_ROUTE = "lora sets the weights, so signal and top_k have no effect"

# Fields that have no effect here, but clients send them.
Unused = Annotated[Any, Field(description="Accepted and ignored.")]
# -1 means no limit.
Tokens = Annotated[int, Field(ge=1, le=_MAX_INT)] | Literal[-1]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Weights = Annotated[dict[Name, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=4096)]


class Body(BaseModel):
    """Rules for all models: no unknown fields, strict types, no NaN; null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Remove nulls: clients send all optional fields they know, most of them as null."""
        if isinstance(value, dict):
            if len(value) > _MAX_FIELDS:
                raise PydanticCustomError(  # a ValueError would keep a reference to the value
                    "too_many_fields",
                    "it has {n} fields, and may have {most}",
                    {"n": len(value), "most": _MAX_FIELDS},
                )
            return {name: one for name, one in value.items() if one is not None}
        return value


class RoutingChoice(Body):
    """The routing options of a request; the defaults are those of the command line."""

    top_k: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description=f"Maximum number of adapters; {DEFAULTS.top_k} by default.",
    )
    signal: Literal[registry.names(everywhere=True)] | None = Field(  # type: ignore[valid-type]
        default=None, description="How the scores of adapters are computed."
    )

    def routing(self, weights: Mapping[str, float] | None = None) -> Routing:
        """The options for the engine, with explicit weights if given."""
        return routing_of(weights=weights, signal=self.signal, top_k=self.top_k)


class SamplingChoice(Body):
    """The sampling options; the defaults are those of the command line, or llama_cpp's."""

    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS)] | None = Field(
        default=None, description="Any integer of 64 bits; taken modulo 2^32 - 1."
    )
    stop: Name | Annotated[list[Name], Field(max_length=_MAX_STOPS)] | None = None

    def sampling(self) -> dict[str, Any]:
        """The options set in the request, under llama_cpp's names."""
        options = {name: getattr(self, name) for name in SamplingChoice.model_fields}
        options = {name: value for name, value in options.items() if value is not None}
        if "seed" in options:
            options["seed"] %= MAX_SEED + 1
        return options


class TextPart(Body):
    """A text part of a message; images and audio are rejected."""

    type: Literal["text"]
    text: str
    cache_control: Unused = None


class FunctionCall(Body):
    """A function call by the assistant."""

    name: Name
    arguments: str


class ToolCall(Body):
    """A function call with its id."""

    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Unused = None


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=256)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Name | None = None
    refusal: Unused = None
    annotations: Unused = None
    reasoning_content: Unused = None
    reasoning: Unused = None
    id: Unused = None
    cache_control: Unused = None
    audio: None = None
    function_call: None = None


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages for chat templates: parts joined, role `developer` renamed to `system`."""
    plain = []
    for message in messages:
        values = message.model_dump(include={"role", "name", "tool_calls", "tool_call_id"})
        values = {name: value for name, value in values.items() if value is not None}
        content = message.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        values["content"] = "" if content is None else content
        if message.role == "developer":
            values["role"] = "system"
        plain.append(values)
    return plain


# Parts of a pydantic error location that name an alternative of a union.
_ALTERNATIVE = re.compile(
    r"str|int|float|bool|NamedTool|constrained-\w+|(list|dict|literal|nullable|function-.+)\[.*\]"
)


def problems_of(errors: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The problems by field name, from pydantic's errors, without the values.

    For a field with several types, all types are named, unless only a part of it is invalid.
    """
    texts: dict[str, list[str]] = {}
    for error in errors[:_MAX_PROBLEMS]:
        parts = [str(part) for part in error["loc"] if part != "body"]
        place = ".".join(part for part in parts if not _ALTERNATIVE.fullmatch(part))
        text = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            text = "unknown field"
        if text not in texts.setdefault(place, []):
            texts[place].append(text)
    wholes = [place for place in texts if any(p.startswith(f"{place}.") for p in texts)]
    return {place: " or ".join(found) for place, found in texts.items() if place not in wholes}


def as_lines(problems: Mapping[str, str]) -> list[str]:
    """The problems as lines."""
    return [f"{place}: {text}" if place else text for place, text in problems.items()]
