"""Muon in float32: momentum whose steps are made orthogonal, for weight matrices.

torch.optim.Muon does the same in bfloat16, which on a processor without bfloat16 arithmetic takes
twenty times as long as the rest of a step. Same formula and defaults as there (torch 2.13, after
Keller Jordan's): Nesterov momentum, five Newton-Schulz iterations, learning rate times
sqrt(max(1, rows / columns)).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly the nearest (semi-)orthogonal matrix to each of `matrices` (n, rows, columns).

    Singular values end up between 0.7 and 1.2, which suffices.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices  # (n, short, long)
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (n, short, short)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices only; the rest of a model wants another optimizer."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step by the gradients; matrices of one shape are done together."""
        assert closure is None, "nobody needs one here"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                moves = torch.stack([self._momentum(m, group["momentum"]) for m in matrices])
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, move in zip(matrices, orthogonal(moves), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(move, alpha=-rate)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["average"] = torch.zeros_like(matrix)
        assert matrix.grad is not None
        average: Tensor = state["average"]
        average.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)
