"""The demo: prompts answered by the base, under their mixture, and by the right adapter alone.

    python -m logo_local.commands.showcase

Shows what is, also where routing errs. The prompts lie beside the bundled model, and none of
them was trained on; each names the adapter that was trained for its kind. Of another model one
can make the same with `show`.
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
from ..ask import Engine, Sampling, as_prompt, ask
from ..console import report
from ..console.opening import open_engine
from ..console.terminal import ErrorsAsText, out_console, warnings_as_lines
from ..errors import ModelError
from ..routing.route import Route

PROMPTS_FILE = "demo_prompts.jsonl"
_GREEDY = Sampling(max_tokens=96, temp=0.0)


@dataclass(frozen=True)
class Example:
    """A prompt, its right answer, and the name of the adapter that was trained for its kind."""

    context: str
    completion: str
    adapter: str


@dataclass(frozen=True)
class Result:
    """What came out for one example."""

    example: Example
    base: str
    mixture: str
    own: str
    route: Route

    def is_right(self, answer: str) -> bool:
        """Whether `answer` is the right one, to the letter."""
        return answer.strip() == self.example.completion.strip()

    @property
    def own_is_first(self) -> bool:
        """Whether the adapter trained for this kind of prompt has the largest weight."""
        return self.route.names[:1] == (self.example.adapter,)


def read_examples(path: Path) -> list[Example]:
    """The examples in a JSON lines file. Raises ModelError where it is missing or damaged."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        return [Example(row["context"], row["completion"], row["adapter"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the demo's prompts cannot be read from {path}: {error}",
            hint="the bundled model is missing or damaged: logo-local doctor says more",
        ) from error


def results(llm: Engine, examples: Iterable[Example]) -> Iterator[Result]:
    """Answer each example greedily: by the base, under its mixture, by its own adapter."""
    for example in examples:
        prompt = as_prompt(llm, example.context)
        with llm.base_only():
            base = ask(llm, prompt, _GREEDY).text
        mixture = ask(llm, prompt, _GREEDY).text
        route = llm.last_route or Route()
        with llm.under({example.adapter: 1.0}):
            own = ask(llm, prompt, _GREEDY).text
        yield Result(example, base, mixture, own, route)


def show(llm: Engine, examples: Iterable[Example], console: Console) -> list[Result]:
    """Print each result as it comes, then one line that counts them."""
    done = []
    for result in results(llm, examples):
        done.append(result)
        _show_one(result, console)
    console.print(summary(done))
    return done


def _show_one(result: Result, console: Console) -> None:
    def judged(answer: str) -> Text:
        mark, style = ("yes", "green") if result.is_right(answer) else ("no ", "red")
        return Text.assemble((mark, style), f"  {answer.strip() or '(nothing)'}")

    own = result.example.adapter
    rows = {
        "prompt": Text(result.example.context, "bold"),
        "right": Text(f"     {result.example.completion}"),
        "base": judged(result.base),
        "mixture": judged(result.mixture),
        "blended": Text(report.blend_line(result.route, console.width - 10)),
        "own": judged(result.own),
        "trained": Text(own if result.own_is_first else f"{own}, which is not the first above"),
    }
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows.items():
        grid.add_row(label, text)
    console.print(grid)
    console.print()


def summary(done: list[Result]) -> str:
    """The results in one line."""
    n = len(done)
    base = sum(result.is_right(result.base) for result in done)
    mixture = sum(result.is_right(result.mixture) for result in done)
    own = sum(result.is_right(result.own) for result in done)
    first = sum(result.own_is_first for result in done)
    return (
        f"of {n} prompts, right are: base alone {base}, mixture {mixture}, "
        f"own adapter alone {own}; its own adapter comes first for {first}"
    )


@click.command(cls=ErrorsAsText)
def main() -> None:
    """Answer the bundled prompts with the bundled model, alone and under mixtures."""
    examples = read_examples(config.demo_folder() / PROMPTS_FILE)
    with warnings_as_lines():
        llm = open_engine("demo", None)
        try:
            console = out_console()
            console.print(
                f"Each prompt is answered by the base alone, under the mixture that is blended for "
                f"it from {len(llm.pool.names)} adapters, and, to compare, by its own adapter: the "
                "one trained for its kind, which the program is not told.\n"
            )
            show(llm, examples, console)
            console.print("How well each way of routing does on 1,424 prompts: docs/quality.md")
        finally:
            llm.close()


if __name__ == "__main__":
    main()
