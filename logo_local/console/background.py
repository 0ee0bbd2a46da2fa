"""Generate the adapters' self-profiles in a separate process during a chat.

The process shares the model's file with the chat through the page cache, runs with low priority,
and writes its results to the user's cache, where the chat finds them before its next answer.
Results are kept if the process is stopped early.
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

from ..completions import Engine
from .prompts import announce_self_profiles
from .terminal import aside

_NICER = 10
_N_CTX = 256  # tokens: the texts are short, and most of the memory is for the chat


@contextmanager
def self_profiles_in_background(
    llm: Engine, given: Mapping[str, Any]
) -> Iterator[Callable[[], str]]:
    """`making_self_profiles` for an engine, with a message; does nothing if none is missing.

    Yields a function that returns the progress in a few words, "" when the work is finished.
    `given` are the options with which the engine was opened. With RPC servers, nothing is
    generated.
    """
    missing = llm.without_profile()
    if missing and given.get("rpc"):  # another process would load the model into this machine
        announce_self_profiles(llm, given)
    if not missing or given.get("rpc"):
        yield lambda: ""
        return
    aside(f"Generating example prompts for {_adapters(missing)} in the background")
    names = ("signal", "adapter_memory", "links_out")  # the last only for commands that have it
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
    """Run a process during this block that profiles all adapters of the folder that need it.

    `settings` are the relevant settings of `LoGo`, JSON-ready. Errors of the process are not
    shown: an adapter without a self-profile is routed by its norms, as before.
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
    """The main function of the process; `arguments` are model, folder, and settings as JSON."""
    from ..engine import LoGo

    with suppress(AttributeError, OSError):  # Windows has no nice
        os.nice(_NICER)
    model, adapters, settings = arguments
    threads = max(1, (os.cpu_count() or 2) // 2)  # the other cores are for the chat
    given = {"n_threads": threads, "n_threads_batch": threads, "n_ctx": _N_CTX}
    given["n_gpu_layers"] = 0  # a GPU's memory is for the chat
    with LoGo(model, adapters, **{**given, **json.loads(settings)}) as llm:
        llm.make_self_profiles()


if __name__ == "__main__":
    main(sys.argv[1:])
