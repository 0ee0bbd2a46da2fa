"""A file that is there whole or not at all, also where a process is killed on the way.

It is made under another name in the same folder, and put in its place in one step: whoever looks
sees the old file, or the new one, never a part. The other name says which process on which machine
writes it. What a process left that was killed goes when the next file is made in that folder.
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
    """Where to write what becomes `out` when the block ends, and goes when it raises.

    Raises OSError where it cannot be put in its place. Does not make the folder.
    """
    for leftover in _leftovers(out.parent):
        with suppress(OSError):  # it was nothing to us
            leftover.unlink()
    unfinished = out.with_name(f".{out.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(out: Path, content: bytes) -> None:
    """Write `content` to `out`, whole or not at all; makes the folder. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def only_once(out: Path) -> Iterator[Path]:
    """As `written_whole`, but a file that another process has put there meanwhile stays.

    For what is the same whoever makes it: those who have opened or checked the other file keep it.
    """
    unfinished = out.with_name(f".{out.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield unfinished
        try:
            os.link(unfinished, out)
        except FileExistsError:
            pass
        except OSError:  # a disk without links
            os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def _host() -> str:
    """This machine in a file's name: a folder on a network has files of several."""
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node())[:32] or "_"


def _leftovers(folder: Path) -> list[Path]:
    """What processes of this machine that are no more were writing in `folder`."""
    name = re.compile(rf"\..+\.{_host()}-(\d+)-[0-9a-f]{{8}}\.tmp")
    try:
        matches = [name.fullmatch(inside) for inside in os.listdir(folder)]
    except OSError:
        return []  # whoever writes there will say so
    return [folder / found[0] for found in matches if found and not _is_alive(int(found[1]))]


def _is_alive(process: int) -> bool:
    try:
        return bool(psutil.pid_exists(process))
    except OverflowError:
        return False
