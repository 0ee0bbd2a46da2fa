"""`logo-local score`: the route of a prompt, without an answer."""

from __future__ import annotations

from typing import Any

import click

from .. import chat
from ..completions import as_prompt
from ..console import report
from ..console.opening import open_by_options
from ..console.options import MODEL, MODEL_ARGUMENT, PROMPT, QUIET, ROUTING, VERBOSE, options
from ..console.prompts import announce_self_profiles, model_and_prompt, prompt_text
from ..console.terminal import UsageError, aside, err_console, print_json


@click.command()
@MODEL_ARGUMENT
@click.argument("prompt", required=False)
@options(MODEL, *PROMPT, *ROUTING, VERBOSE, QUIET)
@click.pass_context
def score(ctx: click.Context, /, model: str | None, prompt: str | None, **given: Any) -> None:
    """Show the route for PROMPT, without an answer.

    Each line has the name, weight and score of an adapter. Standard input, if it is piped, is put
    before PROMPT or replaces it.
    """
    model, prompt = model_and_prompt(ctx, model, prompt, given)
    if prompt is None and chat.is_terminal():
        raise UsageError("no prompt given", f'{ctx.command_path} {model} "the prompt"')
    text = prompt_text(prompt)
    llm = open_by_options(ctx, model, given)
    announce_self_profiles(llm, given)
    route = llm.route(as_prompt(llm, text, raw=given["raw"]))
    if given["as_json"]:
        print_json(report.score_json(route, llm.timings_ms))
    else:
        for line in report.score_lines(route):
            click.echo(line)
    if given["explain"]:
        console = err_console()
        console.print(report.explain_table(route, console.width))
    elif route.is_base and not given["as_json"]:
        aside(report.BASE_ALONE)
