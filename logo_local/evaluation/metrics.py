"""Metrics of an answer against the accepted ones: from 0 to 1, higher is better.

The same metrics as in the LoGo authors' released code: exact match, sentence BLEU-4 with
smoothing method 1, and the F1 of ROUGE-1, ROUGE-2 and ROUGE-L. As there, only the first line of
an answer counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from ..console.figures import missing_extra

METRICS = {
    "em": "exact match",
    "bleu": "BLEU-4",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "refused": "answered by the base",
}
REFUSED = "refused"  # 1 if no adapter is applied; used if no answer is known
SCORE = "score"  # each task's own metric, as set in its data
_ROUGE = ("rouge1", "rouge2", "rougeL")


def first_line(text: str) -> str:
    """The first line of an answer that is not blank, stripped; "" if there is none."""
    return text.strip().split("\n", 1)[0].strip()


def measure(text: str, answers: Sequence[str]) -> dict[str, float]:
    """Every metric of `text`, by the names in `METRICS` except REFUSED, which belongs to a route.

    With several accepted answers, exact match and ROUGE use the best of them, and BLEU uses all of
    them as references, as defined by nltk. Exact match compares stripped texts and is
    case-sensitive; BLEU splits tokens at white space. Raises SettingsError if nltk or rouge_score
    is missing.
    """
    text = text.strip()
    accepted = [answer.strip() for answer in answers]
    by_answer = [_rouge().score(answer, text) for answer in accepted]
    return {
        "em": float(text in accepted),
        "bleu": _bleu(text, accepted),
        **{name: float(max(s[name].fmeasure for s in by_answer)) for name in _ROUGE},
    }


def load() -> None:
    """Import the libraries for `measure`. Raises SettingsError if one is missing."""
    measure("", [""])


def _bleu(text: str, answers: Sequence[str]) -> float:
    try:
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    except ImportError as error:
        raise missing_extra(error) from error
    references = [answer.split() for answer in answers]
    return float(
        sentence_bleu(references, text.split(), smoothing_function=SmoothingFunction().method1)
    )


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing_extra(error) from error
    return RougeScorer(_ROUGE)
