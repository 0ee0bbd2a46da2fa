"""Ctrl+C while llama.cpp runs.

Python runs a signal handler before its next bytecode. While llama.cpp computes, that may be in a
callback (for a graph node or a log line), where exceptions do not reach the caller: ctypes prints
them and llama.cpp continues. Or it is right after the call, before the caller has updated its
state. So the signal is deferred until the call and its bookkeeping are done. Callbacks check
`interrupted` and end the pass, the load or the evaluation.
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
    """Whether Ctrl+C was pressed within an open `interrupts_held`."""
    return _pending.is_set()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Defer SIGINT until the end of this block, then pass it to the previous handler.

    Python's default handler raises KeyboardInterrupt, which replaces an error raised in the block.
    Blocks may be nested. Signals only reach the main thread; in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # SIGINT is ignored, or ends the process immediately
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


@llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]  # llama_cpp has no types
def _goes_on(_progress: float, _data: Any) -> bool:
    """Called by llama.cpp while it loads a model: False ends the load."""
    return not interrupted()


@llama_cpp.ggml_abort_callback  # type: ignore[untyped-decorator]  # llama_cpp has no types
def _gives_up(_data: Any) -> bool:
    """Called by llama.cpp for every node computed on the CPU: True ends the evaluation."""
    return interrupted()


_NEVER = llama_cpp.ggml_abort_callback(0)


class StoppableLoad:
    """`llama_cpp.Llama.model_params`, with Ctrl+C checked while the model is loaded."""

    def __set__(self, llama: Any, params: Any) -> None:
        params.progress_callback = _goes_on
        vars(llama)["model_params"] = params

    def __get__(self, llama: Any, _owner: type) -> Any:
        return self if llama is None else vars(llama)["model_params"]


@contextmanager
def stoppable(ctx: Any, n_tokens: int) -> Iterator[None]:
    """Let Ctrl+C end an evaluation in `ctx`; use within `interrupts_held`.

    Only for several tokens: one token is fast, and the checks cost a millisecond or two.
    """
    if n_tokens < 2:
        yield
        return
    llama_cpp.llama_set_abort_callback(ctx, _gives_up, None)
    try:
        yield
    finally:
        llama_cpp.llama_set_abort_callback(ctx, _NEVER, None)


def make_context(model: Any, params: Any) -> Any:
    """A llama.cpp context of `model`, or None if it cannot be created. Free it before the model.

    Raises KeyboardInterrupt afterwards if Ctrl+C was pressed meanwhile.
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
