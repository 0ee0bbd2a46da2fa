"""Tensors in safetensors files: found, checked, and read one at a time.

The weights of an adapter are in one file or in several shards. The shards themselves show which
tensors they contain; an index (transformers writes one) must agree. Shards without an index are
accepted if the numbers in their names are complete. Nothing raises for invalid files: problems are
added to the findings.
"""

from __future__ import annotations

import json
import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files.folder import INDEX_FILES, SHARD_NAME, WEIGHTS_FILE, shards_in
from ..files.gguf_bounds import LFS_HINT, LFS_POINTER, kind_by_start, printable
from ..files.text_file import read_text
from .peft_config import Findings

PICKLE_FILE = "adapter_model.bin"

_MAX_HEADER = 100_000_000  # bytes, as in the safetensors library

# Stored types that become float32 without loss (F64 is rounded).
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}

_DAMAGED = "the file may be damaged or only half downloaded"
_AGAIN = "get the whole folder again: its files are not those of one save"
_RESAVE_HINT = (
    "load it with PEFT where you trust it, then "
    "model.save_pretrained(folder, safe_serialization=True)"
)


@dataclass(frozen=True)
class StoredTensor:
    """The place of one tensor in a checked safetensors file; its data is not in memory.

    `shape` is the shape in which it is used. If the file has another axis order, `axes` gives for
    each axis the axis of the file's shape, as in numpy's transpose.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    axes: tuple[int, ...] = ()

    def turned(self, *axes: int) -> StoredTensor:
        """The same tensor with its axes in another order, as in numpy's transpose."""
        own = self.axes or tuple(range(len(self.shape)))
        shape = tuple(self.shape[axis] for axis in axes)
        return replace(self, shape=shape, axes=tuple(own[axis] for axis in axes))

    def split(self, *shape: int) -> StoredTensor:
        """The same data in another shape, in the order of the file."""
        return replace(self, shape=shape)

    def read(self) -> npt.NDArray[np.float32]:
        """The tensor as float32 (shape `self.shape`), read from the file now.

        Raises OSError if the file has become shorter since it was checked.
        """
        count = math.prod(self.shape)
        raw = np.fromfile(self.path, _DTYPES[self.dtype], count, offset=self.offset)
        if raw.size != count:
            raise OSError(f"{self.path} changed while it was read")
        if self.dtype == "BF16":  # numpy has no bfloat16: its bits are the upper half of float32's
            values = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):  # too large for float32: found later as not finite
                values = raw.astype(np.float32, copy=False)
        if not self.axes:
            return values.reshape(self.shape)
        in_file = [self.shape[self.axes.index(axis)] for axis in range(len(self.axes))]
        return np.ascontiguousarray(values.reshape(in_file).transpose(self.axes))


def read_weights(folder: Path, findings: Findings) -> list[StoredTensor]:
    """The tensors of the PEFT adapter in `folder`, from one file or its shards; data unread."""
    if (folder / WEIGHTS_FILE).is_file():
        return read_header(folder / WEIGHTS_FILE, findings)
    if not folder.is_dir():
        return []
    shards = shards_in(folder)
    index = _index_of(folder, shards)
    if index is not None:
        return _read_indexed(folder, index, shards, findings)
    if shards:
        return _read_numbered(shards, findings)
    if pickles := sorted(folder.glob("adapter_model*.bin")):
        findings.add(
            f"{pickles[0].name} is a pickle, which can run code when loaded: refused", _RESAVE_HINT
        )
    else:
        findings.add(f"no {WEIGHTS_FILE} in it")
    return []


def unread_weights(folder: Path) -> list[str]:
    """The names of weight files that `read_weights` ignores because others have priority."""
    single, shards = (folder / WEIGHTS_FILE).is_file(), shards_in(folder) if folder.is_dir() else []
    pickle = [PICKLE_FILE] if (single or shards) and (folder / PICKLE_FILE).exists() else []
    return [*pickle, *(path.name for path in shards if single)]


def _index_of(folder: Path, shards: list[Path]) -> Path | None:
    """The index of an adapter's shards. One with the general name may be that of a whole model."""
    ours, general = (folder / name for name in INDEX_FILES)
    if ours.is_file():
        return ours
    if not shards or not general.is_file():
        return None
    files = _weight_map(general, Findings()).values()
    of_a_model = files and not any(SHARD_NAME.fullmatch(name) for name in files)
    return None if of_a_model else general


def _weight_map(index: Path, findings: Findings) -> dict[str, str]:
    """The file of each tensor according to `index`; empty if it cannot be read."""
    try:
        content = json.loads(read_text(index))
    except (OSError, ValueError, RecursionError) as error:
        findings.add(f"{index.name} cannot be read: {error}", _DAMAGED)
        return {}
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        findings.add(f"{index.name} has no weight_map of tensors and files", _DAMAGED)
        return {}
    if not found:
        findings.add(f"{index.name} names no tensors", _DAMAGED)
    return found


def _read_indexed(
    folder: Path, index: Path, shards: list[Path], findings: Findings
) -> list[StoredTensor]:
    weight_map = _weight_map(index, findings)
    named = sorted(set(weight_map.values()))
    strange = [name for name in named if not SHARD_NAME.fullmatch(name)]
    if strange:  # never opened: the path may lead anywhere
        findings.add(
            f"{index.name} names {_first(map(repr, strange))}, "
            "where adapter_model-00001-of-00002.safetensors and the like must stand",
            "shards must lie in the adapter's own folder, under the names they were saved with",
        )
    sound = [folder / name for name in named if name not in strange]
    missing = [path.name for path in sound if not path.is_file()]
    if missing:
        findings.add(f"{_first(missing)} is missing, which {index.name} names", _AGAIN)
    if weight_map and (others := [path.name for path in shards if path.name not in named]):
        findings.add(f"{_first(others)} is not named by {index.name}", _AGAIN)
    present = [path for path in sound if path.name not in missing]
    headers = _headers(present, findings)
    tensors = _only_once(headers, findings)
    for file, found in headers.items():
        said = {name for name, where in weight_map.items() if where == file}
        held = {tensor.name for tensor in found}
        if absent := sorted(said - held):
            findings.add(f"{_first(absent)} is not in {file}, as {index.name} says", _AGAIN)
        if unsaid := sorted(held - weight_map.keys()):
            findings.add(f"{_first(unsaid)} in {file} is not in {index.name}", _AGAIN)
    return tensors


def _read_numbered(shards: list[Path], findings: Findings) -> list[StoredTensor]:
    """Shards without an index: complete if their numbers are."""
    matches = [match for path in shards if (match := SHARD_NAME.fullmatch(path.name))]
    totals = sorted({int(match["total"]) for match in matches})
    if len(totals) > 1:
        of = " and ".join(map(str, totals))
        findings.add(f"its shards are of several saves, of {of} files", _AGAIN)
        return []
    missing = set(range(1, totals[0] + 1)) - {int(match["number"]) for match in matches}
    if missing:
        number = _first(map(str, sorted(missing)))
        findings.add(f"of its {totals[0]} shards number {number} is missing", _AGAIN)
    elif len(matches) > totals[0]:
        findings.add(f"{len(matches)} shards are there, whose names say {totals[0]}", _AGAIN)
    return _only_once(_headers(shards, findings), findings)


def _headers(paths: list[Path], findings: Findings) -> dict[str, list[StoredTensor]]:
    """The tensors of each readable file, by its name."""
    headers = {}
    for path in paths:
        before = len(findings.problems)
        tensors = read_header(path, findings)
        if len(findings.problems) == before:
            headers[path.name] = tensors
    return headers


def _only_once(headers: Mapping[str, list[StoredTensor]], findings: Findings) -> list[StoredTensor]:
    """All tensors, each once; one that is in two files becomes a finding."""
    places: dict[str, list[StoredTensor]] = defaultdict(list)
    for tensors in headers.values():
        for tensor in tensors:
            places[tensor.name].append(tensor)
    twice: dict[str, list[str]] = defaultdict(list)
    for name, found in places.items():
        if len(found) > 1:
            twice[" and ".join(tensor.path.name for tensor in found)].append(name)
    for files, names in twice.items():
        findings.add(f"{_first(names)} is in {files}", _AGAIN)
    return [found[0] for found in places.values()]


def _first(names: Iterable[str]) -> str:
    """The first of the names, and the number of others."""
    first, *others = map(printable, names)
    return f"{first} (and {len(others)} more)" if others else first


def _checked_header(path: Path) -> tuple[int, dict[str, Any]]:
    """The length of a safetensors file's header, and the entry of each tensor in it.

    Uses reads, not a memory map as the safetensors library: if another program truncates the file,
    the result is an error and not a signal. Raises ValueError, KeyError or TypeError for whatever
    that library rejects: an invalid JSON header, or data that overlap, have a gap, or do not end
    at the end of the file.
    """
    with path.open("rb") as file:
        n_bytes = file.seek(0, 2)
        file.seek(0)
        if n_bytes < 8:
            raise ValueError(f"{n_bytes} bytes are no whole header")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(n_bytes - 8, _MAX_HEADER):
            raise ValueError(
                f"its header is said to have {length:,} bytes, the file has {n_bytes:,}"
            )
        content = json.loads(file.read(length))
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")
    content.pop("__metadata__", None)
    end = 0
    for name, entry in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (first, last) = entry["shape"], entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, first, last)) or first != end:
            raise ValueError(f"the place or shape of {printable(name)} is wrong")
        item = _DTYPES.get(entry["dtype"])
        if item and last - first != math.prod(shape) * np.dtype(item).itemsize:
            raise ValueError(f"{printable(name)} has {last - first:,} bytes for the shape {shape}")
        end = last
    if 8 + length + end != n_bytes:
        raise ValueError(f"its data end at byte {8 + length + end:,}, the file at {n_bytes:,}")
    return length, content


def _kind_of(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        return kind_by_start(file.read(24))
    return ""


def read_header(path: Path, findings: Findings) -> list[StoredTensor]:
    """The tensors of a safetensors file, checked but unread; problems go to `findings`."""
    if (kind := _kind_of(path)) == LFS_POINTER:
        findings.add(f"{path.name}: {kind}", LFS_HINT)
        return []
    try:
        length, header = _checked_header(path)
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        findings.add(f"{path.name} cannot be read: {error}", _DAMAGED)
        return []
    tensors = []
    for name, entry in header.items():
        shape, start = tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        if entry["dtype"] in _DTYPES:
            tensors.append(StoredTensor(path, name, entry["dtype"], shape, start))
        else:
            findings.add(
                f"{name} is stored as {entry['dtype']}; "
                "only F32, F16, BF16 and F64 can be converted"
            )
    if not header:
        findings.add(f"{path.name} holds no tensors")
    return tensors
