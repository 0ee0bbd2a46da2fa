"""The exceptions of this package.

    LogoError               has a message, a list of problems and a hint
    ├── ModelError          the base model file cannot be read or used
    ├── AdapterError        one adapter cannot be used: damaged, or trained for another base
    │   ├── ConversionError a PEFT adapter cannot be converted to a GGUF LoRA file
    │   └── MixtureError    a mixture produces values that are not finite
    ├── PoolError           the adapter folder as a whole cannot be used
    │   ├── AdapterMemoryError   a mixture exceeds the memory limit for adapters
    │   └── UnknownAdapterError  no adapter has this name
    ├── SettingsError       an invalid option, environment variable or config file
    ├── RpcError            an RPC server cannot be used, or was lost
    ├── PromptError         the prompt cannot be evaluated
    │   └── ContextError    the prompt is longer than the context
    └── NativeError         unexpected behaviour of llama.cpp

Users can fix the cause of a `LogoError`: the command line prints it as one `error:` line, one line
for each problem, and one `hint:` line. Any other exception that propagates is a bug.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


class LogoError(Exception):
    """The base class of all errors that users can fix.

    `message` says what went wrong and where, without a final full stop. `problems` lists all
    findings if the message does not contain them; one error has all of them. `hint` says what to
    type or change; may be empty. `details` are the individual findings behind summarised problems,
    for `--verbose` and `--json`.
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
    """The base model file cannot be read, or adapters cannot be used with it."""


class AdapterError(LogoError):
    """An adapter cannot be used: damaged, unsupported, or trained for another base model."""


class ConversionError(AdapterError):
    """A PEFT adapter cannot be converted to a GGUF LoRA file; nothing was written."""


class MixtureError(AdapterError):
    """llama.cpp produces values that are not finite with this mixture; they are discarded."""


class PoolError(LogoError):
    """The adapter folder as a whole cannot be used."""


class AdapterMemoryError(PoolError):
    """A mixture exceeds the memory limit for adapters."""


class UnknownAdapterError(PoolError):
    """There is no adapter of this name in the folder."""


class SettingsError(LogoError):
    """An option, an environment variable or the config file has an invalid value."""


class RpcError(LogoError):
    """An RPC server cannot be used: it does not answer, is not allowed, or was lost."""


class PromptError(LogoError):
    """The prompt cannot be evaluated, for example because it is empty."""


class ContextError(PromptError):
    """The prompt is longer than the context."""


class NativeError(LogoError):
    """llama.cpp did not behave as this package expects."""
