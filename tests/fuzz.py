"""Damaged adapters in large numbers: `python tests/fuzz.py [--files 200000] [--seed N]`.

A sound GGUF LoRA file and a sound PEFT folder are mutated (bits, numbers, cuts, insertions, pieces
moved about), read with every check, and must be taken or refused: any other exception, a second
of time or 64 MB of memory for a file of some kilobytes is a failure, and the file is kept.
`make test` runs a few hundred (test_fuzz.py).
"""

from __future__ import annotations

import logging
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))

from peft_folder import factors, write_peft
from random_gguf import write_adapter, write_base

from logo_local.convert import plan_conversion
from logo_local.errors import LogoError
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel

SECONDS, MEGABYTES = 1.0, 64
NUMBERS = (0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four things changed, mostly in its first part, where the header is."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, min(len(out), 3000) if rng.random() < 0.9 else len(out)))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 8))]
            out[at : at + len(number)] = number
        elif kind == 2:
            del out[at : len(out) if rng.random() < 0.3 else at + rng.randint(1, 64)]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.randint(1, 32))
        elif kind == 4:
            start = rng.randrange(max(1, len(out)))
            out[at : at + 8] = out[start : start + 8]
        else:
            out[at : at + 4] = rng.randbytes(4)
    return bytes(out)


class Targets:
    """What is fuzzed: each takes bytes and reads them as one file of a sound adapter."""

    def __init__(self, folder: Path) -> None:
        self.base = BaseModel.read(write_base(folder / "base.gguf"))
        self.gguf = write_adapter(folder / "sound.gguf", 1, rank=2, blocks=(0,))
        tensors = factors({"model.layers.0.self_attn.q_proj": (64, 64)}, rank=2)
        self.peft = write_peft(folder / "peft", tensors, r=2)
        weights, config = (self.peft / f"adapter_{name}" for name in _PEFT_FILES)
        self.of: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
            "GGUF": (self.gguf.read_bytes(), self._read_gguf),
            "safetensors": (weights.read_bytes(), lambda data: self._plan(weights, data)),
            "config": (config.read_bytes(), lambda data: self._plan(config, data)),
        }

    def _read_gguf(self, data: bytes) -> object:
        path = self.gguf.with_name("mutated.gguf")
        path.write_bytes(data)
        return read_adapter(path, self.base)

    def _plan(self, path: Path, data: bytes) -> object:
        sound = path.read_bytes()
        try:
            path.write_bytes(data)
            return plan_conversion(self.peft, self.base, path.parent.parent / "out.gguf", "f32")
        finally:
            path.write_bytes(sound)


_PEFT_FILES = ("model.safetensors", "config.json")


def fuzz(files: int, seed: int, keep: Path) -> Counter[str]:
    """What became of so many mutated files. Raises AssertionError for the first that fails."""
    logging.disable(logging.WARNING)
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        targets = Targets(Path(folder))
        for i in range(files):
            name = list(targets.of)[i % len(targets.of)]
            sound, read = targets.of[name]
            data = mutated(sound, rng)
            started = time.perf_counter()
            try:
                read(data)
                found[f"{name}: taken"] += 1
            except LogoError:
                found[f"{name}: refused"] += 1
            except BaseException as error:
                keep.write_bytes(data)
                raise AssertionError(f"{name} {i} of seed {seed}: {error!r}; see {keep}") from error
            seconds = time.perf_counter() - started
            if seconds > SECONDS:
                keep.write_bytes(data)
                raise AssertionError(f"{name} {i} of seed {seed} took {seconds:.1f} s; see {keep}")
    logging.disable(logging.NOTSET)
    return found


def bound_memory(megabytes: int) -> None:
    """Let the process have so much more than it has now; what is beyond raises MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))


@click.command()
@click.option("--files", default=200_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(files: int, seed: int) -> None:
    """Print how many were taken and refused."""
    fuzz(50, 0, Path("fuzz-failure"))  # imports and first allocations, before memory is bounded
    if Path("/proc/self/statm").exists():
        bound_memory(MEGABYTES)
    for what, n in sorted(fuzz(files, seed, Path("fuzz-failure")).items()):
        click.echo(f"{what}: {n:,}")


if __name__ == "__main__":
    main()
