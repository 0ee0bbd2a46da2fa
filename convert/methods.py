"""PEFT methods other than LoRA: what users can do instead of converting."""

from __future__ import annotations

# Adapters that do not change weights, so they cannot be merged either.
_TRAINED_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"}
    | {"ADAPTION_PROMPT"}
)
_PROMPTS_HINT = "it trained prompts, which no file of weights can hold: train a LoRA"
_UNMERGEABLE = frozenset({"LILY", "POLY", "SHADOW"})  # their effect depends on the input
_UNMERGEABLE_HINT = "PEFT cannot merge it into a base either: train a LoRA"
_XLORA_HINT = "the adapters that X-LoRA mixes can be converted one by one"
_OTHER_HINT = (
    "merge it into the base with PEFT (merge_and_unload) and convert the whole model, "
    "or train a LoRA"
)
# Methods that add a matrix to a weight: PEFT can approximate it by a LoRA.
_CONVERTIBLE = frozenset(
    {"C3A", "DELORA", "FOURIERFT", "GRALORA", "LOHA", "LOKR", "MISS", "PSOFT", "RANDLORA"}
    | {"TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT"}
)
_CONVERTIBLE_HINT = (
    "PEFT can turn it into a LoRA: peft.save_as_lora(folder, model, rank=...), or "
    "merge_and_unload merges it into the base"
)


def hint_for_method(kind: object) -> str:
    """What to do with an adapter of this peft_type; empty for an unknown type."""
    if not isinstance(kind, str):
        return ""
    hints = {"XLORA": _XLORA_HINT}
    hints |= dict.fromkeys(_TRAINED_PROMPTS, _PROMPTS_HINT)
    hints |= dict.fromkeys(_UNMERGEABLE, _UNMERGEABLE_HINT)
    hints |= dict.fromkeys(_CONVERTIBLE, _CONVERTIBLE_HINT)
    return hints.get(kind, _OTHER_HINT)
