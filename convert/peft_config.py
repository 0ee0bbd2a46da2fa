"""Reading adapter_config.json: what PEFT was told, and whether the converter can follow it.

Mirrors PEFT in how rank_pattern and alpha_pattern find their layers. Knows nothing of tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.gguf_bounds import printable
from ..files.text_file import read_text
from .methods import hint_for_method
from .patterns import is_quick, pattern_key
from .provenance import said_by_config

CONFIG_FILE = "adapter_config.json"

MERGE_HINT = (
    "what the adapter holds beyond LoRA can only be kept by merging it into the base with PEFT "
    "(merge_and_unload) and converting the whole model"
)
_RETRAIN_HINT = "there is no way around it: train it again as a plain LoRA"

# Of PEFT's task_type: what does not generate text, whatever its layers are.
_NO_TEXT_TASKS = {
    "SEQ_CLS": "a sequence classifier",
    "TOKEN_CLS": "a token classifier",
    "QUESTION_ANS": "a model that marks answers in a text",
}
DEFAULT_RANK = DEFAULT_ALPHA = 8  # what PEFT reads where the config does not say

# Settings under which the file's factors alone do not say what the adapter does, with the way out.
# A setting counts as used when its value is none of null, false, "", [] and {}.
UNSUPPORTED: Mapping[str, tuple[str, str]] = {
    "use_dora": ("DoRA (use_dora) has no counterpart in llama.cpp", MERGE_HINT),
    "modules_to_save": ("modules_to_save: whole layers were trained beside LoRA", MERGE_HINT),
    "lora_bias": ("lora_bias: the adapter adds biases", MERGE_HINT),
    "trainable_token_indices": (
        "trainable_token_indices: new or changed tokens were trained",
        MERGE_HINT,
    ),
    "layer_replication": (
        "layer_replication: the adapter was made for a base with repeated layers",
        MERGE_HINT,
    ),
    "use_qalora": ("QALoRA (use_qalora) works on pooled inputs", _RETRAIN_HINT),
    "use_bdlora": ("block-diagonal LoRA (use_bdlora) is not supported", MERGE_HINT),
    "kasa_config": ("KaSA (kasa_config) is not supported", MERGE_HINT),
    "monteclora_config": ("MonteCLoRA (monteclora_config) is not supported", MERGE_HINT),
    "arrow_config": (
        "an Arrow router (arrow_config) is not an adapter",
        "the adapters that it routes to can be converted one by one",
    ),
    "invocation_string": (
        "invocation_string: an activated LoRA of before PEFT had it",
        "write its tokens into adapter_config.json as alora_invocation_tokens, "
        "without the first one if that begins every turn",
    ),
}
# Settings that the conversion goes by.
READ = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"}
    | {"init_lora_weights", "target_parameters", "alora_invocation_tokens"}
    | {"task_type", "peft_version", "base_model_name_or_path"}  # what the file says of its origin
)
# Settings that say how it was trained, or where the factors are, which their names say, too.
IGNORED = frozenset(
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
    | {"auto_mapping", "revision", "inference_mode", "lora_dropout", "fan_in_fan_out"}
    | {"megatron_config", "megatron_core", "runtime_config", "velora_config"}
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}  # init_lora_weights counts
    | {"qalora_group_size"}  # without use_qalora
    | {"ensure_weight_tying"}  # of embeddings that are tied, which cannot be adapted anyway
)
# Where the factors started. The first leave the base as it is, the others change its own weights,
# so that the factors fit no plain base. By how the name begins.
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
BASE_CHANGING_STARTS = ("pissa", "corda", "olora", "lora_ga", "loftq")

# Bare parameters of one module that LoRA can be on, in the order that Hugging Face's models declare
# them: PEFT wraps them from the first on, each around the one before.
_DECLARED = ("gate_up_proj", "down_proj")


@dataclass
class Findings:
    """What stands against a conversion: lines for the user, and the first hint that was given."""

    problems: list[str] = field(default_factory=list)
    hint: str = ""
    details: list[str] = field(default_factory=list)

    def add(self, problem: str, hint: str = "", details: Sequence[str] = ()) -> None:
        """Note one problem; its hint is kept unless an earlier problem had one.

        `details` are the single findings that the problem sums up.
        """
        self.problems.append(problem)
        self.hint = self.hint or hint
        self.details += details


@dataclass(frozen=True)
class PeftConfig:
    """The numbers by which each layer's factor is found.

    `default_rank` and `default_alpha` are None where the file does not say them soundly, which
    is then among the findings.
    """

    default_rank: int | None = None
    default_alpha: float | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, float] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # by GGUF key
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA
    notes: tuple[str, ...] = ()
    is_usable: bool = True  # False: what the findings have says enough

    def adapted(self, module: str) -> tuple[str, bool]:
        """What PEFT's `module` adapts, and whether that is a bare parameter: mostly itself.

        Parameters (target_parameters) have a wrapper for each, named like the module that owns
        them: `mlp.experts.base_layer` inside of `mlp.experts`. Returned is the parameter's full
        name. Raises ValueError where a wrapper's parameter cannot be told.
        """
        owner = module
        while owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
        leaves = {target.rpartition(".")[2] for target in self.target_parameters}
        owned = [
            leaf
            for leaf in sorted(leaves)
            if any(f".{owner}.{leaf}".endswith(f".{target}") for target in self.target_parameters)
        ]
        depth = module.count(".base_layer")
        if not owned and not depth:
            return module, False
        if len(owned) > 1 and not set(owned) <= set(_DECLARED):
            raise ValueError(f"which of its parameters {', '.join(owned)} comes first is not known")
        if depth >= len(owned):
            raise ValueError(f"target_parameters names {len(owned)} parameters of {owner}")
        if len(owned) > 1:
            owned = sorted(owned, key=_DECLARED.index)
        return f"{owner}.{owned[-1 - depth]}", True

    def rank(self, module: str) -> tuple[float | None, str]:
        """The rank that `module` should have, and the setting that says so."""
        key = pattern_key(self.rank_pattern, module)
        if key is None:
            return self.default_rank, "r"
        return self.rank_pattern[key], f"rank_pattern {key!r}"

    def alpha(self, module: str) -> float:
        """The lora_alpha of `module`; 1 where the file has none, which is among the findings."""
        key = pattern_key(self.alpha_pattern, module)
        return (self.default_alpha or 1.0) if key is None else self.alpha_pattern[key]

    def pattern_notes(self, modules: Sequence[str]) -> list[str]:
        """Remarks on the patterns: keys that name none of `modules`, modules with two values.

        Where two keys name a module the first one counts; but PEFT sorts the keys when it saves,
        so which one was first in training cannot be known. A rank shows in the tensors, an alpha
        does not.
        """
        notes = []
        for table, pattern in (
            ("rank_pattern", self.rank_pattern),
            ("alpha_pattern", self.alpha_pattern),
        ):
            matching: dict[str, list[str]] = {name: [] for name in modules}
            for key in pattern:
                # A router that is adapted as a bare parameter goes by its layer's name.
                named = [
                    name
                    for name in modules
                    if pattern_key({key: 0}, name) or pattern_key({key: 0}, f"{name}.weight")
                ]
                if not named:
                    notes.append(f"{table}: {key!r} names no layer of the adapter")
                for name in named:
                    matching[name].append(key)
            for name, keys in matching.items():
                if table == "alpha_pattern" and len({pattern[key] for key in keys}) > 1:
                    notes.append(
                        f"{table}: {name} is named by {' and '.join(map(repr, keys))}; "
                        f"{keys[0]!r} is taken, as PEFT does on loading, "
                        "but in training it may have been the other"
                    )
        return notes


def read_config(folder: Path, findings: Findings) -> PeftConfig:
    """Read the folder's adapter_config.json; what is wrong with it goes into `findings`."""
    raw = _read_json(folder, findings)
    if raw is None:
        return PeftConfig(is_usable=False)
    _check_config(raw, findings)
    alpha = number_of(raw.get("lora_alpha", DEFAULT_ALPHA))
    rank = number_of(raw.get("r", DEFAULT_RANK))
    if not alpha:
        findings.add(f"lora_alpha is {raw.get('lora_alpha')!r}; it must be a number other than 0")
    if rank is None or rank < 1 or rank != int(rank):
        findings.add(f"r is {raw.get('r')!r}; it must be a whole number of at least 1")
        rank = None
    parameters = _names(raw, "target_parameters", findings)
    tokens = _invocation_tokens(raw, findings)
    if parameters and tokens:  # PEFT makes none: it could only apply them to every token
        findings.add(
            "alora_invocation_tokens with target_parameters: PEFT has no activated LoRA of bare "
            "parameters",
            "train it on layers alone (target_modules), or as a plain LoRA",
        )
    return PeftConfig(
        default_rank=None if rank is None else int(rank),
        default_alpha=alpha,
        use_rslora=bool(raw.get("use_rslora")),
        rank_pattern=_pattern(raw, "rank_pattern", findings),
        alpha_pattern=_pattern(raw, "alpha_pattern", findings),
        target_parameters=parameters,
        provenance=said_by_config(raw),
        invocation_tokens=tokens,
        notes=tuple(
            f"{CONFIG_FILE} has {printable(key)}, which this converter does not know"
            for key, value in raw.items()
            if key not in READ | IGNORED | UNSUPPORTED.keys() and _is_used(value)
        ),
    )


def _read_json(folder: Path, findings: Findings) -> dict[str, Any] | None:
    path = folder / CONFIG_FILE
    if not path.is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"it has adapters inside: {', '.join(inside)}" if inside else ""
        findings.add(
            f"no {CONFIG_FILE} in it", hint or "give the folder that PEFT's save_pretrained wrote"
        )
        return None
    try:
        config = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        findings.add(f"{CONFIG_FILE} cannot be read: {error}")
        return None
    if not isinstance(config, dict):
        findings.add(f"{CONFIG_FILE} is not a JSON object")
        return None
    if "peft_type" not in config:
        findings.add(f"{CONFIG_FILE} has no peft_type, so it is not PEFT's")
        return None
    kind = config["peft_type"]
    if kind != "LORA":
        findings.add(f"peft_type is {kind!r}; only LORA can be converted", hint_for_method(kind))
        return None
    task = config.get("task_type")
    if isinstance(task, str) and task in _NO_TEXT_TASKS:
        findings.add(
            f"it is {_NO_TEXT_TASKS[task]} (task_type {task}), which cannot generate text",
            "use an adapter of a causal language model (task_type CAUSAL_LM)",
        )
        return None
    return config


def _check_config(config: dict[str, Any], findings: Findings) -> None:
    for key, (text, hint) in UNSUPPORTED.items():
        if _is_used(config.get(key)):
            findings.add(text, hint)
    if config.get("bias") not in (None, "none"):
        findings.add(f"bias is {config['bias']!r}: the adapter changes biases", MERGE_HINT)
    # Each variant that PEFT has added so far came with such a switch: better to stop at the next.
    for key, value in config.items():
        if key.startswith("use_") and key not in UNSUPPORTED.keys() | READ and value:
            findings.add(
                f"{key} is set, and this converter does not know what it means",
                "a newer version may; or merge it into the base with PEFT (merge_and_unload)",
            )
    _check_start(config.get("init_lora_weights"), findings)


def _check_start(init: object, findings: Findings) -> None:
    """PEFT writes true here when it has converted an adapter back for the unchanged base."""
    if not isinstance(init, str) or init.lower().startswith(PLAIN_STARTS):
        return
    resave = (
        "save it again as a plain LoRA: PEFT's save_pretrained with "
        "path_initial_model_for_weight_conversion, the adapter as it was before training"
    )
    if init.lower().startswith("loftq"):
        findings.add(
            f"init_lora_weights is {init!r}: the adapter belongs to a base that LoftQ quantised, "
            "and makes up for what that one lost",
            resave,
        )
    elif init.lower().startswith(BASE_CHANGING_STARTS):
        findings.add(
            f"init_lora_weights is {init!r}, which changed the base's own weights in training",
            resave,
        )
    else:
        findings.add(
            f"init_lora_weights is {init!r}, and this converter does not know whether that "
            "changed the base's own weights",
            resave,
        )


def _is_used(value: object) -> bool:
    return value not in (None, False, "", [], {})


def _invocation_tokens(raw: Mapping[str, Any], findings: Findings) -> tuple[int, ...]:
    """The tokens from which on an activated LoRA works; none for any other."""
    found = raw.get("alora_invocation_tokens")
    if found is None:
        return ()
    sound = isinstance(found, list) and all(
        isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31
        for token in found
    )
    if not sound or not found:
        findings.add("alora_invocation_tokens is not a list of tokens' numbers")
        return ()
    return tuple(found)


def number_of(value: object) -> float | None:
    """`value` as a finite float, or None: JSON also yields true, strings, NaN and Infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _names(raw: Mapping[str, Any], key: str, findings: Findings) -> tuple[str, ...]:
    names = raw.get(key) or []
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    findings.add(f"{key} is not a list of names")
    return ()


def _pattern(raw: Mapping[str, Any], table: str, findings: Findings) -> dict[str, float]:
    """The rank_pattern or alpha_pattern, without the entries that cannot be used."""
    pattern = raw.get(table) or {}
    if not isinstance(pattern, dict):
        findings.add(f"{table} is not a table of names and numbers")
        return {}
    usable = {}
    for key, value in pattern.items():
        try:
            re.compile(rf"(.*\.)?({key})$")
        except (re.error, RecursionError, OverflowError) as error:
            findings.add(f"{table}: {key!r} is not a regular expression: {error}")
            continue
        if not is_quick(key):
            findings.add(
                f"{table}: {printable(repr(key))} may take for ever to match: it repeats what "
                "repeats, or more than two parts without bound",
                "write the names of the layers instead",
            )
            continue
        number = number_of(value)
        if not number:
            findings.add(f"{table}: {key!r} is {value!r}; it must be a number other than 0")
            continue
        usable[key] = number
    return usable
