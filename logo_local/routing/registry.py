"""Every signal by its name: what it needs, where it comes from, and the function that computes it.

A signal is one function in a module of `scorers`, decorated with `signal`. The command line's
choices, the checks and the table in the documentation are made from this registry, so that a new
signal is one file and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from .signals import Scores

AUTO = "auto"  # the name that stands for DEFAULT
DEFAULT = "mixed"  # the best as measured (docs/quality.md)


class Confidence(Enum):
    """How sure a signal is of a message before it has seen the conversation around it."""

    SURE = "the message alone decides, if an adapter fits"
    UNSURE = "the conversation decides"
    GENERAL = "a request for the base, whatever was said before"


class Fit(NamedTuple):
    """Scores >= 0 by adapter; absent are those about which a signal can say nothing.

    `reason` says in a sentence why these adapters, or none, where a signal can say it.
    """

    scores: Scores
    reason: str = ""
    confidence: Confidence = Confidence.SURE


# Called with a `scoring.Scorer` and a `scoring.Prompt`.
Function: TypeAlias = Callable[[Any, Any], "Scores | Fit"]


class Need(Enum):
    """What a signal needs beside the adapters."""

    LAST_TOKEN = "one pass, to the probed block"
    PROMPT = "one pass, to 0.9 of the depth or less"
    BASELINES = "norms of other texts"
    EXAMPLES = "example prompts"
    SAMPLES = "texts that adapters write"
    DESCRIPTIONS = "descriptions"
    MENU = "one pass over a list of the adapters and the prompt"
    EACH = "an evaluation with each adapter"


@dataclass(frozen=True)
class Signal:
    """One way to score adapters. `everywhere` says that it is a choice of all commands; the others
    are for research: choices of `logo-local eval` and of the Python API.
    """

    name: str
    needs: frozenset[Need]
    summary: str
    source: str
    everywhere: bool
    score: Function

    @property
    def probe(self) -> str:
        """ "one-pass", or "each" where the prompt is only evaluated with each adapter."""
        return "each" if self.needs == {Need.EACH} else "one-pass"


_registered: dict[str, Signal] = {}


def signal(
    name: str, *needs: Need, summary: str, source: str, everywhere: bool = False
) -> Callable[[Function], Function]:
    """Register the decorated function as the signal `name`.

    It is called with the `Scorer` of the pool and a `Prompt`, and returns the scores >= 0 by
    adapter, or a `Fit`. Adapters that it can say nothing about are absent. `summary` completes
    "An adapter's score is ...". Raises ValueError for a name that is taken.
    """

    def register(function: Function) -> Function:
        if name in _registered or name == AUTO:
            raise ValueError(f"there are two signals {name!r}")
        _registered[name] = Signal(name, frozenset(needs), summary, source, everywhere, function)
        return function

    return register


@cache
def signals() -> Mapping[str, Signal]:
    """All registered signals by name: those of all commands first, each part sorted."""
    from . import scorers

    for module in sorted(found.name for found in iter_modules(scorers.__path__)):
        import_module(f"{scorers.__name__}.{module}")
    ordered = sorted(_registered.values(), key=lambda s: (not s.everywhere, s.name))
    return MappingProxyType({one.name: one for one in ordered})


def find(name: str) -> Signal:
    """The signal `name`, or the one that "auto" stands for. Raises KeyError for any other name."""
    return signals()[DEFAULT if name == AUTO else name]


def names(*, everywhere: bool = False) -> tuple[str, ...]:
    """ "auto" and all signals, or only those that every command has."""
    return (AUTO, *(s.name for s in signals().values() if s.everywhere or not everywhere))
