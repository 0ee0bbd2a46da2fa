"""What routes, plans and checks look like."""

import io
import json

import pytest
from rich.console import Console

from logo_local.console import report
from logo_local.fake import FakeLoGo
from logo_local.routing.route import Route, select

SCORES = {"sort-words": 4.2, "reverse": 3.1, "upper": 2.7, "[red]": 1.0, "silent": 0.0}
HOW = {"signal": "norm", "probe": "one-pass", "target": "blk.3.attn_q.weight"}


def route(top_k=3, scores=SCORES):
    return select(scores, top_k, **HOW)


def shown(renderable, width=80):
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(renderable)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return lines


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "sort-words 0.42 · reverse 0.31 · upper 0.27"),
        (43, "sort-words 0.42 · reverse 0.31 · upper 0.27"),
        (42, "sort-words 0.42 · reverse 0.31 · +1"),
        (34, "sort-words 0.42 · +2"),
        (1, "sort-words 0.42 · +2"),
    ],
)
def test_the_blend_in_one_line(width, line):
    assert report.blend_line(route(), width) == line


def test_one_adapter_and_none():
    assert report.blend_line(route(1)) == "sort-words 1.00"
    assert report.blend_line(Route()) == "base alone"


@pytest.mark.parametrize(
    ("share", "width", "text"),
    [(0, 4, ""), (1, 4, "████"), (0.5, 4, "██"), (0.53125, 4, "██▏"), (2, 4, "████"), (-1, 4, "")],
)
def test_bars(share, width, text):
    assert report.bar(share, width) == text


def test_the_table_of_scores():
    lines = shown(report.explain_table(route(), 80))
    assert lines[0] == "norm · one-pass · blk.3.attn_q.weight"
    assert lines[1].split() == ["adapter", "weight", "score"]
    assert [line.split()[0] for line in lines[2:-1]] == [name for name, s in SCORES.items() if s]
    assert lines[-1] == "and 1 with a score of 0"
    assert lines[2].split() == ["sort-words", "0.42", "4.2", "█" * 20]
    assert lines[5].split()[:2] == ["[red]", "1"]  # no weight, and no markup either


@pytest.mark.parametrize("width", [20, 29, 30, 40])
def test_numbers_are_never_cut(width):
    lines = shown(
        report.explain_table(route(scores={"a-rather-long-name" * 2: 0.12345, "b": 0.1}), width),
        width,
    )
    assert any(line.split()[-1 if width < 40 else -2] == "0.1235" for line in lines)
    assert any("0.55" in line for line in lines) == (width >= 30)
    if width == 40:
        assert lines[2].endswith("█" * 10)


@pytest.mark.parametrize("width", [20, 39, 40, 41, 60, 200])
def test_the_table_fits_narrow_terminals(width):
    long = {f"{'a-very-long-name-' * 4}{i}": 5.0 - i for i in range(5)}
    lines = shown(report.explain_table(route(scores=long), width), width)
    if width >= 40:
        assert any("█" in line for line in lines)


def test_bars_can_be_left_out():
    assert not any("█" in line for line in shown(report.explain_table(route(), 80, bars=False)))


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        (None, {"a": 1.0}, []),
        ({"a": 1.0}, {"a": 2.0}, ["unchanged since the turn before"]),
        ({"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, ["changed: a 0.75 → 0.50 · b 0.25 → 0.50"]),
        ({"a": 0.751, "b": 0.249}, {"a": 0.75, "b": 0.25}, ["unchanged since the turn before"]),
        ({"a": 3.0, "b": 1.0}, {"a": 3.0, "c": 1.0}, ["added: c 0.25", "removed: b 0.25"]),
        ({"a": 0.0}, {"a": 1.0}, ["added: a 1.00"]),
        ({"a": 1.0}, {"a": 0.0}, ["removed: a 1.00"]),
        ({}, {}, ["unchanged since the turn before"]),
    ],
)
def test_what_another_turn_changed(before, now, lines):
    earlier = None if before is None else select(before, 3)
    assert report.route_changes(earlier, select(now, 3)) == lines


def test_columns_side_by_side_or_below():
    rows = [("a", "1", "some words"), ("longer", "not set", "others that go on and on and on")]
    assert report.columns(rows, 42).splitlines() == [
        "a       1        some words",
        "longer  not set  others that go on and on",
        "                 and on",
    ]
    assert report.columns(rows, 20).splitlines() == [
        *("a 1", "  some words", "longer not set"),
        *("  others that go on", "  and on and on"),
    ]
    assert report.columns([], 20) == ""


@pytest.mark.parametrize("width", [20, 49, 50, 80])
def test_the_table_of_adapters(width):
    llm = FakeLoGo(dict.fromkeys(("a-rather-long-name-of-one", "b", "c"), 1.0))
    llm.pool.pin("b")
    llm.pool.exclude("c")
    lines = shown(report.adapters_table(llm.pool, llm.route("x"), width), width)
    rows = [line.split() for line in lines]
    size = ["4", "2.0", "KB"] if width >= 50 else []
    assert ["b", "1.00", *size, "pinned"] in rows
    assert ["c", *size, "off"] in rows
    first = "".join(row[0] for row in rows[:-2])
    assert first == "adaptera-rather-long-name-of-one"  # folded perhaps, never cut


@pytest.mark.parametrize(
    ("generated", "decode", "end"),
    [
        (3, 100.0, "answer 3 tokens at 20.0 tokens/s"),
        (1, 0.0, "answer 1 token"),
        (0, 0.0, "answer 0 tokens"),
    ],
)
def test_how_long_an_answer_took(generated, decode, end):
    timings = {"load": 9.0, "probe": 1.0, "score": 2.0, "mixture": 3.0, "prefill": 4.0}
    usage = {"prompt_tokens": 7, "completion_tokens": generated}
    line = report.answer_line({**timings, "decode": decode}, usage)
    assert line == f"prompt 7 tokens in 10 ms · {end}"


def test_a_large_pool_is_cut_but_never_the_selected():
    many = {f"ad{i:03}": 100.0 - i for i in range(60)}
    lines = shown(report.explain_table(select(many, 3, **HOW)))
    assert lines[-1] == "and 40 more"
    assert len(lines) == 2 + 20 + 1
    lines = shown(report.explain_table(select(many, 30, **HOW)))
    assert lines[-1] == "and 30 more"


def test_the_table_when_the_base_answers_alone():
    lines = shown(report.explain_table(select({"a": 0.0, "b": 0.0}, 3, **HOW)))
    assert lines[1:] == ["2 with a score of 0", "base alone"]
    assert shown(report.explain_table(Route()))[-1] == "base alone"


def test_lines_of_a_score():
    assert report.score_lines(route()) == [
        "sort-words  0.4200  4.2",
        "reverse     0.3100  3.1",
        "upper       0.2700  2.7",
    ]
    assert report.score_lines(Route()) == []


PHASES = ("load", "probe", "score", "mixture", "prefill", "decode")


def test_json_of_an_answer():
    logo = {"route": route().as_dict(), "timings_ms": dict.fromkeys(PHASES, 1.23456)}
    usage = {"prompt_tokens": 31, "completion_tokens": 12, "total_tokens": 43}
    made = json.loads(json.dumps(report.run_json("apple", logo, usage)))
    assert list(made) == ["text", "route", "usage", "timings_ms"]
    assert made["text"] == "apple"
    assert made["usage"] == {"prompt_tokens": 31, "completion_tokens": 12}
    assert made["timings_ms"] == dict.fromkeys(PHASES, 1.235)
    assert list(made["route"]) == [
        *("signal", "probe", "target", "mixture", "reason"),
        *("adapters", "scores"),
    ]
    assert made["route"]["adapters"][0] == {
        "name": "sort-words",
        "score": 4.2,
        "weight": pytest.approx(0.42),
    }
    assert made["route"]["scores"] == SCORES


def test_json_of_a_route():
    made = report.score_json(route(), dict.fromkeys(PHASES, 0.0))
    assert list(made) == ["route", "timings_ms"]
    assert list(made["timings_ms"]) == list(PHASES[:-1])


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (46_200, "45.1 KB"),
        (1_023_999, "1000.0 KB"),
        (1_024_000, "1.0 MB"),
        (5 << 20, "5.0 MB"),
        (2 << 30, "2.0 GB"),
        (5 << 40, "5120.0 GB"),
    ],
)
def test_sizes_for_people(n_bytes, text):
    assert report.size_text(n_bytes) == text
