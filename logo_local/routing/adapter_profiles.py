"""Profiles of a pool's adapters, from example prompts and from texts that the adapters generate.

Example prompts are read from a file next to the adapter and from the user's data folder. Generated
texts are sampled once for each adapter and cached by the adapter's content.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from itertools import chain

from .. import config
from ..files.adapter_file import AdapterFile
from ..files.description import description_of
from ..files.pool import Pool
from ..hidden_states import FloatArray
from .advice import one_wording, twins
from .contrasts import contrast_prompts, shared_lines
from .descriptions import description_prompts
from .example_prompts import TaughtPrompts, prompts_beside
from .profile_store import Embed, ProfileStore
from .profiles import Profile
from .reader import Reader

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

LONGEST_LINE = 120  # characters for each adapter in a list

# Reported through `progress`.
WRITING = "writing example prompts"
READING = "reading example prompts"


def general_requests() -> list[str]:
    """Requests that no specific adapter is trained for; shipped with the package."""
    return _lines("generic_prompts.txt")


def continuations() -> list[str]:
    """Messages that continue any conversation, such as corrections; shipped with the package."""
    return _lines("continuations.txt")


def _lines(name: str) -> list[str]:
    return resources.files(__package__).joinpath(name).read_text("utf-8").splitlines()


@dataclass(frozen=True)
class Known:
    """Vectors of one form, for a pool.

    `profiles` are those of adapters with example prompts, `descriptions` the vectors (n, F) of the
    `description_prompts` of adapters without. `general` (G, F) are vectors of general requests,
    `continuations` (C, F) of messages that continue a conversation; None for an empty pool.
    """

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    descriptions: Mapping[str, FloatArray] = field(default_factory=dict)
    general: FloatArray | None = None
    continuations: FloatArray | None = None


def format_of(examples: Sequence[Sequence[str]]) -> tuple[str, str]:
    """The text around every example of the pool; empty if only one adapter has examples."""
    if len(examples) < 2:
        return "", ""
    return shared_lines([prompt for of_one in examples for prompt in of_one])


def examples_of(pool: Pool, taught: TaughtPrompts) -> dict[str, list[str]]:
    """The example prompts of each adapter in `pool`: those next to its file, and `taught`."""
    known = bool(taught)
    return {
        name: [
            *prompts_beside(pool.origin(name)),
            *(taught.read(pool.content_key(name)) if known else []),
        ]
        for name in pool.adapters
    }


def remarks(pool: Pool, store: ProfileStore) -> list[str]:
    """Remarks about the examples of a pool, one line each; evaluates no prompt.

    Twins are found only after all examples have been read, by this or another process.
    """
    examples = {n: g for n, g in examples_of(pool, taught_prompts()).items() if g}
    found = [
        f"{name}: all examples {alike}; examples in other words help more than further ones"
        for name, given in examples.items()
        if (alike := one_wording(given))
    ]
    form = "chat" if pool.base.chat_template else "raw"
    vectors = {name: store.known_vectors(given, form) for name, given in examples.items()}
    profiles = {name: Profile(rows) for name, rows in vectors.items() if rows is not None}
    if len(profiles) == len(examples):
        found += [
            f"{one} and {other}: their examples cannot be told apart, so their prompts get a blend"
            for one, other in twins(profiles)
        ]
    return found


def taught_prompts() -> TaughtPrompts:
    """The example prompts in the user's data folder."""
    return TaughtPrompts(config.data_dir() / "prompts")


class AdapterProfiles:
    """The profiles of one pool's adapters.

    `embed` computes the vector of a text; `reader` generates texts with adapters. Not thread-safe.
    """

    def __init__(
        self, pool: Pool, reader: Reader, store: ProfileStore, embed: Embed, progress: Progress
    ) -> None:
        self._pool, self._reader, self._store = pool, reader, store
        self._embed, self._progress = embed, progress
        self._keys: dict[AdapterFile, str] = {}
        self._done = self._all = 0  # texts counted for `progress`
        self._taught = taught_prompts()

    def teach(self, name: str, prompts: Sequence[str]) -> int:
        """Store example prompts of an adapter; returns how many are new."""
        return self._taught.add(self._key(self._pool.adapters[name]), prompts)

    def unteach(self, name: str, *, last: bool = False) -> int:
        """Delete the stored prompts of an adapter, or only the `last`; returns how many."""
        return self._taught.forget(self._key(self._pool.adapters[name]), last=last)

    def examples(self, name: str) -> list[str]:
        """The example prompts of an adapter, those next to its file first."""
        return self._given(name, self._pool.adapters[name])

    def about(self) -> dict[str, str]:
        """One line for each adapter: its description, else its first example, else empty."""
        found = {}
        for name, adapter in self._pool.adapters.items():
            said = self._description(name) or " ".join(
                " ".join(self._given(name, adapter)[:1]).split()
            )
            found[name] = said if len(said) <= LONGEST_LINE else said[: LONGEST_LINE - 1] + "…"
        return found

    def without_any(self) -> list[str]:
        """The adapters without example prompts, generated texts, and description."""
        return [
            name
            for name, adapter in self._pool.adapters.items()
            if not (self._given(name, adapter) or self.has_written(name) or self._description(name))
        ]

    def has_written(self, name: str) -> bool:
        """Whether this adapter's generated texts are in the cache."""
        return self._store.has_samples(self._key(self._pool.adapters[name]))

    def of_prompts(self, form: str) -> Known:
        """All that is known from example prompts and descriptions.

        Texts that are not cached in this `form` are read now and cached. If no adapter has examples
        or a description, nothing is read, not even the general requests.
        """
        texts = {n: self._given(n, adapter) for n, adapter in self._pool.adapters.items()}
        described = {name: given for name, given in texts.items() if given}
        head, tail = format_of(list(described.values()))
        general = [f"{head}{request}{tail}" for request in general_requests()]
        continuing = [f"{head}{message}{tail}" for message in continuations()]
        against = {
            name: [
                [f"{head}{prompt}{tail}" for prompt in kind]
                for kind in contrast_prompts([t.removeprefix(head).removesuffix(tail) for t in g])
            ]
            for name, g in described.items()
        }
        about = {
            name: [f"{head}{prompt}{tail}" for prompt in description_prompts(text)]
            for name in texts
            if name not in described and (text := self._description(name))
        }
        if not (described or about):
            return Known()
        every = (
            general,
            continuing,
            *described.values(),
            *chain(*against.values()),
            *about.values(),
        )
        with self._reading([given for given in every if given], form):
            profiles = {
                name: self._store.of_prompts(texts[name], against[name], self._embed_one, form)
                for name in against
            }
            vectors = partial(self._store.vectors, embed=self._embed_one, form=form)
            descriptions = {name: vectors(prompts) for name, prompts in about.items()}
            return Known(profiles, descriptions, vectors(general), vectors(continuing))

    def general(self, form: str) -> FloatArray:
        """The vectors (G, F) of general requests, for a pool without any examples."""
        texts = general_requests()
        with self._reading([texts], form):
            return self._store.vectors(texts, self._embed_one, form)

    @contextmanager
    def _reading(self, texts: Sequence[Sequence[str]], form: str) -> Iterator[None]:
        """Report progress within this block if any of these texts is not cached."""
        new = [given for given in texts if not self._store.has_vectors(given, form)]
        self._done, self._all = 0, sum(map(len, new))
        if new:
            log.info("reading %d example prompts, once for this model", self._all)
            self._progress(READING, 0, self._all)
        yield
        if new:
            self._progress(READING, self._all, self._all)

    def _embed_one(self, text: str, form: str) -> FloatArray:
        vector = self._embed(text, form)
        self._done += 1
        self._progress(READING, min(self._done, self._all), self._all)
        return vector

    def of_samples(self, names: Sequence[str], form: str) -> dict[str, Profile]:
        """The self-profiles of these adapters; adapters that generated no text are absent."""
        found = {}
        new = [name for name in names if not self.has_written(name)]
        if new:
            log.info("letting adapters write example prompts: %s", ", ".join(new))
        for done, name in enumerate(names):
            self._progress(WRITING, done, len(names))
            adapter = self._pool.adapters[name]
            make = partial(self._reader.written_by, adapter)
            profile = self._store.of_samples(self._key(adapter), make, self._embed, form)
            if profile is not None:
                found[name] = profile
        self._progress(WRITING, len(names), len(names))
        useless = [name for name, profile in found.items() if not profile.is_informative]
        if useless:
            log.info("texts that %s wrote say nothing about them", ", ".join(useless))
        return found

    def _description(self, name: str) -> str:
        return description_of(self._pool.origin(name), self._pool.adapters[name].description)

    def _given(self, name: str, adapter: AdapterFile) -> list[str]:
        return [*prompts_beside(self._pool.origin(name)), *self._taught_for(adapter)]

    def _taught_for(self, adapter: AdapterFile) -> list[str]:
        return self._taught.read(self._key(adapter)) if self._taught else []

    def _key(self, adapter: AdapterFile) -> str:
        if adapter not in self._keys:
            self._keys[adapter] = self._pool.content_key(adapter.name)
        return self._keys[adapter]
