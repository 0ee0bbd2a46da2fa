"""`logo-local adapters`: list the adapters of a folder with their descriptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .. import config
from ..console import report
from ..console.options import FOLDER, JSON, MODEL_ARGUMENT
from ..console.terminal import ProgressBar, aside, out_console, print_json
from ..files.description import description_of
from ..files.file_index import content_key
from ..files.folder import Entry, Problem, files_in, scan
from ..routing.example_prompts import TaughtPrompts, prompts_beside
from .convert import read_base


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@MODEL_ARGUMENT
@JSON
def adapters(folder: Path, model: str | None, as_json: bool) -> None:
    """List the adapters in DIR: examples, size and description.

    With MODEL, the list shows which of them fit it. DIR can be demo. The description is read from
    NAME.description.txt, from a GGUF file (general.description), or from the config or the model
    card of a PEFT folder; without one, the first example prompt is shown.
    """
    folder = config.demo_adapters() if str(folder) == "demo" else folder
    entries, problems = scan(folder)
    misfits = list(problems) if model is None else _misfits(folder, model)
    rows = list(_rows(entries, misfits, checked=model is not None))
    if as_json:
        print_json(rows)
    elif rows:
        out_console().print(report.listing_table(rows))
    else:
        aside(f"no adapters in {folder} yet")


def _misfits(folder: Path, model: str) -> list[Problem]:
    """The entries of the folder that cannot be used with `model`."""
    from ..convert import FOR_POOL
    from ..files.pool import Pool

    found: list[Problem] = []
    with ProgressBar() as progress:
        Pool.open(
            folder,
            read_base(model),
            cache=config.cache_dir(),
            converter=FOR_POOL,
            progress=progress,
            on_problem=found.append,
            all_may_be_unfit=True,
            may_be_empty=True,
        )
    return found


def _rows(
    entries: list[Entry], misfits: list[Problem], *, checked: bool
) -> Iterator[dict[str, Any]]:
    """A row for each entry that looks like an adapter, by name; `fits` is None if not `checked`."""
    taught = TaughtPrompts(config.data_dir() / "prompts")
    reasons = {problem.path: problem for problem in misfits}
    names = {entry.path: entry.name for entry in entries}
    names |= {problem.path: problem.name for problem in misfits}
    usable = {entry.path for entry in entries}
    for path, name in sorted(names.items(), key=lambda item: (item[1], item[0])):
        examples = prompts_beside(path) if path in usable else []
        if path in usable and taught:
            examples += taught.read(content_key(path))
        problem = reasons.get(path)
        yield {
            "name": name,
            "path": str(path),
            "fits": False if problem is not None else True if checked else None,
            "reason": "" if problem is None else problem.reason,
            "examples": len(examples),
            "first_example": examples[0] if examples else "",
            "description": description_of(path) if path in usable else "",
            "n_bytes": _size(path) if path in usable else 0,
        }


def _size(origin: Path) -> int:
    files = files_in(origin) if origin.is_dir() else [origin]
    return sum(file.stat().st_size for file in files if file.is_file())
