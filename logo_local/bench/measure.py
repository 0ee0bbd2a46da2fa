"""Measures the speed of an engine on this machine: the base, and mixtures of k adapters.

Every time of a mixture is also given as a ratio to the base alone, measured right before it. The
results are medians of several such pairs, because timings are noisy and drift. All times are the
engine's own timings.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from itertools import islice
from statistics import median
from typing import Any

from ..engine import LoGo
from ..errors import PromptError
from ..routing import registry

Progress = Callable[[str, int, int], None]

KS = (1, 2, 3, 5, 10, 20)
WAYS = ("scales", "stacked")
SCORED = (1, 20, 260, 1000)  # numbers of adapters, up to the size of the pool, and the whole pool
BENCHMARK = "measuring"


@dataclass(frozen=True)
class Times:
    """One run, in milliseconds.

    `mixture` sets a new mixture, `weights` the same adapters with other weights. `first_token` is
    `mixture` plus the prompt, `prefill` the prompt alone, `decode` one token.
    """

    mixture: float
    weights: float
    first_token: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Row:
    """Mixtures of `k` adapters computed in one `way`: medians, and ratios to the base."""

    way: str
    k: int
    ms: Times
    over_base: Mapping[str, float]  # of first_token, prefill and decode


@dataclass(frozen=True)
class Scoring:
    """The times of the pass over a prompt and of scoring `n` adapters, in milliseconds."""

    n: int
    probe: float
    score: float
    over_base: float  # the sum of both relative to the base's prefill of the same prompt


@dataclass(frozen=True)
class Benchmark:
    """All results; `setting` describes the machine and the model."""

    setting: Mapping[str, Any]
    base: Times
    rows: Sequence[Row]
    scoring: Sequence[Scoring]

    def as_dict(self) -> dict[str, Any]:
        """The results as JSON-ready values."""
        return asdict(self)


def measure(
    llm: LoGo,
    *,
    ks: Sequence[int] = KS,
    ways: Sequence[str] = WAYS,
    prompt_tokens: int = 256,
    answer_tokens: int = 32,
    repeats: int = 3,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Benchmark:
    """Measure `llm` with mixtures of its pool's first adapters, at most as many as it has.

    For each of `ks` and `ways`, takes about 8 * `repeats` times as long as the base needs for the
    prompt and the answer. Raises PromptError if the context is too small for both.
    """
    names = llm.pool.names
    ks = sorted({min(k, len(names)) for k in ks})
    prompt = _prompt(llm, prompt_tokens)
    if len(prompt) + answer_tokens > llm.n_ctx():
        raise PromptError(
            f"{len(prompt)} tokens and an answer of {answer_tokens} are more than the context of "
            f"{llm.n_ctx()}",
            hint="ask for fewer, or give a larger --ctx-size",
        )
    bases: list[Times] = []
    found: dict[tuple[str, int], list[tuple[Times, Times]]] = {}
    total, way_before = repeats * len(ks) * len(ways), llm.mixture
    try:
        _run(llm, prompt, {}, {}, 2)  # warm-up
        for done in range(total):
            progress(BENCHMARK, done, total)
            way = ways[done % len(ways)]
            k = ks[done // len(ways) % len(ks)]
            base = _run(llm, prompt, {}, {}, answer_tokens)
            llm.mixture = way
            weights = dict.fromkeys(names[:k], 1 / k)
            others = {name: 2 * (i + 1) / k / (k + 1) for i, name in enumerate(names[:k])}
            others = others if k > 1 else dict.fromkeys(names[:1], 0.5)
            times = _run(llm, prompt, weights, others, answer_tokens)
            bases.append(base)
            found.setdefault((way, k), []).append((times, base))
    finally:
        llm.mixture = way_before
    scoring = _scoring(llm, prompt, repeats)
    progress(BENCHMARK, total, total)
    rows = [_row(way, k, pairs) for (way, k), pairs in sorted(found.items(), key=lambda i: i[0][1])]
    setting = _setting(llm, len(prompt), answer_tokens, repeats)
    return Benchmark(setting, _medians(bases), rows, scoring)


def _prompt(llm: LoGo, n: int) -> list[int]:
    """The first `n` tokens of the generic prompts, which are repeated if necessary."""
    text = resources.files("logo_local.routing").joinpath("generic_prompts.txt").read_text("utf-8")
    # Line by line, because all of them may not fit the context.
    lines = text.encode().splitlines(keepends=True)
    tokens = [token for line in lines for token in llm.tokenize(line, add_bos=False)]
    return (tokens * (n // len(tokens) + 1))[:n]


def _run(
    llm: LoGo,
    prompt: list[int],
    weights: Mapping[str, float],
    others: Mapping[str, float],
    answer_tokens: int,
) -> Times:
    mixture, first = _answer(llm, prompt, weights, 1)[:2]
    # llama.cpp has now finished its setup for the changed mixture.
    _, prefill, decode = _answer(llm, prompt, weights, answer_tokens)
    changed, *_ = _answer(llm, prompt[:1], others, 1)
    return Times(mixture, changed, mixture + first, prefill, decode)


def _answer(
    llm: LoGo, prompt: list[int], weights: Mapping[str, float], n: int
) -> tuple[float, float, float]:
    """Milliseconds for the mixture, the prompt, and each further token, in actual generation."""
    with llm.under(weights):
        llm.reset()
        for _ in islice(llm.generate(prompt, temp=0.0), n):
            pass
    times = llm.timings_ms
    return times["mixture"], times["prefill"], times["decode"] / max(n - 1, 1)


def _scoring(llm: LoGo, prompt: list[int], repeats: int) -> list[Scoring]:
    """Time the pass over other prompts of the same length, and scoring of growing pools."""
    names = llm.pool.names
    parts = (
        [n for n in SCORED if n < len(names)]
        if registry.find(llm.routing.resolved()).probe == "one-pass"
        else []
    )
    probes, bases, scores = [], [], dict[int, list[float]]()
    for i in range(repeats + 1):
        other = prompt[i:] + prompt[:i]  # an unchanged prompt would not be evaluated again
        with llm.base_only():
            bases.append(_answer(llm, other, {}, 1)[1])
        llm.route(other)
        probes.append(llm.timings_ms["probe"])
        scores.setdefault(len(names), []).append(llm.timings_ms["score"])
        for n in parts:
            score = llm.router.part(other, names[:n])
            score()  # warm-up for these adapters
            started = time.perf_counter()
            score()
            scores.setdefault(n, []).append((time.perf_counter() - started) * 1000)
    sizes = [*parts, len(names)]
    ratios = {
        n: median(
            (probe + score) / base
            for probe, base, score in list(zip(probes, bases, scores[n], strict=True))[1:]
        )
        for n in sizes
    }
    return [Scoring(n, median(probes[1:]), median(scores[n][1:]), ratios[n]) for n in sizes]


def _row(way: str, k: int, pairs: Sequence[tuple[Times, Times]]) -> Row:
    ratios = {
        name: median(getattr(times, name) / getattr(base, name) for times, base in pairs)
        for name in ("first_token", "prefill", "decode")
    }
    return Row(way, k, _medians([times for times, _ in pairs]), ratios)


def _medians(times: Sequence[Times]) -> Times:
    return Times(
        *(median(column) for column in zip(*(vars(t).values() for t in times), strict=True))
    )


def _setting(llm: LoGo, prompt_tokens: int, answer_tokens: int, repeats: int) -> dict[str, Any]:
    params = llm.context_params
    return {
        "model": llm.base.path.name,
        "adapters": len(llm.pool.names),
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "repeats": repeats,
        "threads": [params.n_threads, params.n_threads_batch],
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {
            name: metadata.version(name) for name in ("logo-local", "llama-cpp-python", "numpy")
        },
    }
