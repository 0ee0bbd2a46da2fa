"""Ctrl+C while llama.cpp runs.

Python runs a signal handler at the next line of Python. While llama.cpp computes, that may be a
callback (for a graph's node, for a log line), from which an exception cannot reach the caller:
ctypes prints it and llama.cpp goes on. Or it is the line behind the call, before the caller has
counted what was computed. So the signal is kept until the call and its bookkeeping are done, and
raised then; callbacks look at `interrupted` and end the pass.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp

_pending = threading.Event()


def interrupted() -> bool:
    """Whether Ctrl+C came within an open `interrupts_held`."""
    return _pending.is_set()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Keep SIGINT until the end of this block, then hand it to the handler that was there.

    That is Python's own as a rule, which raises KeyboardInterrupt; then it replaces an error that
    the block ends with. Blocks may be nested. Signals reach the main thread only, so in any other
    this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # SIGINT is ignored, or ends the process at once
        yield
        return
    kept: list[tuple[int, Any]] = []

    def keep(number: int, frame: Any) -> None:
        kept.append((number, frame))
        _pending.set()

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if kept:
            _pending.clear()
            before(*kept[-1])


def make_context(model: Any, params: Any) -> Any:
    """A llama.cpp context of `model`; None where it cannot be made. Free it before the model.

    Raises KeyboardInterrupt afterwards where Ctrl+C came meanwhile.
    """
    ctx = None
    try:
        with interrupts_held():
            ctx = llama_cpp.llama_init_from_model(model, params)
    except KeyboardInterrupt:
        if ctx is not None:
            llama_cpp.llama_free(ctx)
        raise
    return ctx
