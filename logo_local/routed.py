"""The routing part of the engine, built on pool, router and mixer.

Independent of llama_cpp. `engine` generates with the routes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import Self

from .errors import AdapterError, SettingsError
from .files.adapter_file import AdapterFile
from .files.pool import Pool
from .llama.conversation import Prompt, are_messages
from .llama.mixture import Mixer
from .llama.model import LoadedModel
from .progress import Stages
from .routing import registry
from .routing.route import Route, fixed, kept
from .routing.router import Router
from .routing.settings import Routing, RoutingSettings, check_routing

log = logging.getLogger(__name__)

PHASES = ("load", "probe", "score", "mixture", "prefill", "decode")


class Given(NamedTuple):
    """The route for generation, and the times to compute it, in milliseconds by phase."""

    route: Route
    made_ms: Mapping[str, float] = MappingProxyType({})


class Routed:
    """The routing of an engine. Subclasses must set the attributes below before use."""

    pool: Pool
    loaded: LoadedModel
    router: Router
    mixer: Mixer
    last_route: Route | None
    timings_ms: dict[str, float]
    _settings: RoutingSettings
    _progress: Stages
    _given: Given | None = None  # set by `under` and the completions

    if TYPE_CHECKING:  # the engine's

        def close(self) -> None: ...  # noqa: D102
        @property
        def create_completion(self) -> Any: ...  # noqa: D102

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LoGo {self.pool.base.path.name}, {len(self.pool.names)} adapters>"

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise TypeError("a LoGo cannot be pickled or copied: open another one with LoGo(...)")

    def __call__(self, prompt: str, **options: Any) -> Any:
        """The same as `create_completion`."""
        return self.create_completion(prompt, **options)

    def _logo(self) -> dict[str, Any]:
        """The ["logo"] value of an answer."""
        route = (self.last_route or Route()).as_dict()
        return {"route": route, "timings_ms": dict(self.timings_ms)}

    def route(self, prompt: Prompt, *, routing: Routing | None = None) -> Route:
        """The route for `prompt`: a string, chat messages, or token ids. Generates nothing.

        A string is tokenised as in `create_completion`, messages with the model's chat template.
        For a conversation, the user's last message is routed alone, and earlier ones only if it
        continues them; system messages are ignored. Does not change the cached conversation.
        Raises PromptError for a prompt that is empty or longer than the context.
        """
        check_routing(routing)
        given = routing or {}
        self._forget_timings()
        self._renew_pool()
        weights = given.get("weights")
        if weights is not None:
            return self._fixed(weights)
        signal = given.get("signal") or self._settings.signal
        top_k = given.get("top_k") or self._settings.top_k
        with self._progress.ended():
            try:
                route = self.router.route(prompt, signal, top_k)
                adapters = self._adapters(route.names)
            except AdapterError as error:
                if not self._renew_pool(forced=True):
                    raise
                log.debug("once more, after %s", error)
                route = self.router.route(prompt, signal, top_k)
                adapters = self._adapters(route.names)
        self.timings_ms |= self.router.timings_ms
        return replace(route, mixture=self.mixer.way_of(adapters))

    def _adapters(self, names: Sequence[str]) -> list[AdapterFile]:
        """The adapters with these names. Raises AdapterError if one has changed on disk."""
        for name in names:
            self.pool.check_current(name)
            self.pool.adapters[name].check_unchanged()
        return [self.pool.adapters[name] for name in names]

    def _route_to_answer(self, prompt: Prompt, routing: Routing | None = None) -> Given:
        """The route for an answer."""
        route = self.route(prompt, routing=routing)
        if "weights" in (routing or {}):
            return Given(route)
        self.router.remember()
        route = kept(route, self.last_route, self._settings.keep_route)
        return Given(route, dict(self.router.timings_ms))

    def _refreshed(self, route: Route) -> list[AdapterFile]:
        """The current adapter files of an earlier route."""
        if not route.is_base:
            self._renew_pool()
        try:
            return self._adapters(route.names)
        except AdapterError:
            if not self._renew_pool(forced=True):
                raise
            return self._adapters(route.names)

    def _fixed(self, weights: Mapping[str, float]) -> Route:
        for name in weights:
            self.pool.check_name(name)
        return fixed(weights)

    @contextmanager
    def under(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Answer every prompt within this block with these `weights`, by adapter name.

        Nothing is scored. The weights are used unchanged and need not sum to 1; empty weights mean
        the base model alone. A stream created in the block keeps them. `route`, and calls with
        `routing`, ignore them. Raises UnknownAdapterError for a name that is not in the pool,
        SettingsError for a weight that is not finite.
        """
        check_routing({"weights": weights})
        if weights:
            self._renew_pool()
        with self._under(Given(self._fixed(weights))):
            yield

    def base_only(self) -> AbstractContextManager[None]:
        """Answer with the base model alone within this block; nothing is scored."""
        return self.under({})

    @contextmanager
    def _under(self, given: Given) -> Iterator[None]:
        """Let `generate` use this route within this block."""
        before, self._given = self._given, given
        try:
            yield
        finally:
            self._given = before

    def read_ahead(self, prompt: Prompt) -> None:
        """Evaluate a conversation so far with the base, so that the next prompt costs less.

        Useful while the user reads an answer and types; takes one pass of the probe over the
        answer. Has no other effect. May run in another thread if nothing else uses the engine.
        Does nothing if every adapter is evaluated, and for messages unless `prefill` is "base":
        otherwise the base evaluates only the next message.
        """
        if self._settings.prefill == "base" or not are_messages(prompt):
            self.router.read_ahead(self.tokens_of(prompt))

    def signal_scores(self, prompt: Prompt, signals: Sequence[str]) -> dict[str, dict[str, float]]:
        """The scores >= 0 of the pool's candidates for `prompt`, by signal and adapter name.

        `signals` are names in `routing.registry`; one-pass signals share one pass. The prompt is
        scored as a whole. Adapters that a signal cannot score are absent. Raises like `route`.
        """
        unknown = [signal for signal in signals if signal not in registry.names()]
        if unknown:
            raise SettingsError(
                f"there is no signal {', '.join(unknown)}",
                hint=f"the signals are: {', '.join(registry.names())}",
            )
        self._forget_timings()
        self._renew_pool()
        tokens = self.tokens_of(prompt)
        return {signal: self.router.scores(tokens, signal).scores for signal in signals}

    def tokens_of(self, prompt: Prompt) -> list[int]:
        """The tokens of a string, of chat messages or of token ids, as generation reads them.

        Raises PromptError if they do not fit the context.
        """
        return self.loaded.tokens_of(prompt)

    # Settings

    @property
    def routing(self) -> RoutingSettings:
        """The current routing settings; change them with `configure`."""
        return self._settings

    def configure(
        self,
        *,
        signal: str | None = None,
        top_k: int | None = None,
        mixture: str | None = None,
        keep_route: float | None = None,
    ) -> None:
        """Change settings from the next prompt on; None keeps the current value.

        Only these four can change while the engine runs; `routing` of a call affects that call
        only. Raises SettingsError, without any change, if a value is invalid.
        """
        changes = {"signal": signal, "top_k": top_k, "mixture": mixture, "keep_route": keep_route}
        given: dict[str, Any] = {k: v for k, v in changes.items() if v is not None}
        settings = replace(self._settings, **given)
        settings.check()
        self._settings = self.router.settings = settings
        self.mixer.way = settings.mixture

    @property
    def mixture(self) -> str:
        """How mixtures are computed; may be changed between prompts."""
        return self.mixer.way

    @mixture.setter
    def mixture(self, way: str) -> None:
        self.configure(mixture=way)

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Store `prompts` as example prompts of the adapter `name`; returns how many are new.

        They are stored in the user's data folder by the adapter's content, and used by every
        engine opened later; `unteach` deletes them.
        """
        self.pool.check_name(name)
        return self.router.teach(name, prompts)

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Delete all stored prompts of `name`, or only the `last`; returns how many."""
        self.pool.check_name(name)
        return self.router.unteach(name, last=last)

    def examples(self, name: str) -> list[str]:
        """The example prompts of an adapter: those next to its file, then stored ones."""
        self.pool.check_name(name)
        return self.router.examples(name)

    def without_profile(self) -> list[str]:
        """The adapters without example prompts, generated texts, and description."""
        return self.router.without_profile()

    def make_self_profiles(self) -> None:
        """Generate texts with all adapters `without_profile` for their self-profiles.

        Takes seconds to minutes per adapter; results are cached. Otherwise, the first prompt that
        needs them does this, unless `self_profile` is "kept" or False.
        """
        self.router.make_self_profiles()

    def _renew_pool(self, *, forced: bool = False) -> bool:
        """Reload the pool if its folder changed, or if `forced`; returns whether it did."""
        if not (forced or self.pool.has_changed()):
            return False
        with self._progress.ended():
            changes = self.pool.rescan(progress=self._progress)
        if changes:
            log.warning("%s has changed: %s", self.pool.folder, changes)
        return bool(changes)

    def _forget_timings(self) -> None:
        self.timings_ms |= dict.fromkeys(PHASES[1:], 0.0)
