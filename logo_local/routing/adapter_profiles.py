"""What the adapters of a pool are for: profiles from prompts that people gave, and from texts that
the adapters wrote themselves.

The one are read beside the adapter and from the user's data folder, the other sampled once for
each adapter and kept by its content.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from .. import config
from ..files.adapter_file import AdapterFile
from ..files.pool import Pool
from ..llama.mixture import ResidentAdapters
from ..llama.sampling import BatchContext
from .example_prompts import TaughtPrompts, prompts_beside
from .profile_store import Embed, ProfileStore
from .profiles import Profile

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

# The texts that an adapter is made to write for its self-profile: so many rounds of so many side by
# side, at most so many tokens each, with the prompt template's head.
ROUNDS, SIDE_BY_SIDE, SAMPLE_LENGTH = 3, 8, 64
SEED = 2511
ASKING = "asking adapters what they are for"  # what `progress` is told


class AdapterProfiles:
    """The profiles of one pool's adapters.

    `embed` makes the vector of a text, `as_prompt` the tokens that generation would see of it, and
    `as_text` turns the tokens of a text back. Not safe to use from two threads at once.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        *,
        pool: Pool,
        residents: ResidentAdapters,
        store: ProfileStore,
        embed: Embed,
        as_prompt: Callable[[str], list[int]],
        as_text: Callable[[Sequence[int]], str],
        progress: Progress,
    ) -> None:
        self._model, self._params = model, params
        self._pool, self._residents, self._store = pool, residents, store
        self._embed, self._as_prompt, self._as_text = embed, as_prompt, as_text
        self._progress = progress
        self._keys: dict[AdapterFile, str] = {}
        self._taught = TaughtPrompts(config.data_dir() / "prompts")

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Remember example prompts of an adapter for good; how many of them are new."""
        return self._taught.add(self._key(self._pool.adapters[name]), prompts)

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Forget what was taught of an adapter, or the `last` prompt; how many went."""
        return self._taught.forget(self._key(self._pool.adapters[name]), last=last)

    def unasked(self) -> list[str]:
        """The adapters that nobody gave examples for, and that were not asked by anybody yet."""
        return [
            name
            for name, adapter in self._pool.adapters.items()
            if not (self._given(name, adapter) or self.was_asked(name))
        ]

    def was_asked(self, name: str) -> bool:
        """Whether this adapter wrote its texts before, for whatever process."""
        return self._store.has_samples(self._key(self._pool.adapters[name]))

    def of_prompts(self) -> dict[str, Profile]:
        """The profiles of all adapters for which somebody gave example prompts."""
        found = {}
        for name, adapter in self._pool.adapters.items():
            given = self._given(name, adapter)
            if given:
                found[name] = self._store.of_prompts(given, self._embed)
        return found

    def of_samples(self, names: Sequence[str]) -> dict[str, Profile]:
        """The self-profiles of these adapters; one that wrote nothing at all has none."""
        found = {}
        for done, name in enumerate(names):
            self._progress(ASKING, done, len(names))
            adapter = self._pool.adapters[name]
            make = partial(self._write_samples, adapter)
            profile = self._store.of_samples(self._key(adapter), make, self._embed)
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

    def _given(self, name: str, adapter: AdapterFile) -> list[str]:
        return [*prompts_beside(self._pool.origin(name)), *self._taught_for(adapter)]

    def _taught_for(self, adapter: AdapterFile) -> list[str]:
        return self._taught.read(self._key(adapter)) if self._taught else []

    def _key(self, adapter: AdapterFile) -> str:
        if adapter not in self._keys:
            self._keys[adapter] = self._pool.content_key(adapter.name)
        return self._keys[adapter]


def _common_start(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """What two prompts begin with: the template's head, whatever the prompt."""
    return [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
