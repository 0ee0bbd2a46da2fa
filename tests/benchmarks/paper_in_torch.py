"""The paper's method in PyTorch, transformers and PEFT, beside this project on the same weights.

`python tests/benchmarks/paper_in_torch.py FOLDER` makes a Llama of 30M parameters with random
weights in float32 and PEFT adapters of rank 16 on all seven projections, opens both in both worlds,
and prints a Markdown table: ratios to the base in the same world, medians of interleaved runs. It
ends with an error unless both choose the same adapters with the same weights. Needs the extra
`torch`. The PyTorch side is written after the paper (arXiv 2511.07129, section 3): one pass of the
base, norms of the query projections' outputs of the last block at the last token, the k largest,
the adapters' scalings multiplied by the weights.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_gguf import Shape, write_base

SHAPE = Shape(blocks=8, width=512, heads=8, kv_heads=4, ffn=1408, vocab=4000, context=1024)
RANK, PROMPT, ANSWER, THREADS = 16, 256, 32, 2
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Torch:
    """The method with PEFT; all adapters are held by one model."""

    def __init__(self, base: Path, adapters: Path) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        self.torch = torch
        model = AutoModelForCausalLM.from_pretrained(
            base.parent, gguf_file=base.name, dtype=torch.float32
        )
        self.names = sorted(path.name for path in adapters.iterdir())
        first, *others = self.names
        self.model = PeftModel.from_pretrained(model, str(adapters / first), adapter_name=first)
        for name in others:
            self.model.load_adapter(str(adapters / name), adapter_name=name)
        self.model.eval()
        self.layers = [m for m in self.model.modules() if hasattr(m, "lora_A") and m.lora_A]
        self.scaling = [dict(layer.scaling) for layer in self.layers]
        self.target = self.model.base_model.model.model.layers[-1].self_attn.q_proj

    def base(self, prompt: Sequence[int]) -> Iterator[float]:
        """Seconds to the first token, then for each further one, of the base alone."""
        with self.model.disable_adapter():
            yield from self._generate(prompt)

    def route(self, prompt: Sequence[int], k: int) -> dict[str, float]:
        """The weights of the k selected adapters, by name."""
        seen: list[Any] = []
        hook = self.target.register_forward_pre_hook(lambda _module, x: seen.append(x[0][0, -1]))
        with self.model.disable_adapter(), self.torch.no_grad():
            self.model(self.torch.tensor([prompt]))
        hook.remove()
        layer, h = self.target, seen[0]  # (d_in,)
        scores = {
            name: float((layer.lora_B[name](layer.lora_A[name](h)) * 2.0).norm())
            for name in self.names
        }
        chosen = sorted(scores, key=lambda name: -scores[name])[:k]
        total = sum(scores[name] for name in chosen)
        return {name: scores[name] / total for name in chosen}

    def mix(self, weights: dict[str, float]) -> None:
        """The selected adapters, with their scalings multiplied by the weights."""
        self.model.base_model.set_adapter(list(weights))
        for layer, scaling in zip(self.layers, self.scaling, strict=True):
            for name, weight in weights.items():
                layer.scaling[name] = scaling[name] * weight

    def mixed(self, prompt: Sequence[int], k: int) -> Iterator[float]:
        """As `base`, for the whole method."""
        started = time.perf_counter()
        self.mix(self.route(prompt, k))
        before = time.perf_counter() - started
        steps = self._generate(prompt)
        yield before + next(steps)
        yield from steps

    def _generate(self, prompt: Sequence[int]) -> Iterator[float]:
        ids, past = self.torch.tensor([list(prompt)]), None
        with self.torch.no_grad():
            for _ in range(ANSWER):
                started = time.perf_counter()
                out = self.model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
                past, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
                yield time.perf_counter() - started

    def megabytes(self) -> float:
        """What the adapters take."""
        tensors = [p for n, p in self.model.named_parameters() if "lora_" in n]
        return sum(p.numel() * p.element_size() for p in tensors) / 2**20


class Ours:
    """This project."""

    def __init__(self, base: Path, adapters: Path, k: int) -> None:
        from logo_local import LoGo

        how = {"n_ctx": 512, "n_threads": THREADS, "n_threads_batch": THREADS}
        self.llm = LoGo(base, adapters, signal="norm", top_k=k, **how)

    def base(self, prompt: Sequence[int]) -> Iterator[float]:
        """Seconds to the first token, then for each further one, of the base alone."""
        with self.llm.base_only():
            yield from self._generate(prompt)

    def mixed(self, prompt: Sequence[int], _k: int) -> Iterator[float]:
        """As `base`, for the whole method."""
        return self._generate(prompt)

    def _generate(self, prompt: Sequence[int]) -> Iterator[float]:
        self.llm.reset()
        answer = self.llm.generate(list(prompt), temp=0.0)
        for _ in range(ANSWER):
            started = time.perf_counter()
            next(answer)
            yield time.perf_counter() - started
        answer.close()

    def megabytes(self) -> float:
        """What is resident of the adapters."""
        return self.llm.pool.resident_bytes / 2**20


def make(folder: Path, n: int) -> tuple[Path, Path]:
    """The base and `n` PEFT adapters, where they are not there yet."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    base, adapters = folder / "small.gguf", folder / f"peft-{n}"
    if not base.exists():
        write_base(base, shape=SHAPE)
    if not adapters.exists():
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=base.name)
        torch.manual_seed(0)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(PROJECTIONS))
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            for i in range(n):
                config = LoraConfig(**{**config.to_dict(), "init_lora_weights": False})
                peft = get_peft_model(model, config)
                for name, parameter in peft.named_parameters():
                    if "lora_B" in name:
                        parameter.data *= 0.1
                peft.save_pretrained(f"{unfinished}/adapter-{i:02d}")
                model = peft.unload()
            os.rename(unfinished, adapters)
            Path(unfinished).mkdir()
    return base, adapters


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' notices."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def timed(run: Callable[[], Iterator[float]]) -> tuple[float, float]:
    """Seconds to the first token and the median of the others."""
    first, *others = run()
    return first, median(others)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--adapters", "n", default=20, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(folder: Path, n: int, repeats: int) -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    with quiet(), tempfile.TemporaryDirectory() as home:
        os.environ["LOGO_LOCAL_HOME"] = home
        base, adapters = make(folder, n)
        theirs = Torch(base, adapters)
        click.echo("| | k | first token / base | token / base | adapters hold |")
        click.echo("|---|---|---|---|---|")
        for k in (3, 20):
            ours = Ours(base, adapters, k)
            found: dict[str, list[tuple[float, float]]] = {}
            for i in range(repeats + 1):  # the first warms up
                prompt = [1, *rng.integers(300, 3900, PROMPT - 1).tolist()]
                expected, route = theirs.route(prompt, k), ours.llm.route(prompt)
                got = dict(zip(route.names, route.weights, strict=True))
                assert set(got) == set(expected), (got, expected)
                assert all(abs(got[name] - expected[name]) < 1e-3 for name in got)
                for name, world in (("PyTorch and PEFT", theirs), ("logo-local", ours)):
                    alone = timed(lambda w=world, p=prompt: w.base(p))
                    mixed = timed(lambda w=world, p=prompt, k=k: w.mixed(p, k))
                    if i:
                        ratios = (mixed[0] / alone[0], mixed[1] / alone[1])
                        found.setdefault(name, []).append(ratios)
            for name, ratios in found.items():
                first, token = (median(column) for column in zip(*ratios, strict=True))
                size = (theirs if name.startswith("Py") else ours).megabytes()
                click.echo(f"| {name} | {k} | {first:.2f} | {token:.2f} | {size:.0f} MB |")
            ours.llm.close()


if __name__ == "__main__":
    main()
