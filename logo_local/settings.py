"""How routing can be set: names, defaults, and one check of them all.

The engine, the command line and the config file take their lists and defaults from here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import config
from .errors import SettingsError

log = logging.getLogger(__name__)

# What one pass of the base yields, and what needs an evaluation with each adapter; "shortlist" is
# the one, and then the other for the first few. `scoring` and `router` have the code.
ONE_PASS = (
    "norm", "entropy", "relative", "arrow", "spectr", "z-norm",
    "self-profile", "combined", "profile",
)  # fmt: skip
EACH = ("each-entropy", "each-likelihood")
SIGNALS = (*ONE_PASS, *EACH, "shortlist")
SIGNAL_NAMES = ("auto", *SIGNALS)
PROBES = ("one-pass", "each")
TAPS = ("input", "residual")
MIXTURES = ("auto", "fused", "scales")
MIXTURE_TYPES = ("exact", "q8_0")
PREFILLS = ("mixture", "base")
SELF_PROFILES = (True, False, "kept")  # make what is missing, do without, or use what is there

DEFAULT_TOP_K = 3
DEFAULT_LAYER = -1
DEFAULT_ADAPTER_MEMORY = "auto"  # a quarter of what is free
DEFAULT_N_CTX = 4096  # tokens, or what the model was trained with, if that is less


@dataclass(frozen=True)
class RoutingSettings:
    """What a caller asked for; see `LoGo` for the meaning of each."""

    signal: str = "auto"
    top_k: int = DEFAULT_TOP_K
    probe: str = "one-pass"
    layer: int = DEFAULT_LAYER
    tap: str = "input"
    mixture: str = "auto"
    mixture_type: str = "exact"
    keep_route: float = 0.0
    prefill: str = "mixture"
    adapter_memory: int | str = DEFAULT_ADAPTER_MEMORY
    self_profile: bool | str = True
    past: bool = True

    @property
    def resolved_signal(self) -> str:
        """One of `SIGNALS`, or "auto", which depends on the pool; `probe` "each" is worked in."""
        if self.probe == "each" and self.signal in ("auto", "entropy"):
            return "each-entropy"
        return self.signal

    @property
    def memory(self) -> int:
        """`adapter_memory` in bytes; "auto" is looked up now."""
        return config.parse_memory(self.adapter_memory)

    def check(self, other_problems: Sequence[str] = ()) -> None:
        """Raise one SettingsError with all that is wrong here, and with `other_problems`.

        A setting that has no effect beside the others is named in the log. Does not know the
        model: whether it has the layer is seen later.
        """
        problems = [
            f"{name} is {value!r}, and can be {', '.join(allowed)}"
            for name, value, allowed in (
                ("signal", self.signal, SIGNAL_NAMES),
                ("probe", self.probe, PROBES),
                ("tap", self.tap, TAPS),
                ("mixture", self.mixture, MIXTURES),
                ("mixture_type", self.mixture_type, MIXTURE_TYPES),
                ("prefill", self.prefill, PREFILLS),
            )
            if value not in allowed
        ]
        if self.self_profile not in SELF_PROFILES:
            problems.append(
                f"self_profile is {self.self_profile!r}, and can be True, False or 'kept'"
            )
        if self.probe == "each" and self.signal not in ("auto", "entropy", *EACH):
            problems.append(
                f"signal {self.signal!r} needs probe 'one-pass': 'each' has {', '.join(EACH)}"
            )
        if self.top_k < 1:
            problems.append(f"top_k is {self.top_k}, and must be at least 1")
        if not 0 <= self.keep_route < math.inf:
            problems.append(f"keep_route is {self.keep_route}, and must be 0 or more")
        try:
            config.parse_memory(self.adapter_memory)
        except ValueError as error:
            problems.append(f"adapter_memory: {error}")
        problems += other_problems
        if problems:
            raise SettingsError(
                "the engine's settings cannot be used",
                problems=problems,
                hint="logo-local run --help lists them, and llama_cpp.Llama's are taken too",
            )
        if self.probe == "each" and (self.layer, self.tap) != (DEFAULT_LAYER, "input"):
            log.warning("layer and tap have no effect with probe 'each', which reads no block")
        if self.mixture == "scales" and self.mixture_type != "exact":
            log.warning("mixture_type has no effect with mixture 'scales', which stores nothing")
