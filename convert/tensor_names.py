"""Map a Hugging Face module name to its GGUF weight.

The names come from the gguf package's own table, so they follow llama.cpp. A module that is not in
the table of the base's architecture has no GGUF name; nothing is guessed.

In a model for images or sound the text part is inside another model, and its layers have that
model's names. A base's GGUF has only the text part, under its own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gguf

if TYPE_CHECKING:
    from ..files.base_model import BaseModel

_ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}

# Prefixes of a text part inside another model, and the prefixes without it. Tried in this order,
# after the unchanged name; a prefix only counts if the resulting name is known.
_WRAPPERS: tuple[tuple[str, str], ...] = (
    ("model.language_model.model.", "model."),
    ("model.language_model.", "model."),  # transformers since 4.52
    ("language_model.model.", "model."),  # and before
    ("language_model.", ""),  # its lm_head; or a part with another prefix
    ("language_model.", "model."),  # adapted without its head
    ("model.text_model.", "model."),  # SmolVLM, Idefics 3
    ("text_model.", "model."),
    ("thinker.", ""),  # Qwen Omni
    ("llm.", ""),  # MiniCPM-V
    ("_orig_mod.", ""),  # compiled by torch
)
# Parts of names for vision or audio layers, or for the connectors to the text part.
_NO_TEXT = frozenset(
    {"vision_tower", "vision_model", "vision_encoder", "vision", "visual", "vpm", "vit"}
    | {"image_encoder", "image_newline", "patch_embedding", "embed_vision", "qformer"}
    | {"multi_modal_projector", "mm_projector", "vision_projection", "vision_adapter"}
    | {"vision_embed_tokens", "connector", "resampler", "perceiver_resampler", "mlp1"}
    | {"audio_tower", "audio_encoder", "audio", "embed_audio", "audio_projector", "speech_encoder"}
    | {"speech_projector", "talker", "token2wav", "code2wav"}
)
_BLOCK_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def not_text(module: str) -> str | None:
    """The part of `module`'s name that shows that it is for images or sound, or None."""
    return next((part for part in module.split(".") if part in _NO_TEXT), None)


def _without_wrapper(module: str) -> Iterator[str]:
    """`module` unchanged, and its possible names in the text part alone."""
    yield module
    if module.rpartition(".")[2] == "unembed_tokens":  # Tinker's name for it
        yield "lm_head"
    for wrapper, start in _WRAPPERS:
        if module.startswith(wrapper):
            yield start + module.removeprefix(wrapper)


class TensorNames:
    """The GGUF names of one base model's weights."""

    def __init__(self, base: BaseModel) -> None:
        self._n_blocks = base.n_blocks
        self._map = gguf.get_tensor_name_map(_ARCHITECTURES[base.architecture], base.n_blocks)
        numbers = ((name, _BLOCK_NUMBER.search(name)) for name in self._map.mapping)
        self._blocks = {name[: number.start()] for name, number in numbers if number}

    def target(self, module: str) -> str | None:
        """The GGUF weight of `module` (as in `model.layers.0.mlp.up_proj`), or None."""
        names = (self._map.get_name(name) for name in _without_wrapper(module))
        name = next((name for name in names if name is not None), None)
        return None if name is None else f"{name}.weight"

    def in_block(self, module: str, kind: str) -> str | None:
        """The GGUF weight `kind` ("attn_q") of the block of `module`, even if the base lacks it.

        None if the part before the number is not a name of blocks.
        """
        for name in _without_wrapper(module):
            number = _BLOCK_NUMBER.search(name)
            if number and name[: number.start()] in self._blocks:
                return f"blk.{number[0]}.{kind}.weight"
        return None

    def anywhere(self, module: str) -> str | None:
        """Like `target`, but also for a block whose number is too high for the base."""
        number = _BLOCK_NUMBER.search(module)
        if number is None:
            return self.target(module)
        found = self.target(f"{module[: number.start()]}0{module[number.end() :]}")
        return None if found is None else found.replace("blk.0.", f"blk.{number[0]}.", 1)

    def why_unknown(self, module: str) -> str:
        """The explanation for the user of a module for which `target` is None."""
        number = _BLOCK_NUMBER.search(module)
        if number and int(number[0]) >= self._n_blocks:
            first = module[: number.start()] + "0" + module[number.end() :]
            if self.target(first):
                return f"layer {number[0]} is beyond the base's {self._n_blocks} layers"
        if module.rpartition(".")[2] in ("w1", "w2", "w3"):
            return (
                "the base's architecture has no such layer; Tinker calls feed-forward layers so: "
                "export the adapter for PEFT"
            )
        return "the base's architecture has no such layer"
