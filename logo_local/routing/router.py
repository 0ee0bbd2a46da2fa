"""A prompt's way from tokens to its route: the probes, the scorer, and what both need to be made.

`Router` owns the contexts that look at prompts. It reads one pass of the base model, or evaluates
with each adapter, hands what it finds to `scoring`, and the scores to `route`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

from .. import config
from ..errors import NativeError, PoolError
from ..files.pool import Pool
from ..llama.mixture import ResidentAdapters
from ..llama.native import Place, Reading
from ..settings import EACH, RoutingSettings
from .adapter_profiles import AdapterProfiles
from .index import RoutingIndex, choose_target
from .probe import EachProbe, HiddenProbe
from .profile_store import ProfileStore
from .profiles import embed
from .route import Route, select
from .sampling import BatchContext
from .scoring import AT_ONE_PLACE, NEED_PROFILES, Scorer, read_places, sharpened
from .signals import FloatArray, Scores, entropy
from .usual import UsualNorms
from .z_norms import ZNorms

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

SHORTLIST = 5  # adapters that the second stage evaluates one by one
# Differences of a prompt's log-likelihood are in nats, which are a posterior's own unit; halved,
# since the tokens of a prompt are not as independent as that takes them to be.
LIKELIHOOD_TEMPERATURE = 2.0

# Those that ask adapters without examples; "shortlist" begins with "auto".
ASKING_SIGNALS = NEED_PROFILES - {"profile"} | {"shortlist"}

CALIBRATING = "reading generic prompts"  # what `progress` is told


@dataclass(frozen=True)
class Scored:
    """Scores >= 0 by adapter, how they were made, and how sure they are of a fit.

    The words are those of `Route`.
    """

    signal: str
    probe: str
    target: str | None
    scores: Scores
    strength: float = 1.0


class Router:
    """Scores for the prompts of one engine.

    `as_prompt` turns a text into the tokens that generation would see, `as_text` turns tokens of
    a text back. `timings_ms` is written to.
    Not safe to use from two threads at once.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        *,
        pool: Pool,
        residents: ResidentAdapters,
        settings: RoutingSettings,
        as_prompt: Callable[[str], list[int]],
        as_text: Callable[[Sequence[int]], str],
        progress: Progress,
        timings_ms: dict[str, float],
        index: RoutingIndex | None,
    ) -> None:
        self._model, self._params = model, params
        self._pool, self._residents, self._settings = pool, residents, settings
        self._as_prompt = as_prompt
        self._progress, self._timings_ms = progress, timings_ms
        self._asked: set[str] = set()  # whose self-profile was made, for the scorer's pool
        self._store = ProfileStore(config.cache_dir(), pool.base.path)
        self._profiles = AdapterProfiles(
            model,
            params,
            pool=pool,
            residents=residents,
            store=self._store,
            embed=self._vector,
            as_prompt=as_prompt,
            as_text=as_text,
            progress=progress,
        )
        self._generic = UsualNorms(self._store.folder / "generic-texts.npz")
        past = self._store.past_file(config.data_dir())
        self._past = UsualNorms(past) if settings.past else None
        self._index = index
        self._scorer: Scorer | None = None
        self._hidden: HiddenProbe | None = None
        self._batch: BatchContext | None = None
        self._each: EachProbe | None = None

    def route(self, tokens: list[int], signal: str, top_k: int) -> Route:
        """The route for a prompt, among the pool's candidates.

        Raises NativeError where an adapter makes of it something that is not finite.
        """
        scored = self.scores(tokens, signal)
        bad = [name for name, score in scored.scores.items() if not math.isfinite(score)]
        if bad:
            raise NativeError(
                f"the scores of {', '.join(bad)} are not finite for this prompt",
                hint="leave them out of the folder, or choose another --layer",
            )
        scores, strength = scored.scores, scored.strength
        if self._pool.pinned:  # whoever pins an adapter wants it, whether or not it fits
            strength = 1.0
            if not any(score > 0 for score in scores.values()):
                scores = dict.fromkeys(self._pool.candidates, 1.0)
        return select(
            scores,
            top_k,
            signal=scored.signal,
            probe=scored.probe,
            target=scored.target,
            strength=strength,
        )

    def scores(self, tokens: list[int], signal: str) -> Scored:
        """How the pool's candidates score for a prompt, by a signal in `settings.SIGNAL_NAMES`.

        Scores of adapters about which the signal can say nothing are absent.
        """
        if signal == "shortlist":
            return self._shortlist(tokens)
        if signal in EACH:
            names = self._pool.candidates
            by_each = self._each_entropy if signal == "each-entropy" else self._each_likelihood
            return Scored(signal.removeprefix("each-"), "each", None, by_each(tokens, names))
        scorer = self._scorer_for(signal)
        signal = scorer.resolved(signal)
        if signal in AT_ONE_PLACE and not scorer.index.target:
            choose_target(self._pool.adapters, self._pool.base, self._settings.layer)  # raises
        started = time.perf_counter()
        reading = self._read(tokens, scorer.places(signal))
        self._timings_ms["probe"] += _ms_since(started)
        started = time.perf_counter()
        found, strength = scorer.fit(signal, reading)
        self._timings_ms["score"] += _ms_since(started)
        wanted = {name: found[name] for name in self._pool.candidates if name in found}
        target = scorer.index.target if signal in AT_ONE_PLACE else None
        return Scored(signal, "one-pass", target, wanted, strength)

    def part(self, tokens: list[int], names: Collection[str]) -> Callable[[], object]:
        """What scores only these adapters for a prompt: to measure what a smaller pool costs.

        The prompt is read now, unless it was read last.
        """
        scorer = self._scorer_for(self._settings.resolved_signal)
        signal = scorer.resolved(self._settings.resolved_signal)
        reading = self._read(tokens, scorer.places(signal))
        return partial(scorer.part(names).fit, signal, reading)

    def remember(self) -> None:
        """Count the prompt that was scored last among the user's own (see `usual`)."""
        if self._scorer is not None:
            self._scorer.z_norms.remember()

    def _shortlist(self, tokens: list[int]) -> Scored:
        """The first few of "auto", evaluated one by one: the prompt's likelihood decides."""
        first = self.scores(tokens, "auto").scores
        fitting = sorted((n for n, s in first.items() if s > 0), key=lambda n: (-first[n], n))
        chosen = self._each_likelihood(tokens, fitting[:SHORTLIST])
        scores = {name: chosen.get(name, 0.0) for name in first}
        return Scored("shortlist", "one-pass", None, scores)

    def _read(self, tokens: list[int], places: Sequence[Place]) -> Reading:
        """One pass; the places of earlier passes are read again, so that one context serves all."""
        probe = self._hidden
        if probe is None or not set(places) <= set(probe.places):
            known = () if probe is None else probe.places
            if probe is not None:
                probe.close()
            wanted = dict.fromkeys([*known, *places])
            whole = self._settings.prefill == "base"
            self._hidden = probe = HiddenProbe(
                self._model, self._params, tuple(wanted), whole=whole
            )
        return probe.read(tokens)

    def read_ahead(self, tokens: list[int], signal: str) -> None:
        """Let the pass read a prompt that the next one will begin with."""
        if signal not in EACH:
            first = "auto" if signal == "shortlist" else signal
            scorer = self._scorer_for(first)
            self._read(tokens, scorer.places(scorer.resolved(first)))

    def copy_prompt(self, tokens: Sequence[int], ctx: Any) -> bool:
        """Give `ctx` the base's keys and values of the prompt that was read last.

        False where another one was, or its pass did not go through all blocks.
        """
        return self._hidden is not None and self._hidden.copy_to(ctx, tokens)

    # Evaluating with each adapter

    def _each_entropy(self, tokens: list[int], names: Sequence[str]) -> Scores:
        started = time.perf_counter()
        if self._each is None:
            self._each = EachProbe(self._model, self._params)
        probe, scores = self._each, {}
        try:
            for name in names:
                self._residents.set_on(probe.ctx, [(self._pool.adapters[name], 1.0)])
                scores[name] = entropy(probe.logits(tokens))
        finally:
            self._residents.forget(probe.ctx)
        self._timings_ms["probe"] += _ms_since(started)
        return scores

    def _each_likelihood(self, tokens: list[int], names: Sequence[str]) -> Scores:
        """How likely the prompt is under each adapter, among those that beat the base.

        As shares of 1 by Bayes' rule with equal priors, tempered; 0 where the base is likelier.
        """
        started = time.perf_counter()
        gains: Scores = {}
        with self._alone(len(tokens)) as context:
            base = context.log_likelihood(tokens)
            for name in names:
                self._residents.set_on(context.ctx, [(self._pool.adapters[name], 1.0)])
                gains[name] = context.log_likelihood(tokens) - base
        self._timings_ms["probe"] += _ms_since(started)
        shares = sharpened(gains, LIKELIHOOD_TEMPERATURE)
        return {name: share if gains[name] > 0 else 0.0 for name, share in shares.items()}

    @contextmanager
    def _alone(self, length: int) -> Iterator[BatchContext]:
        """A context for one text at a time, kept while it is long enough."""
        if self._batch is None or self._batch.length < length:
            if self._batch is not None:
                self._batch.close()
            self._batch = BatchContext(self._model, self._params, 1, max(256, length))
        try:
            yield self._batch
        finally:
            self._residents.forget(self._batch.ctx)

    # What is made once for a state of the pool

    def _scorer_for(self, signal: str) -> Scorer:
        """The scorer of the pool as it is now, with what `signal` needs."""
        adapters, base = self._pool.adapters, self._pool.base
        scorer = self._scorer
        if scorer is None or scorer.adapters is not adapters:
            index = current_index(self._index, self._pool, self._settings.layer, signal)
            self._index = index
            place = Place(index.target, residual=self._settings.tap == "residual")
            prompts = self._profiles.of_prompts() if signal in NEED_PROFILES else None
            folder = self._pool.index_folder
            z_norms = ZNorms(adapters, read_places(base), self._generic, self._past, folder)
            scorer = self._scorer = Scorer(adapters, base, index, place, z_norms, prompts)
            self._asked.clear()
        if signal in NEED_PROFILES and scorer.prompts is None:
            scorer.prompts = self._profiles.of_prompts()
        if self._settings.self_profile:
            wanted = [name for name in scorer.wants_samples(signal) if name not in self._asked]
            if self._settings.self_profile == "kept":
                wanted = [name for name in wanted if self._profiles.was_asked(name)]
            if wanted:
                scorer.add_samples(self._profiles.of_samples(wanted))
                self._asked.update(wanted)
        if scorer.wants_generic(signal) and scorer.z_norms.unmeasured:
            scorer.z_norms.measure(self._generic_readings())
        return scorer

    def _vector(self, text: str) -> FloatArray:
        places = read_places(self._pool.base)
        reading = self._read(self._as_prompt(text), places)
        return embed([reading[place] for place in places])

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Remember example prompts of an adapter for good; how many of them are new."""
        self._scorer = None  # profiles are made again; all but the new one are in the cache
        return self._profiles.teach(name, prompts)

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Forget what was taught of an adapter, or the `last` prompt; how many went."""
        self._scorer = None
        return self._profiles.unteach(name, last=last)

    def unasked(self) -> list[str]:
        """The adapters that nobody gave examples for, and that were not asked by anybody yet.

        None of them where the settings leave self-profiles out, or the signal has no use for them.
        """
        if not self._settings.self_profile or self._settings.resolved_signal not in ASKING_SIGNALS:
            return []
        return self._profiles.unasked()

    def ask_adapters(self) -> None:
        """Make the self-profiles of all `unasked` adapters, and keep them for every process."""
        self._profiles.of_samples(self.unasked())

    def _generic_readings(self) -> Iterator[Reading]:
        """The pass over each of the generic prompts that come with the package."""
        texts = resources.files(__package__).joinpath("generic_prompts.txt").read_text("utf-8")
        lines = texts.splitlines()
        places = read_places(self._pool.base)
        for done, text in enumerate(lines):
            self._progress(CALIBRATING, done, len(lines))
            yield self._read(self._as_prompt(text), places)
        self._progress(CALIBRATING, len(lines), len(lines))

    def close(self) -> None:
        """Free the contexts, before the adapters and the model go; keep what was remembered."""
        if self._past is not None:
            self._past.save()
        self._pool.save()
        for context in (self._hidden, self._each, self._batch):
            if context is not None:
                context.close()
        self._hidden = self._each = self._batch = None


def current_index(index: RoutingIndex | None, pool: Pool, layer: int, signal: str) -> RoutingIndex:
    """The index of the pool as it is now; `index` itself unless the pool has changed since.

    A block that no adapter can be read at stands in the way of signals of one place only: without
    their need the index has no target then, and no line about adapters that it leaves out.
    """
    if index is not None and index.adapters is pool.adapters:
        return index
    if signal not in AT_ONE_PLACE:
        try:
            target = choose_target(pool.adapters, pool.base, layer)
        except PoolError:
            target = ""
        return RoutingIndex(target, pool.adapters, pool.index_folder)
    target = choose_target(pool.adapters, pool.base, layer)
    return RoutingIndex.build(pool.adapters, target, pool.index_folder)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
