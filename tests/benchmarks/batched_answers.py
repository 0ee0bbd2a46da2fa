"""Would `eval` be faster if it answered the prompts of one adapter in one batch?

    python tests/benchmarks/batched_answers.py --data SUITE/report/{plural,snli,e2e-nlg}.jsonl

For each task, 16 prompts are answered greedily by the task's adapter of the demo: one after the
other, and as 16 sequences of one batch, in turn. Median ratio of the times; seconds for prompts and
for answers of the last repeat; how many answers are the same.
"""

from __future__ import annotations

import ctypes
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click
import llama_cpp
import numpy as np

from logo_local import LoGo, config

SEQUENCES, LONGEST, MOST_TOKENS = 16, 512, 40


@dataclass
class Batched:
    """Answers several prompts as sequences of one context."""

    llm: LoGo
    adapter: Path
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def __post_init__(self) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = SEQUENCES * LONGEST, SEQUENCES
        params.n_batch, params.n_ubatch, params.kv_unified = SEQUENCES * LONGEST, LONGEST, True
        params.n_threads = params.n_threads_batch = self.llm.n_threads
        model = self.llm._model.model
        self.ctx = llama_cpp.llama_init_from_model(model, params)
        lora = llama_cpp.llama_adapter_lora_init(model, str(self.adapter).encode())
        llama_cpp.llama_set_adapters_lora(
            self.ctx,
            (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora),
            1,
            (ctypes.c_float * 1)(1.0),
        )
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Evaluate (token, position, sequence, wanted); the likeliest token where wanted."""
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, wanted
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
        self.batch.n_tokens = len(rows)
        assert llama_cpp.llama_decode(self.ctx, self.batch) == 0
        n_vocab = self.llm.n_vocab()
        return {
            row[2]: int(
                np.ctypeslib.as_array(
                    llama_cpp.llama_get_logits_ith(self.ctx, i), (n_vocab,)
                ).argmax()
            )
            for i, row in enumerate(rows)
            if row[3]
        }

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """The first line of each answer, all in one batch."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), False)
        started = time.perf_counter()
        rows = [
            (token, at, sequence, at == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        following = self.decode(rows)
        self.seconds[0] += time.perf_counter() - started
        started = time.perf_counter()
        found: list[list[int]] = [[] for _ in prompts]
        while following:
            rows = []
            for sequence, token in following.items():
                text = found[sequence]
                if not self._ends(token) and len(text) < MOST_TOKENS:
                    text.append(token)
                    at = len(prompts[sequence]) + len(text) - 1
                    rows.append((token, at, sequence, True))
            following = self.decode(rows) if rows else {}
        self.seconds[1] += time.perf_counter() - started
        return [self.llm.detokenize(text).decode("utf-8", "ignore") for text in found]

    def _ends(self, token: int) -> bool:
        is_end = llama_cpp.llama_vocab_is_eog(self.llm._model.vocab, token)
        return is_end or b"\n" in self.llm.detokenize([token])


def prompts_of(llm: LoGo, path: Path) -> list[list[int]]:
    """The tokens of the first prompts of a file, with the chat template."""
    lines = path.read_text("utf-8").splitlines()[:SEQUENCES]
    texts = [json.loads(line)["context"] for line in lines]
    tokens = [llm.tokens_of([{"role": "user", "content": text}]) for text in texts]
    return [one for one in tokens if len(one) <= LONGEST - MOST_TOKENS]


@click.command()
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.option("--data", multiple=True, type=click.Path(path_type=Path))
@click.option("--threads", default=1, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(more: tuple[Path, ...], data: tuple[Path, ...], threads: int, repeats: int) -> None:
    """Print a row for each task."""
    llm = LoGo("demo", n_ctx=LONGEST, n_threads=threads, n_threads_batch=threads)
    print("| task | one by one / batch | one by one: prompts, answers | batch | same answers |")
    print("|---|---|---|---|---|")
    for path in (*data, *more):
        batched = Batched(llm, config.demo_adapters() / f"{path.stem}.gguf")
        prompts, ratios = prompts_of(llm, path), []
        for _ in range(repeats):
            batched.seconds = [0.0, 0.0]
            one = [batched.answers([prompt])[0] for prompt in prompts]
            alone, batched.seconds = batched.seconds, [0.0, 0.0]
            many = batched.answers(prompts)
            ratios.append(sum(alone) / sum(batched.seconds))
        same = sum(a == b for a, b in zip(one, many, strict=True))
        times = (f"{a:.1f} s, {b:.1f} s" for a, b in (alone, batched.seconds))
        print(
            f"| {path.stem} | {median(ratios):.2f} | {' | '.join(times)} | {same} of {len(one)} |"
        )


if __name__ == "__main__":
    main()
