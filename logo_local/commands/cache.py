"""`logo-local cache`: what is cached, and how to remove it."""

from __future__ import annotations

import click

from .. import config
from ..console import report
from ..console.options import JSON
from ..console.terminal import out_console, print_json, say
from ..files.cache_content import Part, parts_of, remove
from ..routing.profile_store import FORMAT


def _parts() -> list[Part]:
    return parts_of(config.cache_dir(), FORMAT)


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def cache(ctx: click.Context, as_json: bool) -> None:
    """Show what is cached and how large it is.

    Everything in the cache can be created again. Entries of deleted adapter folders and of earlier
    releases are unused; logo-local cache clear removes them.
    """
    if ctx.invoked_subcommand is not None:
        return
    rows = [part.as_dict() for part in _parts()]
    if as_json:
        print_json({"folder": str(config.cache_dir()), "parts": rows})
        return
    out_console().print(report.cache_table(rows))
    total = report.size_text(sum(row["n_bytes"] for row in rows))
    say(f"{total} in {config.cache_dir()}", "dim")


@cache.command()
@click.option("--all", "everything", is_flag=True, help="Remove the whole cache.")
def clear(everything: bool) -> None:
    """Remove unused entries: those of deleted adapter folders and of earlier releases."""
    parts = _parts()
    n, n_bytes = remove([path for p in parts for path in (p.entries if everything else p.unused)])
    say(f"removed {n} {'entry' if n == 1 else 'entries'}, {report.size_text(n_bytes)}", "dim")
