"""The fields of the server's requests: OpenAI's, in addition to those of `request_model`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ..request_model import (
    Body,
    Messages,
    Name,
    RoutingChoice,
    SamplingChoice,
    Text,
    Tokens,
    Unused,
    Weights,
)

MAX_INPUTS = 64  # texts in one request for embeddings
MAX_CHOICES = 16  # answers to one request
MAX_TOP = 20  # alternatives for each token, with their log probabilities


class Routed(Body):
    """How to route the request: `model` is auto, base, or base:NAME for one adapter."""

    model: Name = "auto"
    lora: Weights | None = Field(default=None, description="Adapters by name with their weights.")
    logo: RoutingChoice | None = None
    user: Unused = None


class StreamOptions(Body):
    """Additional content of a stream."""

    include_usage: bool = False
    include_obfuscation: Unused = None


class Generation(Routed, SamplingChoice):
    """How an answer is generated."""

    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Of tokens; that of adapters is logo.top_k."
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=1024, description="By token id, written as text."
    )
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
        Text
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Text], Field(min_length=1, max_length=1)]
    )
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = Field(
        default=None, description="How many of the most likely tokens, for each token."
    )
    suffix: None = None


class FunctionTool(Body):
    """A function that may be called."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None


class Tool(Body):
    """A function as a tool."""

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
    """Plain text, or any JSON object."""

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

    messages: Messages
    max_completion_tokens: Tokens | None = None
    chat_template_kwargs: Annotated[dict[Name, Any], Field(max_length=64)] | None = Field(
        default=None, description="For the model's chat template: enable_thinking, for instance."
    )
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    parallel_tool_calls: Unused = None
    reasoning_effort: Unused = None
    verbosity: Unused = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None


class EmbeddingRequest(Body):
    """Texts to be turned into vectors, by the base model alone."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    model: Name = "base"
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: None = None
    user: Unused = None


class RouteRequest(Routed):
    """A prompt or a conversation whose route is wanted, without an answer."""

    prompt: Text | None = None
    messages: Messages | None = None


class ErrorDetail(BaseModel):
    """An error in OpenAI's format, extended by `problems` and `hint`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    problems: list[str] = Field(default_factory=list)
    hint: str = ""


class ErrorBody(BaseModel):
    """The body of every answer from 400 on."""

    error: ErrorDetail
