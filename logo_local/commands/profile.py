"""`logo-local profile`: show, add and remove the example prompts of an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .. import config
from ..console.options import FOLDER, JSON, MODEL, QUIET, VERBOSE, options
from ..console.prompts import named_model
from ..console.terminal import ProgressBar, UsageError, aside, say
from ..files.file_index import content_key
from ..routing.advice import one_wording
from ..routing.example_prompts import TaughtPrompts, prompts_beside, read_prompts

N_CTX = 256  # tokens: the texts are short
NOTHING = "every adapter has example prompts or a description"


@click.command()
@click.argument("adapter", metavar="ADAPTER", type=FOLDER)
@click.option(
    "--prompts", type=FOLDER, metavar="FILE", help="Add the prompts in this file, one per line."
)
@click.option("--forget", is_flag=True, help="Remove all prompts that were added to this adapter.")
@click.option(
    "--ask",
    is_flag=True,
    help="Let all adapters in the folder ADAPTER generate some, with --model; Ctrl+C keeps those "
    "that are done.",
)
@options(MODEL, JSON, VERBOSE, QUIET)
@click.pass_context
def profile(
    ctx: click.Context,
    adapter: Path,
    prompts: Path | None,
    forget: bool,
    ask: bool,
    as_json: bool,
    default_model: str | None,
) -> None:
    """Show, add or remove example prompts of ADAPTER, a GGUF file or a PEFT folder.

    The router compares prompts with these examples. Eight prompts in four wordings, without
    answers, are enough; four wordings count more than twelve prompts in one. This command stores
    them in your data folder. Files next to the adapter (NAME.prompts.txt, or prompts.txt or the
    model card in a PEFT folder) are found without it.
    """
    if prompts is not None and forget:
        raise UsageError("--prompts and --forget cannot go together", "give one of them")
    if ask:
        if prompts is not None or forget or as_json:
            raise UsageError("--ask can only be combined with --model", "run two commands")
        _ask(ctx, adapter, named_model(ctx, None, {"default_model": default_model}))
        return
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


def _ask(ctx: click.Context, folder: Path, model: str) -> None:
    """Let the adapters of a folder that have no example prompts generate some."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder of adapters", "--ask takes a whole folder")
    path = str(config.demo_model()) if model == "demo" else model
    with ProgressBar() as bar:
        llm = ctx.obj(path, folder, progress=bar, n_ctx=N_CTX, self_profile=True, past=False)
        ctx.call_on_close(llm.close)
        missing = llm.without_profile()
        try:
            llm.make_self_profiles()
        except KeyboardInterrupt:
            left = len(llm.without_profile())
            say(
                f"{len(missing) - left} of {len(missing)} adapters are done and kept; the same "
                "command continues with the others",
                "yellow",
            )
            raise
    aside(f"{len(missing)} adapters have generated example prompts" if missing else NOTHING)
