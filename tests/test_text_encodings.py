"""Text in the encodings that editors, pipes and terminals produce, wherever it is read."""

import json
import os
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner
from peft_folder import factors, write_peft

from logo_local import config
from logo_local.chat import transcript
from logo_local.commands.cli import cli
from logo_local.convert import plan_conversion
from logo_local.errors import ConversionError, PromptError, SettingsError
from logo_local.evaluation.data import read_examples
from logo_local.fake import FakeLoGo
from logo_local.files.base_model import BaseModel
from logo_local.files.model_card import card_fields
from logo_local.routing import example_prompts
from logo_local.routing.example_prompts import prompts_beside, read_prompts

BOM = b"\xef\xbb\xbf"
UTF_16 = "it is UTF-16 or UTF-32; save it as UTF-8"
MODEL = ("m.gguf", "--adapters", "d")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def call(*arguments, stdin=b""):
    llm = FakeLoGo({"a": 1.0}, ["yes"])
    result = CliRunner().invoke(cli, [*arguments], input=stdin, obj=llm.opened)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return llm, result


# --- the command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", *MODEL, "a\udcff"],
        ["run", *MODEL, "--raw", "a\udcff"],
        ["run", *MODEL, "--system", "a\udcff", "hello"],
        ["score", *MODEL, "a\udcff"],
    ],
)
def test_arguments_that_are_not_utf_8_are_wrong_usage(arguments):
    _, result = call(*arguments)
    assert result.exit_code == 2
    assert "is not text in UTF-8" in result.output


@pytest.mark.parametrize("command", ["run", "score"])
@pytest.mark.parametrize("stdin", [b"caf\xe9", "café".encode("utf-16")])
def test_pipes_that_are_not_utf_8_are_wrong_usage(command, stdin):
    _, result = call(command, *MODEL, stdin=stdin)
    assert result.exit_code == 2
    assert "UTF-8" in result.output


def test_a_byte_order_mark_in_a_pipe_is_no_text():
    llm, _ = call("run", *MODEL, stdin=BOM + b"hello\r\n")
    assert [one.prompt for one in llm.history] == ["hello"]


@pytest.mark.parametrize("command", ["run", "score"])
def test_a_pipe_and_a_prompt_are_joined(command):
    llm, result = call(command, *MODEL, "Sort these.", stdin=b"pear\nfig\n")
    assert result.exit_code == 0
    assert [one.prompt for one in llm.history] == ["pear\nfig\n\nSort these."]


def test_a_device_as_standard_input_is_not_read():
    """Programs in the background have /dev/null there, or a terminal that nobody types at."""
    code = "from logo_local.console.terminal import is_piped; print(is_piped())"

    def piped(**stdin):
        command = [sys.executable, "-c", code]
        return subprocess.check_output(command, text=True, **stdin).strip()

    assert piped(stdin=subprocess.DEVNULL) == "False"
    assert piped(input="") == "True"


# --- files


def test_config_toml(home):
    file = home / "config.toml"
    file.write_bytes(BOM + b"top-k = 5\r\n")
    assert config.load_config_file(file, {"top_k": lambda value: value}) == {"top_k": 5}
    file.write_bytes("top-k = 5".encode("utf-16"))
    with pytest.raises(SettingsError, match="UTF-16"):
        config.load_config_file(file, {"top_k": lambda value: value})


def test_a_home_of_no_user_is_named(monkeypatch):
    monkeypatch.setenv("LOGO_LOCAL_HOME", "~nosuchuser/x")
    with pytest.raises(SettingsError, match="LOGO_LOCAL_HOME is ~nosuchuser/x"):
        config.cache_dir()


def test_evaluation_data(tmp_path):
    row = {"context": "a", "completion": "b", "adapter": None}
    path = tmp_path / "task.jsonl"
    path.write_bytes(BOM + json.dumps(row).encode() + b"\r\n")
    (example,) = read_examples([path], ["x"])
    assert example.context == "a"
    path.write_bytes(json.dumps(row).encode("utf-16"))
    with pytest.raises(SettingsError) as caught:
        read_examples([path], ["x"])
    assert UTF_16 in caught.value.problems[0]


def test_example_prompts(tmp_path):
    path = tmp_path / "a.prompts.txt"
    path.write_bytes(BOM + b"one\r\ntwo\r\n")
    assert read_prompts(path) == ["one", "two"]
    path.write_bytes("one\n".encode("utf-16"))
    with pytest.raises(PromptError, match="UTF-16"):
        read_prompts(path)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"context": "\\ud800"}', '{"context": 1}'])
def test_example_prompts_in_odd_json_are_named(tmp_path, line):
    path = tmp_path / "a.prompts.jsonl"
    path.write_text(f'{{"context": "one"}}\n{line}\n')
    with pytest.raises(PromptError) as caught:
        read_prompts(path)
    assert caught.value.problems == ("line 2 is not an object with a text `context`",)


def test_a_line_separator_in_a_json_string_is_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"context": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert read_prompts(path) == ["a\u2028b"]


def test_example_prompts_beyond_the_bound_are_said_and_whole_lines(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(example_prompts, "MOST", 100)
    path = tmp_path / "a.prompts.jsonl"
    path.write_text("".join(f'{{"context": "prompt {i}"}}\n' for i in range(20)))
    assert read_prompts(path) == [f"prompt {i}" for i in range(4)]
    assert "only its first 4 lines are read" in caplog.text


def test_a_sparse_file_of_prompts_is_not_read_whole(tmp_path, caplog):
    path = tmp_path / "a.prompts.txt"
    path.write_bytes(b"one\ntwo\n")
    os.truncate(path, 3 << 30)
    assert read_prompts(path) == ["one", "two"]
    assert "only its first 2 lines" in caplog.text


def test_model_cards(tmp_path):
    card = tmp_path / "README.md"
    card.write_bytes(BOM + b"---\r\nlicense: mit\r\n---\r\nText\r\n")
    assert card_fields(card) == {"license": "mit"}


def test_pipes_where_files_are_expected_are_not_waited_for(tmp_path, random_base):
    folder = write_peft(tmp_path / "x", factors({"model.layers.0.self_attn.q_proj": (64, 64)}))
    os.mkfifo(folder / "README.md")
    os.mkfifo(folder / "prompts.txt")
    done = []

    def read():
        plan = plan_conversion(folder, BaseModel.read(random_base), tmp_path / "out.gguf")
        done.append((len(plan.rows), prompts_beside(folder)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(60)
    assert done == [(1, [])]


def test_adapter_configs(tmp_path, random_base):
    base = BaseModel.read(random_base)
    folder = write_peft(tmp_path / "x", factors({"model.layers.0.self_attn.q_proj": (64, 64)}))
    file = folder / "adapter_config.json"
    text = file.read_text()
    file.write_bytes(BOM + text.encode())
    assert len(plan_conversion(folder, base, tmp_path / "out.gguf").rows) == 1
    file.write_bytes(text.encode("utf-16"))
    with pytest.raises(ConversionError) as caught:
        plan_conversion(folder, base, tmp_path / "out.gguf")
    assert UTF_16 in caught.value.problems[0]


SAID = ({"role": "user", "content": "ä"}, {"role": "assistant", "content": "ö"})


def test_transcripts(tmp_path):
    path = tmp_path / "chat.json"
    transcript.save(transcript.Transcript("m", SAID), path)
    path.write_bytes(BOM + path.read_bytes())
    assert transcript.load(path).messages[0]["content"] == "ä"
