"""The registry of signals: name, needs, source, and the function that computes the scores.

A signal is one function in a module of `scorers`, decorated with `signal`. The choices of the
command line, the checks and the table in the documentation are generated from this registry, so a
new signal needs only one file.
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

AUTO = "auto"  # an alias of DEFAULT
DEFAULT = "mixed"  # the best in our measurements (docs/quality.md)


class Fit(NamedTuple):
    """Scores >= 0 by adapter; adapters that the signal cannot score are absent.

    `reason` explains in one sentence why these adapters, or none, were chosen; may be empty. In a
    conversation, a message with `sure` False keeps the route of the messages before it, if its
    first adapter is one that the message `continues`.
    """

    scores: Scores
    reason: str = ""
    sure: bool = True
    continues: frozenset[str] = frozenset()


# Called with a `scoring.Scorer` and a `scoring.Prompt`.
Function: TypeAlias = Callable[[Any, Any], "Scores | Fit"]


class Need(Enum):
    """What a signal needs besides the adapters."""

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
    """One way to score adapters. With `everywhere` it is available in all commands, else only in
    `logo-local eval` and the Python API.
    """

    name: str
    needs: frozenset[Need]
    summary: str
    source: str
    everywhere: bool
    score: Function

    @property
    def probe(self) -> str:
        """ "one-pass", or "each" if the prompt is only evaluated with each adapter."""
        return "each" if self.needs == {Need.EACH} else "one-pass"


_registered: dict[str, Signal] = {}


def signal(
    name: str, *needs: Need, summary: str, source: str, everywhere: bool = False
) -> Callable[[Function], Function]:
    """Register the decorated function as the signal `name`.

    The function takes the `Scorer` of the pool and a `Prompt`, and returns the scores >= 0 by
    adapter, or a `Fit`. Adapters that it cannot score are absent. `summary` completes "An adapter's
    score is ...". Raises ValueError if the name is taken.
    """

    def register(function: Function) -> Function:
        if name in _registered or name == AUTO:
            raise ValueError(f"there are two signals {name!r}")
        _registered[name] = Signal(name, frozenset(needs), summary, source, everywhere, function)
        return function

    return register


@cache
def signals() -> Mapping[str, Signal]:
    """All registered signals by name: `everywhere` signals first, each part sorted."""
    from . import scorers

    for module in sorted(found.name for found in iter_modules(scorers.__path__)):
        import_module(f"{scorers.__name__}.{module}")
    ordered = sorted(_registered.values(), key=lambda s: (not s.everywhere, s.name))
    return MappingProxyType({one.name: one for one in ordered})


def find(name: str) -> Signal:
    """The signal `name`, or DEFAULT for "auto". Raises KeyError for unknown names."""
    return signals()[DEFAULT if name == AUTO else name]


def names(*, everywhere: bool = False) -> tuple[str, ...]:
    """ "auto" and all signals, or only those available in every command."""
    return (AUTO, *(s.name for s in signals().values() if s.everywhere or not everywhere))
