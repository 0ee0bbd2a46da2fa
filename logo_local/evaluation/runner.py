"""Evaluates prompts with an engine by every method and stores the results. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
SCORING, ANSWERING = "scoring prompts", "answering prompts"  # reported through `progress`
_NO_METRICS = dict.fromkeys(METRICS, 0.0)
_Blend: TypeAlias = tuple[bool, tuple[tuple[str, float], ...]]


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


@dataclass(frozen=True)
class _Planned:
    """A method for one example; `out` if the example's own adapter is excluded."""

    example: Example
    out: bool
    method: Method

    @property
    def key(self) -> tuple[str, int, bool, str]:
        """The key of its answer in the store."""
        return (*self.example.key, self.out, self.method.name)

    @property
    def blend(self) -> _Blend:
        """What the answer depends on besides the prompt."""
        return self.method.fused, tuple(sorted(self.method.weights.items()))

    def answered(self, text: str) -> Answered:
        """The result, with all metrics of `text`."""
        example, method = self.example, self.method
        metrics = measure(text, example.answers) if example.answers else _NO_METRICS
        metrics = {**metrics, REFUSED: float(not method.weights)}
        return Answered(*self.key, dict(method.weights), method.first, text, metrics)


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

    All prompts are scored first. Then all prompts of one blend are answered together, sorted by
    text: the adapters are set once, and what consecutive prompts have in common is evaluated once.
    Methods with the same weights share one answer per prompt. `answer_fused` is required with
    `comparison.fusion`. Raises SettingsError if the metrics' libraries are missing, and
    PromptError, naming the example, for a prompt that does not fit the context.
    """
    load()  # fail before the first answer
    if comparison.own_out and len(llm.pool.names) < 2:
        raise SettingsError(
            "there is only one adapter, so none is left without it", hint="leave --own-out away"
        )
    by_blend: dict[_Blend, list[_Planned]] = {}
    for done, example in enumerate(examples):
        progress(SCORING, done, len(examples))
        with _naming(example):
            for one in _plan(llm, example, comparison, store):
                by_blend.setdefault(one.blend, []).append(one)
    progress(SCORING, len(examples), len(examples))
    done, total = 0, sum(map(len, by_blend.values()))
    progress(ANSWERING, done, total)
    for group in by_blend.values():
        for _ in _answer_all(llm, group, comparison, store, answer_fused):
            done += 1
            progress(ANSWERING, done, total)


def _plan(
    llm: Engine, example: Example, comparison: Comparison, store: Store
) -> Iterator[_Planned]:
    """Score one prompt, unless its scores are stored; every method for it."""
    prompt = as_prompt(llm, example.context, raw=comparison.raw)
    for out in (False, True) if comparison.own_out and example.adapter else (False,):
        for method in _methods(llm, example, prompt, comparison, store, out):
            yield _Planned(example, out, method)


def _answer_all(
    llm: Engine,
    group: Sequence[_Planned],
    comparison: Comparison,
    store: Store,
    answer_fused: AnswerFused | None,
) -> Iterator[_Planned]:
    """Store the answers of a group with one blend; yields what is done."""
    # Only the first line counts, so generation stops after it.
    sampling = Sampling(comparison.max_tokens, 0.0, stop=("\n",))
    method = group[0].method
    known = [one for one in group if one.key in store.answered and one.example.answers]
    texts = {one.example.context: store.answered[one.key].text for one in known}

    def answer(context: str) -> str:
        prompt = as_prompt(llm, context, raw=comparison.raw)
        if method.fused:
            assert answer_fused is not None
            return answer_fused(prompt, method.weights, sampling)
        with llm.under(method.weights):
            return complete(llm, prompt, sampling).text

    for one in sorted(group, key=lambda one: one.example.context):
        if one.key not in store.answered:
            context = one.example.context
            if one.example.answers and context not in texts:
                with _naming(one.example):
                    texts[context] = first_line(answer(context))
            store.add(one.answered(texts[context] if one.example.answers else ""))
        yield one


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
def _naming(example: Example) -> Iterator[None]:
    """Name `example` in errors about its prompt."""
    try:
        yield
    except PromptError as error:
        raise PromptError(
            f"{example.task}, line {example.line}: {error.message}", hint=error.hint
        ) from error


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
