"""The command line: options in, an engine's answers out. Holds no logic of its own.

Data goes to standard output, everything else to standard error. Each shared option is declared
once, in `SHARED`; whatever has an environment variable can also stand in config.toml.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__, chat, config, report
from .ask import Answer, Engine, Prompt, Sampling, as_prompt, ask, stream
from .errors import ConversionError, LogoError, ModelError
from .terminal import (
    ErrorsAsText,
    ProgressBar,
    UsageError,
    err_console,
    out_console,
    say,
    warnings_as_lines,
)

if TYPE_CHECKING:
    from .base_model import BaseModel

F = TypeVar("F", bound=Callable[..., Any])
OUTTYPES = ("f32", "f16", "bf16", "q8_0")  # convert.OUTTYPES, without importing numpy for --help


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in recent releases
    """A number of bytes, written like 512M or 2G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes; click's usage error for anything else."""
        try:
            return config.parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _shared(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option that can also be set by LOGO_LOCAL_<NAME> and in config.toml."""
    variable = "LOGO_LOCAL_" + names[0].lstrip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_default=True, **settings)


_FOLDER = click.Path(path_type=Path)

ROUTING = (
    _shared(
        "--adapters", type=_FOLDER, help="The folder of adapters; needed unless MODEL is demo."
    ),
    _shared(
        "--signal",
        type=click.Choice(["auto", "norm", "entropy"]),
        default="auto",
        help="How an adapter's score is made.",
    ),
    _shared("--top-k", type=click.IntRange(1), default=3, help="The most adapters to blend."),
    _shared(
        "--probe",
        type=click.Choice(["one-pass", "each"]),
        default="one-pass",
        help="One pass of the base model for all, or one evaluation with each adapter.",
    ),
    _shared("--layer", type=int, default=-1, help="The block to probe; -1 is the last."),
    _shared(
        "--tap",
        type=click.Choice(["input", "residual"]),
        default="input",
        help="Read the projection's input, or the state before the block's norm.",
    ),
    _shared(
        "--mixture",
        type=click.Choice(["auto", "scales"]),
        default="auto",
        help="How llama.cpp blends the adapters.",
    ),
    _shared(
        "--adapter-memory",
        type=Size(),
        default="2G",
        help="The most that loaded adapters may take.",
    ),
    _shared("--n-gpu-layers", type=int, default=0, help="Blocks on the GPU; -1 for all."),
    _shared("--threads", type=click.IntRange(1), help="CPU threads  [default: half the cores]"),
    _shared(
        "--ctx-size",
        type=click.IntRange(1),
        help="Context length in tokens  [default: the model's, at most 4096]",
    ),
    _shared("--seed", type=int, help="Makes sampling repeatable  [default: random]"),
    _shared("--explain", is_flag=True, help="Show every adapter's score, on standard error."),
    click.option("--raw", is_flag=True, help="Send the prompt as it is, without a chat template."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
SAMPLING = (
    _shared("--max-tokens", type=click.IntRange(1), default=512, help="The longest answer."),
    _shared("--temp", type=click.FloatRange(0), default=0.0, help="Temperature; 0 is greedy."),
)


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@click.group(cls=ErrorsAsText, context_settings={"help_option_names": ["-h", "--help"]})
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
    settings = config.load_config_file(config.config_file(), _checks())
    ctx.default_map = {
        name: {key: value for key, value in settings.items() if key in _settable(command)}
        for name, command in cli.commands.items()
    }
    ctx.with_resource(warnings_as_lines())


def _settable(command: click.Command) -> dict[str, click.Parameter]:
    return {p.name: p for p in command.params if p.envvar and p.name}


def _checks() -> dict[str, Callable[[object], object]]:
    """For each setting of the config file, click's own conversion of its value."""

    def check(parameter: click.Parameter) -> Callable[[object], object]:
        def convert(value: object) -> object:
            scalar = isinstance(value, str | int | float)
            if not scalar or isinstance(value, bool) != (parameter.type is click.BOOL):
                raise ValueError(
                    "must be true or false, without quotes"
                    if parameter.type is click.BOOL
                    else "must be one text or number"
                )
            try:
                result: object = parameter.type.convert(value, parameter, None)
            except click.BadParameter as error:
                raise ValueError(error.message) from error
            return result.expanduser() if isinstance(result, Path) else result

        return convert

    return {
        name: check(parameter)
        for command in cli.commands.values()
        for name, parameter in _settable(command).items()
    }


def open_engine(model_path: str, adapters: Path | None, **settings: Any) -> Engine:
    """A `LoGo`, with what llama.cpp says about a file that it cannot load made readable."""
    from llama_cpp import llama_supports_gpu_offload

    from .engine import LoGo

    if settings.get("n_gpu_layers") and not llama_supports_gpu_offload():
        say(
            "warning: this build of llama-cpp-python uses no GPU; --n-gpu-layers is not used",
            "yellow",
        )
    try:
        return LoGo(model_path, adapters, **settings)
    except ValueError as error:  # all that llama_cpp says
        raise ModelError(
            f"llama.cpp cannot use {model_path}: {error}",
            hint="is the file whole, is its architecture one that this llama.cpp knows, "
            "and does --ctx-size fit into memory?",
        ) from error


def _open(ctx: click.Context, model: str, options: Mapping[str, Any]) -> Engine:
    adapters = options["adapters"]
    if adapters is None and model != "demo":
        raise UsageError(
            "no adapters given",
            f"add --adapters DIR, the folder that holds them: "
            f"{ctx.command_path} {model} --adapters DIR",
        )
    same = ("signal", "top_k", "probe", "layer", "tap", "mixture", "adapter_memory", "n_gpu_layers")
    settings = {name: options[name] for name in same}
    for name, llama_names in (
        ("threads", ("n_threads", "n_threads_batch")),
        ("ctx_size", ("n_ctx",)),
        ("seed", ("seed",)),
    ):
        if options[name] is not None:
            settings |= dict.fromkeys(llama_names, options[name])
    opened: Callable[..., Engine] = ctx.obj
    with ProgressBar() as progress:
        llm = opened(model, adapters, progress=progress, **settings)
    ctx.call_on_close(llm.close)
    return llm


def _prompt_text(prompt: str | None) -> str:
    """The argument, or standard input up to its last line break."""
    if prompt is None:
        try:
            prompt = click.get_text_stream("stdin").read().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError("standard input is not text in UTF-8", "convert it first") from error
    if not prompt.strip():
        raise UsageError("the prompt is empty", "give it as an argument, or on standard input")
    return prompt


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _explain(llm: Engine) -> None:
    if llm.last_route is not None:
        console = err_console()
        console.print(report.explain_table(llm.last_route, console.width))


@cli.command()
@click.argument("model")
@click.argument("prompt", required=False)
@_options(*ROUTING, *SAMPLING)
@click.pass_context
def run(ctx: click.Context, /, model: str, prompt: str | None, **options: Any) -> None:
    """Answer PROMPT under the adapters that fit it.

    Without PROMPT, standard input is the prompt when it is piped, and a terminal gets a chat.
    The answer goes to standard output as it comes; what was blended, to standard error.
    """
    sampling = Sampling(options["max_tokens"], options["temp"])
    talk = prompt is None and chat.is_terminal()
    if talk and options["as_json"]:
        raise UsageError("--json needs a prompt", "give it as an argument, or on standard input")
    text = "" if talk else _prompt_text(prompt)
    llm = _open(ctx, model, options)
    if talk:
        chat.chat(llm, sampling, explain=options["explain"], raw=options["raw"])
        return
    asked = as_prompt(llm, text, raw=options["raw"])
    if options["as_json"]:
        answer = ask(llm, asked, sampling)
        _print_json(report.run_json(answer.text, answer.logo, answer.usage))
    else:
        _stream(llm, asked, sampling)
    if options["explain"]:
        _explain(llm)
    if not options["as_json"] and llm.last_route is not None:
        say(report.blend_line(llm.last_route, err_console().width), "dim")


def _stream(llm: Engine, prompt: Prompt, sampling: Sampling) -> None:
    answer = Answer()
    try:
        for piece in stream(llm, prompt, sampling, answer):
            click.echo(piece, nl=False)
    finally:
        if answer.text and not answer.text.endswith("\n"):
            click.echo()


@cli.command()
@click.argument("model")
@click.argument("prompt", required=False)
@_options(*ROUTING)
@click.pass_context
def score(ctx: click.Context, /, model: str, prompt: str | None, **options: Any) -> None:
    """Show the route of PROMPT, and generate nothing.

    Each line has an adapter's name, weight and score. PROMPT may come on standard input.
    """
    if prompt is None and chat.is_terminal():
        raise UsageError("no prompt given", f'{ctx.command_path} {model} "the prompt"')
    text = _prompt_text(prompt)
    llm = _open(ctx, model, options)
    route = llm.route(as_prompt(llm, text, raw=options["raw"]))
    if options["as_json"]:
        _print_json(report.score_json(route, llm.timings_ms))
    else:
        for line in report.score_lines(route):
            click.echo(line)
    if options["explain"]:
        console = err_console()
        console.print(report.explain_table(route, console.width))
    elif route.is_base and not options["as_json"]:
        say(report.BASE_ALONE, "dim")


BASE_OPTION = click.option(
    "--base", required=True, metavar="MODEL", help="The GGUF model that the adapters are for."
)


def _read_base(base: str) -> BaseModel:
    from .base_model import BaseModel

    return BaseModel.read(config.demo_model() if base == "demo" else base)


@cli.command()
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True, type=_FOLDER)
@BASE_OPTION
@click.option("--out", required=True, type=_FOLDER, help="The file to write, or a folder for it.")
@click.option(
    "--outtype",
    type=click.Choice(OUTTYPES),
    default="f16",
    show_default=True,
    help="How the numbers are stored.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and write nothing.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert(
    adapters: tuple[Path, ...], base: str, out: Path, outtype: str, dry_run: bool, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Convert PEFT LoRA folders to GGUF LoRA files.

    ADAPTER is a folder with adapter_config.json and adapter_model.safetensors. With several of
    them, --out is an existing folder, and each file gets its adapter's name. All are checked
    before the first is written.
    """
    from .convert import Conversion, plan_conversion
    from .convert.gguf_lora import write_gguf_lora

    outs = _outs(adapters, out)
    if not (force or dry_run):
        _refuse_existing(outs)
    model = _read_base(base)
    plans: list[Conversion] = []
    failures: list[ConversionError] = []
    with ProgressBar() as progress:

        def show(stage: str, name: str) -> Callable[[int, int], None]:
            return lambda done, total: progress(f"{stage} {name}", done, total)

        for source, path in zip(adapters, outs, strict=True):
            try:
                plans.append(
                    plan_conversion(source, model, path, outtype, show("checking", path.stem))
                )
            except ConversionError as error:
                failures.append(error)
        if failures:
            raise _all_of(failures, len(adapters))
        if not dry_run:
            for plan in plans:
                write_gguf_lora(plan, show("writing", plan.out.stem))
    if as_json:
        _print_json([report.plan_json(plan) for plan in plans])
    for plan in plans:
        for note in plan.notes:
            say(f"note: {plan.source}: {note}")
        if dry_run and not as_json:
            out_console().print(report.plan_table(plan))
        if not as_json:
            click.echo(report.plan_line(plan))
    if dry_run:
        say("dry run: nothing was written", "dim")


def _outs(adapters: tuple[Path, ...], out: Path) -> list[Path]:
    """The file that each adapter becomes."""
    if len(adapters) == 1 and not out.is_dir():
        return [out]
    if not out.is_dir():
        raise UsageError(
            f"--out must be an existing folder for {len(adapters)} adapters, and {out} is none",
            f"make it first: mkdir {out}",
        )
    # The name is that of the folder, also when it is given as "." or with a final slash.
    outs = [out / f"{adapter.resolve().name}.gguf" for adapter in adapters]
    twice = sorted({path.name for path in outs if outs.count(path) > 1})
    if twice:
        raise UsageError(
            f"several adapters would be written to {', '.join(twice)}",
            "convert them one by one, with a file name as --out",
        )
    return outs


def _refuse_existing(outs: list[Path]) -> None:
    existing = [path for path in outs if path.exists()]
    if existing:
        raise ConversionError(
            "nothing was converted, since a file would be replaced",
            problems=[f"{path} exists" for path in existing],
            hint="add --force to replace it, or choose another --out",
        )


def _all_of(failures: list[ConversionError], n_adapters: int) -> LogoError:
    if n_adapters == 1:
        return failures[0]
    return ConversionError(
        f"{len(failures)} of {n_adapters} adapters cannot be converted; nothing was written",
        problems=[
            f"{failure.message}: {problem}" if problem else failure.message
            for failure in failures
            for problem in failure.problems or ("",)
        ],
        hint=next((failure.hint for failure in failures if failure.hint), ""),
    )


@cli.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@BASE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(folder: Path, base: str, as_json: bool) -> None:
    """Say of each adapter in DIR whether it fits the base model, and why not.

    The exit code is 0 when all of them fit, 1 otherwise.
    """
    from .pool import Pool

    model = _read_base(base)
    with ProgressBar() as progress:
        pool = Pool.open(
            folder,
            model,
            cache=config.cache_dir(),
            progress=lambda done, total, _name: progress("checking adapters", done, total),
            on_problem=lambda _problem: None,  # they are in the table
        )
    rows = report.check_json(pool)
    if as_json:
        _print_json(rows)
    else:
        out_console().print(report.check_table(rows))
        for hint in dict.fromkeys(problem.hint for problem in pool.problems if problem.hint):
            say(f"hint: {hint}")
    if pool.problems:
        raise click.exceptions.Exit(1)


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
