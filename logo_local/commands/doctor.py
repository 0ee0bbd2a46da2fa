"""`logo-local doctor`: check what is installed and what works, as a list of findings.

The checks are independent, so that one failure does not hide the next. Nothing is changed, except
that a small file is written to the cache folder and removed again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from .. import __version__, config
from ..console.terminal import out_console, print_json, say
from ..errors import LogoError, ModelError
from ..rpc import build_command

PACKAGES = ("llama-cpp-python", "gguf", "numpy")
_WITHOUT_GPU = ("CPU", "BLAS", "RPC")  # parts of llama.cpp that need no GPU on this machine


@dataclass(frozen=True)
class Finding:
    """One line of the report. If an `essential` one fails, prompts cannot be answered."""

    name: str
    ok: bool
    value: str
    hint: str = ""
    essential: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready values."""
        return asdict(self)

    def line(self) -> Text:
        """The finding as one line: ok or problem, name, value."""
        mark = Text("ok     ", "green") if self.ok else Text("problem", "red")
        return Text.assemble(mark, f"  {self.name:<16}  {self.value}")


def examine() -> list[Finding]:
    """All findings, the most important first."""
    return [*_versions(), *_safely("llama.cpp", _llama), _layout(), _cache(), _settings(), _demo()]


def _versions() -> Iterator[Finding]:
    yield Finding("logo-local", True, __version__)
    yield Finding("python", True, f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            yield Finding(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, False, "not installed", f'pip install "{package}"')


def _safely(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """`check()`, or a finding that says why it failed."""
    try:
        return check()
    except LogoError as error:
        return [Finding(name, False, str(error), error.hint)]
    except Exception as error:  # a broken build can fail in any way, and that is the finding
        hint = "install it again: pip install --force-reinstall --no-cache-dir llama-cpp-python"
        return [Finding(name, False, f"{type(error).__name__}: {error}", hint)]


def _llama() -> list[Finding]:
    import llama_cpp

    from ..llama.api_check import check_api

    check_api()
    found = list(_devices())  # first, because it prevents the log lines of starting a GPU
    features = llama_cpp.llama_print_system_info().decode(errors="replace").strip()
    found.append(_rpc(bool(llama_cpp.llama_supports_rpc())))
    return [*found, Finding("cpu features", True, features.strip(" |"))]


def _devices() -> Iterator[Finding]:
    """Whether layers are placed on a GPU, and each device with its memory."""
    from ..llama.devices import backends, devices, gpus

    if used := gpus():
        offload = f"all layers by default, to {', '.join(map(str, used))}"
    elif others := [name for name in backends() if name not in _WITHOUT_GPU]:
        offload = f"no: this build supports {', '.join(others)}, but found no GPU"
    else:
        offload = "no, this build uses the CPU only (docs/gpu.md)"
    yield Finding("gpu offload", True, offload)
    for device in devices():
        free, total = (n_bytes / 2**30 for n_bytes in device.memory())
        memory = f", {free:.1f} of {total:.1f} GiB free" if total else ""
        yield Finding("device", True, f"{device}, {device.kind}{memory}")


def _rpc(supported: bool) -> Finding:
    """Whether --rpc can be used."""
    if supported:
        return Finding("rpc", True, "yes, this build supports --rpc")
    value = "no; for a model that does not fit on one machine, build llama.cpp with RPC"
    return Finding("rpc", True, value, build_command(), essential=False)


def _layout() -> Finding:
    def check() -> list[Finding]:
        from ..llama.native import check_layout

        check_layout()
        return [Finding("tensor layout", True, "as expected")]

    return _safely("tensor layout", check)[0]


def _cache() -> Finding:
    folder = config.cache_dir()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding(
            "cache folder",
            False,
            f"{folder}: cannot be written to: {error.strerror}",
            f"set {config.HOME_VARIABLE} to a folder that you may write to",
        )
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Finding("cache folder", True, f"{folder} ({size / 2**20:.1f} MB)")


def _settings() -> Finding:
    path = config.config_file()  # validated before any command starts
    return Finding("config file", True, f"{path}{'' if path.exists() else ' (none)'}")


def _demo() -> Finding:
    """The demo's model and adapters against the manifest; only `logo-local run demo` needs them."""
    folder = config.demo_folder()
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        sums, base = _sums(manifest), str(manifest["base"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Finding(
            "demo", False, f"no manifest in {folder}: {error}", _DEMO_HINT, essential=False
        )
    try:
        model = config.demo_model()
    except ModelError as error:
        return Finding("demo", False, error.message, error.hint, essential=False)
    wrong = [name for name, expected in sums.items() if _sha256(folder / name) != expected]
    if _sha256(model) != base:
        wrong.append(str(model))
    if wrong or not sums:
        value = f"missing or changed: {', '.join(wrong) or 'everything'}"
        return Finding("demo", False, value, _DEMO_HINT, essential=False)
    value = f"{model.name} and {len(sums)} files, as in the manifest"
    return Finding("demo", True, value, essential=False)


_DEMO_HINT = "install logo-local again; your own models do not need it"


def _sums(manifest: Any) -> dict[str, str]:
    """sha256 sums by file name, from the "files" table of a manifest."""
    files = manifest["files"]
    return {
        os.fspath(name): entry if isinstance(entry, str) else entry["sha256"]
        for name, entry in files.items()
    }


def _sha256(path: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check the installation on this machine.

    The exit code is 1 if something required does not work.
    """
    findings = examine()
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        console = out_console()
        for finding in findings:
            console.print(finding.line(), soft_wrap=True)
            if finding.hint:
                say(f"hint: {finding.hint}")
    if any(not finding.ok and finding.essential for finding in findings):
        raise click.exceptions.Exit(1)
