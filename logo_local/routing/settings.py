"""The options of routing, each with its default, its values and its help.

The engine's parameters, the command line, the config file, the server and the checks are generated
from `RoutingSettings`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from .. import config
from ..errors import SettingsError
from . import registry

log = logging.getLogger(__name__)

DEFAULT_N_CTX = 4096  # tokens, or the model's training context if that is smaller
EACH = ("each-entropy", "each-likelihood")  # the signals for `probe` "each"


class Routing(TypedDict, total=False):
    """Routing options of one call; omitted keys use the engine's settings.

    `weights` are by adapter name and used unchanged: nothing is scored, and `signal` and `top_k`
    cannot be combined with them. Empty weights, {}, mean the base model alone.
    """

    signal: str
    top_k: int
    weights: Mapping[str, float]


def _option(default: Any, help: str, *, choices: tuple[Any, ...] = (), common: bool = False) -> Any:
    """A field of `RoutingSettings`; `common` options are in all commands, the others in eval.

    Values without `choices` are checked individually.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "common": common})


@dataclass(frozen=True)
class RoutingSettings:
    """The routing options; the help of each field says what it does."""

    signal: str = _option("auto", "How the scores of adapters are computed.", common=True)
    top_k: int = _option(3, "Maximum number of adapters to blend.", common=True)
    mixture: str = _option(
        "auto",
        "Blend adapters as one stacked adapter, or through llama.cpp's scales.",
        choices=("auto", "stacked", "scales"),
        common=True,
    )
    adapter_memory: int | str = _option(
        "auto", "Memory limit for loaded adapters; auto: a quarter of the free memory.",
        common=True,
    )  # fmt: skip
    cache_memory: int | str = _option(
        "auto",
        "Memory limit for the prompt cache, 0 for none; auto: an eighth of the free memory.",
        common=True,
    )
    self_profile: bool | str = _option(
        "kept",
        "Let adapters without examples generate some first  [default: use existing ones]",
        choices=(True, False, "kept"),  # create missing ones, use none, or use existing ones
        common=True,
    )
    past: bool = _option(
        True,
        "Compare with statistics of your earlier prompts, which are stored.",
        choices=(True, False),
        common=True,
    )
    mixture_type: str = _option(
        "native",
        "Number type of the stacked adapter; q8_0 is smaller and faster, but not exact.",
        choices=("native", "q8_0"),
        common=True,
    )
    probe: str = _option(
        "one-pass",
        "One pass of the base model, or one evaluation per adapter.",
        choices=("one-pass", "each"),
    )
    layer: int = _option(-1, "Block to probe; -1 is the last.")
    tap: str = _option(
        "input",
        "Read the projection's input, or the state before the block's norm.",
        choices=("input", "residual"),
    )
    keep_route: float = _option(
        0.0, "Keep the current weights if no weight would change by more than this."
    )
    prefill: str = _option(
        "mixture",
        "Process the prompt with the mixture, or with the base model: faster, lower quality.",
        choices=("mixture", "base"),
    )

    @property
    def memory(self) -> int:
        """`adapter_memory` in bytes; "auto" is resolved now."""
        return config.parse_memory(self.adapter_memory)

    def memory_within(self, free_gpu_memory: int | None) -> int:
        """As `memory`; "auto" is also at most a quarter of the free memory of a GPU, if given."""
        if self.adapter_memory != "auto" or free_gpu_memory is None:
            return self.memory
        return max(1, min(self.memory, free_gpu_memory // 4))

    @property
    def cache_bytes(self) -> int:
        """`cache_memory` in bytes; "auto" is resolved now.

        0 with `prefill` "base", because prompts are then evaluated without adapters.
        """
        return 0 if self.prefill == "base" else config.parse_cache_memory(self.cache_memory)

    def resolved(self, signal: str | None = None) -> str:
        """The name of `signal`, or of the settings' signal, with "auto" resolved."""
        name = self.signal if signal is None else signal
        if self.probe == "each" and name in (registry.AUTO, "entropy"):
            return "each-entropy"
        return registry.find(name).name

    def check(self, other_problems: Sequence[str] = ()) -> None:
        """Raise one SettingsError with all problems, including `other_problems`.

        A setting that has no effect with the others is logged. Whether the model has the layer
        is checked later.
        """
        problems = _problems(self)
        if self.probe == "each" and self.signal not in (registry.AUTO, "entropy", *EACH):
            problems.append(
                f"signal {self.signal!r} needs probe 'one-pass': 'each' has {', '.join(EACH)}"
            )
        problems += other_problems
        if problems:
            raise SettingsError(
                "the engine's settings cannot be used",
                problems=problems,
                hint="logo-local run --help lists them, and llama_cpp.Llama's are taken too",
            )
        if self.probe == "each" and (self.layer, self.tap) != (DEFAULTS.layer, DEFAULTS.tap):
            log.warning("layer and tap have no effect with probe 'each', which reads no block")
        if self.mixture == "scales" and self.mixture_type != DEFAULTS.mixture_type:
            log.warning("mixture_type has no effect with mixture 'scales', which stores nothing")


def _problems(settings: RoutingSettings) -> list[str]:
    """The problems of the individual fields."""
    problems = []
    for option in fields(settings):
        value, choices = getattr(settings, option.name), choices_of(option.name)
        if choices and value not in choices:
            allowed = ", ".join(map(str, choices))
            problems.append(f"{option.name} is {value!r}, and can be {allowed}")
    problems += _number_problems(settings.top_k)
    if not 0 <= settings.keep_route < math.inf:
        problems.append(f"keep_route is {settings.keep_route}, and must be 0 or more")
    for name, parse in (
        ("adapter_memory", config.parse_memory),
        ("cache_memory", config.parse_cache_memory),
    ):
        try:
            parse(getattr(settings, name))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return problems


def _number_problems(top_k: Any) -> list[str]:
    whole = isinstance(top_k, int) and not isinstance(top_k, bool)
    return [] if whole and top_k >= 1 else [f"top_k is {top_k}, and must be at least 1"]


DEFAULTS = RoutingSettings()
OPTIONS = {option.name: option for option in fields(RoutingSettings)}


def choices_of(name: str) -> tuple[Any, ...]:
    """The values of an option with a fixed set of choices, else ()."""
    if name == "signal":
        return registry.names()
    choices: tuple[Any, ...] = OPTIONS[name].metadata["choices"]
    return choices


def check_routing(routing: Mapping[str, Any] | None) -> None:
    """Raise one SettingsError with all problems in the `Routing` of a call."""
    given = routing or {}
    problems = [
        f"there is no routing option {n!r}" for n in given if n not in Routing.__annotations__
    ]
    signal, weights = given.get("signal"), given.get("weights")
    if signal is not None and signal not in registry.names():
        problems.append(f"signal is {signal!r}, and can be {', '.join(registry.names())}")
    if given.get("top_k") is not None:
        problems += _number_problems(given["top_k"])
    if weights is not None and (signal is not None or given.get("top_k") is not None):
        problems.append(
            "weights define the whole route: signal and top_k cannot be combined with them"
        )
    for name, weight in (weights or {}).items():
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not math.isfinite(weight)
        ):
            problems.append(f"the weight of {name} is {weight!r}: give it a finite number")
    if problems:
        raise SettingsError(
            "this call cannot be routed so",
            problems=problems,
            hint='it looks like this: {"signal": "norm", "top_k": 3}, or {"weights": {"a": 1.0}}',
        )
