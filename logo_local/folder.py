"""What lies in a folder of adapters, unread: what can be an adapter, and what only looks like one.

Only the folder's own level is looked at. A `.gguf` file is an adapter, and so is a folder with an
adapter_config.json in it (PEFT). Hidden names and other files (notes, data) are no adapters and
are passed over. Links may lead anywhere. Nothing is opened here.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .errors import PoolError
from .gguf_bounds import printable

log = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


@dataclass(frozen=True)
class Problem:
    """Something in the folder that looks like an adapter and is left out, in one line."""

    name: str
    path: Path
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{printable(self.path.name)}: {self.reason}"


Stamp: TypeAlias = tuple[tuple[int, int], ...]  # (size, mtime_ns) of each file


@dataclass(frozen=True)
class Entry:
    """An adapter in the folder; its stamp changes when any of its files does."""

    name: str
    path: Path
    is_peft: bool
    stamp: Stamp


def scan(folder: Path) -> tuple[list[Entry], list[Problem]]:
    """The adapters in `folder`, unread and with unique names, and what cannot be one."""
    _check_folder(folder)
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise PoolError(
            f"the folder {folder} cannot be read: {error.strerror}", hint="may you read it?"
        ) from error
    # Files first: where an adapter lies there in both forms, the converted one is taken.
    for path in sorted(paths, key=lambda path: (os.path.isdir(path), path.name)):
        try:
            entry = _classify(path)
        except _NotUsableError as error:
            problems.append(Problem(path.stem, path, str(error)))
            continue
        if entry is None:
            log.debug("%s is no adapter", path)
        elif entry.name in entries:
            taken = entries[entry.name].path.name
            reason = f"{taken} has the same name, {entry.name}, and comes first"
            problems.append(Problem(entry.name, path, reason, "rename one of them"))
        else:
            entries[entry.name] = entry
    return list(entries.values()), problems


def _check_folder(folder: Path) -> None:
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise PoolError(
            f"the folder of adapters {folder} {what}",
            hint="give the folder that holds the adapters"
            + (f": {folder.parent}" if os.path.isfile(folder) else ""),
        )
    if os.path.exists(folder / CONFIG_FILE):
        raise PoolError(
            f"{folder} is itself one adapter, not a folder of adapters",
            hint=f"give the folder that holds it: {folder.resolve().parent}",
        )


class _NotUsableError(Exception):
    """Says why a thing in the folder cannot be used."""


def stamp_of(path: Path) -> Stamp | None:
    """What changes when the file, or what a PEFT folder is read from, does; None if it is gone."""
    try:
        stat = path.stat()
        inside = [path / name for name in (CONFIG_FILE, WEIGHTS_FILE)]
        stats = [child.stat() for child in inside if child.is_file()] or [stat]
    except OSError:
        return None
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def _classify(path: Path) -> Entry | None:
    """What `path` is: an adapter, nothing to do with adapters (None), or a _NotUsableError."""
    if not path.name.isprintable():
        raise _NotUsableError("its name holds characters that cannot be shown")
    try:
        stat = path.stat()
        if path.is_dir():
            return _classify_folder(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _NotUsableError("a link that leads back to itself") from error
        if path.is_symlink() and not path.exists():
            raise _NotUsableError(f"a link to {os.readlink(path)}, which is not there") from error
        raise _NotUsableError(f"it cannot be read: {error.strerror}") from error
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        stamp = ((stat.st_size, stat.st_mtime_ns),)
        return Entry(path.stem, path, is_peft=False, stamp=stamp)
    if suffix in _PICKLES:
        raise _NotUsableError("a pickle file, which is refused: it could run any program")
    if suffix == ".safetensors":
        raise _NotUsableError(
            f"a lone safetensors file: it must lie in a folder with {CONFIG_FILE}"
        )
    return None


def _classify_folder(path: Path) -> Entry | None:
    inside = sorted(child.name for child in path.iterdir())
    if CONFIG_FILE in inside:
        stats = [(path / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE) if name in inside]
        stamp = tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
        return Entry(path.name, path, is_peft=True, stamp=stamp)
    if any(name.startswith("adapter_model.") for name in inside):
        raise _NotUsableError(f"it holds adapter weights but no {CONFIG_FILE}")
    if path.suffix.lower() == ".gguf":
        raise _NotUsableError("it is a folder, not a file")
    if any(name.lower().endswith(".gguf") for name in inside):
        raise _NotUsableError(
            "it holds .gguf files, but folders within the folder are not searched"
        )
    return None
