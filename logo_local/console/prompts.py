"""Find the prompt, and print messages before it is answered."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import config
from ..completions import Engine
from ..files.text_file import decoded, read_text
from .terminal import UsageError, aside, check_text, is_piped


def model_and_prompt(
    ctx: click.Context, model: str | None, prompt: str | None, given: Mapping[str, Any]
) -> tuple[str, str | None]:
    """The model, and the prompt if there is one, from arguments and options.

    The first argument is the prompt if --model is given, or if a model is configured and the
    argument does not look like one. UsageError if there is no model, or more than one prompt.
    """
    usual = _usual_model(given)
    set_for_good = ctx.get_parameter_source("default_model") is not ParameterSource.COMMANDLINE
    if usual is not None and not (set_for_good and (prompt is not None or _is_model(model))):
        if prompt is not None:
            raise UsageError("--model is given, so only one argument is left, PROMPT", "quote it")
        model, prompt = usual, model
    prompts = [prompt, given.get("given_prompt"), given.get("file")]
    if sum(one is not None for one in prompts) > 1:
        raise UsageError("several prompts given", "give PROMPT, --prompt or --file")
    if given.get("file") is not None:
        prompt = text_in(given["file"])
    elif prompt is None:
        prompt = given.get("given_prompt")
    return named_model(ctx, model, given), prompt


def _usual_model(given: Mapping[str, Any]) -> str | None:
    model = given["default_model"]
    return None if model is None else os.path.expanduser(model)


def _is_model(argument: str | None) -> bool:
    """Whether an argument is a model and not a prompt."""
    if argument is None:
        return False
    return argument == "demo" or argument.lower().endswith(".gguf") or os.path.isfile(argument)


def named_model(ctx: click.Context, model: str | None, given: Mapping[str, Any]) -> str:
    """`model`, or the one from --model or the config file; UsageError if there is none."""
    model = _usual_model(given) if model is None else model
    if model is None:
        raise UsageError(
            "no model given",
            f"name a GGUF file or the demo, {ctx.command_path} demo, or set one for good: "
            f'model = "model.gguf" in {config.config_file()}',
        )
    return model


def text_in(path: Path) -> str:
    """The text of a file without trailing line breaks; UsageError if it cannot be read."""
    try:
        return read_text(path).replace("\r\n", "\n").rstrip("\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "give a text file") from error
    except ValueError as error:
        raise UsageError(f"{path} cannot be used: {error}", "give a file in UTF-8") from error


def system_text(ctx: click.Context, given: Mapping[str, Any]) -> str | None:
    """The system message of --system or --system-file; the command line has priority."""
    text, path = given["system"], given["system_file"]
    typed = {
        name: ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in ("system", "system_file")
    }
    if all(typed.values()):
        raise UsageError("--system and --system-file cannot go together", "give one of them")
    if path is not None and not typed["system"] and (text is None or typed["system_file"]):
        return text_in(path)
    if text:
        check_text(text, "--system")
    return text if text is None else str(text)


def prompt_text(prompt: str | None) -> str:
    """Standard input up to its last line break if it is piped, then the argument."""
    piped = "" if prompt is not None and not is_piped() else _standard_input()
    if prompt is not None:
        check_text(prompt, "the prompt")
    parts = [part for part in (piped, prompt) if part and part.strip()]
    if not parts:
        raise UsageError("the prompt is empty", "give it as an argument, or on standard input")
    return "\n\n".join(parts)


def _standard_input() -> str:
    if sys.stdin is None:
        return ""
    try:
        return decoded(sys.stdin.buffer.read()).replace("\r\n", "\n").rstrip("\r\n")
    except ValueError as error:
        raise UsageError(f"standard input cannot be used: {error}", "pipe text in UTF-8") from error


def announce_self_profiles(llm: Engine, given: Mapping[str, Any]) -> None:
    """Print which adapters have no example prompts, or what the first prompt has to wait for."""
    missing = llm.without_profile()
    if not missing:
        return
    n = len(missing)
    who = f"{n} adapters have" if n > 1 else f"{missing[0]} has"
    if given["self_profile"] is not True:
        aside(
            f"{who} no example prompts and {'are' if n > 1 else 'is'} never selected; add some: "
            f"logo-local profile {missing[0] if n == 1 else 'NAME'} --prompts FILE",
        )
    else:
        aside(
            f"{who} no example prompts: {'each' if n > 1 else 'it'} generates some first, "
            "which takes seconds to minutes (--no-self-profile skips it)",
        )
