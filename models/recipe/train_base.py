"""Training of the base: a small Llama, from scratch, on the text of `corpus`."""

import logging
import shutil
import time
from pathlib import Path
from random import Random

import torch
from peft import PeftModel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from .batches import Batch, encode, loss_of, pack
from .corpus import LATE_SHARES, SHARES, base_document
from .muon import Muon
from .tokenizer import CONTEXT

STEPS, LATE_STEPS = 3300, 500
CHATTER = 0.5  # how often a prompt has company before it, and after it
ROWS, LENGTH = 32, 128  # tokens in a batch: 4096, little of it padding
PROMPT_WEIGHT = 0.2  # prompts are mostly chance: what they teach is soon learned
MUON_RATE, ADAM_RATE = 0.02, 4e-3
WARM_UP, COOL_DOWN = 0.02, 0.45  # shares of the first steps
LATE_RATE, LATE_COOL_DOWN = 0.5, 0.7  # of the full rate; of the late steps
CHECKPOINT_MINUTES = 3.0

log = logging.getLogger(__name__)


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision() -> torch.autocast:
    """bfloat16 where the machine computes with it: without AVX-512 it is ten times slower."""
    fast = device().type == "cuda" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=fast)


def save_whole(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Save in Hugging Face's format, in one step: a folder that is there is complete."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model: 5.1 million parameters, grouped-query attention, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=800,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def rate(step: int) -> float:
    """The learning rate's factor at a step: up, level, and down to nothing, in straight lines.

    The late steps begin once more, at half the rate.
    """
    if step >= STEPS:
        left = 1 - (step - STEPS) / LATE_STEPS
        return LATE_RATE * min(1.0, left / LATE_COOL_DOWN)
    done = step / STEPS
    return min(1.0, (done + 1 / STEPS) / WARM_UP, (1 - done) / COOL_DOWN)


def base_batch(tokenizer: PreTrainedTokenizerFast, seed: int, step: int) -> Batch:
    """The batch of a step; it depends on nothing else, so that training can be resumed."""
    rng = Random(f"{seed}/{step}")
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    shares = SHARES if step < STEPS else LATE_SHARES

    def draw() -> tuple[list[int], list[float]]:
        return encode(tokenizer, base_document(rng, CHATTER, shares), PROMPT_WEIGHT)

    return pack(draw, ROWS, LENGTH, pad)


def train_base(tokenizer: PreTrainedTokenizerFast, out: Path, checkpoint: Path, seed: int) -> None:
    """Train, or go on training from `checkpoint`, and save in Hugging Face's format to `out`."""
    torch.manual_seed(seed)
    model = new_model(tokenizer).to(device())
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if ".layers." not in name or p.ndim != 2]
    # Muon learns about twice as much from a batch as Adam does; it is for the matrices only.
    muon = Muon(matrices, lr=MUON_RATE, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    start, minutes = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device(), weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        start, minutes = state["step"], state["minutes"]

    log.info("base: %d parameters, from step %d", model.num_parameters(), start)
    model.train()
    began = saved = time.monotonic()
    optimizers: dict[torch.optim.Optimizer, float] = {muon: MUON_RATE, adam: ADAM_RATE}
    for step in range(start, STEPS + LATE_STEPS):
        for optimizer, full in optimizers.items():
            optimizer.param_groups[0]["lr"] = full * rate(step)
        batch = base_batch(tokenizer, seed, step).to(device())
        with half_precision():
            loss = loss_of(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        now = time.monotonic()
        if step % 25 == 0:
            log.info(
                "step %d, loss %.3f, %.1f min", step, loss.item(), minutes + (now - began) / 60
            )
        if now - saved > 60 * CHECKPOINT_MINUTES or step == STEPS + LATE_STEPS - 1:
            saved = now
            state = {
                "model": model.state_dict(),
                "muon": muon.state_dict(),
                "adam": adam.state_dict(),
                "step": step + 1,
                "minutes": minutes + (now - began) / 60,
            }
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(checkpoint)
    save_whole(model, out)
