"""`logo-local profile`: the example prompts of an adapter, shown, added and forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .. import config
from ..console.options import FOLDER, JSON, QUIET, VERBOSE, options
from ..console.terminal import UsageError, aside, say
from ..files.file_index import content_key
from ..routing.advice import one_wording
from ..routing.example_prompts import TaughtPrompts, prompts_beside, read_prompts


@click.command()
@click.argument("adapter", metavar="ADAPTER", type=FOLDER)
@click.option(
    "--prompts", type=FOLDER, metavar="FILE", help="Add the prompts in this file, one per line."
)
@click.option("--forget", is_flag=True, help="Remove all prompts that were added to this adapter.")
@options(JSON, VERBOSE, QUIET)
def profile(adapter: Path, prompts: Path | None, forget: bool, as_json: bool) -> None:
    """Show, add or remove example prompts of ADAPTER, a GGUF file or a PEFT folder.

    The router compares prompts with these examples. Eight prompts in four wordings, without
    answers, are enough; four wordings count more than twelve prompts in one. This command stores
    them in your data folder. Examples beside the adapter (NAME.prompts.txt, or prompts.txt or the
    model card in a PEFT folder) are found without it.
    """
    if prompts is not None and forget:
        raise UsageError("--prompts and --forget cannot go together", "give one of them")
    key = content_key(adapter)
    taught = TaughtPrompts(config.data_dir() / "prompts")
    if forget:
        gone = taught.forget(key)
        aside(f"forgot {gone} prompt{'s' * (gone != 1)}")
    if prompts is not None:
        new = taught.add(key, read_prompts(prompts))
        kept = f", kept in {taught.path(key)}" if new else ""
        aside(f"{new} new prompt{'s' * (new != 1)}{kept}")
    found = {"beside": prompts_beside(adapter), "added": taught.read(key)}
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for where, texts in found.items():
        for text in texts:
            click.echo(f"{where}: {text}")
    alike = one_wording([*found["beside"], *found["added"]])
    if alike:
        say(f"all examples {alike}: examples in other words help more than further ones", "yellow")
    if not any(found.values()):
        aside("no example prompts: the adapter is never selected; add some with --prompts FILE")
