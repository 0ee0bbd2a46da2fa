"""Read a PEFT LoRA folder: its modules, their scaling factors, and problems.

A folder has `adapter_config.json` and `adapter_model.safetensors`, or shards of it (`stored` reads
both). This module needs neither torch nor PEFT, and does not deal with GGUF. It never raises for a
bad adapter: all problems are collected in `PeftAdapter.findings`, so that the caller can add its
own and report everything at once.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .names import unwrapped
from .peft_config import CONFIG_FILE, MERGE_HINT, Findings, PeftConfig, read_config
from .provenance import said_by_card
from .stored import StoredTensor, read_weights, unread_weights

# Well within float32, in which GGUF stores alpha: there a tiny value would become 0, which means
# "no scaling factor".
_ALPHA_RANGE = (1e-30, 1e30)

_LORA_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
_EMBEDDING_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_embedding_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?"
)

# Base weights that PEFT saves with the adapter if one of these is adapted; they are unchanged.
_OUTPUT_COPY = re.compile(
    r"(?:base_model\.model\.)?(?:.+\.)?(lm_head|embed_out|embed_tokens|wte|word_embeddings)\.base_layer\.weight"
)

# Used only in training: VeLoRA's directions, with which it saves memory.
_TRAINING_ONLY = re.compile(r".*\.lora_velora_\w+(?:\..+)?")

# Tensors that are not LoRA factors, by kind, for the message.
_FOREIGN = (
    (r"\.lora_magnitude_vector\b", "DoRA magnitudes"),
    (r"\.(lora_E|ranknum)\b", "AdaLoRA's singular values"),
    (r"\.lora_B(\.[^.]+)?\.bias$", "biases of lora_B (lora_bias)"),
    (r"\.base_layer\.", "weights of the base model itself"),
    (r"\.modules_to_save\.", "whole layers trained beside LoRA (modules_to_save)"),
    (r"trainable_tokens", "new or trained tokens"),
    (r"\b(embed_tokens|wte|lm_head)\.weight$", "a whole embedding or output layer (new tokens?)"),
    (r"norm\w*\.weight$", "trained norms"),
    (r"\b(score|classifier)\.weight$", "the output layer of a classifier, which generates no text"),
    (r"\.bias$", "trained biases"),
    (r"", "not LoRA factors"),
)


class Factor(Protocol):
    """A lora_A or lora_B that is not in memory: its shape and type, and a method to read it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which it is used."""
        ...

    @property
    def dtype(self) -> str:
        """The stored type, as in safetensors ("BF16")."""
        ...

    def read(self) -> npt.NDArray[np.float32]:
        """The values as float32, of shape `shape`. Raises OSError if they cannot be read."""
        ...


@dataclass(frozen=True)
class PeftModule:
    """One adapted layer, which adds `scaling * B @ A @ x` to its output.

    `a` has shape (rank, d_in), `b` (d_out, rank). The input of an `embedding` is a token, so its
    `a` has shape (n_vocab, rank). For experts the first axis of both is the expert.
    `effective_alpha` is scaling * rank; it is stored because it is often an exact number when
    scaling is not. `made_of` describes what was combined, if anything was.
    """

    name: str
    a: Factor
    b: Factor
    rank: int
    scaling: float
    effective_alpha: float
    embedding: bool = False
    made_of: str = ""

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """The shape of the layer's weight: (d_out, d_in), for experts (n_expert, d_out, d_in).

        For an embedding it is (n_vocab, d).
        """
        if self.embedding:
            return self.a.shape[0], self.b.shape[0]
        return (*self.b.shape[:-1], self.a.shape[-1])


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT folder after reading: its name, its modules sorted by name, and the problems."""

    path: Path
    name: str
    modules: tuple[PeftModule, ...]
    findings: Findings
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # by GGUF key
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA


def read_peft(folder: Path) -> PeftAdapter:
    """Read the PEFT LoRA adapter in `folder`. Never raises for a bad adapter: see `findings`.

    Reads only headers; the caller checks for NaN and for the fit to a base model.
    """
    findings = Findings()
    config = read_config(folder, findings)
    name = os.path.basename(os.path.abspath(folder))  # a link keeps the name that the user gave it
    if not config.is_usable:
        return PeftAdapter(folder, name, (), findings)
    before = len(findings.problems)
    tensors, wrappers = unwrapped(read_weights(folder, findings), findings)
    all_there = len(findings.problems) == before
    copies = [tensor.name for tensor in tensors if _OUTPUT_COPY.fullmatch(tensor.name)]
    tensors = [tensor for tensor in tensors if not _TRAINING_ONLY.fullmatch(tensor.name)]
    tensors = [tensor for tensor in tensors if tensor.name not in copies]
    pairs = _pair(tensors, findings, all_there=all_there)
    modules = _with_scalings(pairs, config, findings)
    if not pairs and not findings.problems:
        findings.add("its weights hold no LoRA factors")
    notes = [*config.notes, *wrappers, *config.pattern_notes([module.name for module in modules])]
    notes += [f"{name}: the base's own layer, which is taken from the base" for name in copies]
    notes += [
        f"{name} lies beside the weights and is not looked at" for name in unread_weights(folder)
    ]
    provenance = {**config.provenance, **said_by_card(folder)}
    tokens = config.invocation_tokens
    return PeftAdapter(folder, name, modules, findings, tuple(notes), provenance, tokens)


def _pair(
    tensors: list[StoredTensor], findings: Findings, *, all_there: bool
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """lora_A and lora_B by module name; a tensor without its counterpart becomes a finding.

    If not `all_there`, the counterpart may be in an unreadable file (already reported).
    """
    parts: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    foreign: dict[str, list[str]] = defaultdict(list)
    adapters = set()
    twice = []
    for tensor in tensors:
        match = _LORA_NAME.fullmatch(tensor.name) or _EMBEDDING_NAME.fullmatch(tensor.name)
        if match is None:
            kind = next(text for pattern, text in _FOREIGN if re.search(pattern, tensor.name))
            foreign[kind].append(tensor.name)
            continue
        adapters.add(match["adapter"])
        module = parts[match["module"]]
        if match["part"] in module:
            twice.append(f"{match['module']} has lora_{match['part']} twice")
        module[match["part"]] = tensor
    for kind, names in foreign.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        findings.add(f"{names[0]}{more}: {kind}", MERGE_HINT)
    if len(adapters) > 1:
        names = sorted(name or "(no name)" for name in adapters)
        findings.add(f"the file holds several adapters: {', '.join(names)}")
    else:
        findings.problems.extend(twice)
    pairs = {}
    for name in sorted(parts):
        if len(parts[name]) == 2:
            pairs[name] = (parts[name]["A"], parts[name]["B"])
        elif all_there:
            (there,) = parts[name]
            findings.add(f"{name} has lora_{there} without lora_{'B' if there == 'A' else 'A'}")
    return pairs


def _with_scalings(
    pairs: dict[str, tuple[StoredTensor, StoredTensor]], config: PeftConfig, findings: Findings
) -> tuple[PeftModule, ...]:
    """The modules with consistent shapes, ranks and factors."""
    modules = []
    for wrapper, (a, b) in pairs.items():
        shapes = f"lora_A {a.shape}, lora_B {b.shape}"
        if len(a.shape) != 2 or len(b.shape) != 2:
            findings.add(f"{wrapper}: {shapes}: both must have two dimensions")
            continue
        if a.shape[0] != b.shape[1]:
            findings.add(f"{wrapper}: the ranks of A and B differ: {shapes}")
            continue
        if 0 in a.shape or 0 in b.shape:
            findings.add(f"{wrapper}: {shapes}: a dimension is 0")
            continue
        try:
            adapted, bare = config.adapted(wrapper)
        except ValueError as error:
            findings.add(f"{wrapper}: {error}")
            continue
        rank = a.shape[0]
        expected, source = config.rank(adapted)
        if bare and expected and expected in range(1, rank + 1) and rank % expected == 0:
            # PEFT stacks the experts' A's vertically; in B's columns the rank is the outer axis.
            n_expert, rank = int(rank // expected), int(expected)
            if n_expert > 1 or not adapted.endswith(".weight"):
                a = a.split(n_expert, rank, a.shape[1])
                b = b.split(b.shape[0], rank, n_expert).turned(2, 0, 1)
        name = adapted.removesuffix(".weight")
        if rank != (expected or rank):
            findings.add(f"{name}: rank {rank}, but {CONFIG_FILE} says {expected:g} ({source})")
            continue
        alpha = config.alpha(adapted)
        effective = alpha * math.sqrt(rank) if config.use_rslora else alpha
        if not _ALPHA_RANGE[0] < abs(effective) < _ALPHA_RANGE[1]:
            findings.add(f"{name}: lora_alpha {alpha:g} is too small or too large to be stored")
            continue
        scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
        embedding = _EMBEDDING_NAME.fullmatch(a.name) is not None
        if embedding:
            a = a.turned(1, 0)
        modules.append(PeftModule(name, a, b, rank, scaling, effective, embedding))
    return tuple(modules)
