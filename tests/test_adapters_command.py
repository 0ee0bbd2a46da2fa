"""`logo-local adapters`: line 16 of what people bring."""

import json

import pytest
from click.testing import CliRunner
from peft_folder import factors, write_peft
from random_gguf import write_adapter

from logo_local.commands.cli import cli
from logo_local.files.description import description_of


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path):
    """Two described adapters, one without examples, one for another model, and a broken file."""
    folder = tmp_path / "pool"
    folder.mkdir()
    write_adapter(folder / "sort.gguf", seed=1, description="Sorts words.\nBy their letters.")
    (folder / "sort.prompts.txt").write_text("Sort: pear apple\nOrder these: b a\n")
    write_adapter(folder / "bare.gguf", seed=2)
    (folder / "broken.gguf").write_bytes(b"GGUF")
    peft = write_peft(folder / "peft", factors({"model.layers.0.self_attn.q_proj": (64, 64)}))
    (peft / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# Model card\n\n<!-- A\nsummary -->\n\nWrites SQL.\nAnd more.\n"
    )
    (peft / "prompts.txt").write_text("Which customers ordered twice?\n")
    return folder


def call(*args):
    result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="logo-local")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_without_a_model(folder):
    rows = {row["name"]: row for row in json.loads(call("adapters", folder, "--json").stdout)}
    assert list(rows) == ["bare", "broken", "peft", "sort"]
    assert {row["fits"] for row in rows.values()} == {None}
    assert rows["sort"]["description"] == "Sorts words."
    assert rows["peft"]["description"] == "Writes SQL."
    assert [row["examples"] for row in rows.values()] == [0, 0, 1, 2]
    assert rows["sort"]["n_bytes"] == (folder / "sort.gguf").stat().st_size
    assert rows["peft"]["n_bytes"] > 64 * 4
    lines = call("adapters", folder).stdout.splitlines()
    assert lines[0].split() == ["adapter", "examples", "size", "description"]
    assert lines[4].split()[:2] == ["sort", "2"]
    assert lines[4].endswith("Sorts words.")


def test_with_a_model(folder, random_base):
    args = ("adapters", folder, random_base)
    rows = {row["name"]: row for row in json.loads(call(*args, "--json").stdout)}
    assert {name: row["fits"] for name, row in rows.items()} == {
        **{"bare": True, "broken": False, "peft": True, "sort": True}
    }
    assert rows["broken"]["reason"]
    lines = call(*args).stdout.splitlines()
    assert lines[0].split() == ["adapter", "fits", "examples", "size", "description"]
    assert [line.split()[:2] for line in lines[1:3]] == [["bare", "yes"], ["broken", "no"]]


def test_added_examples_count_and_the_first_one_describes(folder):
    call("profile", folder / "bare.gguf", "--prompts", folder / "sort.prompts.txt")
    rows = {row["name"]: row for row in json.loads(call("adapters", folder, "--json").stdout)}
    assert rows["bare"]["examples"] == 2
    (line,) = [ln for ln in call("adapters", folder).stdout.splitlines() if ln.startswith("bare")]
    assert line.endswith("e.g. Sort: pear apple")


@pytest.mark.parametrize("config", ["[]", "{", "[" * 100_000, '{"description": 5}', "\xff"])
def test_a_config_that_is_none_describes_nothing(folder, config):
    (folder / "peft" / "README.md").unlink()
    (folder / "peft" / "adapter_config.json").write_text(config, encoding="latin-1")
    rows = {row["name"]: row for row in json.loads(call("adapters", folder, "--json").stdout)}
    assert rows["peft"]["description"] == ""


def test_an_empty_and_a_missing_folder(tmp_path):
    result = call("adapters", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"no adapters in {tmp_path} yet\n"
    assert call("adapters", tmp_path / "none").exit_code == 1


def test_the_demo():
    lines = call("adapters", "demo").stdout.splitlines()
    assert len(lines) == 22
    assert lines[1].split()[:2] == ["antonyms", "8"]


def test_what_describes_nothing(tmp_path):
    assert description_of(tmp_path / "none.gguf") == ""
    assert description_of(tmp_path) == ""
    (tmp_path / "README.md").write_text("# Only a heading\n\n- and\n- a list\n")
    assert description_of(tmp_path) == ""
    (tmp_path / "README.md").write_text("No head.\n")
    assert description_of(tmp_path) == "No head."
