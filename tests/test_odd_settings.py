"""Numbers and names that are possible and not meant: errors in time, nothing raw on a terminal."""

import os
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from peft_folder import factors, write_peft
from random_gguf import write_adapter

from logo_local import LoGo, config
from logo_local.commands.cli import cli
from logo_local.console import background
from logo_local.convert import plan_conversion
from logo_local.convert.patterns import is_quick
from logo_local.errors import ConversionError, SettingsError
from logo_local.fake import FakeLoGo
from logo_local.files.base_model import BaseModel

NAME = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("text", ["9" * 400, "1" * 31, "9" * 25 + "T", "8388608T"])
def test_sizes_beyond_all_memory_are_no_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        config.parse_size(text)


@pytest.mark.parametrize("n_ctx", [2**31, 2**32, 2**40, 10**9])
def test_contexts_beyond_all_memory_are_refused_before_any_is_taken(
    random_base, random_adapters, n_ctx
):
    with pytest.raises(SettingsError) as caught:
        LoGo(random_base, random_adapters, n_ctx=n_ctx)
    assert f"{n_ctx:,} tokens" in caught.value.message
    assert "trained with 256" in caught.value.hint


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+",
        "(a|a)*b",
        "((a?)*)*x",
        ".*a.*b.*c",
        "(x+x+)+y",
        "([a-z]+)*[0-9]",
        "(a{1,9}){1,9}z",
    ],
)
def test_patterns_that_may_take_for_ever_are_refused(random_base, tmp_path, key):
    folder = write_peft(tmp_path / "x", factors({NAME: (64, 64)}), alpha_pattern={key: 4})
    with pytest.raises(ConversionError) as caught:
        plan_conversion(folder, BaseModel.read(random_base), tmp_path / "out.gguf")
    assert "may take for ever" in caught.value.problems[0]


@pytest.mark.parametrize(
    "key",
    [
        "q_proj",
        r"layers\.1\.mlp\.up_proj",
        r"^model\.layers\.2\..*down_proj",
        "(q|k|v)_proj",
        r"layers\.[0-9]+\.mlp\.(gate|up)_proj",
        "model.layers.(?:[0-9]).self_attn.*",
        r".*\.layers\.(1|2|13)\..*q_proj",
        "[(+*]",
    ],
)
def test_patterns_that_people_write_are_taken(key):
    assert is_quick(key)


def test_the_background_process_follows_the_links_that_the_engine_follows(monkeypatch):
    seen = []

    @contextmanager
    def making(_model, _adapters, settings):
        seen.append(settings)
        yield

    monkeypatch.setattr(background, "making_self_profiles", making)
    llm = FakeLoGo({"a": 1.0})
    monkeypatch.setattr(llm, "without_profile", lambda: ["a"])
    options = {"signal": "auto", "adapter_memory": 100}
    for given in ({**options, "links_out": False}, options):
        with background.self_profiles_in_background(llm, given):
            pass
    assert seen == [{**options, "links_out": False}, options]


def test_names_of_files_are_not_obeyed_by_the_terminal(random_base, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    write_adapter(folder / "fine.gguf", 1)
    (folder / "red\x1b[31m.gguf").write_bytes(b"")
    result = CliRunner().invoke(
        cli,
        ["check", str(folder), "--base", str(random_base)],
        env=os.environ | {"LOGO_LOCAL_HOME": str(tmp_path / "home")},
    )
    assert "\x1b" not in result.output
    assert "x1b[31m" in result.output
