"""GGUF files in the cache, made once per content from adapters in other formats."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import AdapterError
from .adapter_file import AdapterFile, read_adapter
from .base_model import BaseModel
from .cache_file import temporary_instead
from .digest import sha256_of
from .folder import Entry, files_in
from .paw import unpack_adapter
from .whole_file import only_once

log = logging.getLogger(__name__)

Steps = Callable[[int, int], None]

# The type of converted adapters: half the size of float32, and the common choice.
_OUTTYPE = "f16"


class Converter(NamedTuple):
    """Makes a GGUF LoRA file from an adapter folder; `version` changes when its output changes.

    `convert(source, base, out, outtype, progress)` writes `out` and returns lines for the log;
    it raises ConversionError. `convert.FOR_POOL` is an instance.
    """

    version: int
    convert: Callable[[Path, BaseModel, Path, str, Steps | None], Iterable[str]]


def converted(
    entry: Entry, base: BaseModel, cache: Path, converter: Converter | None, steps: Steps | None
) -> AdapterFile:
    """The adapter `entry`, a PEFT folder or a .paw file, as a checked GGUF file in `cache`.

    Uses a temporary folder if the cache cannot be written. Raises AdapterError if the conversion
    fails.
    """
    folder = cache / "converted"
    try:
        try:
            adapter = _made(entry, base, folder, converter, steps)
        except OSError as error:
            if str(error.filename or "").startswith(str(entry.path)):
                raise  # the adapter cannot be read
            adapter = _made(entry, base, temporary_instead(folder, error), converter, steps)
    except OSError as error:
        raise AdapterError(
            f"cannot convert {entry.path}",
            problems=[f"it cannot be converted: {error.strerror}: {error.filename}"],
            hint=f"converted adapters are written to {cache}",
        ) from error
    return replace(adapter, name=entry.name)


def _made(
    entry: Entry, base: BaseModel, folder: Path, converter: Converter | None, steps: Steps | None
) -> AdapterFile:
    packed = not entry.path.is_dir()
    if not packed and converter is None:
        raise AdapterError(
            "an adapter folder, and nothing converts it",
            hint="give Pool.open converter=logo_local.convert.FOR_POOL",
        )
    version = 0 if converter is None else converter.version
    key = _content_key(entry.path, (base.fingerprint, f"converter {version}", _OUTTYPE))
    out = folder / f"{key}.gguf"
    if out.exists():
        try:
            return read_adapter(out, base)
        except AdapterError as error:
            log.warning("%s is damaged and will be recreated: %s", out, error)
            out.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    notes: Iterable[str] = ()
    with only_once(out) as unfinished:
        if packed or converter is None:
            unpack_adapter(entry.path, unfinished)
        else:
            notes = converter.convert(entry.path, base, unfinished, _OUTTYPE, steps)
    for note in notes:
        log.warning("%s: %s", entry.name, note)
    return read_adapter(out, base)


def _content_key(origin: Path, parts: Iterable[str]) -> str:
    """Sixty-four hex digits that identify the adapter's files and `parts`."""
    key = hashlib.sha256("\n".join(parts).encode())
    for file in files_in(origin) if origin.is_dir() else [origin]:
        if file.is_file():  # the converter reports missing files
            # Digests, not contents: the boundary between two files must be part of the key.
            key.update(file.name.encode() + bytes.fromhex(sha256_of(file)))
    return key.hexdigest()
