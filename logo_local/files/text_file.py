"""Text from files and pipes, as programs on any system write it."""

from __future__ import annotations

import codecs
from pathlib import Path

_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(data: bytes) -> str:
    """UTF-8 `data` as text, without the byte order mark that Windows editors write.

    Raises ValueError, with what is wrong in words, for any other encoding.
    """
    if data.startswith(_WIDE):
        raise ValueError("it is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 ({error.reason}); save it as UTF-8") from error


def read_text(path: Path) -> str:
    """The text of a file as `decoded`. Raises OSError, also for what is no regular file."""
    return decoded(read_start(path, -1))


def read_start(path: Path, n_bytes: int) -> bytes:
    """At most `n_bytes` of the file at `path`, or all of it with -1.

    Raises OSError, also for a pipe or a device, whose reader would wait or never come to an end.
    """
    if path.exists() and not path.is_file():
        raise OSError(0, "it is no regular file", str(path))
    with path.open("rb") as file:
        return file.read(n_bytes)


def is_encodable(text: str) -> bool:
    """Whether `text` can be UTF-8; half a surrogate pair, as odd bytes in an argument, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
