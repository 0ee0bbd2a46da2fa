"""Find the adapters in a folder, without reading them, and the files that only look like adapters.

The folder and one level below are searched. A `.gguf` or `.paw` file is an adapter, and so is a
folder with an adapter_config.json (PEFT), which is not searched further. Its weights are in one
file or in several shards. Hidden names and other files (notes, data) are skipped. Links may lead
anywhere, unless the caller forbids it. Only files with the extension of a pickle are opened, since
their first bytes may show another format.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..errors import PoolError
from .gguf_bounds import GGLA, LFS_POINTER, kind_by_start, printable
from .paw import SUFFIX as PAW

log = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MLX_WEIGHTS_FILE = "adapters.safetensors"  # of adapters trained with mlx-lm
# The index of shards. transformers writes it under the second name, that of a model's index.
INDEX_FILES = (f"{WEIGHTS_FILE}.index.json", "model.safetensors.index.json")
SHARD_NAME = re.compile(r"adapter_model-(?P<number>\d{5,6})-of-(?P<total>\d{5,6})\.safetensors")
_FILES = (CONFIG_FILE, WEIGHTS_FILE, MLX_WEIGHTS_FILE, *INDEX_FILES)  # of a folder, without shards
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


@dataclass(frozen=True)
class Problem:
    """Something in the folder that looks like an adapter but is skipped, in one line."""

    name: str
    path: Path
    reason: str
    hint: str = ""
    details: tuple[str, ...] = ()  # single findings that the reason summarises

    def __str__(self) -> str:
        return f"{printable(self.path.name)}: {self.reason}"


Stamp: TypeAlias = tuple[tuple[int, int], ...]  # (size, mtime_ns) of each file


@dataclass(frozen=True)
class Entry:
    """An adapter in the folder; its stamp changes when any of its files does."""

    name: str
    path: Path
    is_converted: bool  # another file, made from it, is loaded
    stamp: Stamp


def scan(folder: Path, *, links_out: bool = True) -> tuple[list[Entry], list[Problem]]:
    """The adapters in `folder`, not yet read, with unique names, and the invalid entries.

    Without `links_out` none of their files may be a link to a path outside the folder.
    """
    _check_folder(folder)
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    try:
        paths = _inside(folder)
    except OSError as error:
        raise PoolError(
            f"the folder {folder} cannot be read: {error.strerror}", hint="check its permissions"
        ) from error
    for path, found in _adapters(paths, within=folder.resolve()):
        if isinstance(found, str):
            problems.append(Problem(path.stem, path, found))
        elif not links_out and _leads_out(path, folder):
            problems.append(Problem(found.name, path, "a link that leads out of the folder"))
        elif found.name in entries:
            taken = entries[found.name].path.relative_to(folder)
            reason = f"{taken} has the same name, {found.name}, and comes first"
            problems.append(Problem(found.name, path, reason, "rename one of them"))
        else:
            entries[found.name] = found
    return list(entries.values()), problems


def _leads_out(path: Path, folder: Path) -> bool:
    """Whether an adapter, or any file of it, is a link to a path outside `folder`."""
    root = folder.resolve()
    files = [path, *(path.iterdir() if path.is_dir() else ())]
    return not all(file.resolve().is_relative_to(root) for file in files)


def _inside(folder: Path) -> list[Path]:
    """The content of a folder without hidden names. Files come first: if an adapter is there in
    both forms, the converted one is used.
    """
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(paths, key=lambda path: (os.path.isdir(path), path.name))


def _adapters(paths: Iterable[Path], *, within: Path | None) -> Iterator[tuple[Path, Entry | str]]:
    """The adapters among `paths`, and for things that look like one the reason why they fail.

    If `within` a folder, one level below is searched too; links back to that folder are skipped.
    """
    for path in paths:
        try:
            entry = _classify(path, last=within is None)
            below = []
            if entry is None and within is not None and path.is_dir():
                below = [] if within.is_relative_to(path.resolve()) else _inside(path)
        except _NotUsableError as error:
            yield path, str(error)
            continue
        except OSError as error:
            yield path, f"it cannot be read: {error.strerror}"
            continue
        if entry is not None:
            yield path, entry
        elif not below:
            log.debug("%s is no adapter", path)
        yield from _adapters(below, within=None)


def nothing_usable(folder: Path, problems: list[Problem]) -> PoolError:
    """The error for a folder without a usable adapter, with all `problems`."""
    if not problems:
        return PoolError(
            f"there are no adapters in {folder}",
            hint="put GGUF LoRA files or PEFT adapter folders into it; "
            "logo-local convert makes the one from the other",
        )
    hints = list(dict.fromkeys(problem.hint for problem in problems if problem.hint))
    return PoolError(
        f"none of the adapters in {folder} can be used",
        problems=[str(problem) for problem in problems],
        hint=hints[0] if hints else "",
    )


def shards_in(folder: Path) -> list[Path]:
    """The files in `folder` that are named like shards of an adapter's weights, by name.

    Empty if the folder cannot be listed; its files may still be readable by name.
    """
    names: list[str] = []
    with suppress(OSError):
        names = sorted(name for name in os.listdir(folder) if SHARD_NAME.fullmatch(name))
    return [folder / name for name in names]


def weights_in(folder: Path) -> list[Path]:
    """The file with the weights of the adapter in `folder`, or its shards; at least one path.

    PEFT's single file has priority over its shards, and these over mlx-lm's file.
    """
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    shards = shards_in(folder)
    if shards or not (folder / MLX_WEIGHTS_FILE).exists():
        return shards or [folder / WEIGHTS_FILE]
    return [folder / MLX_WEIGHTS_FILE]


def files_in(folder: Path) -> list[Path]:
    """All files of the adapter in `folder`: its config, weights, and index of shards."""
    weights = weights_in(folder)
    sharded = SHARD_NAME.fullmatch(weights[0].name) is not None
    names = (CONFIG_FILE, *(INDEX_FILES if sharded else ()))
    return [*(path for name in names if (path := folder / name).is_file()), *weights]


def kind_of(origin: Path) -> str:
    """The format of an original adapter: "gguf", "paw", "peft" or "mlx"."""
    if not origin.is_dir():
        return "paw" if origin.suffix.lower() == PAW else "gguf"
    return "mlx" if weights_in(origin)[0].name == MLX_WEIGHTS_FILE else "peft"


def other_folders(folder: Path, used: Collection[Path]) -> list[Path]:
    """The folders in `folder`, and one level below, that are not adapters, but may become some."""
    found: list[Path] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path not in used and path.is_dir():
            found.append(path)
            with suppress(OSError):  # unreadable folders are already reported as problems
                found += [child for child in path.iterdir() if child.is_dir()]
    return [path for path in found if path not in used]


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
    """Says why an entry of the folder cannot be used."""


def stamp_of(path: Path) -> Stamp | None:
    """The sizes and times of a file, or of the files of a PEFT folder; None if it is missing."""
    try:
        stat = path.stat()
        is_adapter = (path / CONFIG_FILE).is_file()
        inside = [path / name for name in _own(os.listdir(path))] if is_adapter else []
        stats = [child.stat() for child in inside if child.is_file()] or [stat]
    except OSError:
        return None
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def _own(names: Collection[str]) -> list[str]:
    """The names in a folder that belong to its adapter, in a fixed order."""
    shards = sorted(name for name in names if SHARD_NAME.fullmatch(name))
    return [*(name for name in _FILES if name in names), *shards]


def _classify(path: Path, *, last: bool) -> Entry | None:
    """The adapter at `path`, or None if it is something else; raises _NotUsableError."""
    if not path.name.isprintable():
        raise _NotUsableError("its name holds characters that cannot be shown")
    try:
        stat = path.stat()
        if path.is_dir():
            return _classify_folder(path, last=last)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _NotUsableError("a link that leads back to itself") from error
        if path.is_symlink() and not path.exists():
            raise _NotUsableError(f"a link to {os.readlink(path)}, which is not there") from error
        raise _NotUsableError(f"it cannot be read: {error.strerror}") from error
    suffix = path.suffix.lower()
    if suffix in (".gguf", PAW):
        stamp = ((stat.st_size, stat.st_mtime_ns),)
        return Entry(path.stem, path, is_converted=suffix == PAW, stamp=stamp)
    if suffix in _PICKLES:
        kind = _kind_of_file(path)
        if kind in (LFS_POINTER, GGLA):
            raise _NotUsableError(kind)
        raise _NotUsableError("a pickle file, which is refused: it could run any program")
    if suffix == ".safetensors":
        raise _NotUsableError(
            f"a lone safetensors file: it must lie in a folder with {CONFIG_FILE}"
        )
    return None


def _kind_of_file(path: Path) -> str:
    """The format by the file's first bytes; "" if it cannot be opened or is not a regular file."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return kind_by_start(file.read(24))
    return ""


def _classify_folder(path: Path, *, last: bool) -> Entry | None:
    inside = sorted(child.name for child in path.iterdir())
    if CONFIG_FILE in inside:
        stats = [(path / name).stat() for name in _own(inside)]
        stamp = tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
        return Entry(path.name, path, is_converted=True, stamp=stamp)
    if any(name.startswith(("adapter_model.", "adapter_model-")) for name in inside):
        raise _NotUsableError(f"it holds adapter weights but no {CONFIG_FILE}")
    if path.suffix.lower() == ".gguf":
        raise _NotUsableError("it is a folder, not a file")
    if last and any(name.lower().endswith(".gguf") for name in inside):
        raise _NotUsableError("it holds .gguf files, but folders that deep are not searched")
    return None
