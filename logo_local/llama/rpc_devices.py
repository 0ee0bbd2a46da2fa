"""Registers RPC servers in llama.cpp, and handles its aborts: ctypes beyond llama_cpp's own API.

The functions are ggml's (ggml-backend.h, ggml-rpc.h and ggml.h of the llama.cpp in llama-cpp-python
0.3.36).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from llama_cpp.llama_cpp import _lib as libllama

from .devices import devices, ggml_of_llama


def add_rpc_server(endpoint: str) -> int:
    """Add the devices of the RPC server at `endpoint`, "address:port"; the number now listed.

    Blocks while the server has another client. 0 if this build has no RPC, if the server has no
    devices, or if llama.cpp does not list them. llama.cpp ends the process if it cannot connect or
    if the server has another protocol version; see `at_abort`.
    """
    lib = ggml_of_llama()
    backend = lib.ggml_backend_reg_by_name(b"RPC")
    if not backend:
        return 0
    name = b"ggml_backend_rpc_add_server"
    address = lib.ggml_backend_reg_get_proc_address(backend, name)
    add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
    server = add(endpoint.encode())
    if server:
        lib.ggml_backend_register(server)
    return sum(device.description == endpoint for device in devices())


_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_at_abort: list[Any] = []  # llama.cpp holds only the raw pointer


def at_abort(handle: Callable[[str], None]) -> None:
    """Call `handle` with the message when llama.cpp is about to abort the process.

    It replaces llama.cpp's output, and runs in any thread. The process ends when it returns.
    """
    callback = _ABORT(lambda message: handle((message or b"").decode(errors="replace")))
    set_callback = libllama.ggml_set_abort_callback
    set_callback.restype, set_callback.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    set_callback(callback)
    _at_abort[:] = [callback]
