"""A cache file with the vertically stacked matrices of many adapters.

Scoring a thousand adapters uses a hundred megabytes that are slow to compute and the same at each
start. The file starts with a header that describes its content. When adapters change, the file is
rewritten and valid matrices are reused. Two processes may do so at once: each uses the data it has
read, and the last file wins. The file is read, not memory-mapped, because truncating a mapped file
crashes the process.

    b"LOGOSTK2", uint64: length of the header, header: JSON, float32 numbers, uint32: CRC-32 of
    everything before it
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files.whole_file import written_whole
from ..hidden_states import FloatArray

log = logging.getLogger(__name__)

MAGIC = b"LOGOSTK2"


class Stack(NamedTuple):
    """`matrix` (sum of ranks, d_in) float32, and the first row of each part."""

    matrix: FloatArray
    starts: list[int]

    def part(self, i: int | np.intp) -> FloatArray:
        """The i-th part (rank, d_in)."""
        ends = [*self.starts[1:], len(self.matrix)]
        return self.matrix[self.starts[i] : ends[i]]


def stacked(
    path: Path | None, ids: Sequence[str], d_in: int, make: Callable[[int], FloatArray]
) -> Stack:
    """The parts `ids`, in this order, from the file at `path`, which is updated.

    `make(i)` returns the matrix (rank, d_in) of ids[i]; it is called for parts that are not in the
    file. An id must change when its matrix does. Without a path, or if the file cannot be written,
    the stack is only in memory. `ids` must not be empty.
    """
    found = None if path is None else _read(path, d_in)
    if found is not None and found[0] == list(ids):
        return found[1]
    old = {} if found is None else {name: i for i, name in enumerate(found[0])}
    parts = [
        found[1].part(old[name]) if found is not None and name in old else make(i)
        for i, name in enumerate(ids)
    ]
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist()
    if path is not None:
        try:
            _write(path, ids, starts, d_in, parts)
            again = _read(path, d_in)
            if again is not None and again[0] == list(ids):
                return again[1]
        except OSError as error:
            log.warning("%s cannot be written, and is made at each start: %s", path, error.strerror)
    return Stack(np.concatenate(parts), starts)


def _read(path: Path, d_in: int) -> tuple[list[str], Stack] | None:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(16)
            (length,) = struct.unpack("<Q", start[8:])
            if start[:8] != MAGIC or length > size:
                raise ValueError("it is not a file of this kind")
            header = file.read(length)
            names, starts, n_rows = _checked(json.loads(header), d_in)
            if size != 16 + length + 4 * n_rows * d_in + 4:
                raise ValueError("its size is not the one that its header announces")
            matrix = np.empty((n_rows, d_in), np.dtype("<f4"))  # (sum of ranks, d_in)
            read = file.readinto(matrix.data)
            checksum = zlib.crc32(matrix.data, zlib.crc32(start + header))
            if read != matrix.nbytes or file.read() != struct.pack("<I", checksum):
                raise ValueError("its checksum is wrong")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        log.warning("%s is damaged and will be recreated: %s", path, error)
        return None
    return names, Stack(matrix, starts)


def _checked(content: Any, d_in: int) -> tuple[list[str], list[int], int]:
    """The names, the first row of each, and the number of rows, from a validated header."""
    names, starts, n_rows = content["names"], content["starts"], int(content["rows"])
    if content["d_in"] != d_in:
        raise ValueError("its matrices have another width")
    spans = [0, *starts, n_rows]
    if not names or len(names) != len(starts) or starts[0] != 0 or sorted(spans) != spans:
        raise ValueError("its parts do not follow each other")
    return names, starts, n_rows


def _write(
    path: Path, ids: Sequence[str], starts: list[int], d_in: int, parts: Sequence[FloatArray]
) -> None:
    rows = sum(len(part) for part in parts)
    content = {"names": list(ids), "starts": starts, "rows": rows, "d_in": d_in}
    header = json.dumps(content).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    start = MAGIC + struct.pack("<Q", len(header)) + header
    numbers = (np.ascontiguousarray(part, np.dtype("<f4")).tobytes() for part in parts)
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        checksum = 0
        for piece in (start, *numbers):
            file.write(piece)
            checksum = zlib.crc32(piece, checksum)
        file.write(struct.pack("<I", checksum))
