"""`logo-local convert`: convert adapters to GGUF LoRA files, or merge several into one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import config
from ..console import report
from ..console.options import FOLDER, OUTTYPES
from ..console.terminal import ProgressBar, UsageError, out_console, say
from ..errors import ConversionError, LogoError

if TYPE_CHECKING:
    from ..convert import Conversion
    from ..files.base_model import BaseModel


BASE_OPTION = click.option(
    "--base", required=True, metavar="MODEL", help="GGUF file of the base model."
)


VERBOSE_OPTION = click.option(
    "-v", "--verbose", is_flag=True, help="Show every problem instead of a summary."
)


def read_base(base: str) -> BaseModel:
    """The model given on the command line, or "demo"."""
    from ..files.base_model import BaseModel

    return BaseModel.read(config.demo_model() if base == "demo" else base)


@click.command()
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, type=FOLDER)
@BASE_OPTION
@click.option("--out", required=True, type=FOLDER, help="Output file or folder.")
@click.option(
    "--outtype",
    type=click.Choice(OUTTYPES),
    default="f16",
    show_default=True,
    help="Number type of the output.",
)
@click.option(
    "--merge",
    "merged",
    multiple=True,
    metavar="ADAPTER=WEIGHT",
    help="Write the weighted sum of adapters (GGUF or PEFT) as one file; repeatable.",
)
@click.option(
    "--rank",
    type=click.IntRange(1),
    help="With --merge: approximate the sum with at most this rank.",
)
@click.option(
    "--text-part", is_flag=True, help="Skip layers for images and sound (multimodal models)."
)
@click.option("--dry-run", is_flag=True, help="Show the plan without writing files.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@VERBOSE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert(
    adapters: tuple[Path, ...], base: str, out: Path, outtype: str, merged: tuple[str, ...],
    rank: int | None, text_part: bool, dry_run: bool, force: bool, verbose: bool, as_json: bool,
) -> None:  # fmt: skip
    """Convert PEFT LoRA folders to GGUF LoRA files.

    ADAPTER is a folder with adapter_config.json and adapter_model.safetensors. For several
    adapters, --out must be an existing folder; each file is named after its adapter. All adapters
    are checked before the first file is written.
    """
    if merged:
        if adapters or dry_run or as_json or text_part:
            raise UsageError(
                "--merge can only be combined with --base, --out, --outtype, --rank and --force",
                "pass every adapter with --merge ADAPTER=WEIGHT",
            )
        _merge(merged, base, out, outtype, rank, force=force)
        return
    if not adapters or rank is not None:
        missing = "--rank goes with --merge" if adapters else "no adapter is given"
        raise UsageError(missing, "see logo-local convert --help")
    outs = _outs(adapters, out)
    if not (force or dry_run):
        _refuse_existing(outs)
    plans = _convert_all(
        list(zip(adapters, outs, strict=True)),
        read_base(base),
        outtype,
        text_part=text_part,
        dry_run=dry_run,
        verbose=verbose,
    )
    if as_json:
        click.echo(json.dumps([report.plan_json(plan) for plan in plans], indent=2))
    for plan in plans:
        for note in plan.notes:
            say(f"note: {plan.source}: {note}")
        if dry_run and not as_json:
            out_console().print(report.plan_table(plan))
        if not as_json:
            click.echo(report.plan_line(plan))
    if dry_run:
        say("dry run: nothing was written", "dim")


def _convert_all(
    files: list[tuple[Path, Path]],
    model: BaseModel,
    outtype: str,
    *,
    text_part: bool,
    dry_run: bool,
    verbose: bool,
) -> list[Conversion]:
    """Plan all conversions, then run them; ConversionError, and nothing written, if one fails."""
    from ..convert import plan_conversion
    from ..convert.gguf_lora import write_gguf_lora

    plans: list[Conversion] = []
    failures: list[ConversionError] = []
    with ProgressBar() as progress:

        def show(stage: str, name: str) -> Callable[[int, int], None]:
            return lambda done, total: progress(f"{stage} {name}", done, total)

        for source, path in files:
            shown = show("checking", path.stem)
            try:
                plans.append(
                    plan_conversion(source, model, path, outtype, shown, text_part=text_part)
                )
            except ConversionError as error:
                failures.append(error)
        if failures:
            for failure in failures if verbose else ():
                for detail in failure.details:
                    say(f"{failure.message}: {detail}")
            raise _all_of(failures, len(files))
        for plan in () if dry_run else plans:
            write_gguf_lora(plan, show("writing", plan.out.stem))
    return plans


def _merge(
    merged: tuple[str, ...], base: str, out: Path, outtype: str, rank: int | None, *, force: bool
) -> None:
    from ..convert.merging import OUTTYPES as MERGED_TYPES
    from ..convert.merging import merge, parsed

    if outtype not in MERGED_TYPES:
        types = " or ".join(MERGED_TYPES)
        raise UsageError(f"--merge writes {types}, not {outtype}", f"--outtype {MERGED_TYPES[-1]}")
    if not force:
        _refuse_existing([out])
    parts = [parsed(text) for text in merged]
    click.echo(merge(parts, read_base(base), out, outtype=outtype, rank=rank).line)


def _outs(adapters: tuple[Path, ...], out: Path) -> list[Path]:
    """The output file of each adapter."""
    if len(adapters) == 1 and not out.is_dir():
        return [out]
    if not out.is_dir():
        raise UsageError(
            f"--out must be an existing folder for {len(adapters)} adapters, and {out} is not one",
            f"create it: mkdir {out}",
        )
    # The name is that of the folder, even if given as "." or with a trailing slash.
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
            "nothing was converted, because a file would be overwritten",
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
