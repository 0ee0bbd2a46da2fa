"""Folders of PEFT adapters, new: `python tests/benchmarks/converting_many.py FOLDER`.

Writes into FOLDER 40 small adapters and 4 large ones (43 MB each), as converting.py has them, and
times what a pool does with each, one after the other, in two threads, and in two processes, forked
or started anew: medians of seconds, interleaved, each time into an empty cache.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from converting import peft_folder
from random_gguf import LLAMA_1B, SMALL, write_base
from random_model import random_model

import logo_local.convert  # noqa: F401 - the import is no part of what is timed
from logo_local.files.base_model import BaseModel
from logo_local.files.folder import Entry, scan
from logo_local.files.pool import Pool

WORKERS = 2


def read_in(folder: Path, base: BaseModel, cache: Path, entry: Entry) -> str:
    """Convert and check one adapter as a pool does."""
    return Pool(folder, base, cache)._read(entry, None).name


def one_by_one(read: Callable[[Entry], str], entries: list[Entry]) -> Iterator[str]:
    """As pools do it."""
    return map(read, entries)


def threads(read: Callable[[Entry], str], entries: list[Entry]) -> Iterator[str]:
    """Side by side in one process."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return pool.map(read, entries)


def processes(how: str, read: Callable[[Entry], str], entries: list[Entry]) -> Iterator[str]:
    """Side by side in processes that are forked, or that import all anew (spawn)."""
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context(how)) as pool:
        return pool.map(read, entries)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--repeats", default=5, show_default=True)
def main(folder: Path, repeats: int) -> None:
    """Print what was measured as a Markdown table."""
    large_base, _ = random_model(folder, 1)
    small_base = folder / "small-base.gguf"
    if not small_base.exists():
        write_base(small_base)
    pools = {
        "40 small": (folder / "many-small", 40, SMALL, 4, small_base),
        "4 of 43 MB": (folder / "many-large", 4, LLAMA_1B, 16, large_base),
    }
    ways = {
        "one by one": one_by_one,
        "two threads": threads,
        "two processes, forked": partial(processes, "fork"),
        "two processes, started anew": partial(processes, "spawn"),
    }
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for pool, (adapters, n, shape, rank, base_path) in pools.items():
        adapters.mkdir(exist_ok=True)
        for i in range(n):
            peft_folder(adapters / f"ad{i}", shape, rank, i)
        base = BaseModel.read(base_path)
        for _ in range(repeats):
            for way, read_all in ways.items():
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    started = time.perf_counter()
                    entries, _ = scan(adapters)
                    read = partial(read_in, adapters, base, Path(cache))
                    assert len(list(read_all(read, entries))) == n
                    seconds[way, pool].append(time.perf_counter() - started)
    click.echo(f"Seconds, medians of {repeats}.\n")
    click.echo(f"| | {' | '.join(pools)} |")
    click.echo(f"|---|{'---|' * len(pools)}")
    for way in ways:
        columns = (f"{median(seconds[way, pool]):.2f}" for pool in pools)
        click.echo(f"| {way} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
