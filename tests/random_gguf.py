"""A small base model and adapters with random weights, written tensor by tensor with gguf.

For tests of the runtime that need real llama.cpp arithmetic but neither torch nor sense.
"""

from pathlib import Path

import gguf
import numpy as np

BLOCKS, WIDTH, HEADS, KV_HEADS, FFN, VOCAB = 3, 64, 4, 2, 96, 300
KV_WIDTH = WIDTH * KV_HEADS // HEADS
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KV_WIDTH, WIDTH),
    "attn_v": (KV_WIDTH, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (FFN, WIDTH),
    "ffn_up": (FFN, WIDTH),
    "ffn_down": (WIDTH, FFN),
}
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_base(path: Path, seed: int = 0) -> Path:
    """A float32 Llama with grouped-query heads and a byte tokenizer."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(256)
    w.add_embedding_length(WIDTH)
    w.add_block_count(BLOCKS)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(WIDTH // HEADS)
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("llama")
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    pieces += [f"w{i}" for i in range(VOCAB - len(pieces))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259)  # unknown, control, byte, normal
    w.add_token_list(pieces)
    w.add_token_scores([0.0] * VOCAB)
    w.add_token_types(kinds)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_chat_template(CHAT_TEMPLATE)
    w.add_tensor("token_embd.weight", 10 * matrix(VOCAB, WIDTH))
    w.add_tensor("output.weight", 4 * matrix(VOCAB, WIDTH))
    w.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for block in range(BLOCKS):
        for kind, shape in SHAPES.items():
            w.add_tensor(f"blk.{block}.{kind}.weight", 2 * matrix(*shape))
        for kind in ("attn_norm", "ffn_norm"):
            values = 1 + 0.2 * rng.standard_normal(WIDTH)  # (WIDTH,)
            w.add_tensor(f"blk.{block}.{kind}.weight", values.astype(np.float32))
    _finish(w)
    return path


def write_adapter(
    path: Path,
    seed: int,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    kinds: tuple[str, ...] = tuple(SHAPES),
    blocks: tuple[int, ...] = tuple(range(BLOCKS)),
    loudness: float = 0.5,
) -> Path:
    """A float32 LoRA for `write_base`'s model; `loudness` scales B."""
    rng = np.random.default_rng(seed)
    w = gguf.GGUFWriter(path, "llama")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", alpha)
    for block in blocks:
        for kind in kinds:
            d_out, d_in = SHAPES[kind]
            a = rng.standard_normal((rank, d_in)) / np.sqrt(d_in)
            b = loudness * rng.standard_normal((d_out, rank))
            w.add_tensor(f"blk.{block}.{kind}.weight.lora_a", a.astype(np.float32))
            w.add_tensor(f"blk.{block}.{kind}.weight.lora_b", b.astype(np.float32))
    _finish(w)
    return path
