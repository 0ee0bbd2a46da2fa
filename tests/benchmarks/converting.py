"""The converter beside llama.cpp's own: `python tests/benchmarks/converting.py FOLDER SOURCES`.

SOURCES is llama.cpp's source tree with convert_lora_to_gguf.py (tests/tiny.py fetches one into
pytest's cache). Writes into FOLDER a PEFT adapter of rank 16 on all seven projections of a 1.1B
Llama (43 MB in float32) and a hundred small ones, and times whole processes, interleaved: medians
of seconds, and the peak of memory over the adapter's size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from peft_folder import factor_name, write_peft
from random_gguf import LLAMA_1B, SMALL, Shape, write_base
from random_model import random_model

PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def peft_folder(folder: Path, shape: Shape, rank: int, seed: int) -> Path:
    """A PEFT adapter with random weights, where it is not there yet."""
    if folder.exists():
        return folder
    rng = np.random.default_rng(seed)
    tensors = {}
    for block in range(shape.blocks):
        for kind, (d_out, d_in) in shape.matrices.items():
            name = f"model.layers.{block}.{PROJECTIONS[kind]}"
            tensors[factor_name(name, "A")] = rng.standard_normal((rank, d_in), np.float32)
            tensors[factor_name(name, "B")] = rng.standard_normal((d_out, rank), np.float32)
    return write_peft(folder, tensors, r=rank, lora_alpha=2 * rank)


def hugging_face_config(folder: Path, shape: Shape) -> Path:
    """What llama.cpp's converter needs of the base."""
    folder.mkdir(exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape.vocab,
        "hidden_size": shape.width, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.blocks, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "max_position_embeddings": shape.context,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(process.stderr.read().decode()[-2000:] if process.stderr else command)
    return seconds, usage.ru_maxrss / 1024


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("sources", type=click.Path(path_type=Path, exists=True))
@click.option("--repeats", default=5, show_default=True)
def main(folder: Path, sources: Path, repeats: int) -> None:
    """Print what was measured as a Markdown table."""
    base, _ = random_model(folder, 1)
    adapter = peft_folder(folder / "peft-large", LLAMA_1B, 16, 0)
    config = hugging_face_config(folder / "config", LLAMA_1B)
    small_base = folder / "small-base.gguf"
    if not small_base.exists():
        write_base(small_base)
    small = [peft_folder(folder / f"peft-small/{i}", SMALL, 4, i) for i in range(100)]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        ours = [sys.executable, "-m", "logo_local", "convert"]
        theirs = [sys.executable, str(sources / "convert_lora_to_gguf.py")]
        commands = {
            "logo-local": [
                *ours, str(adapter), "--base", str(base), "--outtype=f32", "--force",
                f"--out={out}/ours.gguf",
            ],
            "llama.cpp": [
                *theirs, "--base", str(config), "--outfile", f"{out}/theirs.gguf",
                "--outtype", "f32", str(adapter),
            ],
        }  # fmt: skip
        found = {name: [run(command) for _ in range(1)] for name, command in commands.items()}
        for _ in range(repeats):
            for name, command in commands.items():
                found[name].append(run(command))
        many = [*ours, *map(str, small), "--base", str(small_base), f"--out={out}", "--force"]
        hundred = [run(many)[0] for _ in range(repeats)]
    size = (adapter / "adapter_model.safetensors").stat().st_size / 2**20
    click.echo(f"An adapter of {size:.0f} MB; medians of {repeats} whole processes.\n")
    click.echo("| | seconds | memory over the adapter's size |")
    click.echo("|---|---|---|")
    for name, runs in found.items():
        seconds, memory = (median(column) for column in zip(*runs[1:], strict=True))
        click.echo(f"| {name} | {seconds:.2f} | {memory / size:.1f} |")
    ratios = [t[0] / o[0] for o, t in zip(*(runs[1:] for runs in found.values()), strict=True)]
    click.echo(
        f"\nTimes as fast: {median(ratios):.1f}. A hundred small adapters in one call: "
        f"{median(hundred):.1f} s."
    )


if __name__ == "__main__":
    main()
