"""Reading a PEFT LoRA folder: what it holds, which factor each module has, what stands against it.

A folder is `adapter_config.json` beside `adapter_model.safetensors`. Nothing here needs torch or
PEFT, and nothing here knows of GGUF. Reading never raises for what is wrong with the adapter:
everything found is collected in `PeftAdapter.findings`, so that the caller can add what it finds
itself and report all of it in one go.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

# Stored types that become float32 without loss (F64 is the one that is rounded).
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}

# Well inside float32, in which GGUF stores alpha: there, too small would be 0, which has a meaning
# of its own (no factor at all).
_ALPHA_RANGE = (1e-30, 1e30)

_LORA_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)

# Tensors that are not a LoRA factor, told apart so that the message can say what they are.
_FOREIGN = (
    (r"\.lora_magnitude_vector\b", "DoRA magnitudes"),
    (r"\.lora_embedding_[AB]\b", "LoRA of an embedding, which is not supported"),
    (r"\.lora_B(\.[^.]+)?\.bias$", "biases of lora_B (lora_bias)"),
    (r"\.base_layer\.", "weights of the base model itself"),
    (r"\.modules_to_save\.", "whole layers trained beside LoRA (modules_to_save)"),
    (r"trainable_tokens", "new or trained tokens"),
    (r"\b(embed_tokens|wte|lm_head)\.weight$", "a whole embedding or output layer (new tokens?)"),
    (r"norm\w*\.weight$", "trained norms"),
    (r"\.bias$", "trained biases"),
    (r"", "not LoRA factors"),
)

# Settings under which the file's factors alone do not say what the adapter does. A setting counts
# as used when its value is none of null, false, "", [] and {}.
_UNSUPPORTED = {
    "use_dora": "DoRA (use_dora) has no counterpart in llama.cpp",
    "modules_to_save": "modules_to_save: whole layers were trained beside LoRA",
    "lora_bias": "lora_bias: the adapter adds biases",
    "fan_in_fan_out": "fan_in_fan_out: the adapter was made for layers stored transposed, "
    "which this architecture does not have",
    "trainable_token_indices": "trainable_token_indices: new or changed tokens were trained",
    "target_parameters": "target_parameters: LoRA on bare parameters is not supported",
    "layer_replication": "layer_replication: the adapter was made for a base with repeated layers",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens) is not supported",
    "use_qalora": "QALoRA (use_qalora) works on pooled inputs",
    "use_bdlora": "block-diagonal LoRA (use_bdlora) is not supported",
    "kasa_config": "KaSA (kasa_config) is not supported",
    "monteclora_config": "MonteCLoRA (monteclora_config) is not supported",
    "arrow_config": "an Arrow router (arrow_config) is not an adapter",
}
# These initialisations change the base's weights, so the factors fit no plain base.
_BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")

_RESAVE_HINT = (
    "load it with PEFT where you trust it, then "
    "model.save_pretrained(folder, safe_serialization=True)"
)
_MERGE_HINT = (
    "what the adapter holds beyond LoRA can only be kept by merging it into the base with PEFT "
    "(merge_and_unload) and converting the whole model"
)


@dataclass
class Findings:
    """What stands against a conversion: lines for the user, and the first hint that was given."""

    problems: list[str] = field(default_factory=list)
    hint: str = ""

    def add(self, problem: str, hint: str = "") -> None:
        """Note one problem; its hint is kept unless an earlier problem had one."""
        self.problems.append(problem)
        self.hint = self.hint or hint


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file that has been checked; its data is not held."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

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
        return values.reshape(self.shape)


@dataclass(frozen=True)
class PeftModule:
    """One adapted layer. Its output gains `scaling * B @ A @ x`.

    `a` has shape (rank, d_in), `b` (d_out, rank). `effective_alpha` is scaling * rank, kept
    beside it because it is often an exact number where scaling is not.
    """

    name: str
    a: StoredTensor
    b: StoredTensor
    rank: int
    scaling: float
    effective_alpha: float


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT folder as read: its name, its modules in order of name, and what was found wrong."""

    path: Path
    name: str
    lora_alpha: float
    modules: tuple[PeftModule, ...]
    findings: Findings
    notes: tuple[str, ...] = ()


def read_peft(folder: Path) -> PeftAdapter:
    """Read the PEFT LoRA adapter in `folder`. Never raises for a bad adapter: see `findings`.

    Only headers are read here; NaNs and the fit to a base model are for the caller to check.
    """
    findings = Findings()
    notes: list[str] = []
    config = _read_config(folder, findings)
    tensors = _read_header(folder, findings)
    if config is not None:
        _check_config(config, findings)
    pairs = _pair(tensors, findings)
    alpha, modules = _with_scalings(pairs, config, findings)
    if config is not None and (folder / PICKLE_FILE).exists() and tensors:
        notes.append(f"{PICKLE_FILE} lies beside {WEIGHTS_FILE} and is not looked at")
    name = folder.resolve().name
    return PeftAdapter(folder, name, alpha, modules, findings, tuple(notes))


def pattern_key(patterns: Mapping[str, Any], module: str) -> str | None:
    """The first key of a rank_pattern or alpha_pattern that names `module`, as PEFT matches it.

    Each key is a regular expression that must cover the whole module name, or its end after a dot.
    Raises re.error for a key that is no regular expression.
    """
    for key in patterns:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    # PEFT then looks the full name up as it is, which finds keys with regex characters in them.
    return module if module in patterns else None


def _read_config(folder: Path, findings: Findings) -> dict[str, Any] | None:
    path = folder / CONFIG_FILE
    if not path.is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"it has adapters inside: {', '.join(inside)}" if inside else ""
        findings.add(
            f"no {CONFIG_FILE} in it", hint or "give the folder that PEFT's save_pretrained wrote"
        )
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        findings.add(f"{CONFIG_FILE} cannot be read: {error}")
        return None
    if not isinstance(config, dict):
        findings.add(f"{CONFIG_FILE} is not a JSON object")
        return None
    if "peft_type" not in config:
        findings.add(f"{CONFIG_FILE} has no peft_type, so it is not PEFT's")
        return None
    if config["peft_type"] != "LORA":
        findings.add(f"peft_type is {config['peft_type']!r}; only LORA can be converted")
        return None
    return config


def _check_config(config: dict[str, Any], findings: Findings) -> None:
    for key, text in _UNSUPPORTED.items():
        if config.get(key) not in (None, False, "", [], {}):
            findings.add(text, "" if key == "fan_in_fan_out" else _MERGE_HINT)
    if config.get("bias") not in (None, "none"):
        findings.add(f"bias is {config['bias']!r}: the adapter changes biases", _MERGE_HINT)
    # Each variant that PEFT has added so far came with such a switch: better to stop at the next.
    for key, value in config.items():
        if key.startswith("use_") and key not in _UNSUPPORTED and key != "use_rslora" and value:
            findings.add(f"{key} is set, and this converter does not know what it means")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING):
        findings.add(
            f"init_lora_weights is {init!r}, which changed the base's own weights in training",
            "save it again as a plain LoRA: PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion",
        )


def _read_header(folder: Path, findings: Findings) -> list[StoredTensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
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
        return []
    try:
        with safe_open(str(path), framework="numpy"):
            pass  # the library checks the header: sizes, offsets, gaps, and the file's length
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        findings.add(
            f"{WEIGHTS_FILE} cannot be read: {error}",
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
        findings.add(f"{WEIGHTS_FILE} holds no tensors")
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
        match = _LORA_NAME.fullmatch(tensor.name)
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
        findings.add(f"{names[0]}{more}: {kind}", _MERGE_HINT)
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


def _number(value: object) -> float | None:
    """`value` as a finite float, or None: JSON also yields true, strings, NaN and Infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _pattern(config: dict[str, Any], key: str, findings: Findings) -> dict[str, Any]:
    """The rank_pattern or alpha_pattern, without the entries that cannot be used."""
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict):
        findings.add(f"{key} is not a table of names and numbers")
        return {}
    usable = {}
    for name, value in pattern.items():
        try:
            re.compile(rf"(.*\.)?({name})$")
        except re.error as error:
            findings.add(f"{key}: {name!r} is not a regular expression: {error}")
            continue
        if _number(value) in (None, 0):
            findings.add(f"{key}: {name!r} is {value!r}; it must be a number other than 0")
            continue
        usable[name] = value
    return usable


def _with_scalings(
    pairs: dict[str, tuple[StoredTensor, StoredTensor]],
    config: dict[str, Any] | None,
    findings: Findings,
) -> tuple[float, tuple[PeftModule, ...]]:
    """The config's lora_alpha, and the modules whose ranks and factors hold together."""
    config_alpha: float | None = None
    config_rank: float | None = None
    if config is not None:
        config_alpha, config_rank = _number(config.get("lora_alpha")), _number(config.get("r"))
        if not config_alpha:
            findings.add(
                f"lora_alpha is {config.get('lora_alpha')!r}; it must be a number other than 0"
            )
        if config_rank is None or config_rank < 1 or config_rank != int(config_rank):
            findings.add(f"r is {config.get('r')!r}; it must be a whole number of at least 1")
            config_rank = None
    alphas = _pattern(config or {}, "alpha_pattern", findings)
    ranks = _pattern(config or {}, "rank_pattern", findings)
    modules = []
    for name, (a, b) in pairs.items():
        shapes = f"lora_A {a.shape}, lora_B {b.shape}"
        if len(a.shape) != 2 or len(b.shape) != 2:
            findings.add(f"{name}: {shapes}: both must have two dimensions")
            continue
        rank = a.shape[0]
        if rank != b.shape[1]:
            findings.add(f"{name}: the ranks of A and B differ: {shapes}")
            continue
        if 0 in a.shape or 0 in b.shape:
            findings.add(f"{name}: {shapes}: a dimension is 0")
            continue
        rank_key, alpha_key = pattern_key(ranks, name), pattern_key(alphas, name)
        expected = ranks[rank_key] if rank_key else config_rank
        if expected is not None and rank != expected:
            source = f"rank_pattern {rank_key!r}" if rank_key else "r"
            findings.add(f"{name}: rank {rank}, but {CONFIG_FILE} says {expected:g} ({source})")
            continue
        alpha = float(alphas[alpha_key]) if alpha_key else (config_alpha or 1.0)
        rslora = bool((config or {}).get("use_rslora"))
        scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
        effective = alpha * math.sqrt(rank) if rslora else alpha
        if not _ALPHA_RANGE[0] < abs(effective) < _ALPHA_RANGE[1]:
            findings.add(f"{name}: lora_alpha {alpha:g} is too small or too large to be stored")
            continue
        modules.append(PeftModule(name, a, b, rank, scaling, effective))
    if config is not None and pairs == {} and not findings.problems:
        findings.add(f"{WEIGHTS_FILE} holds no LoRA factors")
    return config_alpha or 0.0, tuple(modules)
