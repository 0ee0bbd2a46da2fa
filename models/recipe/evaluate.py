"""Measuring base and adapters with llama.cpp, on prompts that no training has seen."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from llama_cpp import Llama

from logo_local.evaluation.metrics import measure

from .chat_format import render_prompt
from .corpus import example_prompts, fill, task_exchange
from .families import FAMILY_OF, SETS, TASKS, OutsideSet, Task
from .tokenizer import CONTEXT
from .train_adapters import SETTINGS

PROMPTS = 40  # a task; the closed-book tasks have just this many people kept from training
CHOOSING = 20  # prompts a task for choosing settings
EXAMPLES = 8  # example prompts that lie beside each adapter
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
    """A user's message, the right answer to it, and the adapter that was trained for it, if any.

    `group` says what that adapter's loss covered, or how the set is related to the pool.
    """

    context: str
    completion: str
    adapter: str | None
    family: str
    group: str
    metric: str = "em"


@dataclass(frozen=True)
class Score:
    """Means over `n` answers of the task's metric, decoded greedily."""

    base: float
    own: float
    n: int


def examples(task: Task, wording: str, n: int, seed: int) -> list[Example]:
    """`n` different prompts of a task in one of its untrained wordings, with held-out inputs."""
    rng = Random(f"{seed}/{wording}")
    found: dict[str, str] = {}
    while len(found) < n:
        prompt, answer = task_exchange(task, rng, wording)
        found[prompt] = answer
    family, group = FAMILY_OF[task.name].name, SETTINGS[task.name].loss
    metric = metric_of(family)
    return [Example(p, a, task.name, family, group, metric) for p, a in found.items()]


def metric_of(name: str) -> str:
    """What a family of tasks, or a set outside the pool, is scored by.

    ROUGE-L for sentences with a name from the prompt in them, of which exact match would say only
    whether this small a base has learned to copy names; exact match for all others.
    """
    return "rougeL" if name in ("struct-to-text", "write-label", "greet-guest") else "em"


def outside_examples(outside: OutsideSet, n: int, seed: int) -> list[Example]:
    """At most `n` different prompts of a set without an adapter, with held-out inputs."""
    rng = Random(f"{seed}/{outside.name}")
    found: dict[str, str] = {}
    for _ in range(50 * n):
        item = outside.sample(rng, held_out=True)
        found[fill(outside.held_out, item)] = item.answers[outside.right]
        if len(found) == n:
            break
    metric = metric_of(outside.name)
    return [Example(p, a, None, outside.group, outside.group, metric) for p, a in found.items()]


def write_suite(demo: Path, seed: int) -> None:
    """Write what is asked in evaluation, what settings are chosen on, and the example prompts.

    The closed-book tasks have 40 people to ask about; both wordings ask about the same.
    """
    for folder in ("eval", "choose"):
        (demo / folder).mkdir(exist_ok=True)
    write_example_prompts(demo / "adapters", seed)
    for task in TASKS:
        name = f"{task.name}.jsonl"
        write_lines(examples(task, task.held_out, PROMPTS, seed), demo / "eval" / name)
        write_lines(examples(task, task.choosing, CHOOSING, seed), demo / "choose" / name)
    for outside in SETS:
        asked = outside_examples(outside, PROMPTS + CHOOSING, seed)
        to_report = len(asked) * PROMPTS // (PROMPTS + CHOOSING)  # some have fewer held-out inputs
        write_lines(asked[:to_report], demo / "eval" / f"{outside.name}.jsonl")
        write_lines(asked[to_report:], demo / "choose" / f"{outside.name}.jsonl")


def write_example_prompts(adapters: Path, seed: int) -> None:
    """Write a few prompts of its task, without answers, beside each adapter of the folder."""
    for task in TASKS:
        given = example_prompts(task, EXAMPLES, seed)
        text = "".join(f"{prompt}\n" for prompt in given)
        (adapters / f"{task.name}.prompts.txt").write_text(text)


def write_lines(items: list[Example], path: Path) -> None:
    """Write examples as JSON lines."""
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))


def mean_score(model: Llama, items: list[Example]) -> float:
    """The mean of the examples' metric over the model's answers, in [0, 1]."""
    total = 0.0
    for item in items:
        reply = model(render_prompt(item.context), max_tokens=32, temperature=0.0)
        total += measure(reply["choices"][0]["text"], [item.completion])[item.metric]
    return total / len(items)


def evaluate(demo: Path, seed: int) -> dict[str, Score]:
    """Write the suite into the demo folder and measure every task, by its name."""
    write_suite(demo, seed)
    base = _load(demo)
    found, shown = {}, []
    for task in TASKS:
        items = examples(task, task.held_out, PROMPTS, seed)
        own = _load(demo, task.name)
        found[task.name] = Score(mean_score(base, items), mean_score(own, items), len(items))
        log.info("%s: base %.2f, own %.2f", task.name, found[task.name].base, found[task.name].own)
        if task.name in SHOWN:
            shown.append(items[0])
    for outside in SETS:
        asked = outside_examples(outside, PROMPTS, seed)
        log.info("%s: base %.2f", outside.name, mean_score(base, asked))
    write_lines(shown, demo / "demo_prompts.jsonl")
    return found


def _load(demo: Path, adapter: str = "") -> Llama:
    return Llama(
        str(demo / "logo-demo.gguf"),
        lora_path=str(demo / "adapters" / f"{adapter}.gguf") if adapter else None,
        n_ctx=CONTEXT,
        verbose=False,
    )
