"""All figures of docs/benchmarks.md: `python tests/benchmarks/speed.py FOLDER --write FILE`.

Writes a model of 1.1B parameters and adapters with random weights into FOLDER (some 1.3 GB), and
measures on it, in processes of their own: mixtures (the engine's own `bench`), probe and scoring
for growing pools, the first token as a user waits for it, what a user would do instead with
llama.cpp alone, starting, and memory. Ratios are to the base on the same weights, next to it in
time; medians. Takes about half an hour on two cores, which nothing else should use meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from random_model import random_model

PROMPT, ANSWER, FOLLOW_UP = 256, 32, 32  # tokens
THREADS = 2
LLAMA = {"n_ctx": 512, "n_threads": THREADS, "n_threads_batch": THREADS}


def engine(base: Path, adapters: Path, **how: Any) -> Any:
    """A `LoGo` by the paper's signal."""
    from logo_local import LoGo

    return LoGo(base, adapters, **{"signal": "norm", "cache_memory": 0, **LLAMA, **how})


def tokens_of(llm: Any, n: int, seed: int) -> list[int]:
    """Random words, another prompt for each seed."""
    rng = np.random.default_rng(seed)
    return [1, *rng.integers(300, 30_000, n - 1).tolist()]


def until_first_token(llm: Any, prompt: list[int]) -> tuple[float, Any]:
    """Milliseconds from the prompt to its first token, and the generator that goes on."""
    started = time.perf_counter()
    answer = llm.generate(prompt, temp=0.0)
    next(answer)
    return (time.perf_counter() - started) * 1000, answer


def by_base(llm: Any, prompt: list[int]) -> float:
    """The same for the base alone."""
    with llm.base_only():
        ms, answer = until_first_token(llm, prompt)
    answer.close()
    return ms


# --- the steps, each in a process of its own ----------------------------------------------------


def mixtures(base: Path, adapters: Path, repeats: int) -> Any:
    """The engine's own benchmark."""
    from logo_local.bench.measure import measure

    with engine(base, adapters) as llm:
        how = {"prompt_tokens": PROMPT, "answer_tokens": ANSWER, "repeats": repeats}
        return measure(llm, ks=(1, 2, 3, 5, 10, 20), **how).as_dict()


def q8_0(base: Path, adapters: Path, repeats: int) -> Any:
    """The same for stacks stored in Q8_0, and how far their logits are from the exact ones."""
    from logo_local.bench.measure import measure

    how = {"prompt_tokens": PROMPT, "answer_tokens": ANSWER, "repeats": repeats}
    with engine(base, adapters, mixture_type="q8_0") as llm:
        found = measure(llm, ks=(3, 20), ways=("stacked",), **how).as_dict()
    logits = []
    for kind in ("native", "q8_0"):
        with engine(base, adapters, mixture_type=kind, mixture="stacked") as llm:
            prompt = tokens_of(llm, 64, 0)
            with llm.under(dict.fromkeys(llm.pool.names[:20], 1 / 20)):
                until_first_token(llm, prompt)[1].close()
            logits.append(_last(llm))
    off = np.abs(logits[1] - logits[0]).max() / np.ptp(logits[0])
    return {
        **found,
        "logits_off": float(off),
        "same_token": bool(logits[0].argmax() == logits[1].argmax()),
    }


def _last(llm: Any) -> np.ndarray:
    import llama_cpp

    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()


def scoring(base: Path, adapters: Path, repeats: int) -> Any:
    """Pass and scores of a pool over the base's own prompt, to the last block and half-way."""
    found = {}
    for layer in (-1, -8):
        with engine(base, adapters, layer=layer) as llm:
            llm.route(tokens_of(llm, 16, 99))  # makes what is made once
            ratios, scores = [], []
            for i in range(repeats):
                prompt = tokens_of(llm, PROMPT, i)
                alone = by_base(llm, prompt)
                llm.route(prompt)
                times = llm.timings_ms
                ratios.append((times["probe"] + times["score"]) / alone)
                scores.append(times["score"])
            found[str(layer)] = {"over_base": median(ratios), "score_ms": median(scores)}
    return found


def waiting(base: Path, adapters: Path, repeats: int) -> Any:
    """The first token with k = 20, of a prompt and of a follow-up, over the base's."""
    found: dict[str, list[float]] = {}

    def note(name: str, ms: float, alone: float) -> None:
        found.setdefault(name, []).append(ms / alone)

    for prefill in ("mixture", "base"):
        with engine(base, adapters, top_k=20, prefill=prefill, keep_route=1.0) as llm:
            until_first_token(llm, tokens_of(llm, PROMPT, 999))[1].close()  # makes the stack
            for i in range(2 * repeats):
                prompt, more = tokens_of(llm, PROMPT, i), tokens_of(llm, FOLLOW_UP, 50 + i)[1:]
                with llm.base_only():
                    alone, answer = until_first_token(llm, prompt)
                    told = [next(answer) for _ in range(ANSWER)]
                    answer.close()
                    follow_up = [*prompt, *told, *more]
                    alone_again = by_base(llm, follow_up)
                ms, answer = until_first_token(llm, prompt)
                told = [next(answer) for _ in range(ANSWER)]
                answer.close()
                note(f"{prefill}: prompt", ms, alone)
                first = llm.last_route
                for name in first.names:  # random weights and words would change the route
                    llm.pool.pin(name)
                if i % 2:  # somebody reads the answer before going on
                    llm.read_ahead([*prompt, *told])
                ms, answer = until_first_token(llm, [*prompt, *told, *more])
                answer.close()
                assert llm.last_route.applied == first.applied
                note(f"{prefill}: follow-up {'later' if i % 2 else 'at once'}", ms, alone_again)
                llm.pool.auto()
    return {name: median(ratios) for name, ratios in found.items()}


def instead(base: Path, adapters: Path, repeats: int) -> Any:
    """What a user would do with llama.cpp alone: evaluate with each, mix by scales."""
    found: dict[str, list[float]] = {}
    how = {"top_k": 20, "n_ctx": 512}
    each = {"probe": "each", "mixture": "scales", "signal": "auto"}
    with engine(base, adapters, **each, **how) as naive, engine(base, adapters, **how) as ours:
        until_first_token(ours, tokens_of(ours, PROMPT, 999))[1].close()
        for i in range(repeats):
            prompt = tokens_of(ours, PROMPT, i)
            alone = by_base(ours, prompt)
            ms, answer = until_first_token(ours, prompt)
            answer.close()
            found.setdefault("logo-local", []).append(ms / alone)
            slow, answer = until_first_token(naive, prompt)
            answer.close()
            found.setdefault("llama.cpp with each", []).append(slow / alone)
            found.setdefault("times sooner", []).append(slow / ms)
    return {name: median(ratios) for name, ratios in found.items()}


def start(base: Path, adapters: Path, repeats: int) -> Any:
    """Seconds to open the engine beside llama_cpp's own class, with everything indexed."""
    import llama_cpp

    with engine(base, adapters) as llm:
        llm.route(tokens_of(llm, 16, 0))
    ours, alone = [], []
    for _ in range(max(3, repeats)):
        started = time.perf_counter()
        llama_cpp.Llama(str(base), verbose=False, **LLAMA).close()
        alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        llm = engine(base, adapters)
        ours.append(time.perf_counter() - started)
        llm.close()
    return {"seconds": median(ours), "llama_cpp": median(alone)}


def memory(base: Path, adapters: Path, repeats: int) -> Any:
    """Megabytes of a process, without pages of files, while it answers; base and then k = 20."""
    import gc

    import llama_cpp

    def megabytes() -> float:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    llama = llama_cpp.Llama(str(base), verbose=False, **LLAMA)
    llama.eval(list(range(300, 300 + PROMPT)))
    alone = megabytes()
    llama.close()
    with engine(base, adapters, top_k=20) as llm:
        until_first_token(llm, tokens_of(llm, PROMPT, 0))[1].close()
        return {"base": alone, "with": megabytes(), "resident": llm.pool.resident_bytes / 2**20}


def torch(base: Path, adapters: Path, repeats: int) -> Any:
    """The table of paper_in_torch.py."""
    script = Path(__file__).parent / "paper_in_torch.py"
    command = [sys.executable, str(script), str(base.parent / "torch")]
    done = subprocess.run(
        [*command, "--repeats", str(repeats)], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


STEPS: dict[str, tuple[Callable[[Path, Path, int], Any], int]] = {
    "mixtures": (mixtures, 20),
    "q8_0": (q8_0, 20),
    "scoring-20": (scoring, 20),
    "scoring-260": (scoring, 260),
    "scoring-1000": (scoring, 1000),
    "waiting": (waiting, 260),
    "instead": (instead, 20),
    "start": (start, 1000),
    "memory": (memory, 1000),
    "torch": (torch, 20),
}


# --- the report ----------------------------------------------------------------------------------


def report(found: dict[str, Any], repeats: int) -> str:
    """docs/benchmarks.md."""
    from logo_local.bench.measure import Benchmark, Row, Scoring, Times
    from logo_local.bench.report import markdown

    def table(of: dict[str, Any]) -> str:
        rows = [Row(r["way"], r["k"], Times(**r["ms"]), r["over_base"]) for r in of["rows"]]
        scores = [Scoring(**s) for s in of["scoring"]]
        return markdown(Benchmark(of["setting"], Times(**of["base"]), rows, scores))

    rows = {(row["way"], row["k"]): row for row in found["mixtures"]["rows"]}
    q8 = {row["k"]: row for row in found["q8_0"]["rows"]}
    k20, k3 = rows["stacked", 20], rows["stacked", 3]
    score = {n: found[f"scoring-{n}"] for n in (20, 260, 1000)}
    last = " / ".join(f"{score[n]['-1']['over_base']:.2f}" for n in score)
    half = " / ".join(f"{score[n]['-8']['over_base']:.2f}" for n in score)
    wait, other, begin, size = (found[n] for n in ("waiting", "instead", "start", "memory"))
    above = size["with"] - size["base"]
    at_once, later = wait["mixture: follow-up at once"], wait["mixture: follow-up later"]
    goals = [
        ("pass + scores over the base's prompt, N = 20 / 260 / 1,000, last block",
         "1.02 / 1.05 / 1.10", last),
        ("the same, to block -8", "less", half),
        ("scores of 1,000 adapters", "25 ms", f"{score[1000]['-1']['score_ms']:.1f} ms"),
        ("prompt under k = 20", "1.35", f"{k20['over_base']['prefill']:.2f}"),
        ("a token under k = 20, native", "1.75", f"{k20['over_base']['decode']:.2f}"),
        ("a token under k = 20, Q8_0", "1.42", f"{q8[20]['over_base']['decode']:.2f}"),
        ("a token under k = 3", "1.15", f"{k3['over_base']['decode']:.2f}"),
        ("a new mixture of 20 (median)", "250 ms", f"{k20['ms']['mixture']:.0f} ms"),
        ("other weights of the same 20", "100 ms", f"{k20['ms']['weights']:.0f} ms"),
        ("first token, N = 260, k = 20", "2.6", f"{wait['mixture: prompt']:.2f}"),
        ("first token of a follow-up", "1.3", f"{at_once:.2f}; {later:.2f} after a pause"),
        ("faster than llama.cpp with each adapter, N = k = 20", "10 times",
         f"{other['times sooner']:.1f} times"),
        ("start with 1,000 indexed adapters, beyond llama_cpp's own start", "1 s",
         f"{begin['seconds'] - begin['llama_cpp']:.2f} s"),
        ("memory above the base, N = 1,000, k = 20", "resident adapters + 300 MB",
         f"{above:.0f} MB, of which {size['resident']:.0f} are resident adapters"),
    ]  # fmt: skip
    lines = [f"| {what} | {goal} | {seen} |" for what, goal, seen in goals]
    return "\n".join([
        "# Benchmarks",
        "",
        f"These figures were measured on {date.today()}.",
        "",
        "- **Command:** `python tests/benchmarks/speed.py FOLDER --write docs/benchmarks.md`",
        "- **Model:** a Llama of 1.1B parameters in Q4_0 and adapters of rank 16 on all seven "
        "projections in float16, all with random weights",
        f"- **Prompts:** {PROMPT} tokens; medians of {repeats} repeats",
        f"- **Machine:** {cpu()}, {THREADS} threads",
        "",
        "Ratios are to the base model alone, measured in the same run. Mixtures are `stacked`, the "
        "default, unless stated otherwise.",
        "",
        "| measurement | target | result |",
        "|---|---|---|",
        *lines,
        "",
        "Ratios above 1 are slower than the base model.",
        "",
        "- **A token under k = 3** takes little more than one under k = 1. Most of the time is "
        "spent in 448 additional steps of llama.cpp's graph, four per module, at which its threads "
        "synchronise.",
        "- **New weights for the same 20 adapters** require reading and scaling about 115 MB.",
        "- **In a follow-up**, the new text is processed twice: by the base model for the route, "
        "and under the mixture. If it follows immediately, the base model also has to process the "
        "previous answer. These prompts are tokens. In a chat, the base model processes only the "
        "last message, as after a pause.",
        "",
        "Other results:",
        "",
        "- With `prefill=\"base\"` (the base model processes the prompt, the mixture generates the "
        f"answer), the first token takes {wait['base: prompt']:.2f} times as long as with the base "
        f"model alone, and {wait['base: follow-up later']:.2f} times in a follow-up.",
        "- With llama.cpp alone, evaluating the prompt with each of 20 adapters and mixing them by "
        f"scales, the first token takes {other['llama.cpp with each']:.1f} times as long as with "
        f"the base model alone. With logo-local on the same pool: {other['logo-local']:.2f}.",
        "- In Q8_0, the logits of a mixture of 20 differ by at most "
        f"{found['q8_0']['logits_off']:.4f} of their range, with these weights.",
        "",
        "## Mixtures",
        "",
        table(found["mixtures"]),
        "",
        "## Mixtures stored in Q8_0",
        "",
        table(found["q8_0"]).split("\n\n")[2],
        "",
        "## The paper's method in PyTorch",
        "",
        "`python tests/benchmarks/paper_in_torch.py` compares transformers and PEFT, which keeps "
        "all adapters in memory, with logo-local on the same weights: a model of 30M parameters in "
        "float32. Both select the same adapters with the same weights. Ratios are to the base "
        "model in the same framework.",
        "",
        found["torch"].strip(),
    ])  # fmt: skip


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{os.cpu_count()} cores of {name}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--repeats", default=3, show_default=True)
@click.option("--write", type=click.Path(path_type=Path), help="Write the page here.")
@click.option("--step", "steps", multiple=True, type=click.Choice(tuple(STEPS)), help="Only these.")
@click.option("--one", type=click.Choice(tuple(STEPS)), hidden=True)
def main(
    folder: Path, repeats: int, write: Path | None, steps: tuple[str, ...], one: str | None
) -> None:
    """Measure everything; what was measured before in FOLDER is taken from there."""
    if one is not None:
        step, n = STEPS[one]
        click.echo(json.dumps(step(*random_model(folder, n), repeats)))
        return
    results = folder / "speed.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    with tempfile.TemporaryDirectory() as home:
        for name in steps or [name for name in STEPS if name not in found]:
            started = time.perf_counter()
            command = [sys.executable, __file__, str(folder), "--one", name]
            done = subprocess.run(
                [*command, "--repeats", str(repeats)],
                env={**os.environ, "LOGO_LOCAL_HOME": home},
                stdout=subprocess.PIPE,
                check=True,
            )
            found[name] = json.loads(done.stdout)
            results.write_text(json.dumps(found))
            click.echo(f"{name}: {time.perf_counter() - started:.0f} s", err=True)
    if set(found) == set(STEPS):
        page = report(found, repeats)
        if write is not None:
            write.write_text(page + "\n")
        else:
            click.echo(page)


if __name__ == "__main__":
    main()
