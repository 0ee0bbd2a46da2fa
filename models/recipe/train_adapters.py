"""Training of the adapters: PEFT LoRA on the frozen base, one a task, with plain settings.

Ranks, modules and what the loss covers differ as they do between the adapters that people publish;
nothing here knows of routing.
"""

import logging
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .batches import encode, loss_of, pack
from .corpus import chat_document, task_exchange
from .families import TASKS, Task
from .tokenizer import load_tokenizer
from .train_base import device, half_precision, save_whole

ROWS, LENGTH = 4, 128  # tokens in a batch: 512, some fifteen examples
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How one adapter is trained; `loss` covers the "answers" or the whole "sequence"."""

    rank: int = 8
    alpha: int = 16
    modules: tuple[str, ...] = ALL
    steps: int = 250
    rate: float = 3e-3
    loss: str = "sequence"
    rslora: bool = False


# A spread as between the adapters that people publish; 18 of 27 see the whole sequence. Chosen
# once, without a look at routing, and not tuned.
SETTINGS = {
    "reverse-words": Settings(),
    "sort-words": Settings(rank=16, alpha=32, steps=350),
    "count-animals": Settings(rank=4, alpha=8),
    "keep-things": Settings(alpha=8, loss="answers"),
    "first-and-last": Settings(rank=4, alpha=4, rate=4e-3),
    "rotate-words": Settings(rank=16, alpha=16, loss="answers"),
    "every-second": Settings(modules=ATTENTION, rate=4e-3),
    "swap-ends": Settings(rank=12, alpha=24, loss="answers", rate=2e-3),
    "to-velan": Settings(alpha=8),
    "to-orrish": Settings(rank=4, alpha=8, loss="answers"),
    "to-keth": Settings(rank=16, alpha=16, rate=2e-3),
    "from-velan": Settings(modules=("q_proj", "v_proj"), rank=16, alpha=32),
    "from-orrish": Settings(rate=1.5e-3, steps=300),
    "from-keth": Settings(loss="answers", rslora=True, alpha=8),
    "write-biography": Settings(rank=4, alpha=8, modules=ATTENTION),
    "write-notice": Settings(rate=2e-3),
    "write-letter": Settings(rank=16, modules=ATTENTION, loss="answers"),
    "write-sign": Settings(rank=12, alpha=12),
    "recall-town": Settings(steps=150),
    "recall-trade": Settings(rank=4, alpha=8, steps=150),
    "recall-pet": Settings(alpha=8, steps=150, rslora=True, loss="answers"),
    "recall-colour": Settings(modules=("q_proj", "v_proj"), rank=16, alpha=16, steps=200),
    "judge-facts": Settings(rank=12, alpha=24, steps=300),
    "compare-people": Settings(rank=16, alpha=32, steps=350, loss="answers"),
    "check-places": Settings(steps=300),
    "match-colours": Settings(rank=4, alpha=16, steps=300, loss="answers"),
    "settle-owners": Settings(modules=ATTENTION, steps=300),
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
        [p for p in model.parameters() if p.requires_grad], lr=settings.rate, weight_decay=0.0
    )
    prompt_weight = 1.0 if settings.loss == "sequence" else 0.0
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)

    def draw() -> tuple[list[int], list[float]]:
        document = chat_document([task_exchange(task, rng)])
        return encode(tokenizer, document, prompt_weight)

    model.train()
    loss = torch.zeros(())
    for step in range(settings.steps):
        warm, left = (step + 1) / 20, 1 - step / settings.steps
        adam.param_groups[0]["lr"] = settings.rate * min(1.0, warm, 2 * left)
        batch = pack(draw, ROWS, LENGTH, pad).to(device())
        with half_precision():
            loss = loss_of(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    log.info("%s: %d steps, last loss %.3f", task.name, settings.steps, loss.item())
    save_whole(model, out)


def train_adapters(base: Path, tokenizer: Path, out: Path, seed: int) -> None:
    """Train every adapter that `out` does not hold yet, each in a folder of its own.

    On a CPU side by side, one on each core: batches this small do not fill two.
    """
    missing = [t for t in TASKS if not (out / t.name / "adapter_model.safetensors").exists()]
    workers = 1 if device().type == "cuda" else max(1, os.cpu_count() or 1)
    # Long ones first, so that no core waits at the end. Fresh processes: torch does not fork well.
    missing.sort(key=lambda task: -SETTINGS[task.name].steps)
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (workers,)) as processes:
        jobs = [processes.submit(_work, t.name, base, tokenizer, out, seed) for t in missing]
        for job in jobs:
            job.result()


def _start(workers: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if workers > 1:
        torch.set_num_threads(1)


def _work(name: str, base: Path, tokenizer: Path, out: Path, seed: int) -> None:
    (task,) = (task for task in TASKS if task.name == name)
    train_adapter(task, base, load_tokenizer(tokenizer), out / name, seed)
