"""ProgramAsWeights programs: a .paw file is a zip with an adapter and its metadata.

    adapter.gguf         a GGUF LoRA file
    prompt_template.txt  the prompt around an input, with {INPUT_PLACEHOLDER} for it
    meta.json            among others `spec`, the specification, and `interpreter`, the base model

Only the adapter and the specification are used: prompts use the base model's own template.
Layout as in programasweights 0.2 (programasweights-python on GitHub).
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import AdapterError

SUFFIX = ".paw"
ADAPTER, META, TEMPLATE = "adapter.gguf", "meta.json", "prompt_template.txt"
PLACEHOLDER = "{INPUT_PLACEHOLDER}"
MOST_TEXT = 1 << 20  # bytes of meta.json or of the template
MOST_ADAPTER = 4 << 30  # bytes; the adapters of this format have about 20 MB


def unpack_adapter(path: Path, out: Path) -> None:
    """Write only the adapter in the .paw file `path` to `out`.

    Raises AdapterError if there is none, or if the file is damaged.
    """
    with _opened(path) as archive:
        member = _member(archive, ADAPTER)
        if member is None:
            raise AdapterError(f"cannot use {path}", problems=[f"it holds no {ADAPTER}"])
        if member.file_size > MOST_ADAPTER:
            raise AdapterError(f"cannot use {path}", problems=[f"its {ADAPTER} is too large"])
        with archive.open(member) as source, out.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def specification(path: Path) -> str:
    """The purpose of the program: `spec` in meta.json, or the prompt template before the input.

    "" if the file has neither. Raises AdapterError for a damaged file.
    """
    with _opened(path) as archive:
        try:
            meta = json.loads(_text(archive, META) or "{}")
        except (ValueError, RecursionError):
            meta = {}
        fields = meta if isinstance(meta, dict) else {}
        for key in ("spec", "description"):
            if isinstance(fields.get(key), str) and fields[key].strip():
                return str(fields[key]).strip()
        return _text(archive, TEMPLATE).partition(PLACEHOLDER)[0].strip()


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        # RuntimeError: encrypted; NotImplementedError: an unknown compression.
        raise AdapterError(
            f"cannot use {path}",
            problems=[f"it cannot be unpacked: {error}"],
            hint="the file may be damaged or only half downloaded",
        ) from error


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    """The member with this name, at the top of the archive or in its only folder."""
    found = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == name]
    return min(found, key=lambda info: info.filename.count("/"), default=None)


def _text(archive: zipfile.ZipFile, name: str) -> str:
    member = _member(archive, name)
    if member is None:
        return ""
    with archive.open(member) as source:
        return source.read(MOST_TEXT).decode("utf-8-sig", "replace")
