"""Packages that only some commands need, and how to install them."""

from __future__ import annotations

import importlib.metadata
import sys


def install_hint(extra: str) -> str:
    """The command that installs the dependencies of the extra `extra`.

    It lists the packages themselves, because it is unknown how logo-local was installed, and it may
    not be on a package index.
    """
    try:
        listed = importlib.metadata.requires("logo-local") or []
    except importlib.metadata.PackageNotFoundError:
        return f"pip install '.[{extra}]' in the folder of logo-local"
    marker = f'extra == "{extra}"'
    packages = [line.partition(";")[0].strip() for line in listed if marker in line]
    python = sys.executable or "python"
    return f"{python} -m pip install {' '.join(f'{package!r}' for package in packages)}"
