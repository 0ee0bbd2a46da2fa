"""A prompt's way from tokens to scores: the probes, the scorer, and what both need to be made.

`Router` owns the contexts that look at prompts. It reads one pass of the base model, or evaluates
with each adapter, and hands what it finds to `scoring`. It does not select: see `routing`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import takewhile
from typing import Any

from . import config
from .adapter_file import AdapterFile
from .example_prompts import TaughtPrompts, prompts_beside
from .index import RoutingIndex, choose_target
from .mixture import ResidentAdapters
from .native import Place, Reading
from .pool import Pool
from .probe import EachProbe, HiddenProbe
from .profile_store import ProfileStore
from .profiles import Profile, embed
from .sampling import BatchContext
from .scoring import AT_ONE_PLACE, NEED_PROFILES, Scorer, read_places, sharpened
from .settings import EACH, RoutingSettings
from .signals import FloatArray, Scores, entropy
from .usual import UsualNorms
from .z_norms import ZNorms

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

# The texts that an adapter is made to write for its self-profile: so many rounds of so many side by
# side, at most so many tokens each, with the prompt template's head.
ROUNDS, SIDE_BY_SIDE, SAMPLE_LENGTH = 3, 8, 64
SEED = 2511
SHORTLIST = 5  # adapters that the second stage evaluates one by one
# Differences of a prompt's log-likelihood are in nats, which are a posterior's own unit; halved,
# since the tokens of a prompt are not as independent as that takes them to be.
LIKELIHOOD_TEMPERATURE = 2.0

# Those that ask adapters without examples; "shortlist" begins with "auto".
ASKING_SIGNALS = NEED_PROFILES - {"profile"} | {"shortlist"}

# What `progress` is told.
ASKING = "asking adapters what they are for"
CALIBRATING = "reading generic prompts"


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
        self._as_prompt, self._as_text = as_prompt, as_text
        self._progress, self._timings_ms = progress, timings_ms
        self._keys: dict[AdapterFile, str] = {}
        self._asked: set[str] = set()  # whose self-profile was made, for the scorer's pool
        self._store = ProfileStore(config.cache_dir(), pool.base.path)
        self._taught = TaughtPrompts(config.data_dir() / "prompts")
        self._generic = UsualNorms(self._store.folder / "generic.npz")
        past = self._store.past_file(config.data_dir())
        self._past = UsualNorms(past) if settings.past else None
        self._index = index
        self._scorer: Scorer | None = None
        self._hidden: HiddenProbe | None = None
        self._batch: BatchContext | None = None
        self._each: EachProbe | None = None

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
            self._hidden = probe = HiddenProbe(self._model, self._params, tuple(wanted))
        return probe.read(tokens)

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
            index = self._index = current_index(self._index, self._pool, self._settings.layer)
            place = Place(index.target, residual=self._settings.tap == "residual")
            prompts = self._prompt_profiles() if signal in NEED_PROFILES else None
            folder = self._pool.index_folder
            z_norms = ZNorms(adapters, read_places(base), self._generic, self._past, folder)
            scorer = self._scorer = Scorer(adapters, base, index, place, z_norms, prompts)
            self._asked.clear()
        if signal in NEED_PROFILES and scorer.prompts is None:
            scorer.prompts = self._prompt_profiles()
        if self._settings.self_profile:
            wanted = [name for name in scorer.wants_samples(signal) if name not in self._asked]
            if self._settings.self_profile == "kept":
                wanted = [name for name in wanted if self._was_asked(name)]
            if wanted:
                scorer.add_samples(self._sample_profiles(wanted))
                self._asked.update(wanted)
        if scorer.wants_generic(signal) and scorer.z_norms.unmeasured:
            scorer.z_norms.measure(self._generic_readings())
        return scorer

    def _vector(self, text: str) -> FloatArray:
        places = read_places(self._pool.base)
        reading = self._read(self._as_prompt(text), places)
        return embed([reading[place] for place in places])

    def _key(self, adapter: AdapterFile) -> str:
        if adapter not in self._keys:
            self._keys[adapter] = self._pool.content_key(adapter.name)
        return self._keys[adapter]

    def _taught_for(self, adapter: AdapterFile) -> list[str]:
        return self._taught.read(self._key(adapter)) if self._taught else []

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Remember example prompts of an adapter for good; how many of them are new."""
        new = self._taught.add(self._key(self._pool.adapters[name]), prompts)
        self._scorer = None  # profiles are made again; all but the new one are in the cache
        return new

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Forget what was taught of an adapter, or the `last` prompt; how many went."""
        gone = self._taught.forget(self._key(self._pool.adapters[name]), last=last)
        self._scorer = None
        return gone

    def unasked(self) -> list[str]:
        """The adapters that nobody gave examples for, and that were not asked by anybody yet.

        None of them where the settings leave self-profiles out, or the signal has no use for them.
        """
        if not self._settings.self_profile or self._settings.resolved_signal not in ASKING_SIGNALS:
            return []
        return [
            name
            for name, adapter in self._pool.adapters.items()
            if not (self._given(name, adapter) or self._was_asked(name))
        ]

    def _was_asked(self, name: str) -> bool:
        return self._store.has_samples(self._key(self._pool.adapters[name]))

    def _given(self, name: str, adapter: AdapterFile) -> list[str]:
        return [*prompts_beside(self._pool.origin(name)), *self._taught_for(adapter)]

    def ask_adapters(self) -> None:
        """Make the self-profiles of all `unasked` adapters, and keep them for every process."""
        self._sample_profiles(self.unasked())

    def _prompt_profiles(self) -> dict[str, Profile]:
        """The profiles of all adapters for which somebody gave example prompts."""
        found = {}
        for name, adapter in self._pool.adapters.items():
            given = self._given(name, adapter)
            if given:
                found[name] = self._store.of_prompts(given, self._vector)
        return found

    def _sample_profiles(self, names: Sequence[str]) -> dict[str, Profile]:
        """The self-profiles of these adapters; one that wrote nothing at all has none."""
        found = {}
        for done, name in enumerate(names):
            self._progress(ASKING, done, len(names))
            adapter = self._pool.adapters[name]
            make = partial(self._write_samples, adapter)
            profile = self._store.of_samples(self._key(adapter), make, self._vector)
            if profile is not None:
                found[name] = profile
        self._progress(ASKING, len(names), len(names))
        silent = [name for name, profile in found.items() if not profile.tells]
        if silent:
            log.info("the samples of %s are no other than the base's", ", ".join(silent))
        return found

    def _write_samples(self, adapter: AdapterFile) -> tuple[list[str], float]:
        """Texts that the model writes with this adapter, and their gain in nats a token."""
        head = _common_start(self._as_prompt("a"), self._as_prompt("7"))
        context = BatchContext(self._model, self._params, SIDE_BY_SIDE, SAMPLE_LENGTH)
        try:
            self._residents.set_on(context.ctx, [(adapter, 1.0)])
            drawn = [context.sample(head, SEED + i) for i in range(ROUNDS)]
            samples = [sample for batch in drawn for sample in batch if sample.tokens]
            self._residents.forget(context.ctx)
            base = [context.log_likelihood([*head, *s.tokens], len(head)) for s in samples]
        finally:
            self._residents.forget(context.ctx)
            context.close()
        n_tokens = max(sum(len(sample.tokens) for sample in samples), 1)
        gain = (sum(sample.log_likelihood for sample in samples) - sum(base)) / n_tokens
        texts = [self._as_text(sample.tokens) for sample in samples]
        return [text for text in texts if text], gain

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


def current_index(index: RoutingIndex | None, pool: Pool, layer: int) -> RoutingIndex:
    """The index of the pool as it is now; `index` itself unless the pool has changed since."""
    if index is not None and index.adapters is pool.adapters:
        return index
    target = choose_target(pool.adapters, pool.base, layer)
    return RoutingIndex.build(pool.adapters, target, pool.index_folder)


def _common_start(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """What two prompts begin with: the template's head, whatever the prompt."""
    return [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
