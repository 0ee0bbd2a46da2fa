"""Tiny random models of many architectures with PEFT adapters, for the converter to be proved on.

Everything is made by others: the models by transformers, the adapters by PEFT, the base GGUF files
by llama.cpp's own converter, the logits by PEFT. Only the vocabulary, which has nothing to do with
adapters, is a dummy. Built once, in a process of its own (`python tests/families.py OUT SOURCES`),
and kept in pytest's cache; the fixture `families` in conftest.py hands it out.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

BLOCKS, WIDTH, HEADS, KV_HEADS, FFN, VOCAB, CONTEXT = 2, 64, 4, 2, 96, 300, 128
TOKENS = [5, 17, 80, 33, 201, 44, 9, 150, 71, 260, 3, 18]

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.12,  # far from linear: attention must have something to choose
}
_ONE_KV = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_PLAIN = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "decoder_sparse_step": 1, "tie_word_embeddings": False,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS,
    "n_positions": CONTEXT, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.12,
}  # fmt: skip

# llama.cpp's name -> transformers' model, its settings, the adapted layers
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": ("Llama", SHAPE | {"tie_word_embeddings": False}, [*_ALL, "lm_head", "embed_tokens"]),
    "granite": ("Granite", SHAPE | {"tie_word_embeddings": True}, _ALL),
    "smollm3": ("SmolLM3", SHAPE | {"tie_word_embeddings": True}, _ALL),
    "olmo": ("Olmo", SHAPE | {"tie_word_embeddings": False}, _ALL),
    "qwen2": ("Qwen2", SHAPE | {"tie_word_embeddings": True}, _ALL),
    "qwen3": ("Qwen3", SHAPE | {"tie_word_embeddings": True, "head_dim": 16}, _ALL),
    "gemma": ("Gemma", SHAPE | {"head_dim": 16}, _ALL),
    "gemma2": (
        "Gemma2", SHAPE | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}, _ALL
    ),
    "gemma3": (
        "Gemma3Text",
        SHAPE | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
        _ALL,
    ),
    "olmo2": ("Olmo2", SHAPE | {"tie_word_embeddings": False}, _ALL),
    "phi2": (
        "Phi",
        SHAPE | {"num_key_value_heads": HEADS, "intermediate_size": 4 * WIDTH},
        ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
    ),
    "phi3": (
        "Phi3",
        SHAPE | {"sliding_window": None, "tie_word_embeddings": False},
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "stablelm": (
        "StableLm", SHAPE | {"num_key_value_heads": HEADS, "partial_rotary_factor": 0.5}, _ALL
    ),
    "starcoder2": (
        "Starcoder2",
        SHAPE | {"sliding_window": None},
        ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
    ),
    "command-r": ("Cohere", SHAPE, _ALL),
    "cohere2": ("Cohere2", SHAPE | {"head_dim": 16, "sliding_window": 64}, _ALL),
    "glm4": (
        "Glm4",
        SHAPE | {"head_dim": 16, "tie_word_embeddings": False},
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "exaone4": ("Exaone4", SHAPE | {"sliding_window": 64, "tie_word_embeddings": False}, _ALL),
    "nemotron": ("Nemotron", SHAPE | {"tie_word_embeddings": False}, _PLAIN),
    "seed_oss": ("SeedOss", SHAPE | {"head_dim": 16, "tie_word_embeddings": False}, _ALL),
    "gpt2": ("GPT2", _GPT2, ["c_attn", "c_proj", "c_fc"]),
    "gptneox": (
        "GPTNeoX",
        _ONE_KV | {"tie_word_embeddings": False},
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    ),
    "bloom": (
        "Bloom",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": HEADS,
         "initializer_range": 0.12},
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    ),
    "falcon": (
        "Falcon",
        _ONE_KV | {"new_decoder_architecture": True, "num_kv_heads": KV_HEADS, "alibi": False,
                   "bias": False, "ffn_hidden_size": 4 * WIDTH},
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    ),
    "mpt": (
        "Mpt",
        {"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": BLOCKS, "n_heads": HEADS,
         "max_seq_len": CONTEXT, "expansion_ratio": 4, "initializer_range": 0.12},
        ["Wqkv", "out_proj", "up_proj", "down_proj"],
    ),
    "apertus": ("Apertus", SHAPE | {"tie_word_embeddings": False}, _PLAIN),
    "arcee": ("Arcee", SHAPE | {"tie_word_embeddings": False}, _PLAIN),
    "chatglm": (
        "Glm",
        SHAPE | {"head_dim": 16, "tie_word_embeddings": False},
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "ernie4_5": ("Ernie4_5", SHAPE | {"tie_word_embeddings": False, "head_dim": 16}, _ALL),
    "granitemoe": ("GraniteMoe", SHAPE | {"num_local_experts": 4} | MOE, _ATTENTION),
    "hunyuan-dense": ("HunYuanDenseV1", SHAPE | {"head_dim": 16}, _ALL),
    "jais2": ("Jais2", SHAPE, _PLAIN),
    "lfm2": (
        "Lfm2",
        SHAPE | {"layer_types": ["full_attention", "conv"]},
        ["q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3"],
    ),
    "olmoe": ("Olmoe", SHAPE | MOE | {"num_key_value_heads": HEADS}, _ATTENTION),
    "qwen2moe": (
        "Qwen2Moe",
        SHAPE | MOE | {"shared_expert_intermediate_size": 48},
        [*_ATTENTION, *(f"shared_expert.{kind}_proj" for kind in ("gate", "up", "down"))],
    ),
    "qwen3moe": (
        "Qwen3Moe", SHAPE | MOE | {"head_dim": 16, "norm_topk_prob": True}, _ATTENTION
    ),
    "starcoder": ("GPTBigCode", _GPT2, ["c_attn", "c_proj", "c_fc"]),
}  # fmt: skip


# What llama.cpp's converter looks for in a config, and transformers writes no more, or otherwise.
MISSING: dict[str, dict[str, Any]] = {
    "cohere2": {"rotary_pct": 1.0},
    "gpt2": {"n_ctx": CONTEXT},
    "gptneox": {"rotary_pct": 0.25},
    "mpt": {"architectures": ["MPTForCausalLM"]},
}


def _make_model(name: str, folder: Path) -> Any:
    import torch
    import transformers

    kind, how, _ = FAMILIES[name]
    torch.manual_seed(list(FAMILIES).index(name))
    config = getattr(transformers, f"{kind}Config")(**how)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return save_model(model, folder, MISSING.get(name, {}))


def save_model(model: Any, folder: Path, missing: dict[str, Any]) -> Any:
    """Save the model, with norms and biases that are random, too; returns it for evaluation."""
    import torch

    with torch.no_grad():  # transformers starts norms at one and biases at zero: no test for either
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "ln" in parameter_name or "bias" in parameter_name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | missing))
    if type(model).__name__.startswith("Gemma3"):  # the vocabulary is counted by the tokenizer's
        pieces = {f"w{i}": i for i in range(VOCAB)}
        tokenizer = {"model": {"vocab": pieces}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return model.eval()


def make_adapters(
    model: Any, modules: list[str], folder: Path, targets: str | None = None, **settings: Any
) -> dict[str, Any]:
    """Two adapters of `modules`, saved; their logits (n_tokens, n_vocab) by PEFT, and the base's.

    `targets` is how PEFT is told the modules, if not by their names.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    tokens = torch.tensor([TOKENS])
    logits = {}
    with torch.no_grad():
        logits["base"] = model(input_ids=tokens).logits[0].float().numpy()
        for adapter, how in (
            ("plain", {"r": 8, "lora_alpha": 16}),
            (
                "patterns",
                {"r": 6, "lora_alpha": 12, "rank_pattern": {modules[0]: 3},
                 "alpha_pattern": {modules[-1]: 5}, "use_rslora": True},
            ),
        ):  # fmt: skip
            torch.manual_seed(7)
            config = LoraConfig(
                task_type="CAUSAL_LM", target_modules=targets or modules, **how, **settings
            )
            peft = get_peft_model(model, config)
            for parameter_name, parameter in peft.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.1)
            peft.eval()
            logits[adapter] = peft(input_ids=tokens).logits[0].float().numpy()
            peft.save_pretrained(folder / adapter)
            model = peft.unload()
    return logits


def convert_base(folder: Path, out: Path, missing: dict[str, Any], **options: Any) -> None:
    """The base as GGUF in f32 by llama.cpp's converter, with a vocabulary of dummies.

    `missing` is what llama.cpp's converter looks for beyond what lies in config.json, `options`
    are those of its model classes.
    """
    import gguf
    from conversion import ModelBase, get_model_architecture, get_model_class
    from conversion.base import ModelType

    hparams = ModelBase.load_hparams(folder, False) | missing
    converter = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

    converter = getattr(converter, "Ministral3Model", converter)  # Mistral 3's is a shell around it

    class Dummy(converter):  # type: ignore[valid-type, misc]
        model_arch = converter.model_arch

        def set_vocab(self) -> None:
            pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
            pieces += [f"w{i}" for i in range(VOCAB - len(pieces))]
            self.gguf_writer.add_tokenizer_model("llama")
            self.gguf_writer.add_tokenizer_pre("default")
            self.gguf_writer.add_token_list(pieces)
            self.gguf_writer.add_token_scores([0.0] * VOCAB)
            self.gguf_writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259))
            self.gguf_writer.add_bos_token_id(1)
            self.gguf_writer.add_eos_token_id(2)

    Dummy(folder, gguf.LlamaFileType.ALL_F32, out, eager=True, hparams=hparams, **options).write()


def _build(out: Path, sources: Path) -> None:
    import numpy as np
    import torch

    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    failures = {}
    for name in FAMILIES:
        folder = out / name
        folder.mkdir(parents=True)
        try:
            model = _make_model(name, folder / "model")
            logits = make_adapters(model, FAMILIES[name][2], folder, fan_in_fan_out=name == "gpt2")
            np.savez(folder / "logits.npz", **logits)
            convert_base(folder / "model", folder / "base.gguf", MISSING.get(name, {}))
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    (out / "failures.json").write_text(json.dumps(failures))


if __name__ == "__main__":
    _build(Path(sys.argv[1]), Path(sys.argv[2]))
