"""The settings of /set in a chat: the options of `logo-local run` with the same names.

Conversions and bounds come from the command line; only `stop` is defined here.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import click

from ..completions import Engine, Sampling
from ..console import options
from ..errors import SettingsError

DEFAULT = "default"  # resets an option to its value at the start of the chat
_ROUTING = ("top-k", "signal", "mixture")  # the options of LoGo.configure
_SAMPLING = ("temp", "max-tokens", "seed", "top-p", "min-p", "repeat-penalty")
_DECLARED = options.declared(*options.ROUTING, *options.SAMPLING, *options.SYSTEM)


@dataclass(frozen=True)
class Option:
    """One setting; `choices` are its values if there are only a few."""

    help: str
    choices: tuple[str, ...] = ()


def _of(parameter: click.Option) -> Option:
    choices = parameter.type.choices if isinstance(parameter.type, click.Choice) else ()
    return Option((parameter.help or "").partition("  [")[0], tuple(map(str, choices)))


OPTIONS: Mapping[str, Option] = {
    **{name: _of(_DECLARED[name]) for name in (*_ROUTING, *_SAMPLING)},
    "stop": Option("Strings that end an answer, in quotes; \\n is a line break."),
    "system": _of(_DECLARED["system"]),
}


def stop_texts(value: object) -> tuple[str, ...]:
    r"""Texts from a line, split at spaces outside quotes, with \n for a line break.

    Lists are returned unchanged. Raises ValueError for an unclosed quote and other types.
    """
    if isinstance(value, list | tuple) and all(isinstance(text, str) and text for text in value):
        return tuple(value)
    if not isinstance(value, str):
        raise ValueError("it must be texts")
    words = shlex.shlex(value, posix=True)
    words.whitespace_split, words.commenters, words.escape = True, "", ""
    try:
        return tuple(word.replace("\\n", "\n") for word in words if word)
    except ValueError as error:
        raise ValueError("a quotation mark is not closed") from error


def _converted(name: str, value: object) -> Any:
    if name == "stop":
        return stop_texts(value)
    return options.converter(_DECLARED[name])(value)


class Settings:
    """The current values: the engine's routing, the sampling, and the system message."""

    def __init__(self, llm: Engine, sampling: Sampling, system: str | None) -> None:
        self._llm = llm
        self.sampling = sampling
        self.system = system
        self._at_start = self.values()

    def values(self) -> dict[str, Any]:
        """All of `OPTIONS` with their values, JSON-ready except for tuples; None means not set."""
        values = {name: getattr(self._llm.routing, name.replace("-", "_")) for name in _ROUTING}
        values |= {name: getattr(self.sampling, name.replace("-", "_")) for name in _SAMPLING}
        return {**values, "stop": self.sampling.stop, "system": self.system}

    def change(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Set the `given` values and return them converted; None or "default" resets a value.

        Sets all of them, or none and raises SettingsError with all problems.
        """
        values: dict[str, Any] = {}
        problems = []
        for name, value in given.items():
            if name not in OPTIONS:
                close = difflib.get_close_matches(name, OPTIONS, n=1)
                guess = f" (did you mean {close[0]}?)" if close else ""
                problems.append(f"there is no option {name}{guess}")
            elif value is None or value == DEFAULT:
                values[name] = self._at_start[name]
            else:
                try:
                    values[name] = _converted(name, value)
                except ValueError as error:
                    problems.append(f"{name}: {error}")
        if problems:
            message, more = ("nothing was set", problems) if problems[1:] else (problems[0], ())
            raise SettingsError(message, problems=more, hint="/set lists the options")
        self._llm.configure(**{n.replace("-", "_"): values[n] for n in _ROUTING if n in values})
        sampling = {n.replace("-", "_"): values[n] for n in (*_SAMPLING, "stop") if n in values}
        self.sampling = replace(self.sampling, **sampling)
        self.system = values.get("system", self.system)
        return values


def shown(value: object) -> str:
    """A value for a list: on one line, and shortened."""
    if value is None or value == ():
        return "not set"
    if isinstance(value, tuple):
        return " ".join(f'"{text}"'.replace("\n", "\\n") for text in value)
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 24 else text[:23] + "…"
