"""Registers RPC servers in llama.cpp, and handles its aborts: ctypes beyond llama_cpp's own API.

The functions are ggml's (ggml-backend.h, ggml-rpc.h and ggml.h of the llama.cpp in llama-cpp-python
0.3.36).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llama_cpp


@cache
def _linked() -> ctypes.CDLL:
    """libllama, for functions of the ggml that it is linked with.

    The package contains several copies of each ggml library, and each loaded copy has its own list
    of devices. Functions that are looked up in libllama belong to the copy that libllama uses.
    """
    lib: ctypes.CDLL = llama_cpp.llama_cpp._lib
    p, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_backend_reg_by_name", p, [text]),
        ("ggml_backend_reg_get_proc_address", p, [p, text]),
        ("ggml_backend_register", None, [p]),
        ("ggml_backend_dev_count", size, []),
        ("ggml_backend_dev_get", p, [size]),
        ("ggml_backend_dev_description", text, [p]),
        ("ggml_set_abort_callback", p, [p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def add_rpc_server(endpoint: str) -> int:
    """Add the devices of the RPC server at `endpoint`, "address:port"; the number now listed.

    Blocks while the server has another client. 0 if this build has no RPC, if the server has no
    devices, or if llama.cpp does not list them. llama.cpp ends the process if it cannot connect or
    if the server has another protocol version; see `at_abort`.
    """
    lib = _linked()
    backend = lib.ggml_backend_reg_by_name(b"RPC")
    if not backend:
        return 0
    name = b"ggml_backend_rpc_add_server"
    address = lib.ggml_backend_reg_get_proc_address(backend, name)
    add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
    server = add(endpoint.encode())
    if server:
        lib.ggml_backend_register(server)
    listed = (lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count()))
    described = [lib.ggml_backend_dev_description(device) for device in listed]
    return described.count(endpoint.encode())


_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_at_abort: list[Any] = []  # llama.cpp holds only the raw pointer


def at_abort(handle: Callable[[str], None]) -> None:
    """Call `handle` with the message when llama.cpp is about to abort the process.

    It replaces llama.cpp's output, and runs in any thread. The process ends when it returns.
    """
    callback = _ABORT(lambda message: handle((message or b"").decode(errors="replace")))
    _linked().ggml_set_abort_callback(callback)
    _at_abort[:] = [callback]
