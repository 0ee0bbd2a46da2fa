"""This project, llama.cpp's own server, and llama_cpp.Llama alone, in one run.

    python tests/benchmarks/peers.py all demo FOLDER
    python tests/benchmarks/peers.py speed demo [--repeats 5] [--threads 1]
    python tests/benchmarks/peers.py speed FOLDER    # 1.1B parameters, random weights; see speed.py
    python tests/benchmarks/peers.py clients demo [--clients 1 4 16]
    python tests/benchmarks/peers.py start demo

`speed`: one client; time to the first token and per further token with k adapters of equal weight.
llama-server (of the package xllamacpp) has the same adapters, and the caller sets their scales;
llama_cpp.Llama has none. `logo-local, routed` selects k adapters by the signal `norm` and creates
the mixture within the time to the first token. `clients`: tokens per second of several clients,
with three adapters. `start`: seconds from the start of a process to its first token, and its
memory after an answer with 20 adapters. Every request has another prompt; nothing is in a cache.
The runners take turns; medians. Prints Markdown; ratios are to llama_cpp.Llama in the same round.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import httpx2 as httpx
import numpy as np
import psutil

sys.path.append(str(Path(__file__).parents[1]))

from llama_server import llama_server
from random_model import random_model
from upstream import CLIENT, server

from logo_local import config

KS = (0, 1, 3, 10, 20)
N_ADAPTERS, N_CTX = 20, 1024
PLAIN, ROUTED, GIVEN, LLAMA_SERVER = (
    *("llama_cpp.Llama", "logo-local, routed", "logo-local, given weights", "llama-server"),
)
Runner = Callable[[list[int], int], Iterator[float]]  # (prompt, k): the time of each token


def files(where: str) -> tuple[Path, Path]:
    """The model and the folder of its adapters."""
    if where == "demo":
        return config.demo_model(), config.demo_adapters()
    return random_model(Path(where), N_ADAPTERS)


def prompt_of(n: int, seed: int) -> list[int]:
    """Random tokens, others for each seed."""
    return np.random.default_rng(seed).integers(300, 30_000, n).tolist()


def scales(k: int) -> list[dict[str, float]]:
    """Equal weights for the first k adapters, as llama-server takes them."""
    return [{"id": i, "scale": 1 / k if i < k else 0.0} for i in range(N_ADAPTERS)]


def _llama(llm: Any, prompt: list[int], n: int) -> Iterator[float]:
    answer = llm.generate(prompt, temp=0.0)
    for _ in range(n):
        next(answer)
        yield time.perf_counter()
    answer.close()


def _http(url: str, prompt: list[int], n: int, k: int) -> Iterator[float]:
    body = {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "cache_prompt": False, "lora": scales(k)}
    with httpx.stream("POST", f"{url}/completion", json=body, timeout=600) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: ") and not json.loads(line[6:]).get("stop"):
                yield time.perf_counter()


def measured(run: Runner, prompt: list[int], k: int) -> tuple[float, float]:
    """Milliseconds to the first token, and per further token."""
    started = time.perf_counter()
    times = [(at - started) * 1000 for at in run(prompt, k)]
    return times[0], (times[-1] - times[0]) / (len(times) - 1)


@contextmanager
def _without_examples(adapters: Path) -> Iterator[Path]:
    """A folder with the first 20 adapters and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(adapters.glob("*.gguf"))[:N_ADAPTERS]:
            shutil.copy(path, folder)
        yield Path(folder)


# --- one client ---------------------------------------------------------------------------------


def speed(base: Path, adapters: Path, threads: int, repeats: int, length: int, answer: int) -> None:
    """First token and further tokens, by the number of adapters."""
    from llama_cpp import Llama

    from logo_local import LoGo

    how = {"n_ctx": N_CTX, "n_threads": threads, "n_threads_batch": threads}
    with ExitStack() as stack:
        bare = stack.enter_context(_without_examples(adapters))
        paths = sorted(bare.glob("*.gguf"))
        plain = Llama(str(base), verbose=False, **how)
        llm = stack.enter_context(LoGo(base, bare, signal="norm", cache_memory=0, **how))
        _, url = stack.enter_context(
            llama_server(base, paths, slots=1, context=N_CTX, threads=threads)
        )
        names = [path.stem for path in paths]

        def routed(prompt: list[int], k: int) -> Iterator[float]:
            weights = llm.route(prompt, routing={"top_k": k}).applied if k else {}
            with llm.under(weights):
                yield from _llama(llm, prompt, answer)

        def given(prompt: list[int], k: int) -> Iterator[float]:
            with llm.under(dict.fromkeys(names[:k], 1 / k) if k else {}):
                yield from _llama(llm, prompt, answer)

        runners: dict[str, Runner] = {
            PLAIN: lambda prompt, _k: _llama(plain, prompt, answer),
            ROUTED: routed,
            GIVEN: given,
            LLAMA_SERVER: lambda prompt, k: _http(url, prompt, answer, k),
        }
        firsts, tokens = defaultdict(list), defaultdict(list)
        seed = 0
        for k in KS:
            for round_ in range(-1, repeats):  # the first is a warm-up
                alone: tuple[float, float] = (0.0, 0.0)
                for name, run in runners.items():
                    seed += 1
                    first, token = measured(run, prompt_of(length, seed), k)
                    alone = (first, token) if name == PLAIN else alone
                    if round_ >= 0:
                        firsts[name, k].append((first, first / alone[0]))
                        tokens[name, k].append((token, token / alone[1]))
    print(f"{base.name}, {length} prompt tokens, {answer} answer tokens, {threads} thread(s)\n")
    _table("first token", firsts, runners)
    _table("each further token", tokens, runners)


def _table(title: str, found: Mapping[tuple[str, int], list], names: Iterable[str]) -> None:
    print(f"| {title} | {' | '.join(f'k = {k}' for k in KS)} |\n|---{'|---' * len(KS)}|")
    for name in names:
        cells = []
        for k in KS:
            ms, ratio = np.median(found[name, k], axis=0)
            cells.append(f"{ratio:.2f}" if name != PLAIN else f"{ms:.1f} ms")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()


# --- several clients ----------------------------------------------------------------------------


async def _load(url: str, bodies: Sequence[Mapping[str, Any]], clients: int) -> float:
    """Tokens per second of several clients that share these requests."""
    todo, n_tokens = list(bodies), 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal n_tokens
        while todo:
            answer = await http.post(f"{url}/v1/completions", json=todo.pop())
            assert answer.status_code == 200, answer.text
            n_tokens += answer.json()["usage"]["completion_tokens"]

    started = time.monotonic()
    async with httpx.AsyncClient(**CLIENT) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return n_tokens / (time.monotonic() - started)


def clients(base: Path, adapters: Path, threads: int, repeats: int, counts: list[int]) -> None:
    """Several clients at a time, with three adapters of equal weight."""
    from llama_cpp import Llama

    with ExitStack() as stack:
        bare = stack.enter_context(_without_examples(adapters))
        paths = sorted(bare.glob("*.gguf"))
        _, direct = stack.enter_context(
            llama_server(base, paths, slots=max(counts), context=N_CTX // 2, threads=threads)
        )
        common = ("--signal", "norm", "--ctx-size", f"{N_CTX // 2}")
        ours = (str(base), "--adapters", str(bare), *common, "--threads", str(threads))
        _, local = stack.enter_context(server(*ours))
        _, front = stack.enter_context(server(*ours, "--upstream", direct))
        vocab = Llama(str(base), vocab_only=True, verbose=False)
        weights = {path.stem: 1 / 3 for path in paths[:3]}
        mine = {"lora": weights}
        where = {
            "llama-server": (direct, {"lora": scales(3), "cache_prompt": False}),
            "logo-local serve": (local, mine),
            "logo-local serve --upstream": (front, {**mine, "cache_prompt": False}),
        }
        found, seed = defaultdict(list), 0
        for n in counts:
            for _ in range(repeats):
                for name, (url, how) in where.items():
                    bodies = []
                    for _ in range(max(8, n)):
                        seed += 1
                        text = vocab.detokenize(prompt_of(64, seed)).decode("utf-8", "ignore")
                        body = {"prompt": text, "max_tokens": 32, "temperature": 0, **how}
                        body["logit_bias"] = {str(vocab.token_eos()): -100}
                        bodies.append(body)
                    found[name, n].append(asyncio.run(_load(url, bodies, n)))
    print("| tokens/s, 64 + 32 tokens, k = 3 |", " | ".join(f"{n} clients" for n in counts), "|")
    print("|---" * (len(counts) + 1) + "|")
    for name in where:
        cells = (f"{median(found[name, n]):.1f}" for n in counts)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


# --- start and memory ---------------------------------------------------------------------------


def start_here(kind: str, base: Path, adapters: Path, threads: int) -> None:
    """In a process of its own: one token, then an answer with all adapters."""
    how = {"n_ctx": N_CTX, "n_threads": threads, "n_threads_batch": threads}
    if kind == PLAIN:
        from llama_cpp import Llama

        llm = Llama(str(base), verbose=False, **how)
    else:
        from logo_local import LoGo

        llm = LoGo(base, adapters, signal="norm", **how)
    with ExitStack() if kind == PLAIN else llm.base_only():
        list(_llama(llm, prompt_of(16, 1), 1))
    print("first token", flush=True)
    if kind != PLAIN:
        weights = llm.route(prompt_of(64, 2), routing={"top_k": N_ADAPTERS}).applied
        with llm.under(weights):
            list(_llama(llm, prompt_of(64, 2), 8))
    print(psutil.Process().memory_info().rss >> 20, flush=True)


def start(base: Path, adapters: Path, threads: int, repeats: int) -> None:
    """Start and memory of each, in turn."""
    found = defaultdict(list)
    with _without_examples(adapters) as bare:
        paths = sorted(bare.glob("*.gguf"))
        for _ in range(repeats):
            for kind in (PLAIN, "logo-local"):
                started = time.monotonic()
                command = [sys.executable, __file__, "start-here", kind, str(base), str(bare)]
                process = subprocess.Popen(
                    [*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True
                )
                assert process.stdout is not None
                process.stdout.readline()
                seconds = time.monotonic() - started
                found[kind].append((seconds, int(process.communicate()[0])))
            started = time.monotonic()
            with llama_server(base, paths, slots=1, context=N_CTX, threads=threads) as (p, url):
                list(_http(url, prompt_of(16, 1), 1, 0))
                seconds = time.monotonic() - started
                list(_http(url, prompt_of(64, 2), 8, N_ADAPTERS))
                found[LLAMA_SERVER].append((seconds, psutil.Process(p.pid).memory_info().rss >> 20))
    print("| | start to first token | memory with 20 adapters |\n|---|---|---|")
    for kind, rows in found.items():
        seconds, memory = np.median(rows, axis=0)
        print(f"| {kind} | {seconds:.2f} s | {memory:.0f} MB |")


@click.command()
@click.argument("what", type=click.Choice(["all", "speed", "clients", "start", "start-here"]))
@click.argument("where", nargs=-1)
@click.option("--threads", default=1, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--prompt", default=128, show_default=True, help="Tokens of a prompt.")
@click.option("--answer", default=32, show_default=True, help="Tokens of an answer.")
@click.option("--clients", "counts", default="1,4,16", show_default=True)
def main(
    what: str, where: tuple[str, ...], threads: int, repeats: int, prompt: int, answer: int, counts
) -> None:
    """Print the tables, for the demo or for each folder with a model of random weights."""
    if what == "start-here":
        start_here(where[0], Path(where[1]), Path(where[2]), threads)
        return
    for one in where:
        base, adapters = files(one)
        if what in ("all", "speed"):
            speed(base, adapters, threads, repeats, prompt, answer)
        if what in ("all", "clients"):
            clients(base, adapters, threads, repeats, [int(n) for n in counts.split(",")])
        if what in ("all", "start"):
            start(base, adapters, threads, repeats)


if __name__ == "__main__":
    main()
