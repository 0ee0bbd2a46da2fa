"""The command line: options in, an engine's answers out. Holds no logic of its own.

Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__, chat, config
from ..ask import SAMPLED, Answer, Engine, Prompt, Sampling, as_prompt, ask, stream
from ..bench.command import bench
from ..evaluation.command import evaluate
from ..files.text_file import decoded
from ..jsonl.command import JSONL, answer_lines
from ..server.command import serve
from . import report
from .background import asking_for
from .convert_command import BASE_OPTION, VERBOSE_OPTION, convert, read_base
from .opening import open_by_options, open_engine
from .options import (
    ESCAPE_SPECIAL,
    FOLDER,
    ROUTING,
    SAMPLING,
    SYSTEM,
    TEMPLATE_KWARGS,
    checks,
    options,
    settable,
    unknown_variables,
)
from .profile_command import profile
from .terminal import (
    CommandGroup,
    ProgressBar,
    UsageError,
    check_text,
    err_console,
    for_reader,
    is_piped,
    out_console,
    say,
    warnings_as_lines,
)

if TYPE_CHECKING:
    pass


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="logo-local")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """For every prompt, find the LoRA adapters that matter, blend them, and answer.

    MODEL is a GGUF file, or the word demo for the bundled model and its adapters. Options may
    also be set in the environment (LOGO_LOCAL_TOP_K=5) or in config.toml (top-k = 5); logo-local
    doctor says where that file lies. A flag wins over the environment, that over the file.
    """
    # Whoever calls with an object brings an engine of their own: tests do.
    ctx.obj = ctx.obj if ctx.obj is not None else open_engine
    for name in unknown_variables(cli):
        say(f"warning: {name} is set, but there is no such setting", "yellow")
    settings = config.load_config_file(config.config_file(), checks(cli))
    ctx.default_map = {
        name: {
            str(p.name): settings[flag] for flag, p in settable(command).items() if flag in settings
        }
        for name, command in cli.commands.items()
    }
    ctx.with_resource(warnings_as_lines())


def _prompt_text(prompt: str | None) -> str:
    """Standard input up to its last line break where it is piped, then the argument."""
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


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _explain(llm: Engine) -> None:
    if llm.last_route is not None:
        console = err_console()
        console.print(report.explain_table(llm.last_route, console.width))


@cli.command()
@click.argument("model")
@click.argument("prompt", required=False)
@options(*ROUTING, *SAMPLING, SYSTEM, ESCAPE_SPECIAL, TEMPLATE_KWARGS, JSONL)
@click.pass_context
def run(ctx: click.Context, /, model: str, prompt: str | None, **given: Any) -> None:
    """Answer PROMPT under the adapters that fit it.

    What is piped to standard input comes before PROMPT, or is the prompt. A terminal without PROMPT
    gets a chat.
    The answer goes to standard output as it comes; what was blended, to standard error.
    """
    sampling = Sampling(**{name: given[name] for name in SAMPLED})
    if given["jsonl"]:
        answer_lines(ctx, model, prompt, sampling, given)
        return
    if given["system"]:
        check_text(given["system"], "--system")
    talk = prompt is None and chat.is_terminal()
    if talk and given["as_json"]:
        raise UsageError("--json needs a prompt", "give it as an argument, or on standard input")
    text = "" if talk else _prompt_text(prompt)
    if talk and given["self_profile"]:
        given["self_profile"] = "kept"  # nobody waits for the rest: see below
    llm = open_by_options(ctx, model, given)
    if talk:
        with asking_for(llm, given):
            chat.chat(
                llm,
                replace(sampling, seed=given["seed"]),
                system=given["system"],
                explain=given["explain"],
                raw=given["raw"],
            )
        return
    _announce_asking(llm, given)
    asked = as_prompt(llm, text, raw=given["raw"], system=given["system"])
    if given["system"] and isinstance(asked, str):
        say("warning: --system has no effect without a chat template", "yellow")
    if given["as_json"]:
        answer = ask(llm, asked, sampling)
        _print_json(report.run_json(answer.text, answer.logo, answer.usage))
    else:
        _stream(llm, asked, sampling)
    if given["explain"]:
        _explain(llm)
    route = llm.last_route
    told = given["as_json"] or (given["explain"] and route is not None and route.is_base)
    if route is not None and not told:
        say(report.blend_line(route, err_console().width), "dim")


def _announce_asking(llm: Engine, given: Mapping[str, Any]) -> None:
    """Say what the first prompt will wait for; what is done of it stays done."""
    unasked = llm.unasked() if given["self_profile"] is True else []
    if unasked:
        n = len(unasked)
        who = f"{n} adapters have" if n > 1 else "1 adapter has"
        say(
            f"{who} no example prompts: {'each' if n > 1 else 'it'} is asked once what it is for, "
            "which takes seconds to minutes (--no-self-profile leaves it out)",
            "dim",
        )


def _stream(llm: Engine, prompt: Prompt, sampling: Sampling) -> None:
    answer = Answer()
    try:
        for piece in stream(llm, prompt, sampling, answer):
            click.echo(for_reader(piece), nl=False)
    finally:
        if answer.text and not answer.text.endswith("\n"):
            click.echo()


@cli.command()
@click.argument("model")
@click.argument("prompt", required=False)
@options(*ROUTING)
@click.pass_context
def score(ctx: click.Context, /, model: str, prompt: str | None, **given: Any) -> None:
    """Show the route of PROMPT, and generate nothing.

    Each line has an adapter's name, weight and score. What is piped to standard input comes before
    PROMPT, or is the prompt.
    """
    if prompt is None and chat.is_terminal():
        raise UsageError("no prompt given", f'{ctx.command_path} {model} "the prompt"')
    text = _prompt_text(prompt)
    llm = open_by_options(ctx, model, given)
    _announce_asking(llm, given)
    route = llm.route(as_prompt(llm, text, raw=given["raw"]))
    if given["as_json"]:
        _print_json(report.score_json(route, llm.timings_ms))
    else:
        for line in report.score_lines(route):
            click.echo(line)
    if given["explain"]:
        console = err_console()
        console.print(report.explain_table(route, console.width))
    elif route.is_base and not given["as_json"]:
        say(report.BASE_ALONE, "dim")
    elif route.strength < 1 and not given["as_json"]:
        say(report.strength_line(route), "dim")


@cli.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@BASE_OPTION
@VERBOSE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(folder: Path, base: str, verbose: bool, as_json: bool) -> None:
    """Say of each adapter in DIR whether it fits the base model, and why not.

    The exit code is 0 when all of them fit, 1 otherwise.
    """
    from ..files.pool import Pool

    model = read_base(base)
    with ProgressBar() as progress:
        pool = Pool.open(
            folder,
            model,
            cache=config.cache_dir(),
            progress=progress,
            on_problem=lambda _problem: None,  # they are in the table
            all_may_be_unfit=True,
        )
    rows = report.check_json(pool)
    if as_json:
        _print_json(rows)
    else:
        out_console().print(report.check_table(rows))
        for problem in pool.problems if verbose else ():
            for detail in problem.details:
                say(f"{problem.path.name}: {detail}")
        for hint in dict.fromkeys(problem.hint for problem in pool.problems if problem.hint):
            say(f"hint: {hint}")
    if pool.problems:
        raise click.exceptions.Exit(1)


cli.add_command(bench)
cli.add_command(convert)
cli.add_command(evaluate)
cli.add_command(profile)
cli.add_command(serve)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what is installed, and what works on this machine.

    The exit code is 1 when something that is needed does not work.
    """
    from . import doctor as examination

    findings = examination.examine()
    if as_json:
        _print_json([finding.as_dict() for finding in findings])
    else:
        console = out_console()
        for finding in findings:
            console.print(finding.line(), soft_wrap=True)
            if finding.hint:
                say(f"hint: {finding.hint}")
    if any(not finding.ok and finding.essential for finding in findings):
        raise click.exceptions.Exit(1)


def main() -> None:
    """The entry point of the program `logo-local`."""
    cli(prog_name="logo-local")


if __name__ == "__main__":
    main()
