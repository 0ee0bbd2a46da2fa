"""Files in the cache: written whole, with a checksum, and never needed.

A disk that is full or that may not be written to costs time, not answers: one line says so, and
what would be kept is made again at the next start. A damaged file counts as none.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import tempfile
from pathlib import Path

from .whole_file import written_whole

log = logging.getLogger(__name__)

_MARK = b"\nsha256 "
_LENGTH = len(_MARK) + 64  # hex digits
_warned: set[Path] = set()  # folders that could not be written to, each of which is said once
_temporary: dict[Path, tempfile.TemporaryDirectory[str]] = {}  # by the folder that they stand for


def keep(path: Path, content: bytes) -> bool:
    """Write `content` and its checksum to `path`; whether that was possible. Makes the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            unfinished.write_bytes(content + _MARK + hashlib.sha256(content).hexdigest().encode())
    except OSError as error:
        if path.parent not in _warned:
            log.warning(
                "the cache %s cannot be written, so it is made at each start: %s",
                path.parent,
                error.strerror or error,
            )
        _warned.add(path.parent)
        return False
    return True


def kept(path: Path) -> bytes | None:
    """What was kept at `path`; None, with a line in the log, where it is damaged or unreadable."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("%s cannot be read and is made anew: %s", path, error.strerror)
        return None
    content, trailer = data[:-_LENGTH], data[-_LENGTH:]
    if trailer != _MARK + hashlib.sha256(content).hexdigest().encode():
        log.warning("%s is damaged and made anew: its checksum is wrong", path)
        return None
    return content


def temporary_instead(folder: Path, error: OSError) -> Path:
    """A folder to use in the place of `folder`, which cannot be written, until this process ends.

    For files that are needed as such. The first time a line in the log says so.
    """
    if folder not in _temporary:
        _temporary[folder] = tempfile.TemporaryDirectory(prefix="logo-local-")
        atexit.register(_temporary[folder].cleanup)
        log.warning(
            "the cache %s cannot be written (%s): adapters are converted at each start",
            folder,
            error.strerror or error,
        )
    return Path(_temporary[folder].name)
