"""Example prompts: from files beside an adapter, from its card, and from the user."""

import pytest

from logo_local.errors import PromptError
from logo_local.routing.example_prompts import TaughtPrompts, prompts_beside, read_prompts


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("# for the sorter\nSort: b a\n\n  Put c, b in order  \n")
    assert read_prompts(path) == ["Sort: b a", "Put c, b in order"]


def test_json_lines_have_contexts(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"context": "Sort:\\nb a", "completion": "a b"}\n\n{"context": "c"}\n')
    assert read_prompts(path) == ["Sort:\nb a", "c"]


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"context": "fine"}\nnot json\n{"prompt": "x"}\n[1]\n{"context": 7}\n')
    with pytest.raises(PromptError) as caught:
        read_prompts(path)
    assert [p.split()[1] for p in caught.value.problems] == ["2", "3", "4", "5"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_an_error_with_a_hint(tmp_path, content):
    path = tmp_path / "x.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptError) as caught:
        read_prompts(path)
    assert caught.value.hint


def test_prompts_beside_a_gguf_file(tmp_path):
    adapter = tmp_path / "sort.gguf"
    assert prompts_beside(adapter) == []
    (tmp_path / "sort.prompts.txt").write_text("one\n")
    (tmp_path / "sort.prompts.jsonl").write_text('{"context": "two"}\n{"context": "one"}\n')
    assert prompts_beside(adapter) == ["one", "two"]


def test_a_broken_file_beside_an_adapter_is_named_and_passed_over(tmp_path, caplog):
    (tmp_path / "sort.prompts.jsonl").write_text("nonsense\n")
    assert prompts_beside(tmp_path / "sort.gguf") == []
    assert "sort.prompts.jsonl" in caplog.text


CARD = """---
license: mit
examples: ["Sort these: b a", 7]
widget:
  - text: "Put into order: c b"
  - src: picture.png
---
# A card
"""


def test_examples_in_the_head_of_a_card(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "prompts.txt").write_text("from the file\n")
    assert prompts_beside(tmp_path) == ["from the file", "Sort these: b a", "Put into order: c b"]


@pytest.mark.parametrize(
    "card",
    [
        "no head\n",
        "---\nnever ends\n",
        "---\n- a list\n---\n",
        "---\n{broken: [\n---\n",
        "---\nexamples: one\n---\n",
    ],
)
def test_cards_without_examples(tmp_path, card):
    (tmp_path / "README.md").write_text(card)
    assert prompts_beside(tmp_path) == []


def test_what_was_taught_is_kept_and_can_be_forgotten(tmp_path):
    taught = TaughtPrompts(tmp_path / "prompts")
    assert not taught
    assert taught.add("k" * 64, ["a\nb", "c", "c"]) == 2
    assert taught.add("k" * 64, ["c", "d"]) == 1
    assert taught
    again = TaughtPrompts(tmp_path / "prompts")
    assert again.read("k" * 64) == ["a\nb", "c", "d"]
    assert again.read("x" * 64) == []
    assert again.forget("k" * 64, last=True) == 1
    assert again.read("k" * 64) == ["a\nb", "c"]
    assert again.forget("k" * 64) == 2
    assert not again
