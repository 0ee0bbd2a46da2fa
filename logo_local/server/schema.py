"""What requests may say. What is not here is refused by name; nothing is guessed or converted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..routing import registry
from ..routing.settings import DEFAULTS

MAX_INPUTS = 64  # texts in one request for embeddings
MAX_CHOICES = 16  # answers to one request
_MAX_STOPS = 16
_SEEDS = 2**63

# Fields of OpenAI's that say nothing about the answer here; clients send them unasked.
Unused = Annotated[Any, Field(description="Taken, and without any effect.")]
# The longest answer that the client wants; -1 says that the client sets no limit.
Tokens = Annotated[int, Field(ge=1)] | Literal[-1]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Weights = Annotated[dict[Name, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=4096)]


class Body(BaseModel):
    """The rules for all of them: no unknown field, no other type, no NaN; null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Clients send every optional field that they know, most of them as null."""
        if isinstance(value, dict):
            return {name: one for name, one in value.items() if one is not None}
        return value


class RoutingChoice(Body):
    """How the route of one request is made; what is left out is as the server was started."""

    top_k: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description=f"Maximum number of adapters; {DEFAULTS.top_k} by default.",
    )
    signal: Literal[registry.names(everywhere=True)] | None = Field(  # type: ignore[valid-type]
        default=None, description="How the scores of adapters are computed."
    )


class Routed(Body):
    """Whose answer is wanted: `model` is auto, base, or base:NAME for one adapter alone."""

    model: Name = "auto"
    lora: Weights | None = Field(default=None, description="Adapters by name with their weights.")
    logo: RoutingChoice | None = None
    user: Unused = None


class StreamOptions(Body):
    """What a stream carries beside the answer."""

    include_usage: bool = False
    include_obfuscation: Unused = None


class Generation(Routed):
    """How an answer is generated; llama.cpp's defaults for what is left out."""

    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Of tokens; that of adapters is logo.top_k."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=1024, description="By token id, written as text."
    )
    seed: Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS)] | None = None
    stop: Name | Annotated[list[Name], Field(max_length=_MAX_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        default=1, description="How many answers; above 1 without a stream only."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    store: Unused = None
    metadata: Unused = None
    service_tier: Unused = None
    safety_identifier: Unused = None
    prompt_cache_key: Unused = None
    prompt_cache_retention: Unused = None


class CompletionRequest(Generation):
    """A text to go on with, or its token ids."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1)]
    )
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    logprobs: None = None
    suffix: None = None


class TextPart(Body):
    """A part of a message; pictures and sounds are refused."""

    type: Literal["text"]
    text: str
    cache_control: Unused = None


class FunctionCall(Body):
    """A call that the assistant made."""

    name: Name
    arguments: str


class ToolCall(Body):
    """The same with its id."""

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


class FunctionTool(Body):
    """A function that may be called."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None


class Tool(Body):
    """The same as a tool."""

    type: Literal["function"]
    function: FunctionTool


class FunctionName(Body):
    """Only a function's name."""

    name: Name


class NamedTool(Body):
    """The tool that has to be called."""

    type: Literal["function"]
    function: FunctionName


class PlainFormat(Body):
    """Text as it comes, or any JSON object."""

    type: Literal["text", "json_object"]


class JsonSchema(Body):
    """A schema, with a name."""

    name: Name = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatRequest(Generation):
    """A conversation to go on with, by the model's own chat template."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Tokens | None = None
    chat_template_kwargs: Annotated[dict[Name, Any], Field(max_length=64)] | None = Field(
        default=None, description="For the model's chat template: enable_thinking, for instance."
    )
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    logprobs: Literal[False] | None = False
    parallel_tool_calls: Unused = None
    reasoning_effort: Unused = None
    verbosity: Unused = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None


class EmbeddingRequest(Body):
    """Texts to be turned into vectors, by the base model alone."""

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)
        ]
    )
    model: Name = "base"
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: None = None
    user: Unused = None


class RouteRequest(Routed):
    """A prompt or a conversation whose route is wanted, without an answer."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] | None = None


class ErrorDetail(BaseModel):
    """What is wrong, in OpenAI's shape; `problems` and `hint` are ours."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    problems: list[str] = Field(default_factory=list)
    hint: str = ""


class ErrorBody(BaseModel):
    """The body of every answer from 400 on."""

    error: ErrorDetail
