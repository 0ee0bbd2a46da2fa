"""How often answers repeat themselves, and what a repeat penalty costs where one answer is right.

    python tests/benchmarks/repetition.py --data SUITE/choose/*.jsonl

With the demo and its adapters: the share of the eight demo prompts with the right answer, the mean
score of the first prompts of each adapter's task, and the number of everyday answers of which fewer
than half of all sequences of four words are distinct; numbers are left out, since lists count up.
Everyday prompts are those of the task everyday and eight that invite to repeat. Takes about half an
hour on one core.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import click

from logo_local import LoGo, config
from logo_local.commands.showcase import PROMPTS_FILE
from logo_local.commands.showcase import read_examples as read_demo
from logo_local.completions import Sampling, as_prompt, complete
from logo_local.evaluation.data import read_examples
from logo_local.evaluation.metrics import first_line, measure

SAMPLINGS = [
    Sampling(temp=temp, repeat_penalty=penalty, seed=7 if temp else None)
    for temp, penalty in ((0.0, 1.0), (0.0, 1.05), (0.0, 1.1), (0.8, 1.0), (0.8, 1.1))
]
INVITING = (
    "Tell me something special about me.",
    "List 30 animals.",
    "Write a poem about the sea.",
    "What are the names of the kings of England?",
    "Tell me a long story about a dog.",
    "Give me ten tips for sleeping better.",
    "Count from 1 to 40.",
    "Explain how a computer works in detail.",
)
N = 4  # words in a sequence
EVERYDAY = 8  # prompts of the task of that name


def distinct(text: str) -> float:
    """The share of the sequences of N words that are distinct; 1 for a short text."""
    words = re.sub(r"\d+", "", text).split()
    sequences = list(zip(*(words[i:] for i in range(N)), strict=False))
    return len(set(sequences)) / len(sequences) if len(sequences) > 20 else 1.0


@click.command()
@click.option("--data", multiple=True, type=click.Path(path_type=Path), required=True)
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.option("--limit", default=2, show_default=True, help="Prompts of each adapter.")
@click.option("--max-tokens", default=300, show_default=True, help="Of an everyday answer.")
def main(data: tuple[Path, ...], more: tuple[Path, ...], limit: int, max_tokens: int) -> None:
    """Print a Markdown table, one row for each sampling."""
    files = [*data, *more]
    demo = read_demo(config.demo_folder() / PROMPTS_FILE)
    click.echo(
        "| sampling | demo prompts | score | answers that repeat themselves |\n|---|---|---|---|"
    )
    with LoGo("demo", n_ctx=2048) as llm:
        tasks = [
            example
            for path in files
            if path.stem in llm.pool.names
            for example in read_examples([path], llm.pool.names, limit)
        ]
        (everyday,) = (path for path in files if path.stem == "everyday")
        asked = [e.context for e in read_examples([everyday], llm.pool.names, EVERYDAY)]
        for sampling in SAMPLINGS:

            def answer(text: str, n: int, sampling: Sampling = sampling) -> str:
                return complete(llm, as_prompt(llm, text), replace(sampling, max_tokens=n)).text

            right = sum(answer(e.context, 64).strip() in e.answers for e in demo)
            scores = [
                measure(first_line(answer(e.context, 64)), e.answers)[e.metric] for e in tasks
            ]
            repeats = [distinct(answer(text, max_tokens)) < 0.5 for text in (*asked, *INVITING)]
            click.echo(
                f"| temp {sampling.temp:g}, repeat-penalty {sampling.repeat_penalty:g} "
                f"| {right} of {len(demo)} | {sum(scores) / len(scores):.3f} ({len(scores)}) "
                f"| {sum(repeats)} of {len(repeats)} |"
            )


if __name__ == "__main__":
    main()
