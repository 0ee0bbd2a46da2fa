"""Checks that the installed llama_cpp has the API that this package uses.

Forks of llama-cpp-python use its name and version numbers with a different API for adapters, and a
`**kwargs` that ignores unknown arguments. The version is therefore not reliable, so each function
is checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from functools import cache
from typing import Any

import llama_cpp

from ..errors import NativeError

# Functions with the number of arguments that this package passes.
_FUNCTIONS = {
    "llama_adapter_lora_init": 2,
    "llama_adapter_lora_free": 1,
    "llama_set_adapters_lora": 4,
    "llama_init_from_model": 2,
    "llama_decode": 2,
    "llama_set_abort_callback": 3,
    "llama_get_memory": 1,
    "llama_memory_clear": 2,
    "llama_memory_seq_rm": 4,
    "llama_get_logits_ith": 2,
    "llama_state_seq_get_data": 4,
    "llama_state_seq_set_data": 4,
    "llama_model_get_vocab": 1,
    "llama_vocab_n_tokens": 1,
    "llama_vocab_is_eog": 2,
    "llama_log_set": 2,
}
_METHODS = {
    "__init__": (
        *("model_path", "n_gpu_layers", "seed", "n_ctx", "n_batch", "n_ubatch", "verbose"),
        *("n_threads", "n_threads_batch", "chat_format", "chat_handler", "type_k", "type_v"),
    ),
    "generate": ("tokens", "temp", "top_p", "min_p", "repeat_penalty", "reset", "grammar"),
    "create_completion": ("prompt", "max_tokens", "temperature", "stream", "stop", "seed"),
    "create_chat_completion": ("messages", "max_tokens", "temperature", "stream", "tools"),
    "eval": (),
    "reset": (),
}


@cache
def check_api() -> None:
    """Raise NativeError, naming the missing parts, if llama_cpp is a fork or another series."""
    missing = missing_parts(llama_cpp)
    if missing:
        raise NativeError(
            f"the installed llama_cpp {getattr(llama_cpp, '__version__', '')} is not the "
            "llama-cpp-python that logo-local is written for",
            problems=missing,
            hint='it may be a fork: pip install --force-reinstall "llama-cpp-python~=0.3.36" '
            "from PyPI",
        )


def missing_parts(module: Any) -> list[str]:
    """Descriptions of API parts that `module` lacks or that take other arguments."""
    missing = []
    for name, n_arguments in _FUNCTIONS.items():
        function = getattr(module, name, None)
        if function is None:
            missing.append(f"there is no {name}")
        elif len(_parameters(function)) != n_arguments:
            missing.append(f"{name} takes other arguments")
    for name, wanted in _METHODS.items():
        method = getattr(getattr(module, "Llama", None), name, None)
        if method is None:
            missing.append(f"there is no Llama.{name}")
            continue
        known = _parameters(method)
        lacking = [parameter for parameter in wanted if parameter not in known]
        if lacking:
            missing.append(f"Llama.{name} has no {', '.join(lacking)}")
    return missing


def _parameters(function: Any) -> Collection[str]:
    arguments = getattr(function, "argtypes", None)  # a bare ctypes function
    if arguments is not None:
        return [str(i) for i in range(len(arguments))]
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []
