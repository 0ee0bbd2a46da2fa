"""Base models and adapters with random weights, written tensor by tensor with gguf.

For tests of the runtime that need real llama.cpp arithmetic but neither torch nor sense, and, in
the shape of a real model, for benchmarks.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama with grouped-query heads, or of a Mixtral, with experts."""

    blocks: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int
    experts: int = 0

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """(d_out, d_in) of each adapted projection of a block, behind the number of experts."""
        width, ffn, kv_width = self.width, self.ffn, self.width * self.kv_heads // self.heads
        stack, suffix = ((self.experts,), "_exps") if self.experts else ((), "")
        return {
            "attn_q": (width, width),
            "attn_k": (kv_width, width),
            "attn_v": (kv_width, width),
            "attn_output": (width, width),
            f"ffn_gate{suffix}": (*stack, ffn, width),
            f"ffn_up{suffix}": (*stack, ffn, width),
            f"ffn_down{suffix}": (*stack, width, ffn),
        }


SMALL = Shape(blocks=3, width=64, heads=4, kv_heads=2, ffn=96, vocab=300, context=256)
EXPERTS = replace(SMALL, experts=4)
LLAMA_1B = Shape(blocks=16, width=2048, heads=32, kv_heads=8, ffn=8192, vocab=32_000, context=4096)

BLOCKS, WIDTH, HEADS, KV_HEADS, VOCAB = SMALL.blocks, SMALL.width, SMALL.heads, SMALL.kv_heads, 300
KV_WIDTH = WIDTH * KV_HEADS // HEADS
SHAPES = SMALL.matrices
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_base(
    path: Path, seed: int = 0, shape: Shape = SMALL, *, q4_0: bool = False, bare: bool = False
) -> Path:
    """A Llama with a byte tokenizer; its matrices in float32, or in Q4_0 without being rounded.

    A `bare` one puts nothing before a text: no chat template, no first token, no space.
    """
    rng = np.random.default_rng(seed)

    def matrix(*of: int) -> np.ndarray:
        return (rng.standard_normal(of) / np.sqrt(of[-1])).astype(np.float32)

    def add(name: str, size: float, *of: int) -> None:
        if q4_0:
            blocks = _q4_0(rng, *of, size / np.sqrt(of[-1]))
            w.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            w.add_tensor(name, size * matrix(*of))

    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(shape.context)
    w.add_embedding_length(shape.width)
    w.add_block_count(shape.blocks)
    w.add_feed_forward_length(shape.ffn)
    w.add_head_count(shape.heads)
    w.add_head_count_kv(shape.kv_heads)
    if shape.experts:
        w.add_expert_count(shape.experts)
        w.add_expert_used_count(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(shape.width // shape.heads)
    w.add_vocab_size(shape.vocab)
    w.add_tokenizer_model("llama")
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    pieces += [f"w{i}" for i in range(shape.vocab - len(pieces))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (shape.vocab - 259)  # unknown, control, byte, normal
    w.add_token_list(pieces)
    w.add_token_scores([0.0] * shape.vocab)
    w.add_token_types(kinds)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    if bare:
        w.add_add_bos_token(False)
        w.add_add_space_prefix(False)
    else:
        w.add_chat_template(CHAT_TEMPLATE)
    add("token_embd.weight", 10, shape.vocab, shape.width)
    add("output.weight", 4, shape.vocab, shape.width)
    w.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    for block in range(shape.blocks):
        for kind, of in shape.matrices.items():
            add(f"blk.{block}.{kind}.weight", 2, *of)
        if shape.experts:
            add(f"blk.{block}.ffn_gate_inp.weight", 2, shape.experts, shape.width)
        for kind in ("attn_norm", "ffn_norm"):
            values = 1 + 0.2 * rng.standard_normal(shape.width)  # (width,)
            w.add_tensor(f"blk.{block}.{kind}.weight", values.astype(np.float32))
    _finish(w)
    return path


def _byte_model(path: Path, architecture: str, *, blocks: int, width: int) -> gguf.GGUFWriter:
    """A writer of a model with a byte tokenizer and the sizes that all architectures state."""
    w = gguf.GGUFWriter(path, architecture)
    w.add_context_length(1024)
    w.add_embedding_length(width)
    w.add_block_count(blocks)
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("llama")
    w.add_token_list(
        ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *map(str, range(41))]
    )
    w.add_token_scores([0.0] * VOCAB)
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * 41)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    return w


def write_recurrent(path: Path, blocks: int = 2, width: int = 64) -> Path:
    """A Mamba with random weights: one state of all that it read, and no keys and values."""
    rng = np.random.default_rng(0)
    inner, state, rank, kernel = 2 * width, 16, 4, 4
    w = _byte_model(path, "mamba", blocks=blocks, width=width)
    w.add_feed_forward_length(0)
    w.add_head_count(0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_ssm_conv_kernel(kernel)
    w.add_ssm_inner_size(inner)
    w.add_ssm_state_size(state)
    w.add_ssm_time_step_rank(rank)

    def add(name: str, *of: int) -> None:
        values = rng.standard_normal(of) / np.sqrt(of[-1])
        w.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", VOCAB, width)
    w.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for block in range(blocks):
        name = f"blk.{block}"
        w.add_tensor(f"{name}.attn_norm.weight", np.ones(width, np.float32))
        add(f"{name}.ssm_in.weight", 2 * inner, width)
        add(f"{name}.ssm_conv1d.weight", inner, kernel)
        add(f"{name}.ssm_conv1d.bias", inner)
        add(f"{name}.ssm_x.weight", rank + 2 * state, inner)
        add(f"{name}.ssm_dt.weight", inner, rank)
        add(f"{name}.ssm_dt.bias", inner)
        steps = np.tile(-np.arange(1, state + 1, dtype=np.float32) / state, (inner, 1))
        w.add_tensor(f"{name}.ssm_a", steps)  # (inner, state)
        w.add_tensor(f"{name}.ssm_d", np.ones(inner, np.float32))
        add(f"{name}.ssm_out.weight", width, inner)
    _finish(w)
    return path


def write_windowed(path: Path, window: int = 32, blocks: int = 4, width: int = 64) -> Path:
    """A Cohere 2 with random weights: three blocks of four attend to a sliding window."""
    rng = np.random.default_rng(0)
    heads, ffn = 4, 96
    w = _byte_model(path, "cohere2", blocks=blocks, width=width)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(heads)
    w.add_layer_norm_eps(1e-5)
    w.add_sliding_window(window)
    w.add_logit_scale(1.0)
    w.add_rope_dimension_count(width // heads)

    def add(name: str, *of: int) -> None:
        values = 2 * rng.standard_normal(of) / np.sqrt(of[-1])
        w.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", VOCAB, width)
    w.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for block in range(blocks):
        name = f"blk.{block}"
        w.add_tensor(f"{name}.attn_norm.weight", np.ones(width, np.float32))
        for kind in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{name}.{kind}.weight", width, width)
        add(f"{name}.ffn_gate.weight", ffn, width)
        add(f"{name}.ffn_up.weight", ffn, width)
        add(f"{name}.ffn_down.weight", width, ffn)
    _finish(w)
    return path


def _q4_0(rng: np.random.Generator, rows: int, columns: int, deviation: float) -> np.ndarray:
    """Random blocks of Q4_0 (rows, columns / 32 * 18) uint8 with about that standard deviation."""
    blocks = rng.integers(0, 256, (rows, columns // 32, 18), np.uint8)
    scale = np.array([deviation / 4.6], np.float16)  # nibbles less 8 deviate by 4.6
    blocks[:, :, :2] = scale.view(np.uint8)
    return blocks.reshape(rows, -1)


def write_adapter(
    path: Path,
    seed: int,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    kinds: tuple[str, ...] | None = None,
    blocks: tuple[int, ...] | None = None,
    loudness: float = 0.5,
    shape: Shape = SMALL,
    dtype: type[np.floating] = np.float32,
    embeddings: bool = False,
    description: str = "",
) -> Path:
    """A LoRA for `write_base`'s model of that shape; `loudness` scales B.

    It adapts `kinds` of `blocks`, by default all, and with `embeddings` those of input and output.
    """
    rng = np.random.default_rng(seed)
    w = gguf.GGUFWriter(path, "llama")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    if description:
        w.add_description(description)
    w.add_float32("adapter.lora.alpha", alpha)
    for block in range(shape.blocks) if blocks is None else blocks:
        for kind in shape.matrices if kinds is None else kinds:
            *stack, d_out, d_in = shape.matrices[kind]
            a = rng.standard_normal((*stack, rank, d_in)) / np.sqrt(d_in)
            b = loudness * rng.standard_normal((*stack, d_out, rank))
            w.add_tensor(f"blk.{block}.{kind}.weight.lora_a", a.astype(dtype))
            w.add_tensor(f"blk.{block}.{kind}.weight.lora_b", b.astype(dtype))
    if embeddings:
        for name, rows, of_b in (
            ("token_embd", shape.vocab, shape.width),  # A has a row for each token
            ("output", rank, shape.vocab),
        ):
            a = rng.standard_normal((rows, shape.width if rows == rank else rank))
            w.add_tensor(f"{name}.weight.lora_a", (a / 8).astype(dtype))
            b = loudness * rng.standard_normal((of_b, rank))
            w.add_tensor(f"{name}.weight.lora_b", b.astype(dtype))
    _finish(w)
    return path
