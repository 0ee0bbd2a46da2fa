"""Cached results of adapter checks: with them a thousand adapters open in a second.

Reading and checking every number of an adapter takes about 80 ms, and hashing as long again.
A file with the same size and modification time counts as unchanged, as in `make`. A file that was
modified within the last seconds before it was read is not trusted, because file systems have
coarse clocks. A damaged index is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from .adapter_file import AdapterFile, Module
from .cache_file import keep, kept
from .digest import sha256_of_all
from .folder import Stamp, weights_in
from .stored_values import TENSOR_TYPES, TensorPlace

log = logging.getLogger(__name__)

FORMAT = 3  # of the file and of the checks in `adapter_file`: change it to check all files again
SETTLED_NS = 3_000_000_000  # a file is trusted if it was this old when it was read


@dataclass(frozen=True)
class Known:
    """A checked adapter of the folder; `content` is its sha256 if it was needed.

    `stamp` is that of the original file; `adapter` may be its converted form.
    """

    stamp: Stamp
    adapter: AdapterFile
    content: str = ""


class FileIndex:
    """The adapters of one folder for one base, by path; `base` is the base's fingerprint."""

    def __init__(self, cache: Path, folder: Path, base: str) -> None:
        name = hashlib.sha256(f"{folder.absolute()}\n{base}\n{FORMAT}".encode()).hexdigest()
        self.path = cache / "checked" / f"{name[:32]}.json"
        self._known: dict[str, Known] = {}
        self._layouts: dict[tuple[tuple[str, Module], ...], Mapping[str, Module]] = {}
        self._changed = False
        self._load()

    def find(self, path: Path, stamp: Stamp) -> Known | None:
        """The entry of the adapter at `path`, if the file is unchanged since the check."""
        known = self._known.get(str(path))
        if known is None or known.stamp != stamp or not is_unchanged(known.adapter):
            return None
        return known

    def add(self, path: Path, stamp: Stamp, adapter: AdapterFile) -> AdapterFile:
        """Remember a checked adapter; return it, sharing its modules with others of its shape."""
        key = tuple(adapter.modules.items())
        adapter = replace(adapter, modules=self._layouts.setdefault(key, adapter.modules))
        if all(time.time_ns() - mtime > SETTLED_NS for _, mtime in stamp):
            self._known[str(path)] = Known(stamp, adapter)
            self._changed = True
        return adapter

    def note_content(self, path: Path, content: str) -> None:
        """Remember the sha256 of an adapter that was added with `add`."""
        known = self._known.get(str(path))
        if known is not None:
            self._known[str(path)] = replace(known, content=content)
            self._changed = True

    def save(self) -> None:
        """Write new entries. If the disk is full or read-only, the next start is slower."""
        if not self._changed:
            return
        if keep(self.path, json.dumps(self._as_json()).encode()):
            self._changed = False

    def _as_json(self) -> dict[str, Any]:
        numbers = {id(layout): i for i, layout in enumerate(self._layouts.values())}
        return {
            "layouts": [
                {target: _module_json(module) for target, module in layout.items()}
                for layout in self._layouts.values()
            ],
            "files": {
                path: [
                    known.stamp,
                    known.content,
                    [one.name, str(one.path), one.lora_alpha, one.n_bytes, one.mtime_ns],
                    [one.data_start, numbers[id(one.modules)], one.description],
                ]
                for path, known in self._known.items()
                if (one := known.adapter) and os.path.exists(path)
            },
        }

    def _load(self) -> None:
        data = kept(self.path)
        if data is None:
            return
        try:
            content = json.loads(data)
            layouts = [
                {target: _module(*values) for target, values in layout.items()}
                for layout in content["layouts"]
            ]
            for path, (stamp, sha, about, (start, layout, said)) in content["files"].items():
                name, file, alpha, size, mtime = about
                modules = layouts[layout]
                adapter = AdapterFile(
                    str(name), Path(file), float(alpha), modules, size, mtime, start, str(said)
                )
                pairs = tuple((int(n), int(t)) for n, t in stamp)
                self._known[path] = Known(pairs, adapter, str(sha))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            log.warning("%s is damaged, and adapters are checked again: %s", self.path, error)
            self._known = {}
            return
        self._layouts = {tuple(layout.items()): layout for layout in layouts}


def content_key(origin: Path) -> str:
    """The sha256 of an adapter's weights, in hex: it identifies the adapter in any folder.

    `origin` is a GGUF file or a PEFT folder. Raises AdapterError if it cannot be read.
    """
    try:
        return sha256_of_all(weights_in(origin) if origin.is_dir() else [origin])
    except OSError as error:
        raise AdapterError(
            f"{error.filename or origin} cannot be read: {error.strerror}",
            hint="give a GGUF LoRA file or a PEFT adapter folder",
        ) from error


def is_unchanged(adapter: AdapterFile) -> bool:
    """Whether the adapter's file has the same size and modification time as when checked."""
    try:
        stat = adapter.path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (adapter.n_bytes, adapter.mtime_ns)


def _module_json(module: Module) -> list[Any]:
    numbers = [module.rank, module.d_in, module.d_out, module.dtype, module.n_expert]
    return [*numbers, list(module.a), list(module.b)]


def _module(
    rank: int, d_in: int, d_out: int, dtype: str, n_expert: int, a: list[Any], b: list[Any]
) -> Module:
    return Module(rank, d_in, d_out, dtype, n_expert, _place(*a), _place(*b))


def _place(offset: int, n_bytes: int, dtype: str, shape: list[int]) -> TensorPlace:
    if dtype not in TENSOR_TYPES:
        raise ValueError(f"{dtype!r} is no type of tensors")
    return TensorPlace(int(offset), int(n_bytes), dtype, tuple(int(n) for n in shape))
