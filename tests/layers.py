"""Tiny random models whose layers are not one to one with the weights of their GGUF files.

Experts, which GGUF has as one stack, with adapters in both forms that PEFT has given them; and
fused layers that llama.cpp takes apart. As in families.py everything is made by others; where
they cannot, the table says what is done instead, and why. Built once, in a process of its own
(`python tests/layers.py OUT SOURCES`), and kept; the fixture `layers` in conftest.py hands it out.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from families import BLOCKS, HEADS, KV_HEADS, MOE, SHAPE, TOKENS, WIDTH, convert_base

N_EXPERT = 4
_HEADS = {"num_key_value_heads": HEADS}
_Q_V = ["q_proj", "v_proj"]

# name -> transformers' model, its settings, adapted layers, adapted parameters
EXPERTS: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "llama": (
        "Mixtral",
        SHAPE | {"num_local_experts": N_EXPERT, "tie_word_embeddings": False},
        _Q_V,
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
    ),
    "qwen2moe": (
        "Qwen2Moe",
        SHAPE | MOE | {"shared_expert_intermediate_size": 48},
        [
            *_Q_V,
            *(f"shared_expert{kind}" for kind in (".gate_proj", ".up_proj", ".down_proj", "_gate")),
        ],
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
    ),
    "qwen3moe": (
        "Qwen3Moe",
        SHAPE | MOE | {"head_dim": 16, "norm_topk_prob": True},
        _Q_V,
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
    ),
    "olmoe": (
        "Olmoe",
        SHAPE | MOE | _HEADS | {"intermediate_size": 32},  # gate and up together: as wide as d
        _Q_V,
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
    ),
    "granitemoe": (
        "GraniteMoeShared",
        SHAPE | {"num_local_experts": N_EXPERT, "shared_intermediate_size": 48},
        [*_Q_V, "shared_mlp.input_linear", "shared_mlp.output_linear"],
        ["experts.gate_up_proj", "experts.down_proj", "router.weight"],
    ),
}  # fmt: skip

# Those that had a module for each expert in transformers 4, which GraniteMoe never had: the block
# that they were in, and what gate, up and down were called there.
MODULES = {
    "llama": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen2moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "qwen3moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "olmoe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}

# Whose adapters in that form PEFT still loads. With a Qwen2-MoE it leaves them out, with a warning.
LOADED_BY_PEFT = ("llama", "qwen3moe", "olmoe")

# Fused layers that llama.cpp takes apart. Their code is on a hub, not in transformers; but both are
# a Llama in all but the names and the fused layer: so a Llama is saved in their form. llama.cpp's
# name -> architecture in the config, settings, new names.
FUSED: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "internlm2": (
        "InternLM2ForCausalLM",
        {},
        {"self_attn.q_proj": "attention.wqkv", "self_attn.o_proj": "attention.wo",
         "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
         "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
         "post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings",
         "lm_head": "output"},
    ),
    "baichuan": (
        "BaichuanForCausalLM",
        _HEADS | {"num_hidden_layers": 32},  # fewer have no rotary positions in llama.cpp
        {"self_attn.q_proj": "self_attn.W_pack"},
    ),
}  # fmt: skip

# Bases that are converted with --fuse-qkv: transformers' model by the name of a folder.
JOINED = {"llama-joined": "Llama", "qwen2-joined": "Qwen2"}


def _new_model(name: str, folder: Path) -> Any:
    import torch
    import transformers

    kind, how = EXPERTS[name][:2]
    torch.manual_seed(list(EXPERTS).index(name))
    config = getattr(transformers, f"{kind}Config")(**how)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def _load(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", attn_implementation="eager"
    ).eval()


def _logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].float().numpy()


def _with_parameters(name: str, folder: Path) -> dict[str, Any]:
    """Adapters with PEFT's target_parameters, saved; their logits (n_tokens, n_vocab) by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    *_, modules, parameters = EXPERTS[name]
    gate_up, down, router = parameters
    logits = {}
    for adapter, how in {
        "parameters": {"r": 4, "lora_alpha": 8, "target_modules": modules,
                       "target_parameters": parameters},
        "parameters-patterns": {
            "r": 3, "lora_alpha": 6, "target_modules": modules, "use_rslora": True,
            "target_parameters": [down, router, gate_up],
            "rank_pattern": {"gate_up_proj": 5}, "alpha_pattern": {"down_proj": 4, router: 2},
        },
        "only-gate-up": {"r": 4, "lora_alpha": 8, "target_modules": [],
                         "target_parameters": [gate_up]},
        "only-down": {"r": 4, "lora_alpha": 8, "target_modules": [], "target_parameters": [down]},
    }.items():  # fmt: skip
        torch.manual_seed(11)
        peft = get_peft_model(_load(folder / "model"), LoraConfig(task_type="CAUSAL_LM", **how))
        with torch.no_grad():
            for parameter_name, parameter in peft.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.2)
        logits[adapter] = _logits(peft.eval())
        peft.save_pretrained(folder / adapter)
    return logits


def _with_modules(name: str, folder: Path) -> dict[str, Any]:
    """Adapters of single experts, with their logits: "modules" on all, "uneven" on some of them.

    The second has ranks and alphas that differ. PEFT loads the first where the model is one of
    `LOADED_BY_PEFT`. The other logits are those of the model with each expert's scaling B A added
    to its weights here.
    """
    import numpy as np
    import torch
    from peft import PeftModel
    from safetensors.numpy import save_file

    block, (gate, up, down) = MODULES[name]
    everywhere = dict.fromkeys((gate, up, down), range(N_EXPERT))
    rng = np.random.default_rng(5)
    logits = {}
    for adapter, experts, ranks, alphas in (
        ("modules", everywhere, {}, {}),
        (
            "uneven",
            {gate: (0, 2), up: (3,), down: range(N_EXPERT)},
            {f"experts.1.{down}": 2, f"experts.2.{gate}": 6},
            {f"experts.2.{down}": 5, f"experts.0.{gate}": 3},
        ),
    ):
        model = _load(folder / "model")
        tensors = {}
        for layer in range(BLOCKS):
            fused = model.model.layers[layer].mlp.experts
            d_ff = fused.down_proj.shape[-1]
            for kind, expert in [(kind, i) for kind, some in experts.items() for i in some]:
                owner = f"experts.{expert}.{kind}"
                rank, alpha = ranks.get(owner, 4), alphas.get(owner, 8)
                d_out, d_in = (WIDTH, d_ff) if kind == down else (d_ff, WIDTH)
                a = rng.standard_normal((rank, d_in)).astype(np.float32) / 8
                b = rng.standard_normal((d_out, rank)).astype(np.float32) / 4
                key = f"base_model.model.model.layers.{layer}.{block}.{owner}.lora_"
                tensors |= {f"{key}A.weight": a, f"{key}B.weight": b}
                weight = fused.down_proj if kind == down else fused.gate_up_proj
                start = d_ff if kind == up else 0
                with torch.no_grad():
                    weight[expert, start : start + d_out] += torch.from_numpy(alpha / rank * b @ a)
        (folder / adapter).mkdir()
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
            "target_modules": [gate, up, down], "r": 4, "lora_alpha": 8,
            "rank_pattern": ranks, "alpha_pattern": alphas,
        }  # fmt: skip
        (folder / adapter / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / adapter / "adapter_model.safetensors")
        if adapter == "modules" and name in LOADED_BY_PEFT:
            model = PeftModel.from_pretrained(_load(folder / "model"), folder / adapter).eval()
        logits[adapter] = _logits(model)
    return logits


def _fused(name: str, q: Any, k: Any, v: Any) -> Any:
    """The rows of queries, keys and values (d_out, ...) as rows of the fused layer."""
    import numpy as np

    if name == "baichuan":  # one after the other
        return np.concatenate([q, k, v])
    # internlm2: by group, whose queries are followed by their key and their value
    width = WIDTH // HEADS
    groups = [part.reshape(KV_HEADS, -1, width, part.shape[-1]) for part in (q, k, v)]
    return np.concatenate(groups, axis=1).reshape(-1, q.shape[-1])


def _with_fused_layers(name: str, folder: Path) -> dict[str, Any]:
    """A Llama, saved in the form of model `name`; its logits and, under an adapter, PEFT's.

    The adapter has the same A for queries, keys and values, as one of the fused layer does.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.numpy import save_file
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    own, how, names = FUSED[name]
    settings = SHAPE | {"tie_word_embeddings": False} | how
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager")).eval()
    logits = {"base": _logits(model)}

    def renamed(tensors: dict[str, Any], ending: str) -> dict[str, Any]:
        found = {}
        for key in tensors:
            *before, layer = key.removesuffix(ending).split(".")
            if layer == "q_proj":
                qkv = [tensors[key.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
                rows = qkv[0] if "lora_A" in ending else _fused(name, *qkv)
                found[".".join([*before, "q_proj"]) + ending] = rows
            elif layer not in ("k_proj", "v_proj"):
                found[key] = tensors[key]
        for old, new in names.items():
            found = {key.replace(old, new): value for key, value in found.items()}
        return {key: value.copy() for key, value in found.items()}

    (folder / "model").mkdir()
    weights = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    save_file(renamed(weights, ".weight"), folder / "model" / "model.safetensors")
    (folder / "model" / "config.json").write_text(
        json.dumps(settings | {"architectures": [own], "rms_norm_eps": 1e-6, "hidden_act": "silu"})
    )
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=6, lora_alpha=12, target_modules=linear)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
            if "lora_A" in key and ("k_proj" in key or "v_proj" in key):
                twin = peft.get_parameter(
                    key.replace("k_proj", "q_proj").replace("v_proj", "q_proj")
                )
                parameter.copy_(twin)
    logits["fused"] = _logits(peft.eval())
    peft.save_pretrained(folder / "fused")
    path = folder / "fused" / "adapter_model.safetensors"
    saved = {key: value.numpy() for key, value in load_file(path).items()}
    tensors = {}
    for ending in (".lora_A.weight", ".lora_B.weight"):
        tensors |= renamed({k: v for k, v in saved.items() if k.endswith(ending)}, ending)
    save_file(tensors, path)
    return logits


def _with_joined_layers(name: str, folder: Path) -> dict[str, Any]:
    """Adapters of a model whose queries, keys and values the converter is told to join."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    config = getattr(transformers, f"{JOINED[name]}Config")(**SHAPE, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bias" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "model")
    logits = {"base": _logits(model.eval())}
    for adapter, how in {
        "queries": {"target_modules": ["q_proj"]},
        "keys-values": {"target_modules": ["k_proj", "v_proj", "o_proj"]},
        "all": {"target_modules": ["q_proj", "k_proj", "v_proj"],
                "rank_pattern": {"k_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    }.items():  # fmt: skip
        peft_config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **how)
        peft = get_peft_model(_load(folder / "model"), peft_config)
        with torch.no_grad():
            for key, parameter in peft.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.2)
        logits[adapter] = _logits(peft.eval())
        peft.save_pretrained(folder / adapter)
    return logits


def _end_its_recursion() -> None:
    """What llama.cpp's converter does not split it gives to itself again, for ever."""
    from conversion.baichuan import BaichuanModel
    from conversion.base import ModelBase

    split = BaichuanModel.modify_tensors

    def modify_tensors(self: Any, data: Any, name: str, block: int | None) -> Any:
        return (split if "W_pack" in name else ModelBase.modify_tensors)(self, data, name, block)

    BaichuanModel.modify_tensors = modify_tensors


def _build(out: Path, sources: Path) -> None:
    import numpy as np
    import torch

    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    failures = {}
    for name in (*EXPERTS, *FUSED, *JOINED):
        folder = out / name
        folder.mkdir(parents=True)
        try:
            if name in FUSED:
                logits = _with_fused_layers(name, folder)
            elif name in JOINED:
                logits = _with_joined_layers(name, folder)
            else:
                logits = {"base": _logits(_new_model(name, folder / "model"))}
                logits |= _with_parameters(name, folder)
            if name in MODULES:
                logits |= _with_modules(name, folder)
            np.savez(folder / "logits.npz", **logits)
            if name == "baichuan":
                _end_its_recursion()
            convert_base(folder / "model", folder / "base.gguf", {}, fuse_qkv=name in JOINED)
        except Exception as error:
            import traceback

            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}"
    (out / "failures.json").write_text(json.dumps(failures))


if __name__ == "__main__":
    _build(Path(sys.argv[1]), Path(sys.argv[2]))
