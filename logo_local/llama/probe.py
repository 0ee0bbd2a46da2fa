"""Probes that evaluate a prompt before generation, in contexts that share the model's weights.

`HiddenProbe` runs the base model once and stops after the last block that is read (as in the
paper). `EachProbe` evaluates the prompt once with each adapter (always possible, N times the cost).
Neither uses the generating context, which therefore has no callback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np

from ..errors import ContextError, NativeError, PromptError
from ..hidden_states import FloatArray, Framed, Hidden, Place, Reading, kept_positions
from ..prefix import common_prefix
from .model import LoadedModel
from .state_cache import Found, StateCache
from .taps import Tap

# States of shorter prompts are not cached: they are fast to evaluate, and examples are numerous.
LEAST_KEPT = 256
KEY = "probe"  # cache key of states of the base, valid up to the last place

NOT_FINITE = "the base model makes numbers that are not finite"
DAMAGED = "its weights may be damaged: compare the file's sha256 with its source"


def _checked(tokens: Sequence[int], n_ctx: int) -> list[int]:
    if not tokens:
        raise PromptError("the prompt is empty", hint="there is nothing to choose adapters by")
    if len(tokens) > n_ctx:
        raise ContextError(
            f"the prompt has {len(tokens)} tokens and the context holds {n_ctx}",
            hint="shorten it, or give a larger --ctx-size",
        )
    return list(tokens)


class _Rows:
    """The cached rows at one place, so that a prompt with the same prefix can be continued.

    At most MOST_ROWS rows, from both ends of the text, and as many sums. For a prompt of 4,096
    tokens at a width of 4,096, this takes a few MB instead of 64 MB.
    """

    def __init__(self) -> None:
        self.rows: dict[int, FloatArray] = {}  # by position, each (d,)
        # The sum (d,) float64 of all rows before a position, and their number. After attention in
        # the last block, llama.cpp computes only the last token, so there are fewer rows.
        self.sums: dict[int, tuple[Any, int]] = {}

    def copy(self) -> _Rows:
        """A copy that later changes do not affect."""
        copied = _Rows()
        copied.rows, copied.sums = dict(self.rows), dict(self.sums)
        return copied

    def cut(self, position: int) -> None:
        """Drop everything after `position`."""
        self.rows = {at: row for at, row in self.rows.items() if at < position}
        self.sums = {at: total for at, total in self.sums.items() if at <= position}

    def add(self, start: int, end: int, rows: FloatArray, wanted: Sequence[int]) -> None:
        """Add the `rows` (n, d) of the last n tokens of `start` to `end`; store those `wanted`."""
        total, count = self.sums.get(start, (0.0, 0))
        first = end - len(rows)
        inside = [at for at in wanted if first <= at < end]
        edges = sorted({first, *inside})
        offsets = np.array(edges) - first  # (m,)
        parts = np.add.reduceat(rows.astype(np.float64), offsets, axis=0)  # (m, d)
        sums = total + np.cumsum(parts, axis=0)  # (m, d): before each next edge
        for at, following in zip([*edges[1:], end], sums, strict=True):
            self.sums[at] = following, count + at - first
        self.rows |= {at: rows[at - first].copy() for at in inside}

    def hidden(self, prompt: Framed, wanted: Sequence[int]) -> Hidden:
        """The data of a prompt that is passed to signals."""
        n_tokens = len(prompt.tokens)
        self.rows = {at: self.rows[at] for at in wanted if at in self.rows}
        kept = {*wanted, n_tokens}
        self.sums = {at: total for at, total in self.sums.items() if at in kept}
        total, count = self.sums[n_tokens]
        spread = [self.rows[at] for at in kept_positions(n_tokens) if at in self.rows]
        first, last = (self._mean_of(positions) for positions in prompt.positions())
        return Hidden((total / count).astype(np.float32), np.stack(spread), first, last)

    def _mean_of(self, positions: Sequence[int]) -> FloatArray:
        """The mean (d,) over these positions; the last token's row if none of them was read, as
        after attention in the last block.
        """
        there = [self.rows[at] for at in positions if at in self.rows]
        total = np.sum(there or [self.rows[max(self.rows)]], axis=0, dtype=np.float64)  # (d,)
        return np.asarray(total / max(len(there), 1), dtype=np.float32)


class HiddenProbe:
    """One pass of the base model over a prompt, which reads the inputs of weights at some places.

    Keys and values are kept, so an extended prompt costs only its new tokens. Those of a
    conversation are also cached in `states` while shorter prompts are read, such as its last
    message alone. The pass ends after the last of the places; with `whole` it goes through all
    blocks, so that its keys and values can be reused for generation.
    """

    def __init__(
        self, loaded: LoadedModel, *, whole: bool = False, states: StateCache | None = None
    ) -> None:
        self.whole = whole
        self._states = StateCache(0) if states is None else states
        self._tap = Tap(whole=whole)
        self._context = loaded.context("for the probe", callback=self._tap)
        self._seen: Framed | None = None
        self._kept: dict[Place, _Rows] = {}
        self._reading: dict[Place, Hidden] = {}

    def read(self, prompt: Framed | Sequence[int], places: Sequence[Place]) -> Reading:
        """The hidden vectors of `prompt` that signals need, by place.

        Raises PromptError for an empty prompt or one longer than the context.
        """
        framed = prompt if isinstance(prompt, Framed) else Framed.of(prompt)
        tokens = _checked(framed.tokens, self._context.n_ctx)
        if framed == self._seen and set(places) <= set(self._reading):
            # Not evaluated again: another kernel may round differently, and the same prompt
            # must have the same route.
            return self._reading
        wanted = _wanted(framed)
        start = self._go_back(tokens, places, wanted)
        self._seen, self._reading = None, {}  # until the decode has succeeded
        if not self._context.forget_after(start):
            self._context.clear()
            start = 0
        self._kept = {place: self._kept.get(place, _Rows()) for place in places}
        for kept in self._kept.values():
            kept.cut(start)
        self._tap.places = tuple(places)
        for piece in self._context.pieces(tokens[start:]):
            self._context.decode(piece)
            for place, rows in self._tap.take().items():
                if not np.isfinite(rows).all():
                    raise NativeError(NOT_FINITE, hint=DAMAGED)
                self._kept[place].add(start, start + len(piece), rows, wanted)
            start += len(piece)
        self._reading = {place: kept.hidden(framed, wanted) for place, kept in self._kept.items()}
        self._seen = framed
        return self._reading

    def _go_back(
        self, prompt: Sequence[int], places: Sequence[Place], wanted: Sequence[int]
    ) -> int:
        """The position where the pass starts; restores a cached prompt if that saves more."""
        seen, kept = self._seen, self._kept
        start = 0 if seen is None else _start(prompt, seen, kept, places, wanted)
        if seen is not None and len(seen.tokens) >= LEAST_KEPT and 2 * start < len(seen.tokens):
            known = {place: rows.copy() for place, rows in kept.items()}
            self._states.keep(self._context.ctx, KEY, seen.tokens, (seen, known))
        found = self._states.find(KEY, prompt, more_than=start)
        if found is None:
            return start
        seen, known = found.state.extra
        better = _start(prompt, seen, known, places, wanted)
        if better <= start:
            return start
        self._seen, self._reading = None, {}  # in case the pass fails
        if not self._states.restore(self._context.ctx, Found(found.state, better)):
            return 0
        self._kept = {place: rows.copy() for place, rows in known.items()}
        return better

    def copy_to(self, ctx: Any, tokens: Sequence[int]) -> bool:
        """Copy the keys and values of `tokens` to `ctx`; False unless read last, with `whole`."""
        seen = None if self._seen is None else list(self._seen.tokens)
        return self.whole and list(tokens) == seen and self._context.copy_to(ctx)

    def close(self) -> None:
        """Free the context."""
        self._context.close()


class EachProbe:
    """The prompt's next-token logits under the adapters that are set on its context `ctx`."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._context = loaded.context("for the probe")
        self._n_vocab = loaded.n_vocab

    @property
    def ctx(self) -> Any:
        """The llama.cpp context, for setting adapters on it."""
        return self._context.ctx

    def logits(self, tokens: Sequence[int]) -> FloatArray:
        """The logits (n_vocab,) float32 after the last of `tokens`, evaluated from scratch."""
        prompt = _checked(tokens, self._context.n_ctx)
        self._context.clear()
        for piece in self._context.pieces(prompt):
            self._context.decode(piece)
        pointer = llama_cpp.llama_get_logits_ith(self._context.ctx, -1)
        # Copied, because the next decode overwrites llama.cpp's memory.
        logits: FloatArray = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,)).copy()
        return logits

    def close(self) -> None:
        """Free the context."""
        self._context.close()


def _wanted(prompt: Framed) -> list[int]:
    """The positions of the rows to store, in order.

    Includes the end of the text, so that a prompt that extends it costs only the new tokens.
    """
    first, last = prompt.positions()
    end = [prompt.end] if prompt.end < len(prompt.tokens) else []
    return sorted({*kept_positions(len(prompt.tokens)), *first, *last, *end})


def _start(
    prompt: Sequence[int],
    seen: Framed,
    kept: Mapping[Place, _Rows],
    places: Sequence[Place],
    wanted: Sequence[int],
) -> int:
    """The start of a pass over `prompt`: the end of the prefix known from `seen` at all `places`.

    Keys and values of blocks after the last place were not computed, so a place that was not read
    before needs a new pass. The last token is always evaluated.
    """
    if not set(places) <= set(kept):
        return 0
    common = min(common_prefix(seen.tokens, prompt), len(prompt) - 1)
    rows = [kept[place] for place in places]
    # The prompt may need earlier rows that were not stored; they are read again.
    missing = (at for at in wanted if at < common and any(at not in k.rows for k in rows))
    common = min(missing, default=common)
    known = set.intersection(*(set(k.sums) for k in rows))
    return max((at for at in known if at <= common), default=0)
