"""The options shared by several commands, each declared once.

Every option with an environment variable can also be set in config.toml; click validates it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from .. import config
from ..routing import registry, settings
from ..rpc import parse_server
from .terminal import set_volume

F = TypeVar("F", bound=Callable[..., Any])

PREFIX = "LOGO_LOCAL_"
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")  # convert.OUTTYPES; a test compares them


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in recent releases
    """A number of bytes, such as 512M or 2G, as `parse` reads it, or "auto", for the engine."""

    name = "size"

    def __init__(self, parse: Callable[[str | int], int]) -> None:
        self.parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """The number of bytes, or "auto"; click's usage error for anything else."""
        try:
            return value if value == "auto" else self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Several(click.ParamType):  # type: ignore[type-arg]  # generic only in recent releases
    """Values of one type, separated by commas, without duplicates: a tuple."""

    name = "list"

    def __init__(self, kind: click.ParamType) -> None:  # type: ignore[type-arg]
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The values in order; click's usage error if one is invalid."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        return tuple(dict.fromkeys(self.kind.convert(part, param, ctx) for part in parts))


class RpcAddress(click.ParamType):  # type: ignore[type-arg]  # generic only in recent releases
    """The address of an RPC server, HOST:PORT."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address; click's usage error for anything else."""
        try:
            return str(parse_server(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def shared(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option that can also be set by LOGO_LOCAL_<NAME> and in config.toml."""
    flag = names[0].partition("/")[0]  # for "--this/--no-this" the first
    variable = PREFIX + flag.lstrip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_default=True, **settings)


# Parsers of values that are neither choices nor flags.
_TYPES: Mapping[str, Any] = {
    "top_k": click.IntRange(1),
    "layer": int,
    "keep_route": click.FloatRange(min=0),
    "adapter_memory": Size(config.parse_memory),
    "cache_memory": Size(config.parse_cache_memory),
}


def _routing(name: str, *, hidden: bool = False) -> Callable[[F], F]:
    """The option of a routing setting, with the default, values and help defined there."""
    option = settings.OPTIONS[name]
    flag, kind = f"--{name.replace('_', '-')}", _TYPES.get(name)
    if name == "signal":
        kind = click.Choice(registry.names(everywhere=True))
    elif {True, False} <= set(option.metadata["choices"]):
        flag, kind = f"{flag}/--no-{flag[2:]}", None
    elif kind is None:
        kind = click.Choice(option.metadata["choices"])
    # A flag that is not given may have a third meaning.
    given = option.default if kind is not None or isinstance(option.default, bool) else None
    return shared(
        flag,
        type=kind,
        default=given,
        callback=lambda _ctx, _option, value: option.default if value is None else value,
        help=option.metadata["help"],
        hidden=hidden,
    )


FOLDER = click.Path(path_type=Path)


def _set_volume(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        set_volume(-1 if option.name == "quiet" else 1)
        ctx.call_on_close(lambda: set_volume(0))


def _verbose(shows: str) -> Callable[[F], F]:
    names = ("-v", "--verbose")
    return click.option(*names, is_flag=True, expose_value=False, callback=_set_volume, help=shows)


VERBOSE = _verbose("Also show what is prepared, and timings.")
VERBOSE_SERVER = _verbose("Log each request on standard error.")
QUIET = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_set_volume,
    help="Show answers, warnings and errors only.",
)


def _complete_model(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    names = [CompletionItem("demo")] if incomplete and "demo".startswith(incomplete) else []
    return names or [CompletionItem(incomplete, type="file")]


MODEL_ARGUMENT = click.argument("model", required=False, shell_complete=_complete_model)
MODEL = shared(
    "--model",
    "-m",
    "default_model",
    metavar="MODEL",
    shell_complete=_complete_model,
    help="The model, instead of the argument MODEL; useful in config.toml.",
)
PROMPT = (
    click.option("-p", "--prompt", "given_prompt", metavar="TEXT", help="Same as PROMPT."),
    click.option("-f", "--file", type=FOLDER, metavar="FILE", help="Read PROMPT from a file."),
)

RAW = click.option("--raw", is_flag=True, help="Do not apply the chat template.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
EXPLAIN = shared("--explain", is_flag=True, help="Show all scores on standard error.")
ADAPTERS = shared(
    "--adapters",
    type=FOLDER,
    metavar="DIR",
    help="Folder of LoRA adapters; required unless MODEL is demo.",
)
SIGNAL, TOP_K = _routing("signal"), _routing("top_k")
PAST = _routing("past", hidden=True)
LLAMA = (
    shared(
        "--ctx-size",
        "-c",
        type=click.IntRange(1),
        help="Context length in tokens  [default: the model's, at most 4096]",
    ),
    shared(
        "--threads",
        "-t",
        type=click.IntRange(1),
        help="CPU threads  [default: all for prompts, half for answers]",
    ),
    shared(
        "--gpu-layers",
        "--n-gpu-layers",
        "-ngl",
        "n_gpu_layers",
        type=click.IntRange(-1),
        help="Number of layers on the GPU; 0: CPU only  [default: all, if there is a GPU]",
    ),
)
RPC = (
    shared(
        "--rpc",
        type=Several(RpcAddress()),
        metavar="HOST:PORT[,HOST:PORT...]",
        help="Run the model on these RPC servers of llama.cpp.",
        hidden=True,
    ),
    shared(
        "--rpc-public",
        is_flag=True,
        help="Allow RPC servers outside of private networks.",
        hidden=True,
    ),
)
# Settings of the engine that do not depend on routes.
ENGINE = (
    _routing("mixture"),
    _routing("adapter_memory"),
    *LLAMA,
    *RPC,
    _routing("mixture_type", hidden=True),
    _routing("self_profile", hidden=True),
)
RESEARCH = tuple(_routing(n) for n, o in settings.OPTIONS.items() if not o.metadata["common"])
SEED = shared("--seed", "-s", type=click.IntRange(1), help="Seed for sampling  [default: random]")
# For a server, where answers must not depend on earlier requests.
ROUTES_ALONE = (ADAPTERS, SIGNAL, TOP_K, *ENGINE, _routing("cache_memory", hidden=True), SEED)
ROUTES = (*ROUTES_ALONE, PAST)
ROUTING = (*ROUTES, EXPLAIN, RAW, JSON)
SAMPLING = (
    shared(
        "--max-tokens", "-n", type=click.IntRange(1), default=512, help="Maximum tokens per answer."
    ),
    shared("--temp", type=click.FloatRange(0), default=0.0, help="Temperature; 0 is greedy."),
    shared(
        "--top-p",
        type=click.FloatRange(0, 1),
        default=0.95,
        help="Sample from the most likely tokens with this total probability.",
        hidden=True,
    ),
    shared(
        "--min-p",
        type=click.FloatRange(0, 1),
        default=0.05,
        help="Skip tokens below this fraction of the top token's probability.",
        hidden=True,
    ),
    shared(
        "--repeat-penalty",
        type=click.FloatRange(0, min_open=True),
        default=1.1,
        help="Values above 1 make repeated tokens less likely.",
        hidden=True,
    ),
)


class JsonObject(click.ParamType):  # type: ignore[type-arg]  # generic only in recent releases
    """A JSON object, as a dictionary."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """The dictionary; click's usage error for anything else."""
        try:
            found = value if isinstance(value, dict) else json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self.fail(f"{value!r} is not a JSON object", param, ctx)
        return found


TEMPLATE_KWARGS = shared(
    "--chat-template-kwargs",
    type=JsonObject(),
    metavar="JSON",
    help="""Variables for the chat template, such as '{"enable_thinking": false}'.""",
    hidden=True,
)
ESCAPE_SPECIAL = shared(
    "--escape-special",
    is_flag=True,
    help="Insert spaces into control tokens in messages, such as <|im_end|>, to disable them.",
    hidden=True,
)
BASE_ONLY = shared(
    "--base-only", is_flag=True, help="Answer with the base model; no adapters are read."
)
SYSTEM = (
    shared("--system", "-sys", metavar="TEXT", help="System message."),
    shared(
        "--system-file",
        "-sysf",
        type=FOLDER,
        metavar="FILE",
        help="Read the system message from a file.",
        hidden=True,
    ),
)


def options(*several: Callable[[F], F]) -> Callable[[F], F]:
    """Add all of these options to a command, in this order."""

    def add(function: F) -> F:
        for option in reversed(several):
            function = option(function)
        return function

    return add


def rare(command: click.Command) -> str:
    """A line that names the options hidden from `--help`; "" if there are none."""
    hidden = [p for p in command.params if isinstance(p, click.Option) and p.hidden]
    flags = [(p.secondary_opts or p.opts)[0] for p in hidden]
    return f"Rarely needed: {', '.join(flags)} (docs/commands.md)." if flags else ""


def settable(command: click.Command) -> dict[str, click.Parameter]:
    """The parameters that the environment and the config file can set, by flag: "top_k"."""
    return {p.opts[0].lstrip("-").replace("-", "_"): p for p in command.params if p.envvar}


def unknown_variables(group: click.Group) -> list[str]:
    """Environment variables that look like settings but are unknown, perhaps misspelt."""
    known = {p.envvar for command in group.commands.values() for p in command.params}
    known.add(config.HOME_VARIABLE)
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def converter(parameter: click.Parameter) -> Callable[[object], Any]:
    """click's conversion of a value, outside a command line; ValueError if it fails.

    For an option that can be repeated the value is a list, of which each item is converted.
    """
    flag = isinstance(parameter, click.Option) and parameter.is_flag

    def convert(value: object) -> Any:
        if isinstance(value, bool) != flag or not isinstance(value, str | int | float):
            must = "true or false, without quotes" if flag else "one text or number"
            raise ValueError(f"it must be {must}")
        try:
            result: object = parameter.type.convert(value, parameter, None)
        except click.BadParameter as error:
            raise ValueError(error.message) from error
        if isinstance(result, float) and not math.isfinite(result):
            raise ValueError(f"{result} is not a number that can be used")
        return result.expanduser() if isinstance(result, Path) else result

    def convert_all(values: object) -> tuple[Any, ...]:
        if not isinstance(values, list):
            raise ValueError('it must be a list: ["one", "another"]')
        return tuple(convert(value) for value in values)

    several = isinstance(parameter, click.Option) and parameter.multiple
    return convert_all if several else convert


def checks(group: click.Group) -> dict[str, Callable[[object], object]]:
    """For each setting of the config file, click's own conversion of its value."""
    return {
        name: converter(parameter)
        for command in group.commands.values()
        for name, parameter in settable(command).items()
    }


def declared(*several: Callable[[click.Command], click.Command]) -> dict[str, click.Option]:
    """These options by their long names without leading hyphens, independent of a command."""
    command = click.Command("none")
    for option in several:
        option(command)
    return {
        param.opts[0].lstrip("-"): param
        for param in command.params
        if isinstance(param, click.Option)
    }
