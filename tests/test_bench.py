"""`logo-local bench`: ratios and medians by hand; the whole way on the small random model."""

import json
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from logo_local.bench.measure import Benchmark, Row, Scoring, Times, _row, measure
from logo_local.bench.report import draw, markdown
from logo_local.commands.cli import cli
from logo_local.engine import LoGo
from logo_local.errors import PromptError

QUICK = {"prompt_tokens": 20, "answer_tokens": 3, "repeats": 2}


@pytest.fixture(scope="module")
def llm(random_base, random_adapters):
    with LoGo(random_base, random_adapters, n_ctx=64, signal="norm") as llm:
        yield llm


def test_ratios_are_those_of_neighbours_and_then_medians():
    bases = [Times(0, 0, 10, 10, 1), Times(0, 0, 20, 20, 2), Times(0, 0, 10, 10, 1)]
    mixtures = [Times(5, 1, 20, 15, 2), Times(7, 3, 60, 50, 2), Times(6, 2, 100, 80, 9)]
    row = _row("stacked", 3, list(zip(mixtures, bases, strict=True)))
    assert (row.way, row.k) == ("stacked", 3)
    assert row.ms == Times(6, 2, 60, 50, 2)
    assert row.over_base == {"first_token": 3.0, "prefill": 2.5, "decode": 2.0}


def test_every_way_at_every_k_and_growing_parts_of_the_pool(llm):
    stages = []
    found = measure(llm, ks=(1, 3, 3, 20), progress=lambda *stage: stages.append(stage), **QUICK)
    assert [(row.k, row.way) for row in found.rows] == [
        (k, way) for k in (1, 3, 5) for way in ("scales", "stacked")
    ]
    assert [scoring.n for scoring in found.scoring] == [1, 5]
    assert all(value > 0 for row in found.rows for value in row.over_base.values())
    assert stages[0] == ("measuring", 0, 12)
    assert stages[-1] == ("measuring", 12, 12)
    setting = found.setting
    assert (setting["adapters"], setting["prompt_tokens"], setting["repeats"]) == (5, 20, 2)
    assert llm.mixture == "auto"  # as it was
    json.dumps(found.as_dict())


def test_the_two_ways_are_really_taken(llm, monkeypatch):
    seen = []
    adopt = llm.mixer.set

    def noted(mixture):
        way = adopt(mixture)
        seen.append((way, len(mixture)))
        return way

    monkeypatch.setattr(llm.mixer, "set", noted)
    measure(llm, ks=(2,), **{**QUICK, "repeats": 1})
    assert {("scales", 2), ("stacked", 2), ("none", 0)} <= set(seen)


def test_a_prompt_that_leaves_no_room_is_refused(llm):
    with pytest.raises(PromptError, match="254 tokens and an answer of 3"):
        measure(llm, prompt_tokens=254, answer_tokens=3)


@pytest.fixture
def found():
    times = Times(12.34, 5.6, 2300.0, 2200.0, 25.25)
    ratios = {"first_token": 1.5, "prefill": 1.25, "decode": 1.752}
    rows = [Row(way, k, times, ratios) for k in (1, 20) for way in ("scales", "stacked")]
    setting = {
        "model": "m.gguf", "adapters": 1000, "prompt_tokens": 256, "answer_tokens": 32,
        "repeats": 3, "threads": [1, 2], "machine": "Linux x86_64", "versions": {"numpy": "2"},
    }  # fmt: skip
    return Benchmark(setting, times, rows, [Scoring(1000, 1999.9, 21.2, 1.0123)])


def test_the_table(found):
    lines = markdown(found).splitlines()
    assert lines[0].startswith("m.gguf, 1000 adapters; 256 prompt tokens, 32 answer tokens")
    assert "The base: prompt 2,200 ms, a token 25.2 ms." in lines
    assert "| stacked | 20 | 1.25 | 1.75 | 1.50 | 12.3 ms | 5.6 ms |" in lines
    assert "| 1,000 | 1,999.9 ms | 21.2 ms | 1.012 |" in lines


def test_the_figure_is_a_picture_with_both_ways(found, tmp_path):
    draw(found, tmp_path / "b.svg")
    text = (tmp_path / "b.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "first token" in text
    assert "stacked" in text
    assert [path.name for path in tmp_path.iterdir()] == ["b.svg"]


def test_the_command(random_base, random_adapters, tmp_path):
    run = CliRunner().invoke(
        cli,
        ["bench", str(random_base), "--adapters", str(random_adapters), "--json", "--signal=norm",
         "--top-k=1,2", "--prompt-tokens=20", "--answer-tokens=3", "--repeats=1",
         "--ctx-size=64", "--plot", str(tmp_path / "b.svg")],
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    assert [row["k"] for row in json.loads(run.stdout)["rows"]] == [1, 1, 2, 2]
    assert (tmp_path / "b.svg").exists()
