"""A llama.cpp RPC server that lends the CPU of this machine: python rpc_server.py PORT.

llama.cpp's own program for this is not in the Python package. Needs a llama-cpp-python with RPC.
"""

import ctypes
import sys

import llama_cpp

DEVICE_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU in ggml-backend.h


def main(port: int) -> None:
    """Serve at a loopback address; does not return."""
    lib = llama_cpp.llama_cpp._lib
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name, arguments in (
        ("ggml_backend_dev_by_type", [ctypes.c_int]),
        ("ggml_backend_reg_by_name", [text]),
        ("ggml_backend_reg_get_proc_address", [pointer, text]),
    ):
        getattr(lib, name).restype, getattr(lib, name).argtypes = pointer, arguments
    llama_cpp.llama_backend_init()
    backend = lib.ggml_backend_reg_by_name(b"RPC")
    start = lib.ggml_backend_reg_get_proc_address(backend, b"ggml_backend_rpc_start_server")
    serve = ctypes.CFUNCTYPE(None, text, text, size, size, ctypes.POINTER(pointer))(start)
    devices = (pointer * 1)(lib.ggml_backend_dev_by_type(DEVICE_CPU))
    serve(f"127.0.0.1:{port}".encode(), None, 1, len(devices), devices)


if __name__ == "__main__":
    main(int(sys.argv[1]))
