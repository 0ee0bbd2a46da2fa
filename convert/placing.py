"""Map each module of an adapter to the base's GGUF weights and to its rows of B there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..files.base_model import BaseModel
from ..files.other_base import made_for
from .experts import as_saved_before, experts_stacked, is_parameter
from .joined import Placed, shares_of, with_joined
from .layouts import LAYOUTS, REFUSED, Reorder, parts_of, reorder_of
from .peft_config import CONFIG_FILE, MERGE_HINT, Findings
from .peft_reader import PeftAdapter, PeftModule
from .tensor_names import TensorNames, not_text

WRONG_BASE = "is this the base model that the adapter was trained on?"


def placed_in(
    base: BaseModel, adapter: PeftAdapter, findings: Findings, *, text_part: bool = False
) -> list[Placed]:
    """The modules of the adapter that fit, with the GGUF weights of `base` that they adapt.

    Single experts become one module for all experts of a layer. Modules that do not fit are added
    to `findings`, and so are layers for images or sound unless only the `text_part` is wanted.
    """
    if base.architecture in REFUSED:
        findings.add(f"the base is a {base.architecture}: {REFUSED[base.architecture]}")
        return []
    if base.architecture not in LAYOUTS:
        findings.add(
            f"the base's architecture {base.architecture!r} is not supported; "
            f"supported: {', '.join(sorted(LAYOUTS))}",
            "a GGUF LoRA file for this base works as it is: llama.cpp's convert_lora_to_gguf.py "
            "may be able to make one",
        )
        return []
    if not text_part:
        _refuse_other_parts(adapter, findings)
    of_text = [module for module in adapter.modules if not not_text(module.name)]
    placer = _Placer(base, adapter, findings)
    for module in experts_stacked(of_text, base.n_expert, findings):
        placer.place(module)
    _add_misfits(placer.misfits, base, adapter, placer.names, findings)
    return with_joined(placer.placed, base)


class _Placer:
    """Places modules one by one: `placed` are those that fit, `misfits` lines about the others."""

    def __init__(self, base: BaseModel, adapter: PeftAdapter, findings: Findings) -> None:
        self.base, self.adapter, self.findings = base, adapter, findings
        self.names = TensorNames(base)
        self.placed: list[Placed] = []
        self.misfits: list[str] = []
        shares = {name: share.shape for name, share in shares_of(base).items()}
        self._shapes = shares | dict(base.tensors)
        self._taken: dict[str, str] = {}

    def place(self, module: PeftModule) -> None:
        """Add a module to those that fit, or record why it does not."""
        parts = _parts(module, self.base, self.names)
        targets = [target for target, _ in parts]
        missing = self._missing(module, targets)
        if missing:
            self.misfits.append(f"{module.name}: {missing}")
            return
        twice = [target for target in targets if target in self._taken]
        if twice:
            self.findings.add(f"{module.name} and {self._taken[twice[0]]} are both {twice[0]}")
            return
        self._taken |= dict.fromkeys(targets, module.name)
        whole = _layer_shape([self._shapes[target] for target in targets])
        if self._is_refused(module, whole):
            return
        if is_parameter(module) and module.layer_shape != whole:
            older = as_saved_before(module)
            module = older if older.layer_shape == whole else module
        if whole != module.layer_shape:
            self.misfits.append(
                f"{module.name}: made for a layer of shape {module.layer_shape}, "
                f"but the base's {' and '.join(targets)} has {whole}"
            )
            return
        try:
            for target, reorder in parts:
                order = None if reorder is None else reorder(self.base, module.layer_shape[-2])
                self.placed.append((module, target, order))
        except ValueError as error:
            self.findings.add(f"{module.name}: {error}")

    def _missing(self, module: PeftModule, targets: Sequence[str]) -> str:
        """Why the base has no weight for a module; "" if it has one."""
        if not targets:
            return self.names.why_unknown(module.name)
        missing = [target for target in targets if target not in self._shapes]
        if not missing:
            return ""
        tied = missing == ["output.weight"]
        reason = " (its output layer is its token embedding)" if tied else ""
        return f"the base has no {missing[0]}{reason}"

    def _is_refused(self, module: PeftModule, whole: tuple[int, ...]) -> bool:
        """Whether a module cannot be used with any shape; the reason is added to the findings."""
        if module.embedding and "output.weight" not in self.base.tensors:
            self.findings.add(
                f"{module.name}: the base's embedding is its output layer, too, of which "
                "llama.cpp cannot adapt one alone"
            )
            return True
        square = is_parameter(module) and whole[-1] == whole[-2]
        if square and _peft_version(self.adapter) < (0, 19):
            self.findings.add(
                f"{module.name}: it has as many rows as columns, and a PEFT before 0.19 may "
                "have saved its A for its B",
                MERGE_HINT,
            )
            return True
        return False


def _add_misfits(
    misfits: list[str],
    base: BaseModel,
    adapter: PeftAdapter,
    names: TensorNames,
    findings: Findings,
) -> None:
    """One line for all layers that do not fit: what they were made for, or the first of them."""
    if not misfits:
        return
    layers = [
        (place, module.layer_shape[-1], module.layer_shape[-2])
        for module in adapter.modules
        if not module.embedding and (place := names.anywhere(module.name)) is not None
    ]
    named = adapter.provenance.get("general.base_model.0.name", "")
    line = made_for(base, layers, f"{CONFIG_FILE} names {named}" if named else "")
    first, *others = misfits
    more = f" (and {len(others)} more layers that do not fit)" if others else ""
    summed_up = (line if others else "") or first + more
    findings.add(summed_up, WRONG_BASE, misfits if others else ())


def other_parts(adapter: PeftAdapter) -> str:
    """A description of the adapted layers outside the model's text part; "" if there are none."""
    parts = Counter(part for module in adapter.modules if (part := not_text(module.name)))
    return ", ".join(f"{part} ({n} layer{'s' * (n > 1)})" for part, n in parts.items())


def _refuse_other_parts(adapter: PeftAdapter, findings: Findings) -> None:
    """One line for all adapted parts of the model outside its text part."""
    parts = other_parts(adapter)
    if not parts:
        return
    has_text = any(not not_text(module.name) for module in adapter.modules)
    findings.add(
        f"it adapts {parts}, but the GGUF base holds the text part only",
        "for text alone those layers do nothing: logo-local convert --text-part converts the rest"
        if has_text
        else "train on the text part: in PEFT, target_modules may be a regular expression "
        r"such as .*language_model.*\.(q_proj|v_proj)",
    )


def _parts(
    module: PeftModule, base: BaseModel, names: TensorNames
) -> list[tuple[str, Reorder | None]]:
    """The GGUF weights that `module` becomes, with the rows of each; empty if it has no name."""
    parts = parts_of(base.architecture, module.name)
    if parts:
        targets = [(names.in_block(module.name, kind), reorder) for kind, reorder in parts]
        return [(target, reorder) for target, reorder in targets if target is not None]
    target = names.target(module.name)
    return [] if target is None else [(target, reorder_of(base.architecture, module.name))]


def _peft_version(adapter: PeftAdapter) -> tuple[int, int]:
    """The first two numbers of the PEFT version that saved the adapter; zeros if unknown."""
    text = adapter.provenance.get("logo_local.peft_version", "")
    found = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _layer_shape(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the layer that was split into weights of these shapes, in this order."""
    if len(parts) == 1:
        return parts[0]
    *experts, _, d_in = parts[0]
    return (*experts, sum(shape[-2] for shape in parts), d_in)
