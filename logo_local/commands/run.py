"""`logo-local run`: answer one prompt, chat, or answer JSON lines requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from .. import chat, config
from ..completions import SAMPLED, Answer, Engine, Prompt, Sampling, as_prompt, complete, stream
from ..console import report
from ..console.answers import AnswerStream
from ..console.background import self_profiles_in_background
from ..console.opening import open_by_options
from ..console.options import (
    BASE_ONLY,
    ESCAPE_SPECIAL,
    EXPLAIN,
    JSON,
    MODEL,
    MODEL_ARGUMENT,
    PROMPT,
    QUIET,
    RAW,
    ROUTES,
    SAMPLING,
    SYSTEM,
    TEMPLATE_KWARGS,
    VERBOSE,
    options,
)
from ..console.prompts import announce_self_profiles, model_and_prompt, prompt_text, system_text
from ..console.terminal import (
    UsageError,
    aside,
    err_console,
    is_verbose,
    print_json,
    say,
)
from .jsonl import JSONL, answer_lines
from .showcase import PROMPTS_FILE, read_examples

SUGGESTIONS = 3  # example prompts at the start of a chat with the demo


@click.command()
@MODEL_ARGUMENT
@click.argument("prompt", required=False)
@options(MODEL, *PROMPT, *SAMPLING[:1], BASE_ONLY, *ROUTES, *SAMPLING[1:])
@options(*SYSTEM, ESCAPE_SPECIAL, TEMPLATE_KWARGS)
@options(EXPLAIN, RAW, JSON, JSONL, VERBOSE, QUIET)
@click.pass_context
def run(ctx: click.Context, /, model: str | None, prompt: str | None, **given: Any) -> None:
    """Answer PROMPT with the adapters that match it, or start a chat.

    Standard input, if it is piped, is put before PROMPT or replaces it. Without both, a chat
    starts. MODEL can be left out if it is set in config.toml. The answer is streamed to standard
    output; the selected adapters are printed on standard error.
    """
    model, prompt = model_and_prompt(ctx, model, prompt, given)
    sampling = Sampling(**{name: given[name] for name in SAMPLED})
    if given["jsonl"]:
        answer_lines(ctx, model, prompt, sampling, given)
        return
    given["system"] = system_text(ctx, given)
    talk = prompt is None and chat.is_terminal()
    if talk and given["as_json"]:
        raise UsageError("--json needs a prompt", "give it as an argument, or on standard input")
    text = "" if talk else prompt_text(prompt)
    if talk and given["self_profile"]:
        given["self_profile"] = "kept"  # others are made in the background, see below
    llm = open_by_options(ctx, model, given)
    if talk:
        with self_profiles_in_background(llm, given) as background:
            chat.chat(
                llm,
                replace(sampling, seed=given["seed"]),
                system=given["system"],
                explain=given["explain"],
                raw=given["raw"],
                background=background,
                suggestions=_demo_prompts() if model == "demo" else (),
            )
        return
    announce_self_profiles(llm, given)
    asked = as_prompt(llm, text, raw=given["raw"], system=given["system"])
    if given["system"] and isinstance(asked, str):
        say("warning: --system has no effect without a chat template", "yellow")
    if given["as_json"]:
        answer = complete(llm, asked, sampling)
        print_json(report.run_json(answer.text, answer.logo, answer.usage))
    else:
        _stream(llm, asked, sampling)
    if given["explain"]:
        _explain(llm)
    route = llm.last_route
    told = given["as_json"] or (given["explain"] and route is not None and route.is_base)
    if route is not None and not told:
        aside(report.blend_line(route, err_console().width))
    if is_verbose():
        say(report.answer_line(llm.timings_ms, llm.usage), "dim")


def _demo_prompts() -> list[str]:
    """A few example prompts for the demo's adapters."""
    examples = read_examples(config.demo_folder() / PROMPTS_FILE)
    return [example.context for example in examples[:SUGGESTIONS]]


def _explain(llm: Engine) -> None:
    if llm.last_route is not None:
        console = err_console()
        console.print(report.explain_table(llm.last_route, console.width))


def _stream(llm: Engine, prompt: Prompt, sampling: Sampling) -> None:
    answer, shown = Answer(), AnswerStream()
    try:
        for piece in stream(llm, prompt, sampling, answer):
            shown.write(piece)
    finally:
        shown.end()
    if not answer.text.strip():
        aside("The answer is empty")
