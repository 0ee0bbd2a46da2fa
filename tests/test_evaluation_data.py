"""Evaluation data: what a line may hold, and every problem of all files at once."""

import json

import pytest

from logo_local.errors import SettingsError
from logo_local.evaluation.data import Example, read_examples

ROW = {"context": "2 + 2 =", "completion": "4", "adapter": "sums"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lines_become_examples(tmp_path):
    sums = write(tmp_path / "sums.jsonl", {**ROW, "template": 3}, {**ROW, "adapter": None})
    words = write(
        tmp_path / "words.jsonl",
        {"context": "a\nb", "completion": ["x", "y"], "group": "answers", "family": "puzzles"},
    )
    assert read_examples([sums, words], ["sums"]) == [
        Example("sums", 1, "2 + 2 =", ("4",), "sums"),
        Example("sums", 2, "2 + 2 =", ("4",)),
        Example("words", 1, "a\nb", ("x", "y"), None, "answers", "puzzles"),
    ]


def test_a_limit_counts_for_each_file_and_blank_lines_do_not_count(tmp_path):
    first = tmp_path / "first.jsonl"
    first.write_text(f"\n{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n{json.dumps(ROW)}", "utf-8")
    second = write(tmp_path / "second.jsonl", ROW, ROW, ROW)
    keys = [example.key for example in read_examples([first, second], ["sums"], limit=2)]
    assert keys == [("first", 2), ("first", 4), ("second", 1), ("second", 2)]


def test_other_line_separators_may_be_in_a_text(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"context": "a\u2028b", "completion": "c"}\n', "utf-8")
    assert read_examples([path], [])[0].context == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "it is not JSON"),
        ("[]", "it is not an object"),
        ('{"completion": "4"}', "context must be a text that is not empty"),
        ('{"context": " ", "completion": "4"}', "context must be a text that is not empty"),
        ('{"context": "a", "completion": null}', "completion must be a text, or a list of texts"),
        ('{"context": "a", "completion": []}', "completion must be a text, or a list of texts"),
        ('{"context": "a", "completion": ["b", 1]}', "completion must be a text, or a list"),
        ('{"context": "a", "completion": "b", "group": 1}', "group must be a text, or null"),
        ('{"context": "a", "completion": "b", "adapter": "c"}', "adapter c is not in the pool"),
        ('{"context": "a", "completion": "b", "metric": "f1"}', "metric f1 is none of em, bleu"),
    ],
)
def test_a_line_that_is_wrong(tmp_path, line, problem):
    path = tmp_path / "t.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{line}\n", "utf-8")
    with pytest.raises(SettingsError) as caught:
        read_examples([path], ["sums"])
    (found,) = caught.value.problems
    assert found.startswith(f"{path}, line 2: {problem}")


def test_all_files_are_looked_at(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    good = write(tmp_path / "good.jsonl", ROW)
    same_name = write(tmp_path / "other" / "good.jsonl", ROW)
    broken = write(tmp_path / "broken.jsonl", *[{}] * 30)
    files = [tmp_path / "none.jsonl", tmp_path / "empty.jsonl", tmp_path / "latin.jsonl"]
    with pytest.raises(SettingsError) as caught:
        read_examples([*files, good, same_name, broken], ["sums"])
    problems = caught.value.problems
    for problem, part in zip(
        problems, ("cannot be read", "empty", "UTF-8", "names the task"), strict=False
    ):
        assert part in problem
    assert len(problems) == 21
    assert problems[-1] == "and 14 more"
