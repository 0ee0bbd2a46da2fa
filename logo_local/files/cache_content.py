"""What the cache contains, and which parts are unused.

Every part can be created again. A pool is unused if none of its checked adapters exists at its
old path; then its index and its converted files are unused too, and so are the files of earlier
releases. Only folders that this package creates are examined.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cache_file import kept

CHECKED, CONVERTED, INDEX, PROFILES = "checked", "converted", "index", "profiles"


@dataclass(frozen=True)
class Part:
    """One folder of the cache: its entries (files or folders), and the `unused` ones."""

    name: str
    about: str
    entries: tuple[Path, ...]
    unused: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Counts, and sizes in bytes, JSON-ready."""
        return {
            "name": self.name,
            "about": self.about,
            "entries": len(self.entries),
            "n_bytes": size_of(self.entries),
            "unused": len(self.unused),
            "unused_bytes": size_of(self.unused),
        }


def parts_of(cache: Path, profile_format: int) -> list[Part]:
    """The parts of the cache; `profile_format` is the current format of profiles."""
    checked, live, in_use = _inside(cache / CHECKED), set[str](), set[str]()
    for path in checked:
        origins, converted = _adapters_in(path)
        if any(Path(origin).exists() for origin in origins):
            live.add(path.stem)
            in_use |= converted
    gone = tuple(path for path in checked if path.stem not in live)
    converted_files, indexes = _inside(cache / CONVERTED), _inside(cache / INDEX)
    profiles = _inside(cache / PROFILES)
    return [
        Part(CHECKED, "folders of adapters that were checked", checked, gone),
        Part(
            CONVERTED,
            "PEFT adapters as GGUF files",
            converted_files,
            tuple(path for path in converted_files if str(path) not in in_use),
        ),
        Part(
            INDEX,
            "routing matrices of folders",
            indexes,
            tuple(path for path in indexes if path.name not in live),
        ),
        Part(
            PROFILES,
            "vectors of example prompts, by model",
            profiles,
            tuple(p for p in profiles if not p.name.endswith(f"-{profile_format}")),
        ),
    ]


def remove(entries: Sequence[Path]) -> tuple[int, int]:
    """Remove files and folders; return how many were removed, and their bytes. Raises OSError."""
    n_bytes = size_of(entries)
    for path in entries:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(entries), n_bytes


def size_of(entries: Sequence[Path]) -> int:
    """The total size in bytes of all files in these entries."""
    return sum(size for entry in entries for size in _sizes(entry))


def _sizes(entry: Path) -> Iterator[int]:
    for path in (entry, *entry.rglob("*")):
        with suppress(OSError):  # removed in the meantime
            if path.is_file():
                yield path.stat().st_size


def _inside(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.iterdir())) if folder.is_dir() else ()


def _adapters_in(index: Path) -> tuple[set[str], set[str]]:
    """The paths in a `file_index`: of the original adapters, and of the files that are loaded."""
    try:
        files = json.loads(kept(index) or b"{}")["files"]
        return set(files), {str(values[2][1]) for values in files.values()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return set(), set()
