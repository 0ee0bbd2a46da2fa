"""Packages depend downwards only, and no two files depend on each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = {"logo_local": ROOT / "logo_local", "logo_local.convert": ROOT / "convert"}

FOUNDATION = {"errors", "extras", "hidden_states", "prefix", "progress"}
# What each package may import beside itself: the rows go from the bottom up.
MAY_IMPORT = {
    **{name: set() for name in FOUNDATION},
    "files": FOUNDATION,
    "config": FOUNDATION | {"files"},
    "convert": FOUNDATION | {"files"},
    "llama": FOUNDATION | {"files"},
    "routing": FOUNDATION | {"files", "config"},  # numbers: nothing of llama.cpp
    "engine": FOUNDATION | {"files", "config", "convert", "llama", "routing"},
    "console": FOUNDATION | {"files", "config", "convert", "llama", "routing", "engine"},
    "request_model": FOUNDATION | {"files", "config", "routing", "engine"},
}
PROGRAMS = {"chat", "server", "jsonl", "evaluation", "bench"}
ABOVE_CONSOLE = {"console", "request_model"}
MAY_IMPORT |= {name: MAY_IMPORT["console"] - {"llama"} | ABOVE_CONSOLE for name in PROGRAMS}
MAY_IMPORT["commands"] = MAY_IMPORT["chat"] | PROGRAMS | {"llama"}

ENGINE = ("engine", "routed", "completions", "fake", "rpc")  # files that are one layer


def modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    found = {}
    for package, folder in SOURCE.items():
        for path in folder.rglob("*.py"):
            if path.is_relative_to(folder) and "demo" not in path.parts:
                parts = path.relative_to(folder).with_suffix("").parts
                name = ".".join([package, *parts]).removesuffix(".__init__")
                found[name] = path
    return found


MODULES = modules()


def imports_of(name: str) -> Iterator[str]:
    """The modules of ours that a module imports, wherever in its text."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package.split(".")[: len(package.split(".")) - node.level + 1]
        target = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            inside = f"{target}.{alias.name}"
            yield inside if inside in MODULES else target


def layer(name: str) -> str:
    """The package of a module, or "engine"; "" for the package's own __init__."""
    part = [*name.split("."), ""][1]
    return "engine" if part in ENGINE else part


@pytest.mark.parametrize("name", sorted(MODULES))
def test_packages_depend_downwards_only(name):
    here = layer(name)
    if here in ("", "__main__", "convert") and name in ("logo_local", "logo_local.__main__"):
        return  # the lazy names of the package, and the program
    wrong = [
        target
        for target in imports_of(name)
        if layer(target) not in ("", here) and layer(target) not in MAY_IMPORT[here]
    ]
    assert wrong == []


def test_no_files_depend_on_each_other():
    graph = {
        name: {target for target in imports_of(name) if target != name}
        for name in MODULES
        if name != "logo_local"
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in graph:
            return
        for target in sorted(graph[name]):
            visit(target, (*path, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_routing_and_files_know_nothing_of_llama_cpp():
    for name, path in MODULES.items():
        if layer(name) in ("routing", "files", "convert", "console"):
            text = path.read_text(encoding="utf-8")
            tops = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
            assert not [line for line in tops if "llama_cpp" in line], name


def test_files_and_functions_are_short():
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                n_lines = node.end_lineno - node.lineno - len(text.splitlines())
                assert n_lines < 60, f"{name}.{node.name}"
