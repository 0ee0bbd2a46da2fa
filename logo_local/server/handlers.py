"""Translate requests into engine calls: weights, options, and methods.

Each function here returns a worker's work: a function from an engine to the items it yields. Only
the engine looks up adapter names, because its pool is always up to date with the folder.
"""

from __future__ import annotations

import base64
import copy
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..completions import Engine, Sampling, has_chat_template
from ..request_model import LORA_WITHOUT_ROUTE, MAX_SEED, RoutingChoice, plain_messages
from ..routing.settings import Routing
from .failures import RequestError
from .schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Generation,
    NamedTool,
    Routed,
    RouteRequest,
    SchemaFormat,
)
from .structured import Patience, any_json, grammar_for
from .workers import Work

AUTO, BASE, ONE = "auto", "base", "base:"
_SEEDS = MAX_SEED + 1

_TOKEN = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)


def is_known(model: str) -> bool:
    """Whether this can be a model name of this server; adapters may be added and removed."""
    return model in (AUTO, BASE) or model.startswith(ONE)


def weights_of(request: Routed) -> Mapping[str, float] | None:
    """The weights in the request, empty for the base alone; None if it is to be routed."""
    if request.model != AUTO and (request.lora is not None or request.logo is not None):
        raise RequestError(
            f"model {request.model!r} and lora or logo contradict each other",
            param="model",
            hint='say "model": "auto"',
        )
    if request.lora is not None:
        if request.logo is not None:
            raise RequestError(LORA_WITHOUT_ROUTE, param="logo")
        return request.lora
    if request.model == AUTO:
        return None
    if request.model == BASE:
        return {}
    if request.model.startswith(ONE):
        return {request.model.removeprefix(ONE): 1.0}
    raise RequestError(
        f"there is no model {request.model!r}",
        status=404,
        code="model_not_found",
        param="model",
        hint="models are auto, base, and base:NAME for one adapter; /v1/models lists them",
    )


def _routing(request: Routed) -> Routing:
    """The routing settings for one request."""
    return (request.logo or RoutingChoice()).routing(weights_of(request))


def _routed(request: Routed) -> dict[str, Any]:
    """The routing option of a call; empty if the request has none."""
    routing = _routing(request)
    return {"routing": routing} if routing else {}


def _options(request: Generation, defaults: Sampling) -> dict[str, Any]:
    """The request's options under llama_cpp's names, with the server's defaults.

    The server's max_tokens is also the upper limit for requests.
    """
    if request.stream and (request.n or 1) > 1:
        raise RequestError("several answers (n) cannot be streamed", param="n")
    options = defaults.options() | request.sampling()
    if request.top_k is not None:
        options["top_k"] = request.top_k
    if "seed" in options:
        options["seed"] %= _SEEDS
    wanted = getattr(request, "max_completion_tokens", None) or request.max_tokens
    if wanted is None or wanted < 0:
        wanted = defaults.max_tokens
    options["max_tokens"] = min(wanted, defaults.max_tokens)
    options["stream"] = bool(request.stream)
    if options["temperature"] > 0:  # llama_cpp would continue from the last request's seed
        options.setdefault("seed", secrets.randbelow(_SEEDS))
    return options


def _bias(llm: Engine, request: Generation) -> dict[str, Any]:
    """The bias with validated token ids: llama_cpp would write to any memory address."""
    if not request.logit_bias:
        return {}
    bias = {}
    for token, value in request.logit_bias.items():
        if not _TOKEN.fullmatch(token) or int(token) >= llm.n_vocab():
            raise RequestError(
                f"logit_bias names the token {token[:20]!r}, and there are {llm.n_vocab()}",
                param="logit_bias",
            )
        bias[int(token)] = value
    return {"logit_bias": bias}


def completion(request: CompletionRequest, defaults: Sampling) -> Work:
    """Yields the chunks of a stream, or one whole completion."""
    options = _options(request, defaults) | _routed(request)
    if request.logprobs is not None:
        options["logprobs"] = request.logprobs
    prompt = request.prompt
    if isinstance(prompt, list) and isinstance(prompt[0], str):
        prompt = prompt[0]

    def work(llm: Engine) -> Iterator[Any]:
        if isinstance(prompt, list):
            _check_tokens(llm, prompt)
        bias = _bias(llm, request)
        return _generate(
            llm,
            request.n or 1,
            lambda i: llm.create_completion(prompt, **_sampled(options, i), **bias),
        )

    return work


def chat(request: ChatRequest, defaults: Sampling) -> Work:
    """Yields the chunks of a stream, or one whole chat completion."""
    options = _options(request, defaults) | _routed(request)
    options["messages"] = plain_messages(request.messages)
    structure = _structure(request)
    options |= structure | _logprobs(request)
    if structure and request.repeat_penalty is None:
        options.pop("repeat_penalty", None)  # brackets and names repeat in JSON and in calls
    if request.chat_template_kwargs:
        options["chat_template_kwargs"] = request.chat_template_kwargs

    def work(llm: Engine) -> Iterator[Any]:
        _check_template(llm)
        bias = _bias(llm, request)
        if "grammar" in options:
            llm.should_stop = Patience(llm)
        return _generate(
            llm,
            request.n or 1,
            lambda i: llm.create_chat_completion(**_sampled(options, i), **bias),
        )

    return work


def _logprobs(request: ChatRequest) -> dict[str, Any]:
    """The options for log probabilities; RequestError if they are not available."""
    if not request.logprobs:
        if request.top_logprobs is not None:
            raise RequestError("top_logprobs needs logprobs", param="top_logprobs")
        return {}
    if request.tools:
        raise RequestError(
            "logprobs cannot be combined with tools: the text of a call is not returned as tokens",
            param="logprobs",
        )
    return {"logprobs": True, "top_logprobs": request.top_logprobs or 0}


def _sampled(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The options for one of several answers, each with its own seed."""
    if not number or "seed" not in options:
        return dict(options)
    return {**options, "seed": (options["seed"] + number) % _SEEDS}


def _several(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine answers to one request; the prompt tokens count once."""
    whole = answers[0]
    whole["choices"] = [
        {**choice, "index": i} for i, one in enumerate(answers) for choice in one["choices"]
    ]
    usage = whole["usage"]
    usage["completion_tokens"] = sum(one["usage"]["completion_tokens"] for one in answers)
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return whole


def _generate(llm: Engine, n: int, call: Callable[[int], Any]) -> Iterator[Any]:
    """The result of `call`: its chunks, its answer, or `n` answers combined."""
    if n > 1:
        found = []
        for i in range(n):
            found.append(copy.deepcopy(call(i)))
            if llm.should_stop():
                break
        yield _several(found)
        return
    result = call(0)
    if isinstance(result, dict):
        yield result
        return
    for i, chunk in enumerate(result):
        if i == 0 and llm.last_route is not None:  # to show it with the answer
            chunk.setdefault("logo", {"route": llm.last_route.as_dict()})
        yield chunk


def free_tools(request: ChatRequest) -> tuple[str, ...]:
    """The names of the tools that the model may call."""
    if request.tool_choice not in (None, "auto"):
        return ()
    return tuple(tool.function.name for tool in request.tools or ())


def forced_tool(request: ChatRequest) -> str:
    """The name of the tool that must be called; empty if there is none."""
    if isinstance(request.tool_choice, NamedTool):
        return request.tool_choice.function.name
    required = request.tool_choice == "required" and request.tools
    return required[0].function.name if required else ""


def _structure(request: ChatRequest) -> dict[str, Any]:
    """Tools and formats as llama_cpp accepts them; RequestError for unsupported ones."""
    wanted = request.response_format
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    choice = request.tool_choice
    if choice not in (None, "none", "auto") and not tools:
        raise RequestError("tool_choice asks for a call, but there are no tools", param="tools")
    if choice == "required":
        if len(tools) > 1:
            raise RequestError(
                "with several tools the one to be called must be named", param="tool_choice"
            )
        choice = NamedTool.model_validate({"type": "function", "function": {"name": _name(tools)}})
    structure: dict[str, Any] = {}
    if isinstance(choice, NamedTool):
        name = choice.function.name
        schema = next((t["function"]["parameters"] for t in tools if _name([t]) == name), None)
        if schema is None:
            raise RequestError(f"there is no tool {name!r}", param="tool_choice")
        # llama_cpp would create its own grammar: request the arguments as text instead.
        grammar = grammar_for(schema, f"tools[{name!r}].function.parameters")
        structure = {"tools": tools, "tool_choice": "auto", "grammar": grammar}
    elif tools and choice != "none":
        structure = {"tools": tools, "tool_choice": "auto"}
    if wanted is None or wanted.type == "text":
        return structure
    if isinstance(choice, NamedTool):
        raise RequestError("a call has a format of its own", param="response_format")
    if isinstance(wanted, SchemaFormat):
        schema = wanted.json_schema.schema_
        structure["grammar"] = grammar_for(schema, "response_format.json_schema.schema")
    else:
        structure["grammar"] = any_json()
    return structure


def _name(tools: list[dict[str, Any]]) -> str:
    return str(tools[0]["function"]["name"])


def route(request: RouteRequest) -> Work:
    """Yields the route and its timings, as `logo-local score --json` prints them."""
    weights = weights_of(request)
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("give either a prompt or messages", param="prompt")
    if weights is not None:
        raise RequestError('only "model": "auto" has a route to be found', param="model")
    messages = None if request.messages is None else plain_messages(request.messages)

    def work(llm: Engine) -> Iterator[Any]:
        if messages is not None:
            _check_template(llm)
        prompt = request.prompt if messages is None else messages
        found = llm.route(prompt, routing=_routing(request))
        yield found, dict(llm.timings_ms)

    return work


def embedding(request: EmbeddingRequest) -> Work:
    """Yields one vector per text, and the total number of tokens."""
    if request.model != BASE:
        raise RequestError(
            f"embeddings are made by the base model alone, not by {request.model!r}",
            status=404,
            code="model_not_found",
            param="model",
            hint='say "model": "base"',
        )
    texts = [request.input] if isinstance(request.input, str) else request.input

    def work(llm: Engine) -> Iterator[Any]:
        vectors, n_tokens = [], 0
        for text in texts:
            if llm.should_stop():
                raise RequestError("the time was over", status=503, code="stopped")
            (vector,), n = llm.embeddings([text])
            vectors.append(_encoded(vector, request.encoding_format))
            n_tokens += n
        yield vectors, n_tokens

    return work


def _encoded(vector: Any, encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return [float(number) for number in vector]


def rescan(llm: Engine) -> Iterator[Any]:
    """Yields the changes in the folder."""
    yield llm.pool.rescan()


def _check_template(llm: Engine) -> None:
    if not has_chat_template(llm):
        raise RequestError(
            "the model's file brings no chat template", hint="use /v1/completions instead"
        )


def _check_tokens(llm: Engine, tokens: list[Any]) -> None:
    highest = max(tokens)
    if highest >= llm.n_vocab():
        raise RequestError(
            f"there is no token {highest}: the model has {llm.n_vocab()}", param="prompt"
        )
