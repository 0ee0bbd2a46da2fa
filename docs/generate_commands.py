"""Print docs/commands.md: every command's own help, so that the two cannot differ."""

from __future__ import annotations

import click

from logo_local.commands.cli import cli
from logo_local.routing import registry

WIDTH = 88

START = """\
# Commands

This page is made by `make docs` from what `--help` says. An option of `run`, `score` and
`serve` may also be set in the environment, as `LOGO_LOCAL_` and its name (`LOGO_LOCAL_TOP_K=5`), or
in `config.toml` (`top-k = 5`), except `--raw`, `--json` and `--jsonl`. What may be given several
times is a list there (`allow-host = ["box.lan"]`), and in the environment separated by blanks. A
flag wins over the environment, the environment over the file, the file over the default.
`LOGO_LOCAL_HOME` names the folder of the config file, the caches and the data (examples, chat
history); without it they lie where the platform puts such things, and `logo-local doctor` says
where that is.

Data goes to standard output, everything else to standard error. Exit codes: 0, 1 for a failure
that `error:` and `hint:` lines describe, 2 for wrong usage, 130 for Ctrl+C.
"""


def section(title: str, command: click.Command, context: click.Context) -> str:
    """One command's help under a heading, with the options that `--help` leaves out."""
    command.epilog = None
    for option in command.params:
        if isinstance(option, click.Option):
            option.hidden = False
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"


SIGNALS = """\
## Signals

What `--signal` can be. Every command has those in the column "all commands"; the others are for
`logo-local eval` and for the Python API. `auto` stands for `{default}`.

| signal | an adapter's score is | needs | source | all commands |
|---|---|---|---|---|
"""


def signals_section() -> str:
    """The table of all signals, from the registry."""
    rows = []
    for signal in registry.signals().values():
        needs = "; ".join(need.value for need in registry.Need if need in signal.needs)
        everywhere = "yes" if signal.everywhere else ""
        cells = (f"`{signal.name}`", signal.summary, needs, signal.source, everywhere)
        rows.append(f"| {' | '.join(cells)} |\n")
    return SIGNALS.format(default=registry.DEFAULT) + "".join(rows)


def page() -> str:
    """The whole page."""
    settings = {**cli.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    top = click.Context(cli, info_name="logo-local", **settings)
    sections = [section("logo-local", cli, top)]
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=name, parent=top)
        sections.append(section(f"logo-local {name}", command, context))
    return "\n".join([START, *sections, signals_section()])


if __name__ == "__main__":
    print(page(), end="")
