"""A `llama_cpp.Llama` with a pool and a router: asking for routes, and setting how they are made.

Generation under the routes is `engine`'s.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

from .errors import PromptError, SettingsError
from .files.pool import Pool
from .llama.mixed_llama import MixedLlama
from .progress import Stages
from .routing.route import Route, fixed
from .routing.router import Router
from .settings import SIGNAL_NAMES, RoutingSettings

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
Messages: TypeAlias = Sequence[Mapping[str, Any]]  # of a chat, as llama_cpp takes them


class RoutedLlama(MixedLlama):
    """What is between the mixtures and the engine. Whoever inherits sets these before use."""

    pool: Pool
    timings_ms: dict[str, float]
    _settings: RoutingSettings
    _router: Router
    _progress: Stages
    _fixed: Route | None  # what `under` asks for
    _asked: Sequence[Messages]  # what is routed of a conversation

    @property
    def signal(self) -> str:
        """How scores are made: one of `settings.SIGNALS`, or "auto", which depends on the pool."""
        return self._settings.resolved_signal

    @property
    def top_k(self) -> int:
        """The most adapters that a route holds."""
        return self._settings.top_k

    def route(self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]) -> Route:
        """The route for `prompt`: a string, chat messages, or token ids. Generates nothing.

        A string is tokenised as `create_completion` does it, messages go through the model's chat
        template. Of a conversation the user's last message is routed by itself, and all that was
        said only where no adapter fits that; system messages are not. The cached conversation stays
        as it is. Raises PromptError for a prompt that is empty or longer than the context.
        """
        tokens = self.tokens_of(prompt)
        self._forget_timings()
        self._renew_pool()
        return self._route_tokens(tokens, self._parts(prompt))

    def read_ahead(self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]) -> None:
        """Let the base read a conversation so far, so that what follows costs only what is new.

        For the time in which somebody reads an answer and types: it takes as long as the probe
        needs for the answer. Changes nothing else. May run in another thread, while nothing else
        is asked of this engine. Does nothing where the probe is "each", nor for messages unless
        `prefill` is "base": otherwise the base will read the next one alone.
        """
        if self._settings.prefill == "base" or not _are_messages(prompt):
            self._router.read_ahead(self.tokens_of(prompt), self.signal)

    @contextmanager
    def under(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Within this block every prompt is answered under these `weights`, by adapter name.

        Nothing is probed. The weights are used as they are, whatever they sum to; none at all is
        the base model alone. A stream that is made here stays under them. `route` takes no notice.
        Raises UnknownAdapterError for a name that is not in the pool, SettingsError for a weight
        that is not finite.
        """
        if weights:
            self._renew_pool()
        for name, weight in weights.items():
            self.pool.check_name(name)
            if not math.isfinite(weight):
                raise SettingsError(
                    f"the weight of {name} is {weight}", hint="give it a finite number"
                )
        before, self._fixed = self._fixed, fixed(weights)
        try:
            yield
        finally:
            self._fixed = before

    def base_only(self) -> AbstractContextManager[None]:
        """Within this block the base model answers alone, and nothing is probed."""
        return self.under({})

    def signal_scores(
        self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]], signals: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """The scores >= 0 of the pool's candidates for `prompt`, by signal and adapter name.

        `signals` are names in `settings.SIGNAL_NAMES`; those of one pass share it. Adapters that
        a signal can say nothing about are absent. Raises as `route` does.
        """
        unknown = [signal for signal in signals if signal not in SIGNAL_NAMES]
        if unknown:
            raise SettingsError(
                f"there is no signal {', '.join(unknown)}",
                hint=f"the signals are: {', '.join(SIGNAL_NAMES)}",
            )
        tokens = self.tokens_of(prompt)
        self._forget_timings()
        return {signal: self._router.scores(tokens, signal).scores for signal in signals}

    @property
    def routing(self) -> RoutingSettings:
        """How prompts are routed now; `configure` changes it."""
        return self._settings

    def configure(
        self,
        *,
        signal: str | None = None,
        top_k: int | None = None,
        mixture: str | None = None,
        keep_route: float | None = None,
    ) -> None:
        """Route otherwise from the next prompt on; what is None stays as it is.

        These four can change while the engine runs. SettingsError, and nothing changed, when one
        of them cannot be used.
        """
        asked = {
            "signal": signal,
            "top_k": top_k,
            "mixture": mixture,
            "keep_route": keep_route,
        }
        given: dict[str, Any] = {k: v for k, v in asked.items() if v is not None}
        settings = replace(self._settings, **given)
        settings.check()
        self._settings = settings
        self.mixer.way = settings.mixture

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Remember `prompts` as examples of what the adapter `name` is for; how many are new.

        They are kept in the user's data folder, by the adapter's content, and count for every
        engine that is opened later; `unteach` forgets them.
        """
        self.pool.check_name(name)
        return self._router.teach(name, prompts)

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Forget all prompts that `name` was taught, or the `last` one; how many went."""
        self.pool.check_name(name)
        return self._router.unteach(name, last=last)

    def unasked(self) -> list[str]:
        """The adapters without example prompts that were not asked yet what they are for."""
        return self._router.unasked()

    def ask_adapters(self) -> None:
        """Let all `unasked` adapters write texts that say what they are for; kept in the cache.

        Takes some seconds to minutes an adapter. The first prompt that needs them does it
        otherwise, unless `self_profile` is "kept" or False.
        """
        self._router.ask_adapters()

    def _parts(self, prompt: Any) -> list[Messages]:
        """What is routed instead of a conversation, one after the other until an adapter fits.

        First the user's last message, as if it were the only one; then all that was said. What was
        said before, and what the system is told, hide what a message is about: their routes choose
        the adapters of the first subject, or none. Empty for a prompt that is routed as it is:
        where nothing else is in it, or where the base's pass over all of it is needed anyway.
        """
        if not _are_messages(prompt) or len(prompt) < 2 or self._settings.prefill == "base":
            return []
        said = [message for message in prompt if message.get("role") != "system"]
        asked = [message for message in said if message.get("role") == "user"]
        if not asked or not asked[-1].get("content"):
            return []
        return [asked[-1:], said] if len(said) > 1 else [said]

    def _tokens_to_route(self, tokens: list[int], parts: Sequence[Messages]) -> Iterator[list[int]]:
        """The tokens of each part; `tokens` without any, or where the template refuses one."""
        try:
            for part in parts:
                yield self.tokens_of(part)
        except (PromptError, TypeError):  # it wants a system message, or two in turn
            yield tokens
        if not parts:
            yield tokens

    def _route_tokens(self, tokens: list[int], parts: Sequence[Messages]) -> Route:
        """The route of the first of `parts` that an adapter fits, or of `tokens` without any."""
        route = Route()
        with self._progress.ended():
            for wanted in self._tokens_to_route(tokens, parts):
                route = self._router.route(wanted, self.signal, self.top_k)
                if not route.is_base:
                    break
        adapters = [self.pool.adapters[name] for name in route.names]
        return replace(route, mixture=self.mixer.way_of(adapters))

    @property
    def mixture(self) -> str:
        """How mixtures are made, as it was asked for; may be changed between prompts."""
        return self.mixer.way

    @mixture.setter
    def mixture(self, way: str) -> None:
        self.configure(mixture=way)

    def _renew_pool(self, *, forced: bool = False) -> bool:
        """Look at the folder again if something came or went, or if `forced`; whether it did."""
        if not (forced or self.pool.has_changed()):
            return False
        with self._progress.ended():
            changes = self.pool.rescan(progress=self._progress)
        if changes:
            log.warning("%s has changed: %s", self.pool.folder, changes)
        return bool(changes)

    def _forget_timings(self) -> None:
        for phase in self.timings_ms:
            if phase != "load":
                self.timings_ms[phase] = 0.0


def _are_messages(prompt: Any) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
