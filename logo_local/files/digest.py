"""The sha256 of files, by which an adapter is known wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_all(paths: Sequence[Path]) -> str:
    """Of one file its sha256; of several the sha256 of theirs, in this order. In hex.

    Raises OSError where one cannot be read.
    """
    if len(paths) == 1:
        return sha256_of(paths[0])
    digest = hashlib.sha256()
    for path in paths:
        # Digests rather than contents: no file can pretend to be the start of the next.
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()
