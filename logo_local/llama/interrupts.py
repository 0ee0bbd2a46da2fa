"""Ctrl+C while llama.cpp runs.

Python runs a signal handler at the next line of Python. While llama.cpp computes, that may be a
callback (for a graph's node, for a log line), from which an exception cannot reach the caller:
ctypes prints it and llama.cpp goes on. Or it is the line behind the call, before the caller has
counted what was computed. So the signal is kept until the call and its bookkeeping are done, and
raised then; callbacks look at `interrupted` and end the pass, the load or the evaluation.
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


@llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]  # llama_cpp has no types
def _goes_on(_progress: float, _data: Any) -> bool:
    """What llama.cpp asks while it loads a model: False ends the load."""
    return not interrupted()


@llama_cpp.ggml_abort_callback  # type: ignore[untyped-decorator]  # llama_cpp has no types
def _gives_up(_data: Any) -> bool:
    """What llama.cpp asks at every node that it computes on the CPU: True ends the evaluation."""
    return interrupted()


_NEVER = llama_cpp.ggml_abort_callback(0)


class StoppableLoad:
    """`llama_cpp.Llama.model_params`, with Ctrl+C looked at while the model is loaded by them."""

    def __set__(self, llama: Any, params: Any) -> None:
        params.progress_callback = _goes_on
        vars(llama)["model_params"] = params

    def __get__(self, llama: Any, _owner: type) -> Any:
        return self if llama is None else vars(llama)["model_params"]


@contextmanager
def stoppable(ctx: Any, n_tokens: int) -> Iterator[None]:
    """Within this block, one of `interrupts_held`, Ctrl+C ends an evaluation in `ctx`.

    Of several tokens only: one is evaluated soon, and asking costs a millisecond or two.
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
