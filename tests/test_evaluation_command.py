"""`logo-local eval`: arguments in; exit code, table and files out."""

import json
from dataclasses import replace

import pytest
import small_model
from click.testing import CliRunner

from logo_local.commands import cli
from logo_local.fake import FakeLoGo

SCORES = {"good": 3.0, "poor": 1.0, "silent": 0.0}
ARGS = ("--signals", "norm", "--top-k", "1,2", "--max-tokens", "9")


@pytest.fixture
def data(tmp_path):
    row = {"context": "p", "completion": "right", "adapter": "good"}
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row, row, {**row, "adapter": None})))
    return path


@pytest.fixture
def llm(tmp_path):
    fake = FakeLoGo(SCORES, lambda _p, route: "right" if route.names[:1] == ("good",) else "no")
    (tmp_path / "model.gguf").write_bytes(b"weights")
    fake.base = replace(fake.base, path=tmp_path / "model.gguf")
    return fake


@pytest.fixture
def call(llm):
    def call(*args, model="m.gguf", pool=("--adapters", "pool")):
        args = ("eval", model, *pool, *map(str, args))
        result = CliRunner().invoke(cli.cli, args, obj=llm.opened, prog_name="logo-local")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_the_table(call, data):
    result = call("--data", data, *ARGS)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "### in pool: 2 prompts of 1 task"
    assert "| base | 0.00 (0.00 to 0.00) |  | 0.00 (0.00 to 0.00) | 1.00 |" in lines
    assert "| own | 1.00 (1.00 to 1.00) |  | 1.00 (1.00 to 1.00) | 0.00 |" in lines
    assert "| norm, k = 2 | 1.00 (1.00 to 1.00) | 1.00 | 1.00 (1.00 to 1.00) | 0.00 |" in lines
    outside = lines[lines.index("### out of pool: 1 prompt of 1 task") :]
    assert "| default | 1.00 |  | 0.00 |" in outside
    assert not any(line.startswith("| own ") for line in outside)
    assert result.stderr == ""


def test_the_json_has_every_metric(call, data):
    result = call("--data", data, *ARGS, "--json", "--metric", "rougeL", "--best-single")
    value = json.loads(result.stdout)
    assert (value["metric"], value["best_single"]) == ("rougeL", "good")
    own = value["groups"]["in pool"]["methods"]["own"]
    assert (own["mean"], own["tasks"], own["metrics"]["em"]) == (1.0, {"task": 1.0}, 1.0)


def test_several_files_may_follow_one_flag(call, data, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text())
    for args in (("--data", data, other), ("--data", data, "--data", other), (data, other)):
        assert call(*args, *ARGS).stdout.startswith("### in pool: 4 prompts of 2 tasks")


def test_the_engine_gets_its_settings_and_no_routing_of_another_command(call, llm, data):
    result = call("--data", data, *ARGS, "--layer", "-2", "--threads", "1", "--seed", "7")
    assert result.exit_code == 0
    assert llm.settings["layer"] == -2
    assert (llm.settings["n_threads"], llm.settings["seed"]) == (1, 7)
    assert not {"signal", "top_k"} & set(llm.settings)
    assert llm.history[-1].options["max_tokens"] == 9


def test_a_large_k_is_noted(call, data):
    result = call("--data", data, "--signals", "norm", "--top-k", "2,50")
    assert "there are 3 adapters, and a larger k means all of them" in result.stderr
    assert "| norm, k = 3 |" in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "no data given"),
        (("none.jsonl",), 1, "none.jsonl: it cannot be read"),
        (("--data", "DATA", "--signals", "norm,loud"), 2, "'loud'"),
        (("--data", "DATA", "--top-k", "1,0"), 2, "0 is not in the range"),
        (("--data", "DATA", "--top-k", ""), 2, "not a valid integer"),
        (("--data", "DATA", "--metric", "f1"), 2, "'f1'"),
        (("--data", "DATA", "--out", "DATA"), 1, "is not a folder"),
    ],
)
def test_failures(call, data, args, code, message):
    result = call(*(data if arg == "DATA" else arg for arg in args))
    assert (result.exit_code, result.stdout) == (code, "")
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("hint: ")
    assert message in result.stderr


def test_a_run_goes_on_and_another_does_not(call, llm, data, tmp_path):
    out = tmp_path / "out"
    first = call("--data", data, *ARGS, "--out", out)
    assert first.exit_code == 0
    n_calls = len(llm.history)
    again = call("--data", data, *ARGS, "--out", out, "--metric", "em")
    assert (again.stdout, len(llm.history)) == (first.stdout, n_calls)
    other = call("--data", data, *ARGS, "--out", out, "--max-tokens", "5")
    assert (other.exit_code, other.stdout) == (1, "")
    assert "max_tokens: 9 there, 5 now" in other.stderr
    assert "--out" in other.stderr.splitlines()[-1]
    (tmp_path / "model.gguf").write_bytes(b"other weights")
    other = call("--data", data, *ARGS, "--out", out)
    assert 'model: "' in other.stderr


def test_plots_are_drawn(call, data, tmp_path):
    result = call("--data", data, *ARGS, "--plots", tmp_path / "plots")
    assert f"4 figures in {tmp_path / 'plots'}" in result.stderr
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 4


def test_the_whole_way_on_the_small_model(tmp_path):
    task = tmp_path / "sort-words.jsonl"
    row = {
        "context": "Here is a list: candle, boat, pig. Arrange it as a dictionary would.",
        "completion": "boat candle pig",
        "adapter": "sort-words",
        "group": "puzzles",
    }
    task.write_text(json.dumps(row) + "\n")
    args = ("eval", *small_model.ARGS, "--data", task, "--limit", "1", "--signals", "norm,entropy")
    more = (
        "--threads",
        "1",
        "--top-k",
        "1,2",
        "--own-out",
        "--fusion",
        "--json",
        "--out",
        tmp_path / "out",
    )
    results = [CliRunner().invoke(cli.cli, [str(arg) for arg in (*args, *more)]) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0], results[0].stderr
    assert results[0].stdout == results[1].stdout
    groups = json.loads(results[0].stdout)["groups"]
    assert {"in pool", "own adapter out"} <= groups.keys()
    assert "in pool, puzzles" in groups
    for group in groups.values():
        assert {"base", "uniform", "norm, k = 1", "entropy, k = 2, fused"} <= set(group["methods"])
    assert groups["in pool"]["methods"]["own"]["mean"] == 1.0
