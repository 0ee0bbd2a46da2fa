"""Types of the options of llama_cpp's completions, for editors and mypy.

A test compares them with llama_cpp's signatures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

from llama_cpp import LlamaGrammar, LogitsProcessorList, StoppingCriteriaList
from llama_cpp.llama_types import (
    ChatCompletionFunction,
    ChatCompletionRequestFunctionCall,
    ChatCompletionRequestResponseFormat,
    ChatCompletionTool,
    ChatCompletionToolChoiceOption,
)

F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Options of both kinds of completion; `top_k` counts tokens."""

    max_tokens: int | None
    temperature: float
    top_p: float
    min_p: float
    typical_p: float
    top_k: int
    stop: str | list[str] | None
    stream: bool
    seed: int | None
    frequency_penalty: float
    presence_penalty: float
    repeat_penalty: float
    tfs_z: float
    mirostat_mode: int
    mirostat_tau: float
    mirostat_eta: float
    model: str | None
    logits_processor: LogitsProcessorList | None
    grammar: LlamaGrammar | None
    logit_bias: dict[int, float] | None


class CompletionOptions(Options, total=False):
    """Options of `create_completion`."""

    suffix: str | None
    logprobs: int | None
    echo: bool
    stopping_criteria: StoppingCriteriaList | None


class ChatOptions(Options, total=False):
    """Options of `create_chat_completion`."""

    functions: list[ChatCompletionFunction] | None
    function_call: ChatCompletionRequestFunctionCall | None
    tools: list[ChatCompletionTool] | None
    tool_choice: ChatCompletionToolChoiceOption | None
    response_format: ChatCompletionRequestResponseFormat | None
    logprobs: bool | None
    top_logprobs: int | None


def like(parent: Callable[..., Any]) -> Callable[[F], F]:
    """Add the parameters of `parent`, as keywords, to the signature of the decorated method.

    For help(), and for editors that inspect live objects.
    """

    def show(function: F) -> F:
        own = inspect.signature(function)
        _self, _prompt, *options = inspect.signature(parent).parameters.values()
        keywords = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
        named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__signature__ = own.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
        return function

    return show
