"""Everything that can go wrong, in one small tree.

    LogoError               carries a message, a list of problems and a hint
    ├── ModelError          the base model file cannot be read or used
    ├── AdapterError        one adapter cannot be used: damaged, or made for another base
    │   ├── ConversionError a PEFT adapter cannot become a GGUF LoRA file
    │   └── MixtureError    several together cannot: their numbers are not finite
    ├── PoolError           the folder of adapters as a whole
    │   ├── AdapterMemoryError   a mixture that is larger than adapters may be
    │   └── UnknownAdapterError  a name that is not in it
    ├── SettingsError       an option, an environment variable or the config file
    ├── PromptError         a prompt that cannot be evaluated
    │   └── ContextError    one that is longer than the context
    └── NativeError         llama.cpp answered otherwise than this project was written for

A `LogoError` is a user's to solve: the command line prints it as one `error:` line, one line
for each problem, and one `hint:` line. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


class LogoError(Exception):
    """The root of all errors that a user can do something about.

    `message` says what went wrong and where, without a final full stop. `problems` lists every
    single thing found, when there is more than the message can say; an error is raised once, with
    all of them. `hint` says what to type or change; it may be empty. `details` are every single
    finding behind a problem that sums them up, for `--verbose` and `--json`.
    """

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[str] = (),
        hint: str = "",
        details: Sequence[str] = (),
    ) -> None:
        super().__init__(message, tuple(problems), hint)
        self.message = message
        self.problems = tuple(problems)
        self.hint = hint
        if hint and sys.version_info >= (3, 11):
            self.add_note(f"hint: {hint}")
        self.details = tuple(details)

    def __str__(self) -> str:
        return "; ".join((self.message, *self.problems))


class ModelError(LogoError):
    """The base model file cannot be read, or is not one that adapters can be used with."""


class AdapterError(LogoError):
    """One adapter cannot be used: damaged, unsupported, or made for another base model."""


class ConversionError(AdapterError):
    """A PEFT adapter cannot become a GGUF LoRA file; nothing was written."""


class MixtureError(AdapterError):
    """Under this mixture llama.cpp makes numbers that are not finite; nothing of it is kept."""


class PoolError(LogoError):
    """The folder of adapters cannot be used as a whole."""


class AdapterMemoryError(PoolError):
    """A mixture takes more memory than adapters may take."""


class UnknownAdapterError(PoolError):
    """There is no adapter of this name in the folder."""


class SettingsError(LogoError):
    """An option, an environment variable or the config file has a value that cannot be used."""


class PromptError(LogoError):
    """The prompt cannot be evaluated, for instance because it is longer than the context."""


class ContextError(PromptError):
    """The prompt is longer than the context."""


class NativeError(LogoError):
    """llama.cpp answered otherwise than this project was written for."""
