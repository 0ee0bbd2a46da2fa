"""Packing documents into batches: several a row, none seeing another."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .corpus import Document


@dataclass(frozen=True)
class Batch:
    """`R` rows of `T` tokens; padding has position 0 and loss weight 0.

    tokens, positions: (R, T) int64. mask: (R, 1, T, T) bool, True where attention may look.
    weights: (R, T) float32, the weight of each token as a target.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.tokens.to(device),
            self.positions.to(device),
            self.mask.to(device),
            self.weights.to(device),
        )


def encode(
    tokenizer: PreTrainedTokenizerFast, document: Document, prompt_weight: float
) -> tuple[list[int], list[float]]:
    """Token ids of a document and their weights in the loss: 1 for what counts in full."""
    ids: list[int] = []
    weights: list[float] = []
    for text, counts in document:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        weights += [1.0 if counts else prompt_weight] * len(piece)
    return ids, weights


def pack(
    draw: Callable[[], tuple[list[int], list[float]]], rows: int, length: int, pad: int
) -> Batch:
    """Fill a batch with drawn documents, first fit, until one finds no room (it is dropped).

    Documents longer than a row are passed over.
    """
    used = [0] * rows
    tokens = torch.full((rows, length), pad)
    positions = torch.zeros((rows, length), dtype=torch.int64)
    weights = torch.zeros((rows, length))
    owner = torch.full((rows, length), -1)  # which document a token is of; padding: -1
    count = 0
    while True:
        ids, loss = draw()
        if len(ids) > length:
            continue
        row = next((r for r in range(rows) if used[r] + len(ids) <= length), None)
        if row is None:
            break
        span = slice(used[row], used[row] + len(ids))
        tokens[row, span] = torch.tensor(ids)
        positions[row, span] = torch.arange(len(ids))
        weights[row, span] = torch.tensor(loss)
        weights[row, span.start] = 0.0  # nothing predicts the start of a document
        owner[row, span] = count
        used[row] = span.stop
        count += 1
    same = owner[:, None, :, None] == owner[:, None, None, :]
    causal = torch.ones((length, length), dtype=torch.bool).tril()
    return Batch(tokens, positions, same & causal, weights)


def loss_of(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over the batch's targets, by their weights."""
    logits = model(
        input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask
    ).logits  # (R, T, V)
    targets, weights = batch.tokens[:, 1:].flatten(), batch.weights[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, reduction="none"
    )
    return (losses * weights).sum() / weights.sum()
