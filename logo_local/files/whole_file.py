"""Atomic writes: a file is complete or missing, even if the process is killed while it writes.

The content is written under another name in the same folder and renamed in one step, so readers
see the old file or the new one, never a part. The other name contains the process and the host.
Files left by killed processes are removed when the next file is written to that folder.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A temporary path that is renamed to `out` when the block ends, and removed if it raises.

    Raises OSError if it cannot be renamed. Does not make the folder.
    """
    for leftover in _leftovers(out.parent):
        with suppress(OSError):  # removing leftovers is optional
            leftover.unlink()
    unfinished = out.with_name(f".{out.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(out: Path, content: bytes) -> None:
    """Write `content` to `out` atomically; makes the folder. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def only_once(out: Path) -> Iterator[Path]:
    """As `written_whole`, but keeps a file that another process has written in the meantime.

    For content that is the same in every process: those that already use the other file keep it.
    """
    unfinished = out.with_name(f".{out.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield unfinished
        try:
            os.link(unfinished, out)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def _host() -> str:
    """This host as part of a file name: a network folder has files of several hosts."""
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node())[:32] or "_"


def _leftovers(folder: Path) -> list[Path]:
    """Temporary files in `folder` of processes on this host that have ended."""
    name = re.compile(rf"\..+\.{_host()}-(\d+)-[0-9a-f]{{8}}\.tmp")
    try:
        matches = [name.fullmatch(inside) for inside in os.listdir(folder)]
    except OSError:
        return []  # a later write reports the error
    return [folder / found[0] for found in matches if found and not _is_alive(int(found[1]))]


def _is_alive(process: int) -> bool:
    try:
        return bool(psutil.pid_exists(process))
    except OverflowError:
        return False
