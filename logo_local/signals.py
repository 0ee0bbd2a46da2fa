"""How much an adapter has to say about a prompt: plain functions on numpy arrays.

A signal turns one adapter's projection output o_i (d_out,) into a score s_i >= 0; the larger,
the more the adapter matters. Nothing here knows of files, prompts or llama.cpp. To add a signal,
write the function and name it in `SIGNALS`.

Source: LoGo, arXiv 2511.07129, section 3, and the authors' released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# Keeps the inverse finite for an output that names one dimension with certainty (released code).
ENTROPY_EPSILON = 1e-6


def projection_output(h: FloatArray, a: FloatArray, b: FloatArray, scaling: float) -> FloatArray:
    """What one adapter adds to its projection: o = scaling * B (A h).

    `h` (d_in,) is the hidden vector, `a` (rank, d_in), `b` (d_out, rank), `scaling` the adapter's
    alpha/rank (or alpha/sqrt(rank)). Returns o (d_out,) float32. B A is never formed.
    """
    z = a @ h  # (rank,)
    o: FloatArray = np.float32(scaling) * (b @ z)  # (d_out,)
    return o


def norm(o: FloatArray) -> float:
    """The Euclidean norm ||o||_2 of a projection output (d_out,); 0 for a silent adapter."""
    return float(np.linalg.norm(o))


def entropy(o: FloatArray) -> float:
    """The inverse entropy 1 / (H(softmax(o)) + 1e-6) of an output or of logits (d_out,).

    H is in nats. The result lies between 1 / (ln d_out + 1e-6), for an output that prefers
    nothing, and 1e6, for one that names a single dimension.
    """
    shifted = o.astype(np.float64) - float(o.max())  # (d_out,)
    p = np.exp(shifted)
    total = p.sum()
    # H = ln sum e^x - sum p x, which needs no logarithm of a probability that may be zero
    h = float(np.log(total) - (p @ shifted) / total)
    return 1.0 / (max(h, 0.0) + ENTROPY_EPSILON)


SIGNALS: Mapping[str, Callable[[FloatArray], float]] = MappingProxyType(
    {"norm": norm, "entropy": entropy}
)
