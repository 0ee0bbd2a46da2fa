"""The adapters of one folder: which are usable, which may be routed to, and what has changed.

`folder` finds them. Every adapter is checked before it is used; PEFT adapters are converted into
the cache once per content, and .paw files are unpacked. Anything that looks like an adapter and
cannot be used becomes a `Problem`.

Holds no weights and does not know llama.cpp; which adapters are loaded is decided elsewhere.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import AdapterError, UnknownAdapterError
from .adapter_file import AdapterFile, read_adapter
from .base_model import BaseModel
from .converted import Converter, converted
from .file_index import FileIndex, content_key, is_unchanged
from .folder import (
    Entry,
    Problem,
    Stamp,
    nothing_usable,
    other_folders,
    scan,
    stamp_of,
)

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

READING = "reading adapters"  # progress stage; converting PEFT folders has its own


@dataclass(frozen=True)
class Changes:
    """What a rescan found, by name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def as_dict(self) -> dict[str, list[str]]:
        """As a dict, JSON-ready."""
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": list(self.changed),
        }

    def __str__(self) -> str:
        parts = {"new": self.added, "gone": self.removed, "changed": self.changed}
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


@dataclass
class _Known:
    entry: Entry
    adapter: AdapterFile


@dataclass(eq=False)
class Pool:
    """All usable adapters of one folder, by name, for one base model. Create it with `open`.

    `adapters` is sorted by name, and is a new mapping after each rescan that found a change.
    `folder` is None if no adapters are wanted: then the pool is always empty.
    `problems` are the skipped entries. `candidates` are the names that routing may choose from:
    the pinned ones if there are any, otherwise all; never an excluded one.
    """

    folder: Path | None
    base: BaseModel
    cache: Path
    on_problem: Callable[[Problem], None] | None = None
    all_may_be_unfit: bool = False
    may_be_empty: bool = False
    links_out: bool = True
    converter: Converter | None = None
    adapters: Mapping[str, AdapterFile] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    pinned: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    resident: Callable[[], int] = field(default=int, repr=False)  # set by the engine
    _known: dict[Path, _Known] = field(default_factory=dict, repr=False)
    _entries: Mapping[str, Entry] = field(default_factory=dict, repr=False)
    _file_index: FileIndex = field(init=False, repr=False)
    _is_open: bool = field(default=False, repr=False)
    # State at the last scan: the folder, and its unused entries.
    _seen: tuple[Stamp | None, dict[Path, Stamp | None]] = field(default=(None, {}), repr=False)

    def __post_init__(self) -> None:
        self._file_index = FileIndex(self.cache, self.folder or Path(), self.base.fingerprint)

    @classmethod
    def open(
        cls,
        folder: str | Path | None,
        base: BaseModel,
        *,
        cache: str | Path,
        converter: Converter | None = None,
        progress: Progress | None = None,
        on_problem: Callable[[Problem], None] | None = None,
        all_may_be_unfit: bool = False,
        may_be_empty: bool = False,
        links_out: bool = True,
    ) -> Pool:
        """Check every adapter in `folder` against `base`; convert PEFT folders into `cache`.

        Without a `converter`, PEFT folders are skipped.
        `progress` is called with (stage, done, total) as adapters are read and converted;
        `on_problem` with each skipped entry, which is otherwise logged. Raises PoolError, with
        all problems, if `folder` is not a folder of adapters or contains none, and if none of them
        can be used, unless `all_may_be_unfit`. With `may_be_empty`, a folder that is missing or
        has no adapters gives an empty pool and a log line; a rescan finds adapters added later.
        Without `links_out`, links to adapters outside the folder are skipped.
        """
        pool = cls(
            None if folder is None else Path(folder),
            base,
            Path(cache),
            on_problem,
            all_may_be_unfit,
            may_be_empty,
            links_out,
            converter,
        )
        pool.rescan(progress=progress)
        return pool

    def __repr__(self) -> str:
        return f"<Pool {self.folder or 'without a folder'}, {len(self.adapters)} adapters>"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all usable adapters, sorted."""
        return tuple(self.adapters)

    @property
    def resident_bytes(self) -> int:
        """The bytes of adapters that the engine holds in llama.cpp; 0 without an engine."""
        return self.resident()

    @property
    def candidates(self) -> tuple[str, ...]:
        """The names that routing may choose from, sorted."""
        return tuple(
            name
            for name in self.adapters
            if name not in self.excluded and (not self.pinned or name in self.pinned)
        )

    def origin(self, name: str) -> Path:
        """The user's file of this adapter: a GGUF file or a PEFT folder, not its converted form.

        Raises PoolError for an unknown name.
        """
        self.check_name(name)
        entry = self._entries.get(name)
        return self.adapters[name].path if entry is None else entry.path

    def content_key(self, name: str) -> str:
        """The sha256 of this adapter's weights, the key in `profile_store`; computed once per file.

        Raises PoolError for an unknown name, AdapterError if it cannot be read.
        """
        origin = self.origin(name)
        entry = self._entries.get(name)
        known = None if entry is None else self._file_index.find(origin, entry.stamp)
        if known is not None and known.content:
            return known.content
        content = content_key(origin)
        self._file_index.note_content(origin, content)
        return content

    @property
    def index_folder(self) -> Path:
        """The folder for the routing data of these adapters; it may not exist yet."""
        return self.cache / "index" / self._file_index.path.stem

    def save(self) -> None:
        """Save the results of file checks since the last scan in the cache."""
        self._file_index.save()

    def pin(self, name: str) -> None:
        """Route only among the pinned adapters, even if none fits; removes an exclusion.

        Raises PoolError for an unknown name.
        """
        self.check_name(name)
        self.excluded = tuple(n for n in self.excluded if n != name)
        self.pinned = tuple(sorted({*self.pinned, name}))

    def exclude(self, name: str) -> None:
        """Never route to this adapter; removes its pin. Raises PoolError for an unknown name."""
        self.check_name(name)
        self.pinned = tuple(n for n in self.pinned if n != name)
        self.excluded = tuple(sorted({*self.excluded, name}))

    def auto(self) -> None:
        """Remove all pins and exclusions."""
        self.pinned = self.excluded = ()

    def has_changed(self) -> bool:
        """Whether `rescan` would find added, removed or repaired entries; takes microseconds.

        Does not notice changes to a file in use; these are found when it is next opened.
        """
        stamp, unused = self._seen
        return self.folder is not None and (
            stamp_of(self.folder) != stamp
            or any(stamp_of(path) != then for path, then in unused.items())
        )

    def rescan(self, *, progress: Progress | None = None) -> Changes:
        """Scan the folder again: read new and changed entries, drop removed ones.

        Files are identified by path, size and modification time. Pins and exclusions of existing
        names stay. Known problems are not reported again. Raises PoolError, and changes nothing,
        if no usable adapter is left, unless the pool may be or already was empty.
        """
        if self.folder is None:
            return Changes((), (), ())
        stamp = stamp_of(self.folder)
        if self.may_be_empty and not os.path.lexists(self.folder):
            entries, problems = list[Entry](), list[Problem]()
        else:
            entries, problems = scan(self.folder, links_out=self.links_out)
        used = {entry.path for entry in entries}
        unused = {path: stamp_of(path) for path in other_folders(self.folder, used)}
        unused |= {problem.path: stamp_of(problem.path) for problem in problems}
        known = {
            entry.path: old
            for entry in entries
            if (old := self._known.get(entry.path)) is not None
            and old.entry == entry
            and is_unchanged(old.adapter)  # the cache may have been cleared or rebuilt
        }
        for entry in entries:
            checked = self._file_index.find(entry.path, entry.stamp)
            if entry.path not in known and checked is not None:
                known[entry.path] = _Known(entry, checked.adapter)
        fresh = [entry for entry in entries if entry.path not in known]
        for done, entry in enumerate(fresh):
            if progress is not None:
                progress(READING, done, len(fresh))
            try:
                adapter = self._read(entry, progress)
                adapter = self._file_index.add(entry.path, entry.stamp, adapter)
                known[entry.path] = _Known(entry, adapter)
            except AdapterError as error:
                reason = "; ".join(error.problems) or error.message
                problems.append(Problem(entry.name, entry.path, reason, error.hint, error.details))
                unused[entry.path] = entry.stamp
        self._seen = (stamp, unused)
        if progress is not None and fresh:
            progress(READING, len(fresh), len(fresh))
        self._file_index.save()
        problems.sort(key=lambda problem: problem.path)
        is_news = not self._is_open or bool(self.adapters)
        accepts = self.all_may_be_unfit if problems else self.may_be_empty
        if not known and is_news and not accepts:
            raise nothing_usable(self.folder, problems)
        if not known and is_news and not problems:
            log.warning("no adapters in %s yet: the base model answers", self.folder)
        self._is_open = True
        return self._take_over(known, problems)

    def _take_over(self, known: dict[Path, _Known], problems: list[Problem]) -> Changes:
        old = self.adapters
        adapters = {
            one.adapter.name: one.adapter
            for one in sorted(known.values(), key=lambda one: one.adapter.name)
        }
        changes = Changes(
            added=tuple(name for name in adapters if name not in old),
            removed=tuple(name for name in old if name not in adapters),
            changed=tuple(n for n, one in adapters.items() if n in old and old[n] != one),
        )
        for problem in problems:
            if problem not in self.problems:
                self._report(problem)
        for name in changes.removed:
            if name in self.pinned + self.excluded:
                log.warning("%s is gone from %s, and so is its pin or exclusion", name, self.folder)
        self._known, self.problems = known, tuple(problems)
        self._entries = {one.entry.name: one.entry for one in known.values()}
        if changes:
            self.adapters = adapters
            self.pinned = tuple(name for name in self.pinned if name in adapters)
            self.excluded = tuple(name for name in self.excluded if name in adapters)
        return changes

    def _report(self, problem: Problem) -> None:
        if self.on_problem is not None:
            self.on_problem(problem)
        else:
            log.warning("left out: %s", problem)

    def check_name(self, name: str) -> None:
        """Raise PoolError, with similar names, if there is no adapter `name`."""
        if name not in self.adapters:
            close = difflib.get_close_matches(name, self.adapters, n=3)
            guess = f"did you mean {' or '.join(close)}? " if close else ""
            raise UnknownAdapterError(
                f"there is no adapter {name!r} in {self.folder.name if self.folder else 'use'}",
                hint=f"{guess}the adapters are: {', '.join(self.adapters) or 'none'}",
            )

    def check_current(self, name: str) -> None:
        """Raise AdapterError if the user's own files of `name` have changed.

        For a PEFT folder these are not the loaded file, which is the converted form. Raises
        PoolError for an unknown name.
        """
        self.check_name(name)
        entry = self._entries.get(name)
        if entry is not None and entry.is_converted and stamp_of(entry.path) != entry.stamp:
            raise AdapterError(
                f"{entry.path} has changed since it was checked",
                hint="rescan the folder of adapters",
            )

    def _read(self, entry: Entry, progress: Progress | None) -> AdapterFile:
        if not entry.is_converted:
            return read_adapter(entry.path, self.base)
        steps = partial(progress, f"converting {entry.name}") if progress else None
        return converted(entry, self.base, self.cache, self.converter, steps)
