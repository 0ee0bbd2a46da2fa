"""Make the bundled model: every step in order, each left out when its output is there.

All is made in `models/recipe/build/`; the last step puts the result into `models/demo/`. Remove the
build folder, or the output of the step to begin with and of those after it, to make it again.
With `--again SEED` another set of adapters for the same base is made instead, and left in
`build/again-SEED/`: how much of a figure is the adapters' luck?
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import click
from transformers import LlamaForCausalLM

from logo_local.convert import convert_adapter

from .evaluate import Score, evaluate, write_example_prompts
from .export_gguf import export_gguf, read_back
from .families import TASKS
from .manifest import manifest, write_manifest
from .tokenizer import load_tokenizer, train_tokenizer
from .train_adapters import train_adapters
from .train_base import save_whole, train_base

SEED = 2511
HERE = Path(__file__).parent

log = logging.getLogger("models.recipe")


class Recipe:
    """The steps, and the places of what they make."""

    def __init__(self, build: Path, published: Path, seed: int = SEED) -> None:
        self.seed = seed
        self.published = published
        self.tokenizer = build / "tokenizer"
        self.base = build / "base"
        self.checkpoint = build / "base.pt"
        self.peft = build / "adapters"
        self.demo = build / "demo"
        self.gguf = self.demo / "logo-demo.gguf"
        self.manifest = self.demo / "manifest.json"
        self.times = build / "minutes.json"
        self.build = build
        (self.demo / "adapters").mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """All steps."""
        adapters = [self.demo / "adapters" / f"{task.name}.gguf" for task in TASKS]
        trained = [self.peft / task.name / "adapter_model.safetensors" for task in TASKS]
        self._step("tokenizer", [self.tokenizer / "tokenizer.json"], self._train_tokenizer)
        self._step("base", [self.base / "model.safetensors"], self._train_base)
        self._step("export", [self.gguf], self._export)
        self._step("adapters", trained, self._train_adapters)
        self._step("convert", adapters, self._convert)
        self._step("evaluate", [self.manifest], self._evaluate)
        shutil.copytree(self.demo, self.published, dirs_exist_ok=True)

    def again(self, seed: int) -> None:
        """The adapters once more, trained with another seed, beside the same example prompts.

        Where there is no base from an earlier run, that of the published file is taken.
        """
        gguf = self.published / self.gguf.name
        self._step("tokenizer", [self.tokenizer / "tokenizer.json"], self._train_tokenizer)
        if not (self.base / "model.safetensors").exists():
            save_whole(read_back(gguf, load_tokenizer(self.tokenizer)), self.base)
        peft, out = self.build / f"adapters-{seed}", self.build / f"again-{seed}"
        train_adapters(self.base, self.tokenizer, peft, seed)
        out.mkdir(exist_ok=True)
        for task in TASKS:
            convert_adapter(peft / task.name, gguf, out / f"{task.name}.gguf", outtype="f16")
        write_example_prompts(out, self.seed)

    def _step(self, name: str, outputs: list[Path], work: Callable[[], None]) -> None:
        if all(output.exists() for output in outputs):
            log.info("%s: there already", name)
            return
        log.info("%s ...", name)
        began = time.monotonic()
        try:
            work()
        finally:  # a step that is broken off and resumed took both times together
            minutes = self._minutes()
            minutes[name] = minutes.get(name, 0.0) + (time.monotonic() - began) / 60
            self.times.write_text(json.dumps(minutes))

    def _minutes(self) -> dict[str, float]:
        if not self.times.exists():
            return {}
        minutes: dict[str, float] = json.loads(self.times.read_text())
        return minutes

    def _train_tokenizer(self) -> None:
        train_tokenizer(self.tokenizer, self.seed)

    def _train_base(self) -> None:
        train_base(load_tokenizer(self.tokenizer), self.base, self.checkpoint, self.seed)

    def _export(self) -> None:
        model = LlamaForCausalLM.from_pretrained(self.base)
        export_gguf(model, load_tokenizer(self.tokenizer), self.gguf)

    def _train_adapters(self) -> None:
        train_adapters(self.base, self.tokenizer, self.peft, self.seed)

    def _convert(self) -> None:
        for task in TASKS:
            out = self.demo / "adapters" / f"{task.name}.gguf"
            convert_adapter(self.peft / task.name, self.gguf, out, outtype="f16")

    def _evaluate(self) -> None:
        found: dict[str, Score] = evaluate(self.demo, self.seed)
        content = manifest(self.demo, self.seed, found, self._minutes())
        write_manifest(content, self.manifest)


@click.command()
@click.option("--again", type=int, metavar="SEED", help="Make another set of adapters.")
def main(again: int | None) -> None:
    """Make everything that is not there yet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe(HERE / "build", HERE.parent / "demo")
    if again is None:
        recipe.run()
    else:
        recipe.again(again)


if __name__ == "__main__":
    main()
