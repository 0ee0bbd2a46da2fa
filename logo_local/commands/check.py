"""`logo-local check`: which adapters of a folder fit a base model, and why others do not."""

from __future__ import annotations

from pathlib import Path

import click

from .. import config
from ..console import report
from ..console.options import FOLDER, QUIET
from ..console.terminal import ProgressBar, is_quiet, out_console, print_json, say
from .convert import BASE_OPTION, VERBOSE_OPTION, read_base


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@BASE_OPTION
@VERBOSE_OPTION
@QUIET
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(folder: Path, base: str, verbose: bool, as_json: bool) -> None:
    """Check which adapters in DIR fit the base model.

    The exit code is 0 if all adapters fit, and 1 otherwise.
    """
    from ..convert import FOR_POOL
    from ..files.pool import Pool
    from ..routing.adapter_profiles import remarks
    from ..routing.router import profile_store

    model = read_base(base)
    with ProgressBar() as progress:
        pool = Pool.open(
            folder,
            model,
            cache=config.cache_dir(),
            converter=FOR_POOL,
            progress=progress,
            on_problem=lambda _problem: None,  # they are in the table
            all_may_be_unfit=True,
        )
    rows = report.check_json(pool)
    said = remarks(pool, profile_store(model))
    if as_json:
        print_json(rows)
    else:
        shown = [row for row in rows if not (is_quiet() and row["fits"])]
        if shown:
            out_console().print(report.check_table(shown))
        for problem in pool.problems if verbose else ():
            for detail in problem.details:
                say(f"{problem.path.name}: {detail}")
        for line in said:
            say(line, "yellow")
        for hint in dict.fromkeys(problem.hint for problem in pool.problems if problem.hint):
            say(f"hint: {hint}")
    if pool.problems:
        raise click.exceptions.Exit(1)
