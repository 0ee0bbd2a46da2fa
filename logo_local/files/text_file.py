"""Read text from files and pipes of any system."""

from __future__ import annotations

import codecs
from pathlib import Path

_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(data: bytes) -> str:
    """UTF-8 `data` as text, without the byte order mark that Windows editors write.

    Raises ValueError, with an explanation, for any other encoding.
    """
    if data.startswith(_WIDE):
        raise ValueError("it is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 ({error.reason}); save it as UTF-8") from error


def read_text(path: Path) -> str:
    """The text of a file, see `decoded`. Raises OSError, also for anything but a regular file."""
    return decoded(read_start(path, -1))


def read_start(path: Path, n_bytes: int) -> bytes:
    """At most `n_bytes` of the file at `path`, or all of it with -1.

    Raises OSError, also for a pipe or a device, where reading could block or never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(0, "it is no regular file", str(path))
    with path.open("rb") as file:
        return file.read(n_bytes)


def is_encodable(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8; a lone surrogate, as from invalid bytes, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
