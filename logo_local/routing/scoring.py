"""The inputs of the signals: data computed once for a pool's adapters, and the prompt.

A `Scorer` belongs to one state of the pool. It determines which places of the forward pass a
signal reads, and holds the adapters' data (factors, norms, profiles). The signals are in
`scorers`, their formulas in `signals` and `profiles`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ..files.adapter_file import AdapterFile
from ..files.base_model import BaseModel
from ..hidden_states import FloatArray, Place, Reading
from .descriptions import Descriptions
from .index import RoutingIndex
from .profiles import Measure, Profile, embed
from .reader import Reader
from .registry import Fit, Need, find
from .signals import Scores
from .z_norms import ZNorms

# Profiles and z-norms read this many blocks, from the first to this share of the depth. Later
# blocks represent the answer: there, profiles read only the last token of the prompt. Chosen on
# the choosing set (docs/quality.md).
READ_BLOCKS, READ_DEPTH = 4, 0.6
ANSWER_DEPTHS = (0.83, 0.9)
# Number of nearest adapters that are compared with their references; routes use only these.
MOST_MATCHED = 32


def read_places(base: BaseModel) -> tuple[Place, ...]:
    """Places that profiles and z-norms read: the attention input in evenly spaced blocks."""
    last = round(READ_DEPTH * (base.n_blocks - 1))
    return _places(base, [round(i * last / (READ_BLOCKS - 1)) for i in range(READ_BLOCKS)])


def answer_places(base: BaseModel) -> tuple[Place, ...]:
    """Places where profiles read the last token: the attention input in late blocks."""
    return _places(base, [round(depth * (base.n_blocks - 1)) for depth in ANSWER_DEPTHS])


def profile_places(base: BaseModel) -> tuple[Place, ...]:
    """All places that `profile_vector` uses."""
    return (*read_places(base), *answer_places(base))


def profile_vector(reading: Reading, base: BaseModel) -> FloatArray:
    """A text's profile vector: whole, start and end in early blocks, and the last token."""
    early = [reading[place] for place in read_places(base)]
    return embed(
        [
            *(hidden.mean for hidden in early),
            *(hidden.first for hidden in early),
            *(hidden.final for hidden in early),
            *(reading[place].last for place in answer_places(base)),
        ]
    )


def _places(base: BaseModel, blocks: Sequence[int]) -> tuple[Place, ...]:
    places = []
    for block in sorted(set(blocks)):
        kinds = ("attn_q", "attn_qkv", "attn_q_a", "attn_k", "ffn_up")
        names = [f"blk.{block}.{kind}.weight" for kind in kinds]
        places += [Place(name) for name in names if name in base.tensors][:1]
    return tuple(places)


class EachAdapter:
    """Evaluations of one prompt with single adapters; `ms` is their total time so far.

    `names` are the candidates. Each evaluation costs one pass of the model over the prompt.
    """

    def __init__(
        self,
        reader: Reader,
        tokens: Sequence[int],
        adapters: Mapping[str, AdapterFile],
        names: Sequence[str],
    ) -> None:
        self._reader, self._tokens, self._adapters = reader, tokens, adapters
        self.names, self.ms = names, 0.0

    def logits(self) -> Iterator[tuple[str, FloatArray]]:
        """Each candidate's next-token logits (n_vocab,)."""
        started = time.perf_counter()
        adapters = [self._adapters[name] for name in self.names]
        yield from zip(self.names, self._reader.logits(self._tokens, adapters), strict=True)
        self.ms += 1000 * (time.perf_counter() - started)

    def menu(self, lines: Sequence[str]) -> FloatArray:
        """How much likelier (n,) the base names each of `lines` with the prompt than without."""
        started = time.perf_counter()
        found = self._reader.menu_logits(self._tokens, lines)
        self.ms += 1000 * (time.perf_counter() - started)
        return found

    def gains(self, names: Sequence[str]) -> Scores:
        """The prompt's log-likelihood gain over the base, in nats, for each of `names`."""
        started = time.perf_counter()
        found = self._reader.gains(self._tokens, [self._adapters[name] for name in names])
        self.ms += 1000 * (time.perf_counter() - started)
        return dict(zip(names, found, strict=True))


@dataclass(frozen=True)
class Prompt:
    """One prompt as input of a signal: the reading of one pass, and evaluations with adapters.

    `reading` has the places for the signal's needs.
    """

    reading: Reading = field(default_factory=dict)
    evaluations: EachAdapter | None = None

    @property
    def each(self) -> EachAdapter:
        """The evaluations, for signals that need them."""
        assert self.evaluations is not None
        return self.evaluations


class Compared(NamedTuple):
    """A prompt compared with one adapter's profile.

    `nearness` is as in `Measure.nearness`; the prompt fits if `match` is at least `least`. `match`
    is 0 beyond the nearest MOST_MATCHED adapters. `continues` is as in `Measure.continues`.
    """

    name: str
    nearness: float
    match: float
    least: float
    continues: bool = False

    @property
    def fits(self) -> bool:
        """Whether the prompt fits this adapter."""
        return self.match >= self.least


@dataclass
class Scorer:
    """All signals for one pool.

    `index` has the factors at the target, `place`, that the paper's signals read. `prompts` are
    the profiles of adapters with example prompts, None until they are needed; `samples` those from
    generated texts; `descriptions` belong to adapters without examples. `general` (G, F) are
    vectors of requests that no adapter is trained for, `continuations` (C, F) of messages that
    continue a conversation. `z_norms` are at `read_places`.
    """

    adapters: Mapping[str, AdapterFile]
    base: BaseModel
    index: RoutingIndex
    place: Place
    z_norms: ZNorms
    prompts: Mapping[str, Profile] | None = field(default=None, repr=False)
    samples: Mapping[str, Profile] = field(default_factory=dict, repr=False)
    general: FloatArray | None = field(default=None, repr=False)
    continuations: FloatArray | None = field(default=None, repr=False)
    descriptions: Descriptions | None = field(default=None, repr=False)
    about: Mapping[str, str] = field(default_factory=dict, repr=False)  # one line each, if needed
    sampled: set[str] = field(default_factory=set, repr=False)  # even if no text was generated
    _measures: dict[str, Measure | None] = field(default_factory=dict, repr=False)

    def fit(self, signal: str, prompt: Prompt | Reading) -> Fit:
        """The scores by adapter for a signal, and the reason.

        A reading is enough for signals that do not evaluate adapters.
        """
        given = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        found = find(signal).score(self, given)
        return found if isinstance(found, Fit) else Fit(found)

    def candidates(self, signal: str, prompt: Prompt) -> Scores:
        """The scores of the prompt's candidates only, in their order."""
        found = self.fit(signal, prompt).scores
        return {name: found[name] for name in prompt.each.names if name in found}

    def part(self, names: Collection[str]) -> Scorer:
        """The scorer of a smaller pool, with the data of this one."""
        adapters = {name: self.adapters[name] for name in names}
        return replace(
            self,
            adapters=adapters,
            index=RoutingIndex(self.index.target, adapters),
            z_norms=self.z_norms.part(names),
            prompts={n: p for n, p in (self.prompts or {}).items() if n in adapters},
            samples={n: p for n, p in self.samples.items() if n in adapters},
            _measures={},
        )

    # The needs of a signal for this pool

    def places(self, signal: str) -> tuple[Place, ...]:
        """The places of the pass that `signal` reads; empty if it needs no pass.

        Also empty if it compares the prompt with profiles and there are none.
        """
        needs = find(signal).needs
        here = (self.place,) if Need.LAST_TOKEN in needs else ()
        if Need.PROMPT not in needs:
            return here
        profiles = needs & {Need.EXAMPLES, Need.SAMPLES, Need.DESCRIPTIONS}
        known = self.prompts or self.samples or self.descriptions
        if needs - {Need.PROMPT} == profiles and profiles and not known:
            return here
        wanted = (*here, *read_places(self.base))
        return (*wanted, *answer_places(self.base)) if profiles else wanted

    def wants_samples(self, signal: str) -> list[str]:
        """Adapters whose self-profile `signal` needs: all, or those without example prompts."""
        needs = find(signal).needs
        if Need.SAMPLES not in needs:
            return []
        given = (self.prompts or {}) if Need.EXAMPLES in needs else {}
        return [name for name in self.adapters if name not in given]

    def wants_generic(self, signal: str) -> bool:
        """Whether `signal` needs the baseline norms, given the current samples."""
        needs = find(signal).needs
        if Need.BASELINES not in needs:
            return False
        if not needs & {Need.EXAMPLES, Need.SAMPLES}:
            return True
        return bool(self.without_profile("any" if Need.EXAMPLES in needs else "samples"))

    def add_samples(self, samples: Mapping[str, Profile]) -> None:
        """Add self-profiles that are new."""
        self.samples = {**self.samples, **samples}
        self._measures = {}

    # Profiles

    def compared(self, reading: Reading, source: str) -> list[Compared]:
        """A text compared with each profile of a `source`, the nearest first.

        `source` is "prompts", "samples", or "any", which prefers prompts over samples.
        """
        measure = self._measure(source)
        if measure is None:
            return []
        x = profile_vector(reading, self.base)  # (F,)
        measured = measure.compare(x)
        near = measure.nearness(x, measured)  # (N,)
        order = np.argsort(-near, kind="stable")  # (N,)
        match = np.zeros(len(order), dtype=np.float32)
        match[:MOST_MATCHED] = measure.matches(x, order[:MOST_MATCHED], measured)
        names = [measure.names[i] for i in order]
        continues = measure.continues(x, measured)[order]
        columns = (near[order], match, measure.least[order], continues)  # each (N,)
        rows = zip(names, *(column.tolist() for column in columns), strict=True)
        found = [Compared(*row) for row in rows]
        return sorted(found, key=lambda one: (-one.nearness, one.name))

    def without_profile(self, source: str) -> list[str]:
        """The adapters without a profile in `source`."""
        measure = self._measure(source)
        known = set(measure.names) if measure is not None else set[str]()
        return [name for name in self.adapters if name not in known]

    def _measure(self, source: str) -> Measure | None:
        if source not in self._measures:
            prompts = self.prompts or {}
            usable = {n: p for n, p in self.samples.items() if p.is_informative}
            chosen = {"prompts": prompts, "samples": usable}.get(source, {**usable, **prompts})
            self._measures[source] = (
                Measure.fit(chosen, general=self.general, continuations=self.continuations)
                if chosen
                else None
            )
        return self._measures[source]
