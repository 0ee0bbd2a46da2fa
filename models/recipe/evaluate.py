"""Measuring base and adapters with llama.cpp, on prompts that no training has seen."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from llama_cpp import Llama

from .corpus import task_exchange
from .templates import TASKS, Task, render_prompt
from .tokenizer import CONTEXT

PROMPTS = 40  # a task; the closed-book tasks have just this many people kept from training
# What `make demo` shows: one or two a family.
SHOWN = (
    "reverse-words",
    "sort-words",
    "to-velan",
    "to-keth",
    "write-notice",
    "recall-town",
    "recall-pet",
    "judge-facts",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A user's message, the right answer to it, and the adapter that was trained for it."""

    context: str
    completion: str
    adapter: str
    template: int  # number of the wording; the held-out one comes after those trained on


@dataclass(frozen=True)
class Accuracy:
    """Shares of `n` answers that are right to the letter, decoded greedily."""

    base: float
    own: float
    n: int


def examples(task: Task, seed: int) -> list[Example]:
    """Different prompts of a task: inputs and wording both held out."""
    rng = Random(f"{seed}/evaluate/{task.name}")
    found: dict[str, str] = {}
    while len(found) < PROMPTS:
        prompt, answer = task_exchange(task, rng, held_out=True)
        found[prompt] = answer
    return [
        Example(prompt, answer, task.name, len(task.templates)) for prompt, answer in found.items()
    ]


def write_lines(items: list[Example], path: Path) -> None:
    """Write examples as JSON lines."""
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))


def exact_match(model: Llama, items: list[Example]) -> float:
    """The share of examples that the model answers right, in [0, 1]."""
    right = 0
    for item in items:
        reply = model(render_prompt(item.context), max_tokens=32, temperature=0.0)
        right += reply["choices"][0]["text"].strip() == item.completion
    return right / len(items)


def evaluate(demo: Path, seed: int) -> dict[str, Accuracy]:
    """Write the evaluation files into the demo folder and measure every task, by its name."""
    (demo / "eval").mkdir(exist_ok=True)
    base = _load(demo)
    found, shown = {}, []
    for task in TASKS:
        items = examples(task, seed)
        write_lines(items, demo / "eval" / f"{task.name}.jsonl")
        own = _load(demo, task.name)
        found[task.name] = Accuracy(exact_match(base, items), exact_match(own, items), len(items))
        log.info("%s: base %.2f, own %.2f", task.name, found[task.name].base, found[task.name].own)
        if task.name in SHOWN:
            shown.append(items[0])
    write_lines(shown, demo / "demo_prompts.jsonl")
    return found


def _load(demo: Path, adapter: str = "") -> Llama:
    return Llama(
        str(demo / "logo-demo.gguf"),
        lora_path=str(demo / "adapters" / f"{adapter}.gguf") if adapter else None,
        n_ctx=CONTEXT,
        verbose=False,
    )
