"""Matrices of many adapters, one below the other, in a file that is mapped into memory.

Scoring a thousand adapters reads a hundred megabytes that are costly to make and the same at each
start. The file begins with what is in it; where the adapters are others now it is written again,
with the matrices that are still right taken over. Two processes may do so at once: each keeps
what it has mapped, and the last one's file stays.

    b"LOGOSTK1", uint64: length of the header, header: JSON, zeros up to a multiple of 64, float32
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ..hidden_states import FloatArray

log = logging.getLogger(__name__)

MAGIC = b"LOGOSTK1"
ALIGNMENT = 64


class Stack(NamedTuple):
    """`matrix` (sum of ranks, d_in) float32, and the row where each of its parts begins."""

    matrix: FloatArray
    starts: list[int]

    def part(self, i: int | np.intp) -> FloatArray:
        """The i-th part (rank, d_in)."""
        ends = [*self.starts[1:], len(self.matrix)]
        return self.matrix[self.starts[i] : ends[i]]


def stacked(
    path: Path | None, ids: Sequence[str], d_in: int, make: Callable[[int], FloatArray]
) -> Stack:
    """The parts `ids`, in this order, from the file at `path`, which is brought up to date.

    `make(i)` returns the matrix (rank, d_in) of ids[i]; it is called for those that the file does
    not have. An id must change when its matrix does. Without a path, or where nothing can be
    written, all is in memory. `ids` must not be empty.
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
            names, starts, n_rows, offset = _header(file, d_in, size)
            matrix = np.memmap(
                file, np.float32, "r", offset, (n_rows, d_in)
            )  # (sum of ranks, d_in)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        log.warning("%s is damaged and made anew: %s", path, error)
        return None
    return names, Stack(matrix, starts)


def _header(file: BinaryIO, d_in: int, size: int) -> tuple[list[str], list[int], int, int]:
    if file.read(8) != MAGIC:
        raise ValueError("it begins otherwise than these files do")
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(min(length, size)))
    names, starts, n_rows = header["names"], header["starts"], int(header["rows"])
    offset = _padded(16 + length)
    if header["d_in"] != d_in or size != offset + 4 * n_rows * d_in:
        raise ValueError("it has another size than it says")
    spans = [0, *starts, n_rows]
    if len(names) != len(starts) or starts[0] != 0 or sorted(spans) != spans:
        raise ValueError("its parts do not follow each other")
    return names, starts, n_rows, offset


def _write(
    path: Path, ids: Sequence[str], starts: list[int], d_in: int, parts: Sequence[FloatArray]
) -> None:
    rows = sum(len(part) for part in parts)
    content = {"names": list(ids), "starts": starts, "rows": rows, "d_in": d_in}
    header = json.dumps(content).encode()
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished.open("wb") as file:
            file.write(MAGIC + struct.pack("<Q", len(header)) + header)
            file.write(bytes(_padded(file.tell()) - file.tell()))
            for part in parts:
                file.write(np.ascontiguousarray(part, np.dtype("<f4")).data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
