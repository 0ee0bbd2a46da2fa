"""The metrics, against values worked out by hand."""

import math
import sys

import pytest

from logo_local.errors import SettingsError
from logo_local.evaluation import metrics
from logo_local.evaluation.metrics import METRICS, REFUSED, first_line, measure


@pytest.mark.parametrize(
    ("text", "line"),
    [("four", "four"), (" four \nfive", "four"), ("\n\n four\n", "four"), ("", ""), (" \n ", "")],
)
def test_the_first_line_counts(text, line):
    assert first_line(text) == line


OF_TEXT = [name for name in METRICS if name != REFUSED]


def test_the_same_text_is_one_by_every_metric():
    assert measure("a b c d e", ["a b c d e"]) == dict.fromkeys(OF_TEXT, 1.0)


def test_nothing_is_zero_by_every_metric():
    assert measure("", ["a b c d"]) == dict.fromkeys(OF_TEXT, 0.0)


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        (" four ", ["four\n"], 1.0),
        ("Four", ["four"], 0.0),
        ("4", ["four", "4"], 1.0),
        ("five", ["four", "4"], 0.0),
    ],
)
def test_exact_match(text, answers, right):
    assert measure(text, answers)["em"] == right


def test_rouge():
    # 3 of 4 words of the answer, 3 of 3 of the text; 1 of 3 and 1 of 2 pairs; longest common: 3
    found = measure("a b d", ["a b c d"])
    assert found["rouge1"] == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert found["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert found["rougeL"] == pytest.approx(2 * 1 * 0.75 / 1.75)
    # in another order: the longest common subsequence is one word long
    turned = measure("d b a", ["a b d"])
    assert turned["rouge1"] == 1.0
    assert turned["rougeL"] == pytest.approx(1 / 3)
    assert measure("a b", ["x y", "a b"])["rouge2"] == 1.0


def test_bleu_with_smoothing_method_1():
    # precisions 4/5, 2/4, 0 of 3 and 0 of 2, of which the latter become 0.1; as long as the answer
    expected = math.exp(
        (math.log(4 / 5) + math.log(2 / 4) + math.log(0.1 / 3) + math.log(0.1 / 2)) / 4
    )
    assert measure("a b x d e", ["a b c d e"])["bleu"] == pytest.approx(expected)


def test_bleu_takes_all_answers_as_references():
    # "a b" is in the one, "c d" in the other
    assert (
        measure("a b c d", ["a b x y", "x y c d"])["bleu"] > measure("a b c d", ["a b x y"])["bleu"]
    )


@pytest.mark.parametrize("module", ["nltk.translate.bleu_score", "rouge_score.rouge_scorer"])
def test_a_missing_library_is_named_with_what_to_install(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    metrics._rouge.cache_clear()
    with pytest.raises(SettingsError) as caught:
        metrics.load()
    assert module.split(".")[0] in caught.value.message
    assert "-m pip install 'nltk" in caught.value.hint
    assert "rouge-score" in caught.value.hint
