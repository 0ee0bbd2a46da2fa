"""Combine adapters of single experts into one for all experts of a layer, as GGUF stores them.

llama.cpp keeps the weights of a layer's experts as one stack (n_expert, d_out, d_in) and multiplies
with A and B of the experts that a token is routed to. So A must be (n_expert, rank, d_in) and
B (n_expert, d_out, rank), with one rank and one scaling for all of them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .assembled import Assembled, Piece
from .peft_config import Findings
from .peft_reader import PeftModule
from .stored import StoredTensor

# Names of experts in Hugging Face models before they became one parameter: `experts.3.up_proj`.
_EXPERT = re.compile(r"(?P<before>.+\.experts)\.(?P<number>0|[1-9]\d{0,5})\.(?P<layer>.+)")


def is_parameter(module: PeftModule) -> bool:
    """Whether `module` is LoRA on a bare parameter that holds all experts (target_parameters)."""
    return isinstance(module.a, StoredTensor) and len(module.a.shape) == 3


def as_saved_before(module: PeftModule) -> PeftModule:
    """The meaning of a parameter `module` (see `is_parameter`) in a file of PEFT before 0.19.

    These releases took the axes of the parameter for (n_expert, d_in, d_out) in every model, so A
    and B are swapped. PEFT has corrected this (its pull request 3083), without a mark in the
    file.
    """
    assert isinstance(module.a, StoredTensor)
    assert isinstance(module.b, StoredTensor)
    return replace(module, a=module.b.turned(0, 2, 1), b=module.a.turned(0, 2, 1))


def experts_stacked(
    modules: Iterable[PeftModule], n_expert: int, findings: Findings
) -> list[PeftModule]:
    """`modules`, with single experts combined into one module for each layer and projection.

    Experts that are not adapted, and the unused rows of smaller ranks, are zero. `n_expert` is
    the base's. Mismatches become findings.
    """
    others = []
    experts: dict[str, dict[int, PeftModule]] = defaultdict(dict)
    for module in modules:
        match = _EXPERT.fullmatch(module.name)
        if match is None or is_parameter(module):
            others.append(module)
        elif not n_expert:
            findings.add(f"{module.name}: the base has no experts")
        elif int(match["number"]) >= n_expert:
            findings.add(f"{module.name}: the base has {n_expert} experts, numbered from 0")
        else:
            experts[f"{match['before']}.{match['layer']}"][int(match["number"])] = module
    for name, by_number in experts.items():
        shapes = Counter(module.layer_shape for module in by_number.values())
        if len(shapes) == 1:
            others.append(_stacked(name, by_number, n_expert))
        else:
            texts = ", ".join(map(str, sorted(shapes)))
            findings.add(f"{name}: its experts are made for layers of different shapes: {texts}")
    return others


def _stacked(name: str, experts: Mapping[int, PeftModule], n_expert: int) -> PeftModule:
    """One module of all these experts, with the scaling that most of them have."""
    modules = list(experts.values())
    scaling = Counter(module.scaling for module in modules).most_common(1)[0][0]
    rank = max(module.rank for module in modules)
    exact = [m.effective_alpha for m in modules if (m.scaling, m.rank) == (scaling, rank)]
    d_out, d_in = modules[0].layer_shape
    a = [Piece(module.a, (number, 0, 0)) for number, module in experts.items()]
    b = [
        Piece(module.b, (number, 0, 0), module.scaling / scaling)
        for number, module in experts.items()
    ]
    adapted = f"{len(experts)} of {n_expert}" if len(experts) < n_expert else f"{n_expert}"
    return PeftModule(
        name=name,
        a=Assembled((n_expert, rank, d_in), tuple(a)),
        b=Assembled((n_expert, d_out, rank), tuple(b)),
        rank=rank,
        scaling=scaling,
        effective_alpha=exact[0] if exact else scaling * rank,
        made_of=f"{adapted} experts as one",
    )
