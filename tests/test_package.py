"""What the package is from outside: light to import, complete in a wheel, one public surface."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import logo_local
from logo_local.server.middleware import PAGE

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
VENDORED_LICENCES = ("LICENSE-DOMPurify", "LICENSE-marked")


def python(*args, **settings):
    done = subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, check=False, **settings
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


# The public surface


def test_the_exported_names_are_there_and_sorted():
    assert logo_local.__all__ == sorted(logo_local.__all__)
    for name in logo_local.__all__:
        assert getattr(logo_local, name) is not None
    assert set(logo_local.__all__) <= set(dir(logo_local))


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(logo_local.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert imported == set(logo_local.__all__) - {"__version__"}


def test_every_error_is_exported():
    from logo_local import errors

    made = {n for n in vars(errors) if isinstance(getattr(errors, n), type) and n.endswith("Error")}
    assert made <= set(logo_local.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Lora'"):
        logo_local.Lora  # noqa: B018


def test_the_version_is_the_projects():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{logo_local.__version__}"' in project
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(logo_local.__version__)}\b", changes, re.M)


# Imports

HEAVY = (
    "prompt_toolkit",
    "torch",
    "transformers",
    "peft",
    "llama_cpp.server",
    "uvicorn",
    "starlette",
    "fastapi",
)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import logo_local", (*HEAVY, "llama_cpp", "numpy", "gguf", "click", "rich")),
        ("from logo_local import LoGo", HEAVY),
        ("from logo_local import convert_adapter", (*HEAVY, "llama_cpp")),
        ("from logo_local import FakeLoGo", (*HEAVY, "llama_cpp")),
        (
            "import logo_local.commands.cli",
            (*HEAVY, "llama_cpp", "nltk", "rouge_score", "matplotlib"),
        ),
    ],
)
def test_what_an_import_does_not_pull_in(code, absent):
    loaded = python("-c", f"{code}; import sys; print(*sys.modules)", cwd=ROOT).split()
    assert set(loaded) & set(absent) == set()


def test_convert_has_no_other_name():
    code = "try:\n import convert\nexcept ImportError as error:\n print(error)"
    assert "this package is logo_local.convert" in python("-c", code, cwd=ROOT)


# The wheel and the editable install


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is built, since a build leaves folders beside its source."""
    folder = tmp_path_factory.mktemp("source") / "logo-local"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("logo_local", "convert", "models/demo"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    return folder


def code_files(folder):
    return {path.name for path in (ROOT / folder).glob("*.py")}


def test_the_wheel_holds_what_it_should(source, tmp_path):
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"logo_local-{logo_local.__version__}.dist-info"
    assert {name for name in names if not name.startswith((f"{info}/", "logo_local/demo/"))} == {
        "logo_local/py.typed",
        "logo_local/routing/continuations.txt",
        "logo_local/routing/generic_prompts.txt",
        *(f"logo_local/{name}" for name in code_files("logo_local")),
        *(f"logo_local/convert/{name}" for name in code_files("convert")),
        *(
            f"logo_local/{room}/{name}"
            for room in (
                *("bench", "chat", "commands", "console", "evaluation", "files"),
                *("jsonl", "llama", "routing", "routing/scorers", "server"),
            )
            for name in code_files(f"logo_local/{room}")
        ),
        *(f"logo_local/server/page/{name}" for name in PAGE.values()),
        *(f"logo_local/server/page/vendor/{name}" for name in ("README.md", *VENDORED_LICENCES)),
    }
    # The base comes from a package of its own, and evaluation data from where it was published.
    adapters = {path.stem for path in (DEMO / "adapters").glob("*.gguf")}
    assert len(adapters) > 1
    assert {name for name in names if name.startswith("logo_local/demo/")} == {
        *(f"logo_local/demo/{name}" for name in ("__init__.py", "demo_prompts.jsonl")),
        "logo_local/demo/manifest.json",
        *(f"logo_local/demo/adapters/{name}.gguf" for name in adapters),
        *(f"logo_local/demo/adapters/{name}.prompts.jsonl" for name in adapters),
        *(f"logo_local/demo/adapters/{name}.description.txt" for name in adapters),
        *(
            f"logo_local/demo/{path.relative_to(DEMO).as_posix()}"
            for path in DEMO.glob("profiles/*/*.npy")
        ),
    }
    assert f"{info}/licenses/LICENSE" in names
    for licence in VENDORED_LICENCES:
        assert f"{info}/licenses/logo_local/server/page/vendor/{licence}" in names
    entry_points = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "logo-local = logo_local.__main__:main" in entry_points


def test_the_vendored_libraries_are_the_published_files():
    vendor = ROOT / "logo_local/server/page/vendor"
    table = (vendor / "README.md").read_text()
    for path in vendor.glob("*.js"):
        row = next(line for line in table.splitlines() if line.startswith(f"| `{path.name}`"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() in row
        assert any(f"({licence})" in row for licence in VENDORED_LICENCES)


def test_an_editable_install_brings_no_top_level_convert(source, tmp_path):
    python(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--target", tmp_path / "site", "--editable", source),
    )
    code = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r})\n"
        "from importlib.util import find_spec\n"
        "print(find_spec('logo_local').origin, find_spec('logo_local.convert').origin, sep='\\n')\n"
        "print(*(find_spec(name) for name in ('convert', 'models', 'demo', 'tests')))"
    )
    # -S and another folder: nothing is found by way of this environment, nor of the repository
    package, converter, others = python("-S", "-c", code, cwd=tmp_path).splitlines()
    assert Path(package) == source / "logo_local" / "__init__.py"
    assert Path(converter).resolve() == source / "convert" / "__init__.py"
    assert others == "None None None None"


def test_the_page_of_commands_is_current():
    made = python(
        ROOT / "docs" / "generate_commands.py", env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    kept = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    # Where lines break is click's affair, and differs between its releases.
    assert kept.split() == made.split(), "run `make docs`"
