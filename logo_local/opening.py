"""Opening the engine for a program: quiet, and with llama.cpp's reasons when it fails."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from .ask import Engine
from .errors import ModelError
from .terminal import say

_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h; 5 continues the message before


class _LlamaLog:
    """llama.cpp's log: errors are kept while a model is opened, and shown afterwards.

    llama_cpp's own filter takes each level for the next higher one in this release: it prints
    warnings, many of which are said of every model, and hides the errors.
    """

    def __init__(self) -> None:
        import llama_cpp

        self.kept: list[str] | None = None
        self._continued = False
        # The library keeps the pointer only: this object must keep the function.
        self._callback = llama_cpp.llama_log_callback(self._receive)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _data: Any) -> None:
        self._continued = level == _ERROR or (level == 5 and self._continued)
        line = text.decode(errors="replace").strip()
        if not (self._continued and line):
            return
        if self.kept is None:
            say(f"llama.cpp: {line}", "yellow")
        else:
            self.kept.append(line)


_llama_log = cache(_LlamaLog)


def open_engine(model_path: str, adapters: Path | None, **settings: Any) -> Engine:
    """A `LoGo`; ModelError, with what llama.cpp says, where it cannot load the model."""
    from llama_cpp import llama_supports_gpu_offload

    from .engine import LoGo

    if settings.get("n_gpu_layers") and not llama_supports_gpu_offload():
        say(
            "warning: this build of llama-cpp-python has no GPU; --n-gpu-layers is unused", "yellow"
        )
    log = _llama_log()
    kept: list[str] = []
    log.kept = kept
    try:
        return LoGo(model_path, adapters, **settings)
    except ModelError as error:
        raise ModelError(
            error.message, problems=(*error.problems, *kept), hint=error.hint
        ) from error
    finally:
        log.kept = None
