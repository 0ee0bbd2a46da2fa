"""Tiny random models for pictures, whose text part sits inside another model.

PEFT names its layers by where they sit, llama.cpp's GGUF file has the text part alone. Made and
kept as in families.py: adapters of the text part's linear layers and experts, and of everything.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from families import SHAPE, convert_base, make_adapters, save_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LLAMA = SHAPE | {"model_type": "llama", "tie_word_embeddings": False}
_EYES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
_QWEN_EYES = {"depth": 1, "num_heads": 2, "patch_size": 14}

# name -> llama.cpp's name of the text part, transformers' model, its settings
WRAPPED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava": (
        "llama",
        "Llava",
        {"text_config": _LLAMA, "vision_config": _EYES | {"model_type": "clip_vision_model"},
         "image_token_index": 4},
    ),
    "llava-mixtral": (
        "llama",
        "Llava",
        {"text_config": _LLAMA | {"model_type": "mixtral", "num_local_experts": 4},
         "vision_config": _EYES | {"model_type": "clip_vision_model"}, "image_token_index": 4},
    ),
    "smolvlm": (
        "llama",
        "SmolVLM",
        {"text_config": _LLAMA | {"architectures": ["VLlama3ForCausalLM"]},
         "vision_config": _EYES, "image_token_id": 4, "tie_word_embeddings": False},
    ),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {"text_config": SHAPE | {"model_type": "gemma3_text", "head_dim": 16,
                                 "query_pre_attn_scalar": 16, "sliding_window": 64},
         "vision_config": _EYES | {"model_type": "siglip_vision_model"},
         "mm_tokens_per_image": 4, "image_token_index": 4},
    ),
    "mistral3": (
        "mistral3",
        "Mistral3",
        {"text_config": _LLAMA | {"model_type": "mistral", "head_dim": 16},
         "vision_config": _EYES | {"model_type": "pixtral"}, "image_token_index": 4},
    ),
    "qwen2vl": (
        "qwen2vl",
        "Qwen2VL",
        {"text_config": SHAPE | {"tie_word_embeddings": True, "rope_scaling":
                                 {"type": "mrope", "mrope_section": [2, 3, 3]}},
         "vision_config": _QWEN_EYES | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 1},
         "image_token_id": 4},
    ),
    "glm4v": (
        "glm4",
        "Glm4v",
        {"text_config": SHAPE | {"head_dim": 16, "partial_rotary_factor": 0.5,
                                 "tie_word_embeddings": False, "rope_parameters":
                                 {"rope_type": "default", "rope_theta": 10000.0,
                                  "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
         "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 14,
                           "image_size": 28, "out_hidden_size": 64, "intermediate_size": 48}},
    ),
    "qwen3vl": (
        "qwen3vl",
        "Qwen3VL",
        {"text_config": SHAPE | {"head_dim": 16, "tie_word_embeddings": True, "rope_scaling":
                                 {"rope_type": "default", "mrope_section": [2, 3, 3]}},
         "vision_config": _QWEN_EYES | {"hidden_size": 32, "intermediate_size": 48,
                                        "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
         "image_token_id": 4},
    ),
}  # fmt: skip

# Those with experts: the parameters that are adapted beside the layers.
_PARAMETERS = {"llava-mixtral": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def _make_model(name: str, folder: Path) -> Any:
    import torch
    import transformers

    _, kind, how = WRAPPED[name]
    torch.manual_seed(list(WRAPPED).index(name))
    config = getattr(transformers, f"{kind}Config")(**how)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    model.set_attn_implementation("eager")
    return save_model(model, folder, {})


def _build(out: Path, sources: Path) -> None:
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model

    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    failures = {}
    for name in WRAPPED:
        folder = out / name
        folder.mkdir(parents=True)
        try:
            model = _make_model(name, folder / "model")
            text = rf"model\.(language|text)_model\..*\.({'|'.join(ALL)})"
            parameters = _PARAMETERS.get(name)
            logits = make_adapters(model, ALL, folder, targets=text, target_parameters=parameters)
            np.savez(folder / "logits.npz", **logits)
            everything = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
            get_peft_model(model, everything).save_pretrained(folder / "everything")
            convert_base(folder / "model", folder / "base.gguf", {})
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    (out / "failures.json").write_text(json.dumps(failures))


if __name__ == "__main__":
    _build(Path(sys.argv[1]), Path(sys.argv[2]))
