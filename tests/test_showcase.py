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
    Example("Sort: pear apple", ("apple pear",), "sort-words"),
    Example("Backwards: a b, and do it for a line that is much longer than this", ("b a",), "back"),
]
ANSWERS = ["Sure! " + "pear " * 100, " apple pear\n", "b a", ""]


@pytest.fixture
def llm():
    return FakeLoGo({"sort-words": 3.0, "back": 1.0}, ANSWERS)


@pytest.mark.parametrize("width", [30, 80, 5000])
def test_what_is_shown(llm, width):
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    done = showcase.show(llm, EXAMPLES, console)
    text = console.file.getvalue()
    assert all(len(line) <= min(width, 120) for line in text.splitlines())
    words = " ".join(text.split())
    assert words.startswith("1. Sort: pear apple base model with sort-words")
    if width >= 80:
        assert "Sure! pear pear" in words
        assert "right: apple pear" in words
        assert "right: b a" in words
        assert "(nothing)" in words
    assert "pear ..." in words  # a long answer is cut
    assert words.endswith(
        "Right answers to 2 prompts: 1 by the base model, "
        "1 with the adapters that were chosen for each prompt."
    )
    assert [result.is_right(result.blend) for result in done] == [True, False]


def test_each_prompt_is_answered_twice_and_greedily(llm):
    list(showcase.results(llm, EXAMPLES))
    assert [call.prompt for call in llm.history] == [e.context for e in EXAMPLES for _ in "12"]
    assert {call.options["temperature"] for call in llm.history} == {0.0}


def test_examples_are_read(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"context": e.context, "completion": list(e.answers), "adapter": e.adapter, "more": 4}
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
