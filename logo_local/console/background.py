"""Asking adapters what they are for in a process of its own, while somebody chats.

The process shares the model's file with the chat through the system's cache, has a low priority,
and leaves what it made in the user's cache, where the chat finds it before its next answer. When it
is ended early, what is made stays made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..ask import Engine
from .terminal import aside

_NICER = 10
_N_CTX = 256  # tokens: the texts are short, and the memory is the chat's


@contextmanager
def self_profiles_in_background(
    llm: Engine, given: Mapping[str, Any]
) -> Iterator[Callable[[], str]]:
    """`making_self_profiles` for an engine, with a line that says so; nothing where none lacks.

    Yields what says in a few words how far it is; "" when nothing is done any more. `given` are the
    options that the engine was opened by.
    """
    missing = llm.without_profile()
    if not missing:
        yield lambda: ""
        return
    aside(f"Generating example prompts for {_adapters(missing)} in the background")
    names = ("signal", "adapter_memory", "links_out")  # the last where a command has it
    settings = {name: given[name] for name in names if name in given}
    started = time.monotonic()
    with making_self_profiles(str(llm.base.path), str(llm.pool.folder), settings) as process:

        def state() -> str:
            left = llm.without_profile() if process.poll() is None else []
            if not left:
                return ""
            done, text = len(missing) - len(left), f"generating example prompts, {_adapters(left)}"
            if done <= 0:
                return f"{text} left"
            seconds = (time.monotonic() - started) / done * len(left)
            return f"{text} left, about {_duration(seconds)}"

        yield state


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _adapters(names: Sequence[str]) -> str:
    return "1 adapter" if len(names) == 1 else f"{len(names)} adapters"


@contextmanager
def making_self_profiles(
    model: str, adapters: str, settings: Mapping[str, Any]
) -> Iterator[subprocess.Popen[bytes]]:
    """Within this block a process asks all adapters of the folder that were not asked yet.

    `settings` are those of `LoGo` that matter to it, JSON-ready. Nothing of the process is
    seen: an adapter that cannot be asked is routed by its norms, as before.
    """
    command = [sys.executable, "-m", __name__, model, adapters, json.dumps(settings)]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def main(arguments: list[str]) -> None:
    """What the process does: `arguments` are model, folder, and the settings as JSON."""
    from ..engine import LoGo

    with suppress(AttributeError, OSError):  # Windows has no nice
        os.nice(_NICER)
    model, adapters, settings = arguments
    threads = max(1, (os.cpu_count() or 2) // 2)  # the others are the chat's
    given = {"n_threads": threads, "n_threads_batch": threads, "n_ctx": _N_CTX}
    with LoGo(model, adapters, **{**given, **json.loads(settings)}) as llm:
        llm.make_self_profiles()


if __name__ == "__main__":
    main(sys.argv[1:])
