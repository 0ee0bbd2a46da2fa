"""Files in the cache: written atomically, with a checksum, and never required.

If the disk is full or read-only, this costs time, not answers: it is logged once, and the content
is computed again at the next start. A damaged file counts as missing.
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
_warned: set[Path] = set()  # folders that could not be written, each of which is logged once
_temporary: dict[Path, tempfile.TemporaryDirectory[str]] = {}  # by the folder that they replace


def keep(path: Path, content: bytes) -> bool:
    """Write `content` and its checksum to `path`; return whether it worked. Makes the folder."""
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
    """The content kept at `path`; None, with a log line, if it is damaged or unreadable."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("%s cannot be read and will be recreated: %s", path, error.strerror)
        return None
    content, trailer = data[:-_LENGTH], data[-_LENGTH:]
    if trailer != _MARK + hashlib.sha256(content).hexdigest().encode():
        log.warning("%s is damaged and will be recreated: its checksum is wrong", path)
        return None
    return content


def temporary_instead(folder: Path, error: OSError) -> Path:
    """A folder that replaces the unwritable `folder` until the process ends.

    For files that must exist on disk. The first call for a folder is logged.
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
