"""The demo: eight prompts, answered by the base model and with the selected adapters.

    python -m logo_local.commands.showcase

The prompts are stored with the demo's adapters. They and their wordings were not used in training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import config
from ..completions import Engine, Sampling, as_prompt, complete
from ..console import report
from ..console.opening import open_engine
from ..console.terminal import ErrorsAsText, out_console, warnings_as_lines
from ..errors import ModelError
from ..routing.route import Route

PROMPTS_FILE = "demo_prompts.jsonl"
_GREEDY = Sampling(max_tokens=48, temp=0.0)
_MOST = 240  # maximum characters of an answer that are shown
_WIDEST = 120  # columns of both answers, also in a pipe, which has no width


@dataclass(frozen=True)
class Example:
    """A prompt, its accepted answers, and the name of the adapter trained for its task."""

    context: str
    answers: tuple[str, ...]
    adapter: str


@dataclass(frozen=True)
class Result:
    """The result for one example."""

    example: Example
    base: str
    blend: str
    route: Route

    def is_right(self, answer: str) -> bool:
        """Whether `answer` is exactly an accepted one."""
        return answer.strip() in self.example.answers


def read_examples(path: Path) -> list[Example]:
    """The examples in a JSON lines file. Raises ModelError if it is missing or damaged."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        return [Example(r["context"], tuple(r["completion"]), r["adapter"]) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the demo's prompts cannot be read from {path}: {error}",
            hint="files of the demo are missing or damaged: run logo-local doctor",
        ) from error


def results(llm: Engine, examples: Iterable[Example]) -> Iterator[Result]:
    """Answer each example greedily: with the base alone, and with the selected adapters."""
    for example in examples:
        prompt = as_prompt(llm, example.context)
        with llm.base_only():
            base = complete(llm, prompt, _GREEDY).text
        blend = complete(llm, prompt, _GREEDY).text
        yield Result(example, base, blend, llm.last_route or Route())


def show(llm: Engine, examples: Iterable[Example], console: Console) -> list[Result]:
    """Print each result when it is ready, then one line with the counts."""
    done = []
    for result in results(llm, examples):
        done.append(result)
        console.print(Text(f"{len(done)}. {result.example.context}", "bold"))
        console.print(_side_by_side(result, min(console.width, _WIDEST)))
        console.print()
    console.print(summary(done))
    return done


def _side_by_side(result: Result, width: int) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0), pad_edge=False)
    column = max((width - 6) // 2, 12)
    for _ in range(2):
        table.add_column(width=column, overflow="fold")
    blend = report.blend_line(result.route, column) if result.route.names else "no adapter"
    table.add_row(Text("base model", "dim"), Text(f"with {blend}", "dim"))
    table.add_row(*(_judged(result, answer) for answer in (result.base, result.blend)))
    return table


def _judged(result: Result, answer: str) -> Text:
    text = " ".join(answer.split()) or "(nothing)"
    text = text if len(text) <= _MOST else text[: _MOST - 4].rstrip() + " ..."
    mark, style = ("right: ", "green") if result.is_right(answer) else ("", "")
    return Text.assemble((mark, style), text)


def summary(done: list[Result]) -> str:
    """The results in one line."""
    base = sum(result.is_right(result.base) for result in done)
    blend = sum(result.is_right(result.blend) for result in done)
    return (
        f"Right answers to {len(done)} prompts: {base} by the base model, "
        f"{blend} with the adapters that were chosen for each prompt."
    )


@click.command(cls=ErrorsAsText)
def main() -> None:
    """Answer the demo's prompts with the base model alone and with the chosen adapters."""
    examples = read_examples(config.demo_folder() / PROMPTS_FILE)
    with warnings_as_lines():
        llm = open_engine("demo", None)
        try:
            console = out_console()
            console.print(
                f"SmolLM2-135M-Instruct with {len(llm.pool.names)} LoRA adapters. Each prompt is "
                "answered twice: by the base model alone, and with the adapters that the router "
                "chose. It is not told which adapter a prompt belongs to.\n"
            )
            show(llm, examples, console)
            console.print(
                "Chat with it: logo-local run demo. How routing was measured: docs/quality.md"
            )
        finally:
            llm.close()


if __name__ == "__main__":
    main()
