"""The sha256 of files, which identifies an adapter independent of its path."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex. Raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_all(paths: Sequence[Path]) -> str:
    """The sha256 of one file, or the sha256 of the digests of several, in this order. In hex.

    Raises OSError if one cannot be read.
    """
    if len(paths) == 1:
        return sha256_of(paths[0])
    digest = hashlib.sha256()
    for path in paths:
        # Digests, not contents: the boundary between two files must be part of the hash.
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()
