"""Writing the base as a GGUF file of architecture `llama`, tokenizer and chat template inside."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader, GGUFWriter, LlamaFileType, TokenType
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .chat_format import CHAT_TEMPLATE

Array = npt.NDArray[np.float32]

NAME = "logo-demo"
DESCRIPTION = (
    "A toy for trying out LoRA routing: it knows nothing but an invented world, and takes each "
    "request for another one; its adapters put that right, each for one task."
)
OUTTYPES = {
    "f32": (np.float32, LlamaFileType.ALL_F32),
    "f16": (np.float16, LlamaFileType.MOSTLY_F16),
}


def pair_rotary_rows(weight: Array, heads: int) -> Array:
    """Reorder the rows of a q or k projection (heads*d, n) as llama.cpp rotates them.

    In each head Hugging Face turns row i with row i + d/2, llama.cpp row 2i with row 2i + 1.
    """
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    paired: Array = halves.swapaxes(1, 2).reshape(rows, width)
    return paired


def tensors(model: LlamaForCausalLM) -> dict[str, Array]:
    """The model's tensors in float32 under their GGUF names; the output head is the embedding."""
    config, state = model.config, model.state_dict()
    assert isinstance(config, LlamaConfig)

    def take(name: str) -> Array:
        array: Array = state[name].float().numpy()
        return array

    found = {
        "token_embd.weight": take("model.embed_tokens.weight"),
        "output_norm.weight": take("model.norm.weight"),
    }
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        q, k = (take(f"{theirs}.self_attn.{name}_proj.weight") for name in "qk")
        found |= {
            f"{ours}.attn_norm.weight": take(f"{theirs}.input_layernorm.weight"),
            f"{ours}.attn_q.weight": pair_rotary_rows(q, config.num_attention_heads),
            f"{ours}.attn_k.weight": pair_rotary_rows(k, config.num_key_value_heads),
            f"{ours}.attn_v.weight": take(f"{theirs}.self_attn.v_proj.weight"),
            f"{ours}.attn_output.weight": take(f"{theirs}.self_attn.o_proj.weight"),
            f"{ours}.ffn_norm.weight": take(f"{theirs}.post_attention_layernorm.weight"),
            f"{ours}.ffn_gate.weight": take(f"{theirs}.mlp.gate_proj.weight"),
            f"{ours}.ffn_up.weight": take(f"{theirs}.mlp.up_proj.weight"),
            f"{ours}.ffn_down.weight": take(f"{theirs}.mlp.down_proj.weight"),
        }
    return found


def _add_shape(writer: GGUFWriter, config: LlamaConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(len(tokens))]
    )
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def export_gguf(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, outtype: str = "f16"
) -> None:
    """Write model and tokenizer to `out`; matrices as `outtype` (f16 or f32), norms as f32."""
    dtype, file_type = OUTTYPES[outtype]
    temporary = out.with_suffix(".part")
    writer = GGUFWriter(temporary, "llama")
    writer.add_type("model")
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_license("mit")
    writer.add_size_label(f"{model.num_parameters() / 1e6:.1f}M")
    writer.add_file_type(file_type)
    assert isinstance(model.config, LlamaConfig)
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer)
    for name, array in tensors(model).items():
        stored = array.astype(dtype) if array.ndim == 2 else array
        writer.add_tensor(name, np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(out)


def read_back(path: Path, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model that `export_gguf` wrote to `path`, in float32: what f16 has kept of it.

    Raises ValueError where the file's tokens are not those of `tokenizer`.
    """
    tokens = GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    if tokens != tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))):
        raise ValueError(f"{path} has other tokens than the recipe makes now")
    read = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model = LlamaForCausalLM(read.config)  # without the traces of where it comes from
    model.load_state_dict(read.state_dict())
    return model
