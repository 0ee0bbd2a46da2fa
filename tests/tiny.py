"""Tiny random Hugging Face models with PEFT adapters, and llama.cpp's own conversions of them.

These are the ground that parity tests stand on: the models come from transformers, the adapters
from PEFT, and the base GGUF files (and, for the adapters that it can handle, GGUF LoRA files) from
the converters inside llama-cpp-python's source package. Nothing of logo_local takes part.

All of it is built once, in a process of its own (`python tests/tiny.py OUT SOURCES`), and kept in
pytest's cache; the fixtures `tiny_llama` and `tiny_qwen2` in conftest.py hand it out.
"""

import hashlib
import importlib.metadata
import io
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCKS, WIDTH, HEADS, KV_HEADS, FFN, VOCAB, CONTEXT = 3, 64, 4, 2, 96, 300, 256
ARCHITECTURES = ("llama", "qwen2")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 16, "target_modules": ALL},
    "query-value": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ALL},
    "patterns": {
        "r": 6,
        "lora_alpha": 12,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 10},
        "alpha_pattern": {"k_proj": 5, r"^model\.layers\.2\..*down_proj": 9},
    },
    "ranks": {"r": 2, "lora_alpha": 3, "target_modules": ALL, "rank_pattern": {"v_proj": 5}},
    "stored-bf16": {"r": 8, "lora_alpha": 8, "target_modules": ALL},
}
# What llama.cpp's own convert_lora_to_gguf.py gets right: one alpha, no rsLoRA.
ORACLE_ADAPTERS = ("plain", "query-value", "ranks", "stored-bf16")


@dataclass(frozen=True)
class TinyModel:
    """One tiny model on disk. The folder's files are shared by all tests: never write to them."""

    folder: Path

    @property
    def hugging_face(self) -> Path:
        """The folder that transformers loads."""
        return self.folder / "model"

    @property
    def gguf(self) -> Path:
        """The base model in f32, made by llama.cpp's converter."""
        return self.folder / "base.gguf"

    @property
    def adapters(self) -> dict[str, Path]:
        """The PEFT folders by name, in the order of `ADAPTERS`."""
        return {name: self.folder / "adapters" / name for name in ADAPTERS}

    @property
    def oracle(self) -> dict[str, Path]:
        """GGUF LoRA files in f32 made by llama.cpp's converter, for `ORACLE_ADAPTERS`."""
        return {name: self.folder / "oracle" / f"{name}.gguf" for name in ORACLE_ADAPTERS}

    def encode(self, text: str) -> list[int]:
        """Token ids, with the token that begins a text first."""
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(
            model_file=str(self.hugging_face / "tokenizer.model")
        )
        return [model.bos_id(), *model.encode(text)]

    def load(self) -> Any:
        """The transformers model alone, float32, for evaluation."""
        from transformers import AutoModelForCausalLM

        with known_warnings():
            return AutoModelForCausalLM.from_pretrained(
                self.hugging_face, dtype="float32", attn_implementation="eager"
            ).eval()

    def load_peft(self, *names: str) -> Any:
        """The model with these adapters loaded under their names, the first one active."""
        from peft import PeftModel

        first, *others = names
        with known_warnings():
            model = PeftModel.from_pretrained(self.load(), self.adapters[first], adapter_name=first)
            for name in others:
                model.load_adapter(self.adapters[name], adapter_name=name)
        return model.eval()


@contextmanager
def known_warnings() -> Iterator[None]:
    """Let pass what transformers and PEFT warn of among themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def cached_sources(cache: Path) -> Path | None:
    """llama.cpp's source tree as far as its converters need it, or None where pip cannot fetch it.

    The version is that of the installed llama-cpp-python.
    """
    version = importlib.metadata.version("llama-cpp-python")
    folder = cache / f"llama.cpp-{version}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        # no-binary: there may be a wheel; no-deps: nothing but the source package itself
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += [
            "--retries",
            "1",
            "--no-binary",
            "llama-cpp-python",
            f"llama-cpp-python=={version}",
        ]
        done = subprocess.run([*command, "--dest", scratch], capture_output=True, check=False)
        archives = list(Path(scratch).glob("*.tar.gz"))
        if done.returncode or not archives:
            return None
        unpacked = Path(scratch) / "llama.cpp"
        wanted = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py")
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                _, _, name = member.name.partition("/vendor/llama.cpp/")
                if member.isfile() and name.split("/")[0] in wanted:
                    path = unpacked / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    content = archive.extractfile(member)
                    assert content is not None
                    path.write_bytes(content.read())
        _move(unpacked, folder)
    return folder


def cached_models(cache: Path, sources: Path) -> Path:
    """The folder with one folder for each of `ARCHITECTURES`, built where it is not there yet."""
    return cached_build(cache, sources, Path(__file__), "tiny")


def cached_build(cache: Path, sources: Path, script: Path, name: str) -> Path:
    """The folder that `script` makes when called with it and with llama.cpp's `sources`."""
    versions = [importlib.metadata.version(p) for p in ("torch", "transformers", "peft")]
    key = hashlib.sha256(script.read_bytes() + "".join(versions).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{key}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            done = subprocess.run(
                [sys.executable, str(script), f"{scratch}/{name}", str(sources)],
                capture_output=True,
                text=True,
                check=False,
                # the converters bring a gguf package of their own, found beside them
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
            )
            if done.returncode:
                raise RuntimeError(f"the tiny models could not be built:\n{done.stderr[-3000:]}")
            _move(Path(scratch, name), folder)
    return folder


def _move(made: Path, folder: Path) -> None:
    """Put a finished folder in its place; another test run may have been quicker."""
    try:
        made.replace(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _build(out: Path, sources: Path) -> None:
    for architecture in ARCHITECTURES:
        model = TinyModel(out / architecture)
        model.hugging_face.mkdir(parents=True)
        (model.folder / "oracle").mkdir()
        _make_tokenizer(model.hugging_face / "tokenizer.model")
        _make_model(architecture, model.hugging_face)
        for seed, name in enumerate(ADAPTERS):
            _make_adapter(model, name, seed)
    for architecture in ARCHITECTURES:
        model = TinyModel(out / architecture)
        as_f32 = ["--outtype", "f32", "--outfile"]
        _run(sources / "convert_hf_to_gguf.py", *as_f32, model.gguf, model.hugging_face)
        for name, path in model.oracle.items():
            arguments = ["--base", model.hugging_face, *as_f32, path, model.adapters[name]]
            _run(sources / "convert_lora_to_gguf.py", *arguments)
        shutil.rmtree(model.hugging_face / "__pycache__", ignore_errors=True)


def _run(script: Path, *arguments: object) -> None:
    """Run one of llama.cpp's scripts in this process, which has loaded torch already."""
    sys.argv = [str(script), *map(str, arguments)]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
    sys.path.pop(0)


def _make_tokenizer(path: Path) -> None:
    import sentencepiece

    text = "the quick brown fox jumps over the lazy dog while 0123456789 sheep sleep"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text]),
        model_writer=model,
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def _make_model(architecture: str, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.12,  # far from linear: attention must have something to choose
    }
    torch.manual_seed(ARCHITECTURES.index(architecture))
    model: Any
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
    with torch.no_grad():  # transformers starts norms at one and biases at zero: no test for either
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def _make_adapter(model: TinyModel, name: str, seed: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(100 + seed)
    config = LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[name])
    peft_model = get_peft_model(model.load(), config)
    with torch.no_grad():  # PEFT starts every lora_B at zero
        for parameter_name, parameter in peft_model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
    if name == "stored-bf16":
        peft_model = peft_model.to(torch.bfloat16)
    peft_model.save_pretrained(model.adapters[name])


if __name__ == "__main__":
    _build(Path(sys.argv[1]), Path(sys.argv[2]))
