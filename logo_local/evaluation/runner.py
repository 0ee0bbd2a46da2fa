"""Evaluates prompts with an engine by every method and stores the results. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from ..completions import Engine, Prompt, Sampling, as_prompt, complete
from ..errors import PromptError, SettingsError
from .data import Example
from .methods import Method, Weights, planned, singles, usable_ks
from .metrics import METRICS, REFUSED, first_line, load, measure
from .store import Answered, Scored, Store

Progress: TypeAlias = Callable[[str, int, int], None]
# Answers a prompt with averaged parameters; see `fusion.Fusion`.
AnswerFused: TypeAlias = Callable[[Prompt, Weights, Sampling], str]
_NO_METRICS = dict.fromkeys(METRICS, 0.0)
_AnswerKey: TypeAlias = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Comparison:
    """The comparison to run: the signals at each of `top_k`, and optional slow methods.

    `best_single` answers every prompt with every adapter, `own_out` repeats everything with the
    prompt's own adapter excluded, `fusion` repeats every mixture with averaged parameters.
    `max_tokens` limits an answer, `seed` draws the random adapters, `raw` sends prompts without
    the chat template.
    """

    signals: tuple[str, ...]
    top_k: tuple[int, ...]
    max_tokens: int = 64
    seed: int = 1
    best_single: bool = False
    own_out: bool = False
    fusion: bool = False
    raw: bool = False


def evaluate(
    llm: Engine,
    examples: Sequence[Example],
    comparison: Comparison,
    store: Store,
    *,
    progress: Progress = lambda _stage, _done, _total: None,
    answer_fused: AnswerFused | None = None,
) -> None:
    """Answer every example by every method, greedily, and add new results to `store`.

    Methods with the same weights share one answer per prompt. `answer_fused` is required with
    `comparison.fusion`. Raises SettingsError if the metrics' libraries are missing, and
    PromptError, naming the example, for a prompt that does not fit the context.
    """
    load()  # fail before the first answer
    if comparison.own_out and len(llm.pool.names) < 2:
        raise SettingsError(
            "there is only one adapter, so none is left without it", hint="leave --own-out away"
        )
    for done, example in enumerate(examples):
        progress("answering prompts", done, len(examples))
        try:
            _one(llm, example, comparison, store, answer_fused)
        except PromptError as error:
            raise PromptError(
                f"{example.task}, line {example.line}: {error.message}", hint=error.hint
            ) from error
    progress("answering prompts", len(examples), len(examples))


def _one(
    llm: Engine,
    example: Example,
    comparison: Comparison,
    store: Store,
    answer_fused: AnswerFused | None,
) -> None:
    prompt = as_prompt(llm, example.context, raw=comparison.raw)
    # Only the first line counts, so generation stops after it.
    sampling = Sampling(comparison.max_tokens, 0.0, stop=("\n",))
    plain: dict[_AnswerKey, str] = {}
    averaged: dict[_AnswerKey, str] = {}

    def answer(method: Method) -> str:
        known = averaged if method.fused else plain
        key = _key(method.weights)
        if key not in known:
            if method.fused:
                assert answer_fused is not None
                text = answer_fused(prompt, method.weights, sampling)
            else:
                with llm.under(method.weights):
                    text = complete(llm, prompt, sampling).text
            known[key] = first_line(text)
        return known[key]

    for out in (False, True) if comparison.own_out and example.adapter else (False,):
        methods = _methods(llm, example, prompt, comparison, store, out)
        missing = []
        for method in methods:
            done = store.answered.get((*example.key, out, method.name))
            if done is None:
                missing.append(method)
            else:
                (averaged if method.fused else plain)[_key(done.weights)] = done.text
        for method in missing:
            text = answer(method) if example.answers else ""
            store.add(
                Answered(
                    *example.key,
                    out,
                    method.name,
                    dict(method.weights),
                    method.first,
                    text,
                    {
                        **(measure(text, example.answers) if example.answers else _NO_METRICS),
                        REFUSED: float(not method.weights),
                    },
                )
            )


def _methods(
    llm: Engine,
    example: Example,
    prompt: Prompt,
    comparison: Comparison,
    store: Store,
    out: bool,
) -> list[Method]:
    scored = store.scored.get((*example.key, out))
    names = [name for name in llm.pool.names if not (out and name == example.adapter)]
    if scored is None:
        with _excluded(llm, example.adapter if out else None):
            # Scored again, not just filtered: signals may compare adapters with each other.
            scores = llm.signal_scores(prompt, comparison.signals) if comparison.signals else {}
            default = llm.route(prompt)
        scored = Scored(
            *example.key,
            out,
            {signal: dict(scores[signal]) for signal in comparison.signals},
            default.applied,
        )
        store.add(scored)
    methods = planned(
        example,
        names,
        scored.scores,
        scored.default,
        usable_ks(comparison.top_k, len(llm.pool.names)),
        seed=comparison.seed,
        fusion=comparison.fusion,
    )
    # With the own adapter excluded, the best of the others is known from earlier answers.
    return methods + (singles(names) if comparison.best_single and not out else [])


@contextmanager
def _excluded(llm: Engine, name: str | None) -> Iterator[None]:
    if name is None:
        yield
        return
    llm.pool.exclude(name)
    try:
        yield
    finally:
        llm.pool.auto()


def _key(weights: Mapping[str, float]) -> _AnswerKey:
    return tuple(sorted(weights.items()))
