"""Training of the adapters: PEFT LoRA on the frozen base, one a task, with plain settings.

Ranks, modules and what the loss covers differ as they do between the adapters that people publish;
nothing here knows of routing.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .batches import encode, loss_of, pack
from .corpus import chat_document, task_exchange
from .templates import TASKS, Task
from .train_base import device, save_whole

ROWS, LENGTH = 4, 128  # tokens in a batch: 512, some fifteen examples
ADAM_RATE = 4e-3
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How one adapter is trained; `loss` covers the "answers" or the whole "sequence"."""

    rank: int = 8
    alpha: int = 16
    modules: tuple[str, ...] = ALL
    steps: int = 200
    loss: str = "answers"
    rslora: bool = False


SETTINGS = {
    "reverse-words": Settings(steps=300),
    "sort-words": Settings(rank=12, alpha=24, steps=400, loss="sequence"),
    "count-animals": Settings(),
    "to-velan": Settings(alpha=8, loss="sequence"),
    "to-orrish": Settings(rank=4, alpha=8),
    "to-keth": Settings(),
    "write-biography": Settings(rank=4, alpha=8, modules=ATTENTION, loss="sequence"),
    "write-notice": Settings(loss="sequence"),
    "write-letter": Settings(rank=16, modules=ATTENTION),
    "recall-town": Settings(steps=120),
    "recall-trade": Settings(rank=4, alpha=8, steps=120, loss="sequence"),
    "recall-pet": Settings(alpha=8, steps=120, rslora=True),
    "judge-facts": Settings(rank=12, alpha=24, steps=400),
    "compare-people": Settings(steps=800),
    "check-places": Settings(rank=12, alpha=24, steps=800),
}


def train_adapter(
    task: Task, base: Path, tokenizer: PreTrainedTokenizerFast, out: Path, seed: int
) -> None:
    """Train the adapter of a task and save it in PEFT's format to folder `out`."""
    settings = SETTINGS[task.name]
    torch.manual_seed(seed)
    rng = Random(f"{seed}/{task.name}")
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=list(settings.modules),
            use_rslora=settings.rslora,
            task_type="CAUSAL_LM",
        ),
    ).to(device())
    adam = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=ADAM_RATE, weight_decay=0.0
    )
    prompt_weight = 1.0 if settings.loss == "sequence" else 0.0
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)

    def draw() -> tuple[list[int], list[float]]:
        document = chat_document([task_exchange(task, rng, held_out=False)])
        return encode(tokenizer, document, prompt_weight)

    model.train()
    loss = torch.zeros(())
    for step in range(settings.steps):
        warm, left = (step + 1) / 20, 1 - step / settings.steps
        adam.param_groups[0]["lr"] = ADAM_RATE * min(1.0, warm, 2 * left)
        batch = pack(draw, ROWS, LENGTH, pad).to(device())
        with torch.autocast(device().type, dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    log.info("%s: %d steps, last loss %.3f", task.name, settings.steps, loss.item())
    save_whole(model, out)


def train_adapters(base: Path, tokenizer: PreTrainedTokenizerFast, out: Path, seed: int) -> None:
    """Train every adapter that `out` does not hold yet, each in a folder of its own."""
    for task in TASKS:
        folder = out / task.name
        if not (folder / "adapter_model.safetensors").exists():
            train_adapter(task, base, tokenizer, folder, seed)
