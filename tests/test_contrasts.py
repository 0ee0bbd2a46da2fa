"""Inputs found in an adapter's examples, and other requests about them."""

import time

import pytest

from logo_local.routing.contrasts import (
    REQUESTS,
    contrast_prompts,
    example_inputs,
    shared_lines,
)

EXAMPLES = [
    "Rewrite in the passive voice: The dog bit the man.",
    "Rewrite in the passive voice: A thief stole my new bicycle yesterday.",
    "Mary baked this cake.\n\nPut this sentence into the passive.",
]


def test_an_input_is_what_no_other_example_has():
    assert example_inputs(EXAMPLES) == [
        "The dog bit the man.",
        "A thief stole my new bicycle yesterday.",
        "Mary baked this cake. Put this sentence into the passive.",
    ]


def test_few_shared_words_may_be_inside():
    texts = ["Count: red of the blue", "Count: of the other kind"]
    assert example_inputs(texts)[0] == "red of the blue"


def test_many_shared_words_end_an_input():
    texts = ["x1 x2 a b c d e y1", "a b c d e other"]
    assert example_inputs(texts)[0] == "x1 x2"


@pytest.mark.parametrize("examples", [[], ["only one"], ["same", "same"]])
def test_no_input_can_be_told(examples):
    assert contrast_prompts(examples) == []


def test_each_request_is_about_another_input():
    prompts = contrast_prompts(EXAMPLES)
    assert len(prompts) == len(REQUESTS)
    assert prompts[0] == "How many words are in the following text?\nThe dog bit the man."
    assert prompts[3] == "What do you think about this? The dog bit the man."


def test_long_examples_take_no_longer_than_reading_them():
    started = time.process_time()
    example_inputs([" ".join(map(str, range(200_000))), "1 2 3"])
    assert time.process_time() - started < 30  # minutes, if every run were looked at


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["### Input:\nsort a\n### Response:", "### Input:\nadd b\n### Response:"],
         ("### Input:\n", "\n### Response:")),
        (["Sort a\nAnswer:", "Sort b\nAnswer:"], ("", "\nAnswer:")),  # words are no format
        (["Sort a", "Sort b"], ("", "")),
    ],
)  # fmt: skip
def test_lines_around_every_prompt_are_a_format(prompts, expected):
    assert shared_lines(prompts) == expected
