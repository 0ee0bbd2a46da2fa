"""Matching prompts with adapter descriptions: less precise than examples.

The vector of "Rewrites a sentence in the passive voice." is far from every prompt. Combined with
a few inputs, it is nearer to prompts of its own adapter than to those of other adapters. A prompt
matches the nearest description only if the second nearest, and every general request, is clearly
further away. Plain numpy without I/O.

Source: our own; measured in docs/research/routing.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..hidden_states import FloatArray
from .profiles import Points
from .whitening import Whitening

FRAMES = ("{description}\n\n{input}", "{input}\n\n{description}")
# Typical inputs of adapters: sentences, a word, a question. Their effects cancel out.
INPUTS = (
    "The old bridge was closed for repairs last week.",
    "seven",
    "Is it cold outside?",
    "My sister works in a hospital near the station.",
)
# The second nearest must be further away by this share. Chosen on the choosing set.
LEAST_MARGIN = 0.05


def description_prompts(description: str) -> list[str]:
    """The texts that represent a description."""
    return [
        frame.replace("{description}", description).replace("{input}", text)
        for frame in FRAMES
        for text in INPUTS
    ]


@dataclass(frozen=True)
class Descriptions:
    """The descriptions of several adapters; created by `fit`.

    `names` (N,) belong to the rows of `centres`, whitened means; `general` are whitened vectors of
    requests that no adapter is trained for, `continuations` of messages that continue a
    conversation.
    """

    names: tuple[str, ...]
    centres: Points = field(repr=False)
    general: Points = field(repr=False)
    whitening: Whitening = field(repr=False)
    continuations: Points | None = field(default=None, repr=False)

    @classmethod
    def fit(
        cls,
        vectors: Mapping[str, FloatArray],
        general: FloatArray,
        continuations: FloatArray | None = None,
    ) -> Descriptions:
        """From the vectors (n, F) of the `description_prompts` of one or more adapters.

        `general` (G, F) are vectors of general requests, `continuations` (C, F) of messages that
        continue a conversation.
        """
        groups = [*vectors.values()]
        whitening = Whitening.fit(groups)
        centres = Points.of(np.stack([rows.mean(axis=0) for rows in groups]), whitening)
        others = None if continuations is None else Points.of(continuations, whitening)
        return cls(tuple(vectors), centres, Points.of(general, whitening), whitening, others)

    def nearest(self, x: FloatArray) -> tuple[str, float]:
        """The adapter whose description is nearest to a text's vector (F,), and the margin.

        The margin is how much further away the second nearest is, description or general request,
        as a share of the distance; below 0 if a general request is nearer.
        """
        square = self.whitening.square(x)
        distances = self.centres.distances(x, square)  # (N,)
        others = self.general.distances(x, square)  # (G,)
        best = int(distances.argmin())
        second = float(np.concatenate([np.delete(distances, best), others]).min())
        return self.names[best], second / max(float(distances[best]), 1e-12) - 1

    def continued(self, x: FloatArray) -> frozenset[str]:
        """The adapters whose conversation a message's vector (F,) can continue.

        All, if it is not further from a continuation than from every general request; otherwise
        those with a description that is nearer than every general request.
        """
        square = self.whitening.square(x)
        general = self.general.distances(x, square).min()
        others = self.continuations
        if others is not None and others.distances(x, square).min() <= general:
            return frozenset(self.names)
        nearer = self.centres.distances(x, square) < general  # (N,)
        return frozenset(name for name, near in zip(self.names, nearer, strict=True) if near)
