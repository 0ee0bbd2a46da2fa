"""Inputs found in an adapter's examples, and other requests about them."""

import time

import pytest

from logo_local.routing.contrasts import (
    REQUESTS,
    WHOLE_REQUESTS,
    contrast_prompts,
    n_wordings,
    own_words,
    shared_lines,
    whole_inputs,
)

EXAMPLES = [
    "Rewrite in the passive voice: The dog bit the man.",
    "Rewrite in the passive voice: A thief stole my new bicycle yesterday.",
    "Mary baked this cake.\n\nPut this sentence into the passive.",
]


def test_an_input_is_what_no_other_example_has():
    assert own_words(EXAMPLES) == [
        "The dog bit the man.",
        "A thief stole my new bicycle yesterday.",
        "Mary baked this cake. Put this sentence into the passive.",
    ]


def test_few_shared_words_may_be_inside():
    texts = ["Count: red of the blue", "Count: of the other kind"]
    assert own_words(texts)[0] == "red of the blue"


def test_many_shared_words_end_an_input():
    texts = ["x1 x2 a b c d e y1", "a b c d e other"]
    assert own_words(texts)[0] == "x1 x2"


@pytest.mark.parametrize("examples", [[], ["only one"], ["same", "same"]])
def test_no_input_can_be_told(examples):
    assert contrast_prompts(examples) == []


def test_each_request_is_about_another_input():
    prompts, whole = contrast_prompts(EXAMPLES)
    assert (len(prompts), len(whole)) == (len(REQUESTS), len(WHOLE_REQUESTS))
    assert prompts[0] == "How many words are in the following text?\nThe dog bit the man."
    assert prompts[3] == "What do you think about this? The dog bit the man."
    assert whole[0] == "Is this well written? The dog bit the man."


WALKS = [
    "Does this path lead home? Take 2 steps. Turn left. Take 2 steps.",
    "Does this path lead home? Turn right. Take 2 steps. Take 7 steps.",
    "Steps: Take 9 steps. Turn left.\nHome again:",
    "Steps: Turn around. Take 3 steps.\nHome again:",
]


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        (WALKS, 2),
        (EXAMPLES, 2),
        ([], 0),
        (["only one"], 1),
        (["How tall is it?", "Where is it?", "Who are you?"], 2),  # "is it?" ends two of them
        (["one two a b", "x y a b", "one two z"], 1),  # by way of the first
        (["Sort a", "Sort b"], 2),  # one word is no wording
    ],
)
def test_how_many_wordings_there_are(examples, expected):
    assert n_wordings(examples) == expected


def test_a_whole_input_is_what_is_not_in_the_wording():
    assert whole_inputs(WALKS) == [
        "Take 2 steps. Turn left. Take 2",  # "steps." ends both examples
        "Turn right. Take 2 steps. Take 7",
        "Take 9 steps. Turn left.",
        "Turn around. Take 3 steps.",
    ]
    assert own_words(WALKS)[2] == "9"  # all else is in other examples, too


def test_a_wording_of_its_own_leaves_the_own_words():
    assert whole_inputs(EXAMPLES)[2] == own_words(EXAMPLES)[2]


def test_long_examples_take_no_longer_than_reading_them():
    started = time.process_time()
    own_words([" ".join(map(str, range(200_000))), "1 2 3"])
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
