"""The manifest of the demo folder: where its files come from, their sums, what was measured."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .evaluate import Score, metric_of
from .export_gguf import DESCRIPTION, NAME
from .families import FAMILY_OF, TASKS
from .train_adapters import SETTINGS

RECIPE_VERSION = 2


def manifest(
    demo: Path, seed: int, scores: dict[str, Score], minutes: dict[str, float]
) -> dict[str, Any]:
    """What `manifest.json` holds; `minutes` is the wall-clock time of each step."""
    files = sorted(path for path in demo.rglob("*") if path.suffix in (".gguf", ".jsonl", ".txt"))
    return {
        "name": NAME,
        "description": DESCRIPTION,
        "license": "MIT",
        "recipe": RECIPE_VERSION,
        "seed": seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "minutes": {step: round(value, 1) for step, value in minutes.items()},
        "tasks": {task.name: _task(task.name, scores) for task in TASKS},
        "files": {
            path.relative_to(demo).as_posix(): {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
            }
            for path in files
        },
    }


def write_manifest(content: dict[str, Any], path: Path) -> None:
    """Write the manifest as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def _task(name: str, scores: dict[str, Score]) -> dict[str, Any]:
    settings, score = SETTINGS[name], scores[name]
    return {
        "family": FAMILY_OF[name].name,
        "rank": settings.rank,
        "alpha": settings.alpha,
        "rslora": settings.rslora,
        "modules": list(settings.modules),
        "steps": settings.steps,
        "rate": settings.rate,
        "loss": settings.loss,
        "metric": metric_of(FAMILY_OF[name].name),
        "base_score": score.base,
        "own_score": score.own,
        "n": score.n,
    }
