"""Train the adapters: PEFT LoRA on the frozen base, one per task, with plain settings.

This module does not use routing. Existing adapters are skipped; to continue an interrupted run,
start it again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from .base import Tokens, load_weights
from .data import Task
from .settings import SETTINGS, Settings

BATCH = 6  # examples per step
LONGEST = 224  # tokens of an example; longer ones are not used
SORTED = 8  # batches taken from one run of examples sorted by length
DONE = "adapter_model.safetensors"

log = logging.getLogger(__name__)

Example = tuple[list[int], list[float]]  # tokens, and the loss weight of each


def train_all(
    gguf: Path, tasks: Sequence[Task], out: Path, seed: int, *, bfloat16: bool = True
) -> None:
    """Train the adapter of each task into a folder with its name in `out`, one by one."""
    tokens = Tokens(gguf)
    base = load_weights(gguf) if bfloat16 else load_weights(gguf).float()
    for task in tasks:
        if (out / task.name / DONE).exists():
            log.info("%s: there already", task.name)
            continue
        torch.manual_seed(seed)  # for the factors A
        model = get_peft_model(base, _lora(SETTINGS[task.name], gguf.stem))
        train_adapter(model, tokens, task, out / task.name, seed)
        base = model.unload()


def train_adapter(model: Any, tokens: Tokens, task: Task, out: Path, seed: int) -> None:
    """Train a PEFT model's adapter and save it atomically to the folder `out`."""
    settings = SETTINGS[task.name]
    started = time.monotonic()
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.0)
    batches = _batches(task, tokens, settings, seed)
    model.train()
    seen, average = 0, 0.0
    for step in range(settings.steps):
        warm, left = (step + 1) / 8, 1 - step / settings.steps
        adam.param_groups[0]["lr"] = settings.rate * min(1.0, warm, left)
        ids, weights = next(batches)
        loss = _loss(model, ids, weights)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad()
        seen += ids.numel()
        average += (loss.item() - average) * (1.0 if step == 0 else 0.1)
    log.info(
        "%s: %d steps, loss %.3f, %d tokens, %.0f s",
        *(task.name, settings.steps, average, seen, time.monotonic() - started),
    )
    unfinished = out.with_name(out.name + ".unfinished")
    model.save_pretrained(unfinished)
    os.replace(unfinished, out)


def _lora(settings: Settings, base_name: str) -> LoraConfig:
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.modules),
        use_rslora=settings.rslora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )


def _batches(
    task: Task, tokens: Tokens, settings: Settings, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Padded token ids (B, T) and loss weights (B, T), grouped by similar length."""
    rng = Random(f"{seed}/{task.name}")
    prompt_weight = 1.0 if settings.loss == "sequence" else 0.0
    items = list(task.items["train"])
    drawn: list[Example] = []
    while True:
        rng.shuffle(items)
        for item in items:
            exchange = task.exchange(item, rng.choice(task.wordings["train"]))
            head, answer = tokens.encode(exchange.prompt, rng.choice(exchange.answers))
            if len(head) + len(answer) > LONGEST:
                continue
            drawn.append((head + answer, [prompt_weight] * len(head) + [1.0] * len(answer)))
            if len(drawn) == BATCH * SORTED:
                drawn.sort(key=lambda example: len(example[0]))
                cut = [drawn[i : i + BATCH] for i in range(0, len(drawn), BATCH)]
                rng.shuffle(cut)
                yield from map(_padded, cut)
                drawn = []


def _padded(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    weights = torch.zeros(len(examples), longest)
    for row, (of_one, its_weights) in enumerate(examples):
        ids[row, : len(of_one)] = torch.tensor(of_one)
        weights[row, : len(of_one)] = torch.tensor(its_weights)
    return ids, weights


def _loss(model: Any, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the tokens with a weight; only these pass the output layer.

    Padding is on the right, where causal attention ignores it.
    """
    inner = model.get_base_model()
    hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, d)
    wanted = weights[:, 1:] > 0  # (B, T-1)
    logits = inner.lm_head(hidden[:, :-1][wanted]).float()  # (n, V)
    softcap = getattr(inner.config, "final_logit_softcapping", None)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return cross_entropy(logits, ids[:, 1:][wanted])
