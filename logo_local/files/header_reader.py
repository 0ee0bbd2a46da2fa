"""gguf's reader with ordinary file reads instead of a memory map.

A process that maps a file is ended by a signal (SIGBUS) if another program truncates the file and
the process touches a page after the new end; `cp new.gguf old.gguf` does that. With ordinary reads
this is an OSError. Only headers are read here, never tensor data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

_WINDOW = 1 << 16  # bytes per read
_LENGTH = struct.Struct("<Q")


class FileContent:
    """The bytes of the file at `path`, sliced like an array (uint8) and read on access.

    Raises OSError if the file has become shorter since it was opened, ValueError for bytes after
    its end. Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._size = self._file.seek(0, 2)
        self._start, self._window = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> npt.NDArray[np.uint8]:
        start, stop = int(span.start), int(span.stop)
        at = self._locate(start, stop)
        return np.frombuffer(self._window, np.uint8, stop - start, at)

    def _locate(self, start: int, stop: int) -> int:
        """The position of byte `start` in the window, after the window was extended to `stop`."""
        if not 0 <= start <= stop <= self._size:
            raise ValueError(f"it leads to byte {stop:,}, the file has {self._size:,}")
        if not self._start <= start <= stop <= self._start + len(self._window):
            wanted = min(max(stop - start, _WINDOW), self._size - start)
            self._file.seek(start)
            pieces, missing = [], wanted
            while missing and (piece := self._file.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
            if missing:
                raise OSError(0, "it became shorter while it was read")
            self._start, self._window = start, b"".join(pieces)
        return start - self._start

    def after_strings(self, offset: int, count: int) -> int:
        """The offset after `count` strings that begin at `offset`; the strings are not kept."""
        for _ in range(count):
            at = self._locate(offset, offset + _LENGTH.size)
            offset += _LENGTH.size + _LENGTH.unpack_from(self._window, at)[0]
        return offset

    def strings(self, offset: int, count: int) -> Iterator[bytes]:
        """The `count` strings that begin at `offset`, one after the other."""
        for _ in range(count):
            at = self._locate(offset, offset + _LENGTH.size)
            length: int = _LENGTH.unpack_from(self._window, at)[0]
            offset += _LENGTH.size
            at = self._locate(offset, offset + length)
            yield self._window[at : at + length]
            offset += length

    def close(self) -> None:
        """Close the file; the bytes already read remain available."""
        self._file.close()


class HeaderReader(gguf.GGUFReader):  # type: ignore[misc]  # gguf comes without types
    """The keys and tensor infos of a GGUF file. `data` of its tensors is None."""

    def __init__(self, path: Path) -> None:
        self._content = FileContent(path)
        try:
            super().__init__(path)
        finally:
            self._content.close()

    @property
    def data(self) -> FileContent:
        """The file's bytes."""
        return self._content

    @data.setter
    def data(self, mapped: np.memmap[Any, Any]) -> None:
        """gguf maps the file at this point. The map is dropped before any page is touched."""

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        tensors: dict[str, Any] = {}
        for info in fields:
            _, name_bytes, _, dims, dtype, offset = info.parts
            name = str(bytes(name_bytes), encoding="utf-8")
            if name in tensors:
                raise ValueError(f"there are two tensors with the name {name}")
            kind = gguf.GGMLQuantizationType(int(dtype[0]))
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            n_elements = int(np.prod(dims))
            tensors[name] = gguf.ReaderTensor(
                name=name,
                tensor_type=kind,
                shape=dims,
                n_elements=n_elements,
                n_bytes=n_elements * block_bytes // block,
                data_offset=int(start_offs) + int(offset[0]),
                data=None,
                field=info,
            )
        self.tensors = list(tensors.values())
