"""`logo-local profile` on a random adapter."""

import json

import pytest
from click.testing import CliRunner
from random_gguf import write_adapter

from logo_local.commands.cli import cli


@pytest.fixture
def adapter(tmp_path):
    return write_adapter(tmp_path / "sort.gguf", seed=77)


def call(*args):
    return CliRunner().invoke(cli, ["profile", *map(str, args)])


def test_prompts_are_added_shown_and_forgotten(adapter, tmp_path):
    assert "the adapter is never selected" in call(adapter).stderr
    examples = tmp_path / "examples.txt"
    examples.write_text("Sort: b a\nOrder: d c\n")
    (tmp_path / "sort.prompts.txt").write_text("beside it\n")
    assert "2 new prompts" in call(adapter, "--prompts", examples).stderr
    assert call(adapter, "--prompts", examples).stderr == "0 new prompts\n"
    assert call(adapter).stdout == "beside: beside it\nadded: Sort: b a\nadded: Order: d c\n"
    moved = adapter.rename(tmp_path / "other.gguf")  # the content is what counts
    assert json.loads(call(moved, "--json").stdout) == {
        "beside": [],
        "added": ["Sort: b a", "Order: d c"],
    }
    assert "forgot 2 prompts" in call(moved, "--forget").stderr
    assert call(moved).stdout == ""


def test_wrong_use(adapter, tmp_path):
    both = call(adapter, "--forget", "--prompts", adapter)
    assert both.exit_code == 2
    missing = call(tmp_path / "none.gguf")
    assert missing.exit_code == 1
