"""The folder of adapters: what is in it, what of that can be used, what may be routed.

Only the folder's own level is looked at. A `.gguf` file is an adapter, and so is a folder with
an adapter_config.json in it (PEFT), which is converted into the cache once for each content.
Hidden names and other files (notes, data) are no adapters and are passed over; everything that
looks like an adapter and cannot be used becomes a `Problem`. Links may lead anywhere.

Holds no weights and knows nothing of llama.cpp; what is loaded there is decided elsewhere.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from .adapter_file import AdapterFile, read_adapter
from .base_model import BaseModel
from .errors import AdapterError, PoolError
from .gguf_bounds import printable

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# The stored form of converted adapters; half of float32's size, and the common choice.
_OUTTYPE = "f16"
READING = "reading adapters"  # what progress is told; PEFT folders have stages of their own
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


@dataclass(frozen=True)
class Changes:
    """What a rescan found, by name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True)
class _Entry:
    """An adapter in the folder; its stamp changes when any of its files does."""

    name: str
    path: Path
    is_peft: bool
    stamp: tuple[tuple[int, int], ...]  # (size, mtime_ns) of each file


@dataclass
class _Known:
    entry: _Entry
    adapter: AdapterFile


@dataclass(eq=False)
class Pool:
    """All usable adapters of one folder, by name, for one base model. Make it with `open`.

    `adapters` is sorted by name, and is another mapping after each rescan that found a change.
    `problems` are the things left out. `candidates` are the names that routing may choose from:
    the pinned ones if any are, otherwise all; never an excluded one.
    """

    folder: Path
    base: BaseModel
    cache: Path
    on_problem: Callable[[Problem], None] | None = None
    all_may_be_unfit: bool = False
    adapters: Mapping[str, AdapterFile] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    pinned: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    resident: Callable[[], int] = field(default=int, repr=False)  # set by the engine
    _known: dict[Path, _Known] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        base: BaseModel,
        *,
        cache: str | Path,
        progress: Progress | None = None,
        on_problem: Callable[[Problem], None] | None = None,
        all_may_be_unfit: bool = False,
    ) -> Pool:
        """Check every adapter in `folder` against `base`; convert PEFT folders into `cache`.

        `progress` is called with (stage, done, total) as adapters are read and converted;
        `on_problem` with each thing left out, which is otherwise logged. Raises PoolError, with
        all problems, when `folder` is no folder of adapters or holds none, and when none of them
        can be used, unless `all_may_be_unfit`.
        """
        pool = cls(Path(folder), base, Path(cache), on_problem, all_may_be_unfit)
        pool.rescan(progress=progress)
        return pool

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all usable adapters, sorted."""
        return tuple(self.adapters)

    @property
    def resident_bytes(self) -> int:
        """How many bytes of adapters the engine holds in llama.cpp; 0 without an engine."""
        return self.resident()

    @property
    def candidates(self) -> tuple[str, ...]:
        """The names that a route may hold, sorted."""
        return tuple(
            name
            for name in self.adapters
            if name not in self.excluded and (not self.pinned or name in self.pinned)
        )

    def origin(self, name: str) -> Path:
        """Where the user keeps this adapter: a GGUF file or a PEFT folder, not its converted form.

        PoolError for an unknown name.
        """
        self.check_name(name)
        return next(
            (path for path, one in self._known.items() if one.adapter.name == name),
            self.adapters[name].path,
        )

    def pin(self, name: str) -> None:
        """Route among the pinned only, also when none of them fits; lifts an exclusion.

        PoolError for an unknown name.
        """
        self.check_name(name)
        self.excluded = tuple(n for n in self.excluded if n != name)
        self.pinned = tuple(sorted({*self.pinned, name}))

    def exclude(self, name: str) -> None:
        """Never route to this one; lifts its pin. PoolError for an unknown name."""
        self.check_name(name)
        self.pinned = tuple(n for n in self.pinned if n != name)
        self.excluded = tuple(sorted({*self.excluded, name}))

    def auto(self) -> None:
        """Forget all pins and exclusions."""
        self.pinned = self.excluded = ()

    def rescan(self, *, progress: Progress | None = None) -> Changes:
        """Look at the folder again: read what is new or changed, drop what has gone.

        Files are known by path, size and modification time. Pins and exclusions of names that
        are still there stay. Problems that were there before are not reported again. Raises
        PoolError, and changes nothing, when no usable adapter is left.
        """
        entries, problems = _scan(self.folder)
        known = {
            entry.path: old
            for entry in entries
            if (old := self._known.get(entry.path)) is not None
            and old.entry == entry
            and old.adapter.path.exists()  # the cache may have been emptied
        }
        fresh = [entry for entry in entries if entry.path not in known]
        for done, entry in enumerate(fresh):
            if progress is not None:
                progress(READING, done, len(fresh))
            try:
                known[entry.path] = _Known(entry, self._read(entry, progress))
            except AdapterError as error:
                reason = "; ".join(error.problems) or error.message
                problems.append(Problem(entry.name, entry.path, reason, error.hint))
        if progress is not None and fresh:
            progress(READING, len(fresh), len(fresh))
        problems.sort(key=lambda problem: problem.path)
        if not known and not (problems and self.all_may_be_unfit):
            raise _nothing_usable(self.folder, problems)
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
        """Raise PoolError, with the names that come close, if there is no adapter `name`."""
        if name not in self.adapters:
            close = difflib.get_close_matches(name, self.adapters, n=3)
            guess = f"did you mean {' or '.join(close)}? " if close else ""
            raise PoolError(
                f"there is no adapter {name!r} in {self.folder}",
                hint=f"{guess}the adapters are: {', '.join(self.adapters)}",
            )

    def _read(self, entry: _Entry, progress: Progress | None) -> AdapterFile:
        if not entry.is_peft:
            return read_adapter(entry.path, self.base)
        try:
            return replace(self._converted(entry, progress), name=entry.name)
        except OSError as error:
            raise AdapterError(
                f"cannot convert {entry.path}",
                problems=[f"it cannot be converted: {error.strerror}: {error.filename}"],
                hint=f"converted adapters are written to {self.cache}",
            ) from error

    def _converted(self, entry: _Entry, progress: Progress | None) -> AdapterFile:
        """The PEFT adapter as a GGUF file in the cache, made now if it is not there."""
        # Imported here, since a pool of GGUF files has no need of safetensors.
        from .convert import CONVERTER_VERSION, convert_adapter

        parts = (self.base.fingerprint, f"converter {CONVERTER_VERSION}", _OUTTYPE)
        out = self.cache / "converted" / f"{_content_key(entry.path, parts)}.gguf"
        if out.exists():
            try:
                return read_adapter(out, self.base)
            except AdapterError as error:
                log.warning("%s is damaged and made anew: %s", out, error)
        out.parent.mkdir(parents=True, exist_ok=True)
        steps = partial(progress, f"converting {entry.name}") if progress else None
        conversion = convert_adapter(entry.path, self.base, out, _OUTTYPE, steps)
        for note in conversion.notes:
            log.warning("%s: %s", entry.name, note)
        return read_adapter(out, self.base)


def _content_key(folder: Path, parts: Iterable[str]) -> str:
    """Sixty-four hex digits for the adapter's two files and `parts`."""
    key = hashlib.sha256("\n".join(parts).encode())
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        file = folder / name
        if file.is_file():  # without one of them the converter will say what is missing
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
            # Digests rather than contents: no file can pretend to be the start of the next.
            key.update(name.encode() + digest.digest())
    return key.hexdigest()


def _nothing_usable(folder: Path, problems: list[Problem]) -> PoolError:
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


# --- what lies in the folder -------------------------------------------------------------------


def _scan(folder: Path) -> tuple[list[_Entry], list[Problem]]:
    """The adapters in `folder`, unread and with unique names, and what cannot be one."""
    _check_folder(folder)
    entries: dict[str, _Entry] = {}
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


def _classify(path: Path) -> _Entry | None:
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
        return _Entry(path.stem, path, is_peft=False, stamp=stamp)
    if suffix in _PICKLES:
        raise _NotUsableError("a pickle file, which is refused: it could run any program")
    if suffix == ".safetensors":
        raise _NotUsableError(
            f"a lone safetensors file: it must lie in a folder with {CONFIG_FILE}"
        )
    return None


def _classify_folder(path: Path) -> _Entry | None:
    inside = sorted(child.name for child in path.iterdir())
    if CONFIG_FILE in inside:
        stats = [(path / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE) if name in inside]
        stamp = tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
        return _Entry(path.name, path, is_peft=True, stamp=stamp)
    if any(name.startswith("adapter_model.") for name in inside):
        raise _NotUsableError(f"it holds adapter weights but no {CONFIG_FILE}")
    if path.suffix.lower() == ".gguf":
        raise _NotUsableError("it is a folder, not a file")
    if any(name.lower().endswith(".gguf") for name in inside):
        raise _NotUsableError(
            "it holds .gguf files, but folders within the folder are not searched"
        )
    return None
