"""Reading a PEFT LoRA folder: what it holds, which factor each module has, what stands against it.

A folder is `adapter_config.json` beside `adapter_model.safetensors`. Nothing here needs torch or
PEFT, and nothing here knows of GGUF. Reading never raises for what is wrong with the adapter:
everything found is collected in `PeftAdapter.findings`, so that the caller can add what it finds
itself and report all of it in one go.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ..folder import WEIGHTS_FILE
from .peft_config import CONFIG_FILE, MERGE_HINT, Findings, PeftConfig, read_config
from .provenance import said_by_card

PICKLE_FILE = "adapter_model.bin"

# Stored types that become float32 without loss (F64 is the one that is rounded).
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}

# Well inside float32, in which GGUF stores alpha: there, too small would be 0, which has a meaning
# of its own (no factor at all).
_ALPHA_RANGE = (1e-30, 1e30)

_LORA_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
_EMBEDDING_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_embedding_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?"
)

# What PEFT saves along when one of these is adapted: the base's own, as it was and is.
_OUTPUT_COPY = re.compile(
    r"(?:base_model\.model\.)?(?:.+\.)?(lm_head|embed_out|embed_tokens|wte|word_embeddings)\.base_layer\.weight"
)

# Tensors that are not a LoRA factor, told apart so that the message can say what they are.
_FOREIGN = (
    (r"\.lora_magnitude_vector\b", "DoRA magnitudes"),
    (r"\.lora_B(\.[^.]+)?\.bias$", "biases of lora_B (lora_bias)"),
    (r"\.base_layer\.", "weights of the base model itself"),
    (r"\.modules_to_save\.", "whole layers trained beside LoRA (modules_to_save)"),
    (r"trainable_tokens", "new or trained tokens"),
    (r"\b(embed_tokens|wte|lm_head)\.weight$", "a whole embedding or output layer (new tokens?)"),
    (r"norm\w*\.weight$", "trained norms"),
    (r"\.bias$", "trained biases"),
    (r"", "not LoRA factors"),
)

_RESAVE_HINT = (
    "load it with PEFT where you trust it, then "
    "model.save_pretrained(folder, safe_serialization=True)"
)


class Factor(Protocol):
    """A lora_A or lora_B whose numbers are not held: its shape, its type, and how to get it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it is used in."""
        ...

    @property
    def dtype(self) -> str:
        """How it is stored, in safetensors' words ("BF16")."""
        ...

    def read(self) -> npt.NDArray[np.float32]:
        """Its numbers as float32, of shape `shape`. Raises OSError when they cannot be read."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file that has been checked; its data is not held.

    `shape` is the one it is used in. Where that is not the file's, `axes` says which axis of the
    file's shape each of its own is, as numpy's transpose takes them.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    axes: tuple[int, ...] = ()

    def turned(self, *axes: int) -> StoredTensor:
        """The same tensor with its axes in another order, as numpy's transpose."""
        own = self.axes or tuple(range(len(self.shape)))
        shape = tuple(self.shape[axis] for axis in axes)
        return replace(self, shape=shape, axes=tuple(own[axis] for axis in axes))

    def split(self, *shape: int) -> StoredTensor:
        """The same numbers, which lie in the file in their own order, in another shape."""
        return replace(self, shape=shape)

    def read(self) -> npt.NDArray[np.float32]:
        """The tensor as float32 (shape `self.shape`), read from the file now.

        Raises OSError when the file has shrunk since it was checked.
        """
        count = math.prod(self.shape)
        raw = np.fromfile(self.path, _DTYPES[self.dtype], count, offset=self.offset)
        if raw.size != count:
            raise OSError(f"{self.path} changed while it was read")
        if self.dtype == "BF16":  # numpy has no bfloat16: its bits are the upper half of float32's
            values = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):  # too large for float32: seen later as not finite
                values = raw.astype(np.float32)
        if not self.axes:
            return values.reshape(self.shape)
        in_file = [self.shape[self.axes.index(axis)] for axis in range(len(self.axes))]
        return np.ascontiguousarray(values.reshape(in_file).transpose(self.axes))


@dataclass(frozen=True)
class PeftModule:
    """One adapted layer. Its output gains `scaling * B @ A @ x`.

    `a` has shape (rank, d_in), `b` (d_out, rank); of an `embedding`, whose input is a token, `a`
    has a row for each: (n_vocab, rank). Of experts both have the expert as their first axis.
    `effective_alpha` is scaling * rank, kept beside it because it is often an exact number where
    scaling is not. `made_of` says in words what was put together, where something was.
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
        """The shape of the layer's weight: (d_out, d_in), of experts (n_expert, d_out, d_in).

        Of an embedding it is (n_vocab, d).
        """
        if self.embedding:
            return self.a.shape[0], self.b.shape[0]
        return (*self.b.shape[:-1], self.a.shape[-1])


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT folder as read: its name, its modules in order of name, and what was found wrong."""

    path: Path
    name: str
    modules: tuple[PeftModule, ...]
    findings: Findings
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # by GGUF key


def read_peft(folder: Path) -> PeftAdapter:
    """Read the PEFT LoRA adapter in `folder`. Never raises for a bad adapter: see `findings`.

    Only headers are read here; NaNs and the fit to a base model are for the caller to check.
    """
    findings = Findings()
    config = read_config(folder, findings)
    tensors = read_header(folder / WEIGHTS_FILE, findings) if _has_weights(folder, findings) else []
    copies = [tensor.name for tensor in tensors if _OUTPUT_COPY.fullmatch(tensor.name)]
    pairs = _pair([tensor for tensor in tensors if tensor.name not in copies], findings)
    modules = _with_scalings(pairs, config, findings)
    if not pairs and not findings.problems:
        findings.add(f"{WEIGHTS_FILE} holds no LoRA factors")
    notes = config.pattern_notes([module.name for module in modules])
    notes += [f"{name}: the base's own layer, which is taken from the base" for name in copies]
    if (folder / WEIGHTS_FILE).exists() and (folder / PICKLE_FILE).exists():
        notes.append(f"{PICKLE_FILE} lies beside {WEIGHTS_FILE} and is not looked at")
    name = os.path.basename(os.path.abspath(folder))  # a link keeps the name the user gave it
    provenance = {**config.provenance, **said_by_card(folder)}
    return PeftAdapter(folder, name, modules, findings, tuple(notes), provenance)


def _has_weights(folder: Path, findings: Findings) -> bool:
    if (folder / WEIGHTS_FILE).is_file():
        return True
    if (folder / PICKLE_FILE).exists():
        findings.add(
            f"{PICKLE_FILE} is a pickle, which can run code when loaded: refused", _RESAVE_HINT
        )
    elif shards := sorted(folder.glob("adapter_model-*.safetensors")):
        findings.add(
            f"the weights are split over {len(shards)} files",
            "save it again in one file: model.save_pretrained(folder, max_shard_size='50GB')",
        )
    elif folder.is_dir():
        findings.add(f"no {WEIGHTS_FILE} in it")
    return False


def read_header(path: Path, findings: Findings) -> list[StoredTensor]:
    """The tensors of a safetensors file, checked and unread; what is wrong goes to `findings`."""
    try:
        with safe_open(str(path), framework="numpy"):
            pass  # the library checks the header: sizes, offsets, gaps, and the file's length
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        findings.add(
            f"{path.name} cannot be read: {error}",
            "the file may be damaged or only half downloaded",
        )
        return []
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        shape, start = tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        if entry["dtype"] in _DTYPES:
            tensors.append(StoredTensor(path, name, entry["dtype"], shape, start))
        else:
            findings.add(
                f"{name} is stored as {entry['dtype']}; "
                "only F32, F16, BF16 and F64 can be converted"
            )
    if not header:
        findings.add(f"{path.name} holds no tensors")
    return tensors


def _pair(
    tensors: list[StoredTensor], findings: Findings
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """lora_A and lora_B by module name; whatever finds no partner becomes a finding."""
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
        else:
            (there,) = parts[name]
            findings.add(f"{name} has lora_{there} without lora_{'B' if there == 'A' else 'A'}")
    return pairs


def _with_scalings(
    pairs: dict[str, tuple[StoredTensor, StoredTensor]], config: PeftConfig, findings: Findings
) -> tuple[PeftModule, ...]:
    """The modules whose shapes, ranks and factors hold together."""
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
            # PEFT lays the experts' A's one below the other; in B's columns the rank is outermost.
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
