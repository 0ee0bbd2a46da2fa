"""The command line: the group of all commands.

Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import click

from .. import __version__, config
from ..console.opening import open_engine
from ..console.options import checks, rare, settable, unknown_variables
from ..console.terminal import CommandGroup, say, warnings_as_lines
from .adapters import adapters
from .bench import bench
from .cache import cache
from .check import check
from .convert import convert
from .doctor import doctor
from .evaluate import evaluate
from .profile import profile
from .run import run
from .score import score
from .serve import serve


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="logo-local")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run a GGUF model with LoRA adapters that are selected and blended for every prompt.

    MODEL is a GGUF file, or demo for the demo model and its adapters.

    You can also set options in the environment (LOGO_LOCAL_TOP_K=5) or in config.toml
    (top-k = 5); logo-local doctor prints the path of that file. The command line overrides the
    environment, and the environment overrides the file.
    """
    # A caller that passes an object uses its own engine, as tests do.
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


for command in (
    run,
    score,
    adapters,
    check,
    bench,
    convert,
    evaluate,
    profile,
    serve,
    doctor,
    cache,
):
    command.epilog = rare(command)
    cli.add_command(command)


def main() -> None:
    """The entry point of the program `logo-local`."""
    cli(prog_name="logo-local")


if __name__ == "__main__":
    main()
