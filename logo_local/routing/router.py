"""A prompt's way from tokens to its route.

`Router` lets the reader read what a signal needs, keeps the scorer of the pool as it is now, and
hands the scores to `route`. Nothing here knows of llama.cpp.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import config
from ..errors import NativeError, PoolError
from ..files.base_model import BaseModel
from ..files.pool import Pool
from ..hidden_states import WINDOW, FloatArray, Framed, Place, Reading
from ..progress import ms_since
from .adapter_profiles import AdapterProfiles, general_requests
from .baselines import Baselines
from .descriptions import Descriptions
from .index import RoutingIndex, choose_target
from .profile_store import ProfileStore
from .reader import Reader
from .registry import Confidence, Need, find
from .route import Route, select
from .scoring import EachAdapter, Prompt, Scorer, profile_places, profile_vector, read_places
from .settings import RoutingSettings
from .signals import Scores
from .z_norms import ZNorms

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

CALIBRATING = "reading generic prompts"  # what `progress` is told


@dataclass(frozen=True)
class Scored:
    """Scores >= 0 by adapter, how they were made, and why; the words are those of `Route`."""

    signal: str
    probe: str
    target: str | None
    scores: Scores
    reason: str = ""
    confidence: Confidence = Confidence.SURE


class Router:
    """Routes for the prompts of one engine, among the candidates of `pool`.

    `reader` reads prompts, `settings` say what is read and how, `progress` is told what takes long.
    `timings_ms` has what the last route took. Not safe to use from two threads at once.
    """

    def __init__(
        self, pool: Pool, reader: Reader, settings: RoutingSettings, progress: Progress
    ) -> None:
        self._pool, self._reader, self.settings = pool, reader, settings
        self._progress = progress
        self.timings_ms = {"probe": 0.0, "score": 0.0}
        self._store = profile_store(pool.base)
        self._profiles = AdapterProfiles(pool, reader, self._store, self._vector, progress)
        self._generic = Baselines(self._store.folder / "generic-texts.npz")
        past = self._store.past_file(config.data_dir())
        self._past = Baselines(past) if settings.past else None
        self._index = current_index(None, pool, settings.layer, settings.resolved())
        self._scorers: dict[str, Scorer] = {}  # by the form of the prompts
        self._last_scorer: Scorer | None = None

    def route(self, prompt: Any, signal: str, top_k: int) -> Route:
        """The route for a prompt: a text, messages or tokens.

        In a conversation the last message decides if the signal is sure of it; otherwise all that
        was said does, or the last message where nothing fits that. Raises NativeError where an
        adapter makes of a prompt something that is not finite.
        """
        self.timings_ms.update(probe=0.0, score=0.0)
        routes = []
        for tokens in self._reader.prompts_to_route(prompt):
            scored = self.scores(tokens, signal)
            routes.append(self._selected(scored, top_k))
            sure = scored.confidence is Confidence.SURE and not routes[-1].is_base
            if sure or scored.confidence is Confidence.GENERAL:
                return routes[-1]
        fitting = [route for route in routes if not route.is_base]
        return (fitting or routes or [Route()])[-1]

    def _selected(self, scored: Scored, top_k: int) -> Route:
        """The route by the scores of a prompt."""
        bad = [name for name, score in scored.scores.items() if not math.isfinite(score)]
        if bad:
            raise NativeError(
                f"the scores of {', '.join(bad)} are not finite for this prompt",
                hint="leave them out of the folder, or choose another --signal",
            )
        scores, reason = scored.scores, scored.reason
        # Whoever pins an adapter wants it, whether or not it fits.
        if self._pool.pinned and not any(score > 0 for score in scores.values()):
            scores, reason = dict.fromkeys(self._pool.candidates, 1.0), "pinned"
        return select(
            scores,
            top_k,
            signal=scored.signal,
            probe=scored.probe,
            target=scored.target,
            reason=reason,
        )

    def scores(self, tokens: list[int], signal: str) -> Scored:
        """How the pool's candidates score for a prompt.

        Scores of adapters about which the signal can say nothing are absent.
        """
        signal = self.settings.resolved(signal)
        about = find(signal)
        if not self._pool.adapters:
            self._last_scorer = None
            return Scored(signal, about.probe, None, {}, "there are no adapters")
        framed = self._framed(tokens, signal)
        scorer = self._last_scorer = self._scorer_for(signal, framed.form)
        at_one_place = Need.LAST_TOKEN in about.needs
        if at_one_place and not scorer.index.target:
            choose_target(self._pool.adapters, self._pool.base, self.settings.layer)  # raises
        started = time.perf_counter()
        names = self._pool.candidates
        each = EachAdapter(self._reader, tokens, self._pool.adapters, names)
        places = scorer.places(signal)
        prompt = Prompt(self._reader.read(framed, places) if places else {}, each)
        self.timings_ms["probe"] += ms_since(started)
        started = time.perf_counter()
        fit = scorer.fit(signal, prompt)
        self.timings_ms["score"] += ms_since(started) - each.ms
        self.timings_ms["probe"] += each.ms
        wanted = {name: fit.scores[name] for name in names if name in fit.scores}
        target = scorer.index.target if at_one_place else None
        return Scored(signal, about.probe, target, wanted, fit.reason, fit.confidence)

    def part(self, tokens: list[int], names: Collection[str]) -> Callable[[], object]:
        """What scores only these adapters for a prompt: to measure what a smaller pool costs.

        By the settings' signal, which must be one of one pass. The prompt is read now, unless it
        was read last.
        """
        signal = self.settings.resolved()
        framed = self._framed(tokens, signal)
        scorer = self._scorer_for(signal, framed.form)
        reading = self._reader.read(framed, scorer.places(signal))
        return partial(scorer.part(names).fit, signal, reading)

    def remember(self) -> None:
        """Count the prompt that was scored last among the user's own (see `baselines`)."""
        if self._last_scorer is not None:
            self._last_scorer.z_norms.remember()

    def read_ahead(self, tokens: list[int]) -> None:
        """Let the pass read a prompt that the next one will begin with."""
        if not self._pool.adapters:
            return
        signal = self.settings.resolved()
        framed = self._framed(tokens, signal)
        if places := self._scorer_for(signal, framed.form).places(signal):
            self._reader.read(framed, places)

    def _framed(self, tokens: Sequence[int], signal: str) -> Framed:
        """A prompt as `signal` reads it: the paper's signals read the last token as it is."""
        whole = Need.PROMPT in find(signal).needs
        return self._reader.frame(tokens) if whole else Framed.of(tokens)

    # What is made once for a state of the pool

    def _scorer_for(self, signal: str, form: str) -> Scorer:
        """The scorer of the pool as it is now, with what `signal` needs for prompts of a `form`."""
        needs = find(signal).needs
        scorer = self._scorers.get(form)
        if scorer is None or scorer.adapters is not self._pool.adapters:
            scorer = self._scorers[form] = self._new_scorer(signal)
        if scorer.prompts is None and needs & {Need.EXAMPLES, Need.SAMPLES, Need.DESCRIPTIONS}:
            profiles, general, described = self._profiles.of_prompts(form)
            scorer.prompts, scorer.general = profiles, general
            if described and general is not None:
                scorer.descriptions = Descriptions.fit(described, general)
        if Need.MENU in needs and not scorer.about:
            scorer.about = self._profiles.about()
        self._add_samples(scorer, signal, form)
        if scorer.wants_generic(signal) and scorer.z_norms.unmeasured:
            scorer.z_norms.measure(self._generic_readings())
        return scorer

    def _new_scorer(self, signal: str) -> Scorer:
        pool, settings = self._pool, self.settings
        known = next((s for s in self._scorers.values() if s.adapters is pool.adapters), None)
        if known is not None:  # of another form; all but the profiles is the same
            return Scorer(pool.adapters, pool.base, known.index, known.place, known.z_norms)
        self._index = current_index(self._index, pool, settings.layer, signal)
        place = Place(self._index.target, residual=settings.tap == "residual")
        places = read_places(pool.base)
        z_norms = ZNorms(pool.adapters, places, self._generic, self._past, pool.index_folder)
        self._scorers = {}
        return Scorer(pool.adapters, pool.base, self._index, place, z_norms)

    def _add_samples(self, scorer: Scorer, signal: str, form: str) -> None:
        """The self-profiles that `signal` wants, as far as the settings allow to make them."""
        if not self.settings.self_profile:
            return
        wanted = [name for name in scorer.wants_samples(signal) if name not in scorer.sampled]
        if self.settings.self_profile == "kept":
            wanted = [name for name in wanted if self._profiles.has_written(name)]
        if wanted:
            if scorer.general is None:
                scorer.general = self._profiles.general(form)
            scorer.add_samples(self._profiles.of_samples(wanted, form))
            scorer.sampled.update(wanted)

    def _vector(self, text: str, form: str) -> FloatArray:
        base = self._pool.base
        framed = self._reader.frame_text(text, form)
        return profile_vector(self._reader.read(framed, profile_places(base)), base)

    def _generic_readings(self) -> Iterator[Reading]:
        """The pass over each of the generic prompts that come with the package."""
        lines = general_requests()
        places = read_places(self._pool.base)
        log.info("reading %d generic prompts, once for this model", len(lines))
        for done, text in enumerate(lines):
            self._progress(CALIBRATING, done, len(lines))
            yield self._reader.read(self._reader.frame_text(text, "chat"), places)
        self._progress(CALIBRATING, len(lines), len(lines))

    # Example prompts

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Remember example prompts of an adapter for good; how many of them are new."""
        self._scorers.clear()  # profiles are made again; all but the new one are in the cache
        return self._profiles.teach(name, prompts)

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Forget what was taught of an adapter, or the `last` prompt; how many went."""
        self._scorers.clear()
        return self._profiles.unteach(name, last=last)

    def examples(self, name: str) -> list[str]:
        """The example prompts of an adapter."""
        return self._profiles.examples(name)

    def without_profile(self) -> list[str]:
        """The adapters with neither example prompts, texts of their own, nor a description.

        None of them where the settings leave self-profiles out, or the signal has no use for them.
        """
        needs = find(self.settings.resolved()).needs
        if not self.settings.self_profile or Need.SAMPLES not in needs:
            return []
        return self._profiles.without_any()

    def make_self_profiles(self) -> None:
        """Let all adapters `without_profile` write texts, and keep them for every process."""
        self._profiles.of_samples(self.without_profile(), "chat")

    def close(self) -> None:
        """Keep what was remembered."""
        if self._past is not None:
            self._past.save()
        self._pool.save()


def current_index(index: RoutingIndex | None, pool: Pool, layer: int, signal: str) -> RoutingIndex:
    """The index of the pool as it is now; `index` itself unless the pool has changed since.

    A block that no adapter can be read at stands in the way of signals of one place only: without
    their need the index has no target then, and no line about adapters that it leaves out.
    """
    if index is not None and index.adapters is pool.adapters:
        return index
    if not pool.adapters or Need.LAST_TOKEN not in find(signal).needs:
        try:
            target = choose_target(pool.adapters, pool.base, layer)
        except PoolError:
            target = ""
        return RoutingIndex(target, pool.adapters, pool.index_folder)
    target = choose_target(pool.adapters, pool.base, layer)
    return RoutingIndex.build(pool.adapters, target, pool.index_folder)


def profile_store(base: BaseModel) -> ProfileStore:
    """Where the profiles for a base model are kept; needs no weights."""
    shape = f"{base.chat_template} {profile_places(base)} {WINDOW}"
    shipped = config.demo_folder() / "profiles"
    return ProfileStore(config.cache_dir(), base.path, shape, shipped)


def check_target(pool: Pool, settings: RoutingSettings) -> None:
    """Raise PoolError where the settings' signal reads a block that no adapter can be read at."""
    if pool.adapters and Need.LAST_TOKEN in find(settings.resolved()).needs:
        choose_target(pool.adapters, pool.base, settings.layer)
