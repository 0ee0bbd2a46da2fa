"""Tensor names that training tools wrapped.

PEFT saves a layer under its name in the model. If that model was wrapped for training (by torch's
parallel modules, activation checkpointing, torch.compile) and saved from inside, every tensor name
contains the wrapper's name. It does not describe the layer and is removed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from .peft_config import Findings
from .stored import StoredTensor

_PEFT = "base_model.model."
_TWICE = re.compile(r"(?:base_model\.model\.){2,}")
# Parts of a name, and the tools that add them.
_WRAPPERS = {
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_orig_mod": "torch.compile",
    "_forward_module": "DeepSpeed or Lightning",
}
_PARALLEL = re.compile(r"(?<!\w)(?:module\.)+(?=base_model\.|model\.)")
_TWICE_HINT = (
    "load it as it was trained and merge the inner adapter into the model first "
    "(merge_and_unload), or save the outer adapter from the unwrapped model"
)


def unwrapped(
    tensors: Sequence[StoredTensor], findings: Findings
) -> tuple[list[StoredTensor], list[str]]:
    """The tensors with unwrapped names, and a remark on each wrapper.

    A model that PEFT wrapped twice has two adapters, but one file has only one: one finding.
    """
    if any(_TWICE.match(tensor.name) for tensor in tensors):
        findings.add(
            "it was saved from a model that PEFT wrapped twice (base_model.model.base_model.model)",
            _TWICE_HINT,
        )
        return [], []
    found: dict[str, str] = {}
    plain = []
    for tensor in tensors:
        name = _PARALLEL.sub("", tensor.name)
        if name != tensor.name:
            found["module"] = "DataParallel or DistributedDataParallel"
        parts = name.split(".")
        found |= {part: _WRAPPERS[part] for part in parts if part in _WRAPPERS}
        name = ".".join(part for part in parts if part not in _WRAPPERS)
        plain.append(tensor if name == tensor.name else replace(tensor, name=name))
    notes = [
        f"its tensors have {part!r} in their names, which {who} puts there; it is left out"
        for part, who in found.items()
    ]
    return plain, notes
