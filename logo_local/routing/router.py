"""Routes a prompt: reads what the signal needs, scores the adapters, selects the route.

`Router` also caches the scorer of the current pool. Independent of llama.cpp.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
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
from .registry import Need, find
from .route import Route, select
from .scoring import EachAdapter, Prompt, Scorer, profile_places, profile_vector, read_places
from .settings import RoutingSettings
from .signals import Scores
from .z_norms import ZNorms

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

CONTINUES = "continues an earlier message: "  # the start of a reason
CALIBRATING = "reading generic prompts"  # reported through `progress`


@dataclass(frozen=True)
class Scored:
    """Scores >= 0 by adapter, with the same fields as `Route` for how they were computed.

    `sure` and `continues` are as in `registry.Fit`.
    """

    signal: str
    probe: str
    target: str | None
    scores: Scores
    reason: str = ""
    sure: bool = True
    continues: frozenset[str] = frozenset()


class Router:
    """Routes for the prompts of one engine, among the candidates of `pool`.

    `reader` reads prompts, `settings` say what is read and how, `progress` reports slow steps.
    `timings_ms` has the times of the last route. Not thread-safe.
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

        In a conversation, the last message is used if the signal is sure about it. Otherwise the
        route of the messages before it is kept, if the message continues it. Raises NativeError if
        an adapter produces values that are not finite.
        """
        self.timings_ms.update(probe=0.0, score=0.0)
        return self._latest(self._reader.prompts_to_route(prompt), signal, top_k) or Route()

    def _latest(self, messages: Iterator[list[int]], signal: str, top_k: int) -> Route | None:
        """The route for the first of `messages`, the latest; None if there is none.

        The others are scored only as far as they are needed.
        """
        tokens = next(messages, None)
        if tokens is None:
            return None
        scored = self.scores(tokens, signal)
        route = self._selected(scored, top_k)
        if scored.sure or not scored.continues:
            return route
        before = self._latest(messages, signal, top_k)
        if before is None or before.is_base or before.names[0] not in scored.continues:
            return route
        reason = before.reason.removeprefix(CONTINUES)
        return replace(before, reason=f"{CONTINUES}{reason}")

    def _selected(self, scored: Scored, top_k: int) -> Route:
        """The route for a prompt's scores."""
        bad = [name for name, score in scored.scores.items() if not math.isfinite(score)]
        if bad:
            raise NativeError(
                f"the scores of {', '.join(bad)} are not finite for this prompt",
                hint="leave them out of the folder, or choose another --signal",
            )
        scores, reason = scored.scores, scored.reason
        # A pinned adapter is used even if it does not fit.
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
        """The scores of the pool's candidates for a prompt.

        Adapters that the signal cannot score are absent.
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
        return Scored(signal, about.probe, target, wanted, fit.reason, fit.sure, fit.continues)

    def part(self, tokens: list[int], names: Collection[str]) -> Callable[[], object]:
        """A function that scores only these adapters, to measure the cost of a smaller pool.

        Uses the settings' signal, which must be a one-pass signal. The prompt is read now, unless
        it was the last one read.
        """
        signal = self.settings.resolved()
        framed = self._framed(tokens, signal)
        scorer = self._scorer_for(signal, framed.form)
        reading = self._reader.read(framed, scorer.places(signal))
        return partial(scorer.part(names).fit, signal, reading)

    def remember(self) -> None:
        """Add the last scored prompt to the user's past prompts (see `baselines`)."""
        if self._last_scorer is not None:
            self._last_scorer.z_norms.remember()

    def read_ahead(self, tokens: list[int]) -> None:
        """Read a prompt in advance that is the prefix of the next one."""
        if not self._pool.adapters:
            return
        signal = self.settings.resolved()
        framed = self._framed(tokens, signal)
        if places := self._scorer_for(signal, framed.form).places(signal):
            self._reader.read(framed, places)

    def _framed(self, tokens: Sequence[int], signal: str) -> Framed:
        """A prompt as `signal` reads it: the paper's signals read the prompt's own last token."""
        whole = Need.PROMPT in find(signal).needs
        return self._reader.frame(tokens) if whole else Framed.of(tokens)

    # Cached for the current state of the pool

    def _scorer_for(self, signal: str, form: str) -> Scorer:
        """The scorer of the current pool, with the data that `signal` needs for this `form`."""
        needs = find(signal).needs
        scorer = self._scorers.get(form)
        if scorer is None or scorer.adapters is not self._pool.adapters:
            scorer = self._scorers[form] = self._new_scorer(signal)
        if scorer.prompts is None and needs & {Need.EXAMPLES, Need.SAMPLES, Need.DESCRIPTIONS}:
            known = self._profiles.of_prompts(form)
            scorer.prompts, scorer.general = known.profiles, known.general
            scorer.continuations = known.continuations
            if known.descriptions and known.general is not None:
                scorer.descriptions = Descriptions.fit(
                    known.descriptions, known.general, known.continuations
                )
        if Need.MENU in needs and not scorer.about:
            scorer.about = self._profiles.about()
        self._add_samples(scorer, signal, form)
        if scorer.wants_generic(signal) and scorer.z_norms.unmeasured:
            scorer.z_norms.measure(self._generic_readings())
        return scorer

    def _new_scorer(self, signal: str) -> Scorer:
        pool, settings = self._pool, self.settings
        known = next((s for s in self._scorers.values() if s.adapters is pool.adapters), None)
        if known is not None:  # of another form; only the profiles differ
            return Scorer(pool.adapters, pool.base, known.index, known.place, known.z_norms)
        self._index = current_index(self._index, pool, settings.layer, signal)
        place = Place(self._index.target, residual=settings.tap == "residual")
        places = read_places(pool.base)
        z_norms = ZNorms(pool.adapters, places, self._generic, self._past, pool.index_folder)
        self._scorers = {}
        return Scorer(pool.adapters, pool.base, self._index, place, z_norms)

    def _add_samples(self, scorer: Scorer, signal: str, form: str) -> None:
        """Add the self-profiles that `signal` needs, if the settings allow creating them."""
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
        """Read each of the generic prompts that come with the package."""
        lines = general_requests()
        places = read_places(self._pool.base)
        log.info("reading %d generic prompts, once for this model", len(lines))
        for done, text in enumerate(lines):
            self._progress(CALIBRATING, done, len(lines))
            yield self._reader.read(self._reader.frame_text(text, "chat"), places)
        self._progress(CALIBRATING, len(lines), len(lines))

    # Example prompts

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Store example prompts of an adapter; returns how many are new."""
        self._scorers.clear()  # profiles are built again; all but the new one are cached
        return self._profiles.teach(name, prompts)

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Delete the stored prompts of an adapter, or only the `last`; returns how many."""
        self._scorers.clear()
        return self._profiles.unteach(name, last=last)

    def examples(self, name: str) -> list[str]:
        """The example prompts of an adapter."""
        return self._profiles.examples(name)

    def without_profile(self) -> list[str]:
        """The adapters without example prompts, generated texts, and description.

        Empty if the settings disable self-profiles or the signal does not use them.
        """
        needs = find(self.settings.resolved()).needs
        if not self.settings.self_profile or Need.SAMPLES not in needs:
            return []
        return self._profiles.without_any()

    def make_self_profiles(self) -> None:
        """Generate texts with all adapters `without_profile` and cache them on disk."""
        self._profiles.of_samples(self.without_profile(), "chat")

    def close(self) -> None:
        """Save the statistics of past prompts."""
        if self._past is not None:
            self._past.save()
        self._pool.save()


def current_index(index: RoutingIndex | None, pool: Pool, layer: int, signal: str) -> RoutingIndex:
    """The index of the current pool; `index` itself if the pool has not changed.

    If no adapter can be read at the configured block, only signals that read the target fail. For
    the others the index then has no target and logs no skipped adapters.
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
    """The profile store for a base model; does not load weights."""
    shape = f"{base.chat_template} {profile_places(base)} {WINDOW}"
    shipped = config.demo_folder() / "profiles"
    return ProfileStore(config.cache_dir(), base.path, shape, shipped)


def check_target(pool: Pool, settings: RoutingSettings) -> None:
    """Raise PoolError if the settings' signal reads a block that no adapter changes."""
    if pool.adapters and Need.LAST_TOKEN in find(settings.resolved()).needs:
        choose_target(pool.adapters, pool.base, settings.layer)
