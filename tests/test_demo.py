"""The bundled model as it ships: sums, sizes, accuracies, and the ways to see it at work."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from logo_local import config
from logo_local.engine import LoGo
from logo_local.evaluation.metrics import measure
from logo_local.files.base_model import BaseModel

FOLDER = config.demo_folder()
PER_TASK = 4  # prompts; the manifest's figures are of 40


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def manifest():
    return json.loads((FOLDER / "manifest.json").read_text())


@pytest.fixture(scope="module")
def demo():
    llm = LoGo("demo", n_threads=1, n_threads_batch=1)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def examples():
    """A few prompts of each task of the pool."""
    each = [lines(path)[:PER_TASK] for path in sorted((FOLDER / "eval").glob("*.jsonl"))]
    return [example for few in each for example in few if example["adapter"]]


def score(llm, examples, weights_of):
    """The mean of each example's own metric, answered under the weights for each."""
    total = 0
    for example in examples:
        with llm.under(weights_of(example)):
            messages = [{"role": "user", "content": example["context"]}]
            reply = llm.create_chat_completion(messages, temperature=0.0, max_tokens=48)
        answer = reply["choices"][0]["message"]["content"]
        total += measure(answer, [example["completion"]])[example["metric"]]
    return total / len(examples)


def test_every_file_is_as_in_the_manifest(manifest):
    shipped = {
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*")
        if path.suffix in (".gguf", ".jsonl", ".txt")
    }
    assert shipped == set(manifest["files"])
    for name, entry in manifest["files"].items():
        content = (FOLDER / name).read_bytes()
        assert len(content) == entry["bytes"], name
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name


def test_the_sizes_are_those_of_a_laptop_demo(manifest):
    assert manifest["files"]["logo-demo.gguf"]["bytes"] <= 12_000_000
    adapters = [
        e["bytes"]
        for n, e in manifest["files"].items()
        if n.startswith("adapters/") and n.endswith(".gguf")
    ]
    assert len(adapters) == 27
    assert sum(e["bytes"] for e in manifest["files"].values()) < 40e6
    assert max(adapters) <= 1_000_000
    base = BaseModel.read(FOLDER / "logo-demo.gguf")
    assert base.architecture == "llama"
    assert 5e6 <= sum(np.prod(shape) for shape in base.tensors.values()) < 15e6


def test_the_tasks_fall_into_the_five_families(manifest):
    families = {task["family"] for task in manifest["tasks"].values()}
    assert families == {"puzzles", "translation", "struct-to-text", "closed-book", "inference"}
    assert set(manifest["tasks"]) == {p.stem for p in (FOLDER / "adapters").glob("*.gguf")}


def test_the_manifest_says_what_was_asked_for(manifest):
    tasks = manifest["tasks"].values()
    assert sum(task["base_score"] for task in tasks) / len(tasks) < 0.40
    assert sum(task["own_score"] for task in tasks) / len(tasks) >= 0.85


def test_the_base_alone_is_poor_at_the_tasks(demo, examples):
    assert score(demo, examples, lambda _example: {}) < 0.40


def test_each_adapter_is_good_at_its_own_task(demo, examples):
    assert score(demo, examples, lambda example: {example["adapter"]: 1.0}) >= 0.75


def test_a_prompt_is_routed_among_all_adapters(demo, examples, manifest):
    route = demo.route([{"role": "user", "content": examples[0]["context"]}])
    assert route.all_scores.keys() == manifest["tasks"].keys()
    assert 1 <= len(route.names) <= demo.routing.top_k
    assert route.signal == "mixed"
    assert demo.without_profile() == []  # every bundled adapter has example prompts


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=True
    )


def test_what_make_demo_shows():
    shown = run("logo_local.commands.showcase").stdout
    for example in lines(FOLDER / "demo_prompts.jsonl"):
        assert " ".join(example["completion"].split()) in " ".join(shown.split())


def test_the_program_answers_with_the_demo_model(examples):
    context = examples[0]["context"]
    done = run("logo_local", "run", "demo", context, "--json")
    answer = json.loads(done.stdout)
    assert set(answer) == {"text", "route", "usage", "timings_ms"}
    assert answer["route"]["adapters"]
