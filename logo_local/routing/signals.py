"""The formulas of the signals: pure functions on numpy arrays.

A signal turns one adapter's projection output o_i (d_out,) into a score s_i >= 0; a larger score
means a more relevant adapter. Independent of files, prompts and llama.cpp. `scorers` registers
signals built on these functions.

Source of norm and entropy: LoGo, arXiv 2511.07129, section 3, and the authors' released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..hidden_states import FloatArray

Scores = dict[str, float]  # by adapter name

# Keeps the inverse finite for a one-hot output (released code).
ENTROPY_EPSILON = 1e-6
LEAST_SHARE = 0.01


def projection_output(h: FloatArray, a: FloatArray, b: FloatArray, scaling: float) -> FloatArray:
    """The output that one adapter adds to its projection: o = scaling * B (A h).

    `h` (d_in,) is the hidden vector, `a` (rank, d_in), `b` (d_out, rank), `scaling` the adapter's
    alpha/rank (or alpha/sqrt(rank)). Returns o (d_out,) float32. B A is never formed.
    """
    z = a @ h  # (rank,)
    o: FloatArray = np.float32(scaling) * (b @ z)  # (d_out,)
    return o


def norm(o: FloatArray) -> float:
    """The Euclidean norm ||o||_2 of a projection output (d_out,)."""
    return float(np.linalg.norm(o))


def entropy(o: FloatArray) -> float:
    """The inverse entropy 1 / (H(softmax(o)) + 1e-6) of an output or of logits (d_out,).

    H is in nats. The result is between 1 / (ln d_out + 1e-6), for a uniform distribution, and
    1e6, for a one-hot distribution.
    """
    shifted = o.astype(np.float64) - float(o.max())  # (d_out,)
    p = np.exp(shifted)
    total = p.sum()
    # H = ln sum e^x - sum p x, which needs no logarithm of a probability that may be zero
    h = float(np.log(total) - (p @ shifted) / total)
    return 1.0 / (max(h, 0.0) + ENTROPY_EPSILON)


def relative_norm(o: FloatArray, h: FloatArray, product_norm: float) -> float:
    """||o||_2 / (||scaling B A||_F ||h||_2), in [0, 1]: the norm independent of the adapter's size.

    `product_norm` is `frobenius_norm` of the adapter. 0 if that or h is 0.
    """
    most = product_norm * float(np.linalg.norm(h))
    return norm(o) / most if most > 0 else 0.0


def frobenius_norm(a: FloatArray, b: FloatArray, scaling: float) -> float:
    """||scaling B A||_F = scaling sqrt(tr(A^T B^T B A)), without forming B A.

    `a` (rank, d_in), `b` (d_out, rank).
    """
    squared = float(np.sum((b.T @ b) * (a @ a.T), dtype=np.float64))  # tr(G A A^T)
    return abs(scaling) * math.sqrt(max(squared, 0.0))


def spectr(h: FloatArray, a: FloatArray, b: FloatArray) -> float:
    """||S V^T h||_2 with the SVD B A = U S V^T, which is ||B A h||_2: the norm without scaling.

    Source: SpectR, arXiv 2504.03454. It scores every layer separately; here only one block.
    """
    return float(np.linalg.norm(b @ (a @ h)))


def arrow(h: FloatArray, direction: FloatArray) -> float:
    """|v . h|, the hidden vector's component along the adapter's `principal_direction` v (d_in,).

    Source: Arrow, arXiv 2405.11157 (in PEFT since 0.18). It routes every token and layer
    separately; here only the last token at one block.
    """
    return abs(float(direction @ h))


def principal_direction(a: FloatArray, b: FloatArray) -> FloatArray:
    """The unit right singular vector (d_in,) of B A with the largest singular value.

    Uses the QR decomposition of B, so B A is never formed. The sign is arbitrary.
    """
    r = np.linalg.qr(b, mode="r")  # (rank, rank): B = Q r, so B A has the singular values of r A
    _, _, right = np.linalg.svd(r @ a, full_matrices=False)  # (rank, d_in)
    v: FloatArray = right[0]  # (d_in,)
    return v


def reduced(a: FloatArray, b: FloatArray, scaling: float) -> FloatArray:
    """A matrix M (rank, d_in) with ||M h|| = ||scaling B A h|| for every h.

    With the QR decomposition B = Q R, M is scaling R A: Q preserves lengths.
    `a` (rank, d_in), `b` (d_out, rank).
    """
    r = np.linalg.qr(b, mode="r")  # (min(rank, d_out), rank)
    m: FloatArray = (np.float32(scaling) * (r @ a)).astype(np.float32)  # (rank, d_in)
    return m


def log_rms_norms(rows: FloatArray, stacked: FloatArray, starts: Sequence[int]) -> FloatArray:
    """For each of several adapters, ln of the root mean square over tokens of ||M h_t||_2.

    `rows` (n_tokens, d_in) are the hidden vectors h_t, `stacked` (sum of ranks, d_in) the
    adapters' `reduced` matrices stacked vertically, beginning at the rows `starts`. An adapter
    that adds nothing gives ln 1e-12.
    """
    squares = ((rows @ stacked.T) ** 2).mean(axis=0)  # (sum of ranks,)
    of_each = np.add.reduceat(squares, starts)  # (n_adapters,)
    logs: FloatArray = np.log(np.maximum(np.sqrt(of_each), np.float32(1e-12)))
    return logs


def softmax(values: FloatArray, temperature: float = 1.0) -> FloatArray:
    """Scores (n,) > 0 that sum to 1, from `values` (n,) of any sign; a lower `temperature` gives
    the largest a greater share.
    """
    shifted = (values - values.max()) / temperature  # (n,)
    p: FloatArray = np.exp(shifted)
    p /= p.sum()
    return p


def sharpened(values: Scores, temperature: float) -> Scores:
    """Shares of 1 by softmax(values / temperature).

    Shares below LEAST_SHARE become 0: they would cost time for every token with almost no effect.
    """
    if not values:
        return {}
    shares = softmax(np.array(list(values.values()), dtype=np.float32), temperature)  # (n,)
    shares[shares < LEAST_SHARE] = 0.0
    return dict(zip(values, shares.tolist(), strict=True))
