"""Problems in the examples of a pool: examples in one wording, and adapters with like examples.

Pure functions of texts and vectors, without I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..hidden_states import FloatArray
from ..prefix import common_prefix
from .profiles import Profile
from .whitening import Whitening

FEWEST = 3  # examples from which a single wording is reported
WORDS = 2  # shared at the start or at the end
# Two adapters are twins if this share of their examples is nearer to the other's. 1/2 is chance.
TWIN_SHARE = 1 / 3
FOLDS = 4


def one_wording(examples: Sequence[str]) -> str:
    """How all examples begin or end, as 'begin with "Sort the"'; "" if they differ."""
    if len(examples) < FEWEST:
        return ""
    words = [example.split() for example in examples]
    head = words[0][: min(common_prefix(words[0], of_one) for of_one in words)]
    if len(head) >= WORDS:
        return f'begin with "{" ".join(head[:6])}"'
    back = [of_one[::-1] for of_one in words]
    tail = back[0][: min(common_prefix(back[0], of_one) for of_one in back)]
    return f'end with "{" ".join(tail[:6][::-1])}"' if len(tail) >= WORDS else ""


def twins(profiles: Mapping[str, Profile]) -> list[tuple[str, str]]:
    """The pairs of adapters, by name, whose examples cannot be distinguished by vector.

    Each example is compared with the mean of its adapter's other examples and with the mean of the
    nearest adapter. The whitening is fitted on other adapters, because it shrinks the differences
    between the examples it was fitted on. Costs up to ten whitenings.
    """
    names, vectors = list(profiles), [profile.vectors for profile in profiles.values()]
    if len(names) < 2:
        return []
    centres = np.stack([rows.mean(axis=0) for rows in vectors])  # (N, F)
    lengths = (centres**2).sum(axis=1)  # (N,)
    apart = lengths[:, None] + lengths[None] - 2 * centres @ centres.T  # (N, N), squared
    np.fill_diagonal(apart, np.inf)
    pairs = sorted({tuple(sorted((i, int(row.argmin())))) for i, row in enumerate(apart)})
    known: dict[frozenset[int], Callable[[FloatArray], FloatArray]] = {}
    found = []
    for i, j in pairs:
        folds = frozenset((i % FOLDS, j % FOLDS))
        if folds not in known:
            others = [rows for n, rows in enumerate(vectors) if n % FOLDS not in folds]
            several = any(len(rows) > 1 for rows in others)
            known[folds] = Whitening.fit(others) if several else np.asarray
        if _confused(known[folds](vectors[i]), known[folds](vectors[j])) >= TWIN_SHARE:
            found.append((names[i], names[j]))
    return found


def _confused(a: FloatArray, b: FloatArray) -> float:
    """The share of two adapters' texts (n, F) that are nearer to the other's mean."""
    found: list[bool] = []
    for own, other in ((a, b), (b, a)):
        n, centre = len(own), own.mean(axis=0)
        # Corrects for the mean including the text itself.
        scale = n / (n - 1) if n > 1 else 1.0
        to_own = scale * np.linalg.norm(own - centre, axis=1)
        to_other = np.linalg.norm(own - other.mean(axis=0), axis=1)
        found += (to_other <= to_own).tolist()
    return float(np.mean(found))
