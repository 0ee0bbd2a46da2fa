"""The demo, with a stand-in engine."""

import io
import json

import pytest
from rich.console import Console

from logo_local.commands import showcase
from logo_local.commands.showcase import Example
from logo_local.errors import ModelError
from logo_local.fake import FakeLoGo

EXAMPLES = [
    Example("Sort: pear apple", "apple pear", "sort-words"),
    Example("Backwards: a b, and do it for a line that is much longer than this", "b a", "reverse"),
]
ANSWERS = ["pear apple", " apple pear\n", "apple pear", "a", "", "b a"]


@pytest.fixture
def llm():
    return FakeLoGo({"sort-words": 3.0, "reverse": 1.0}, ANSWERS)


@pytest.mark.parametrize("width", [30, 80])
def test_what_is_shown(llm, width):
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    done = showcase.show(llm, EXAMPLES, console)
    text = console.file.getvalue()
    lines = [line.rstrip() for line in text.splitlines()]
    assert all(len(line) <= width for line in lines)
    assert lines[:6] == [
        "prompt   Sort: pear apple",
        "right         apple pear",
        "base     no   pear apple",
        "mixture  yes  apple pear",
        "blended  sort-words 0.75 · +1" if width == 30 else
        "blended  sort-words 0.75 · reverse 0.25",
        "own      yes  apple pear",
    ]  # fmt: skip
    assert "mixture  no   (nothing)" in lines
    if width == 80:
        assert "trained  sort-words" in lines
        assert "trained  reverse, which is not the first above" in lines
        assert " ".join(lines[-2:]) == (
            "of 2 prompts, right are: base alone 0, mixture 1, own adapter alone 2; "
            "its own adapter comes first for 1"
        )
    assert [result.own_is_first for result in done] == [True, False]


def test_each_prompt_is_answered_three_ways(llm):
    done = list(showcase.results(llm, EXAMPLES))
    assert [call.prompt for call in llm.history] == [e.context for e in EXAMPLES for _ in "123"]
    assert {call.options["temperature"] for call in llm.history} == {0.0}
    right = [[r.is_right(answer) for answer in (r.base, r.mixture, r.own)] for r in done]
    assert right == [[False, True, True], [False, False, True]]


def test_examples_are_read(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"context": e.context, "completion": e.completion, "adapter": e.adapter, "template": 4}
            for e in EXAMPLES]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert showcase.read_examples(path) == EXAMPLES


@pytest.mark.parametrize("content", [None, "{", "[]", '{"context": "x"}'])
def test_examples_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match="the demo's prompts cannot be read"):
        showcase.read_examples(path)
