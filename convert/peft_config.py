"""Read adapter_config.json, and check whether the converter supports its settings.

Matches rank_pattern and alpha_pattern to layers like PEFT. Does not deal with tensors.
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

# PEFT task types of models that do not generate text.
_NO_TEXT_TASKS = {
    "SEQ_CLS": "a sequence classifier",
    "TOKEN_CLS": "a token classifier",
    "QUESTION_ANS": "a model that marks answers in a text",
}
DEFAULT_RANK = DEFAULT_ALPHA = 8  # PEFT's defaults if the config has no value

# Settings for which the factors in the file do not fully define the adapter, with an alternative.
# A setting counts as used if its value is none of null, false, "", [] and {}.
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
# Settings that the conversion uses.
READ = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"}
    | {"init_lora_weights", "target_parameters", "alora_invocation_tokens"}
    | {"task_type", "peft_version", "base_model_name_or_path"}  # origin of the adapter
)
# Settings of the training, or of the layers to adapt, which the tensor names show as well.
IGNORED = frozenset(
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
    | {"auto_mapping", "revision", "inference_mode", "lora_dropout", "fan_in_fan_out"}
    | {"megatron_config", "megatron_core", "runtime_config", "velora_config"}
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}  # init_lora_weights decides
    | {"qalora_group_size"}  # unused without use_qalora
    | {"ensure_weight_tying"}  # tied embeddings, which cannot be adapted anyway
)
# How the factors were initialised, by prefix. The first group leaves the base unchanged, the second
# changes its weights, so that the factors do not fit the original base.
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
BASE_CHANGING_STARTS = ("pissa", "corda", "olora", "lora_ga", "loftq")

# Bare parameters of one module that LoRA can adapt, in the order in which Hugging Face's models
# declare them: PEFT wraps them in this order, each around the one before.
_DECLARED = ("gate_up_proj", "down_proj")


@dataclass
class Findings:
    """Reasons why a conversion is not possible, and the first hint that was given."""

    problems: list[str] = field(default_factory=list)
    hint: str = ""
    details: list[str] = field(default_factory=list)

    def add(self, problem: str, hint: str = "", details: Sequence[str] = ()) -> None:
        """Add one problem; its hint is kept unless an earlier problem had one.

        `details` are the single findings that the problem summarises.
        """
        self.problems.append(problem)
        self.hint = self.hint or hint
        self.details += details


@dataclass(frozen=True)
class PeftConfig:
    """The settings that define each layer's factor.

    `default_rank` and `default_alpha` are None if the file has no valid value; this is then one
    of the findings.
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
    is_usable: bool = True  # False: the findings already explain why

    def adapted(self, module: str) -> tuple[str, bool]:
        """The name of what PEFT's `module` adapts (mostly itself), and whether it is a parameter.

        Each parameter (target_parameters) has a wrapper that is named like the module that owns it:
        `mlp.experts.base_layer` inside `mlp.experts`. Returns the parameter's full name. Raises
        ValueError if the parameter of a wrapper cannot be determined.
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
        """The rank that `module` should have, and the setting that defines it."""
        key = pattern_key(self.rank_pattern, module)
        if key is None:
            return self.default_rank, "r"
        return self.rank_pattern[key], f"rank_pattern {key!r}"

    def alpha(self, module: str) -> float:
        """The lora_alpha of `module`; 1 if the file has none, which is then a finding."""
        key = pattern_key(self.alpha_pattern, module)
        return (self.default_alpha or 1.0) if key is None else self.alpha_pattern[key]

    def pattern_notes(self, modules: Sequence[str]) -> list[str]:
        """Remarks on the patterns: keys that match none of `modules`, modules with two values.

        If two keys match a module, the first one counts. But PEFT sorts the keys when it saves, so
        the order in training is unknown. The tensors show the rank, but not the alpha.
        """
        notes = []
        for table, pattern in (
            ("rank_pattern", self.rank_pattern),
            ("alpha_pattern", self.alpha_pattern),
        ):
            matching: dict[str, list[str]] = {name: [] for name in modules}
            for key in pattern:
                # A router that is adapted as a bare parameter uses its layer's name.
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
    """Read the folder's adapter_config.json; problems are added to `findings`."""
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
    if parameters and tokens:  # PEFT cannot make this: it would have to apply them to every token
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
    # Each variant that PEFT has added so far came with a switch like this: refuse unknown ones.
    for key, value in config.items():
        if key.startswith("use_") and key not in UNSUPPORTED.keys() | READ and value:
            findings.add(
                f"{key} is set, and this converter does not know what it means",
                "a newer version may; or merge it into the base with PEFT (merge_and_unload)",
            )
    _check_start(config.get("init_lora_weights"), findings)


def _check_start(init: object, findings: Findings) -> None:
    """PEFT writes true here after it has converted an adapter back for the original base."""
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
    """The tokens that activate an activated LoRA; empty for other adapters."""
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
    """`value` as a finite float, or None: JSON may contain true, strings, NaN and Infinity."""
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
    """The rank_pattern or alpha_pattern, without invalid entries."""
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
