"""The devices that llama.cpp can use on this machine, and the number of layers placed on them.

llama_cpp has no functions for this, so ggml's own are called (ggml-backend.h of the llama.cpp in
llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp._ctypes_extensions import load_shared_library
from llama_cpp.llama_cpp import _lib as libllama

from .native import log_disabled

# `enum ggml_backend_dev_type`
KINDS = ("CPU", "GPU", "integrated GPU", "accelerator")
ALL_LAYERS = -1  # as `n_gpu_layers`


@dataclass(frozen=True)
class Device:
    """A device as llama.cpp lists it: `name` "CUDA0", `description` "NVIDIA GeForce RTX 4090".

    `kind` is one of KINDS, `backend` the part of llama.cpp that uses the device ("CUDA", "RPC").
    """

    name: str
    description: str
    kind: str
    backend: str
    pointer: int = field(default=0, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.description} ({self.name})"

    def memory(self) -> tuple[int, int]:
        """The free and the total memory in bytes; both 0 if the device does not say.

        Some backends set up the device for this, which takes a second and some of its memory.
        """
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml_of_llama().ggml_backend_dev_memory(
            self.pointer, ctypes.byref(free), ctypes.byref(total)
        )
        return free.value, total.value


@cache
def ggml_of_llama() -> Any:
    """The ggml library that libllama uses, with the functions for devices declared.

    Found through libllama: libggml.so and libggml.so.0 are two files in the wheel, and opening the
    other one would give a second list of devices, which llama.cpp does not use. Windows looks only
    into the library itself, and has a single file.
    """
    lib = libllama
    if not hasattr(lib, "ggml_backend_dev_count"):
        lib = load_shared_library("ggml", Path(llama_cpp.__file__).parent / "lib")
    p, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    for name, result, arguments in (
        ("ggml_backend_dev_count", size, []),
        ("ggml_backend_dev_get", p, [size]),
        ("ggml_backend_dev_name", text, [p]),
        ("ggml_backend_dev_description", text, [p]),
        ("ggml_backend_dev_type", ctypes.c_int, [p]),
        ("ggml_backend_dev_memory", None, [p, p, p]),
        ("ggml_backend_dev_backend_reg", p, [p]),
        ("ggml_backend_reg_count", size, []),
        ("ggml_backend_reg_get", p, [size]),
        ("ggml_backend_reg_name", text, [p]),
        ("ggml_backend_reg_by_name", p, [text]),
        ("ggml_backend_reg_get_proc_address", p, [p, text]),
        ("ggml_backend_register", None, [p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@cache
def _start_backends() -> None:
    """Let llama.cpp find its devices, which it also logs: a line for each, whatever the level."""
    with log_disabled():
        llama_cpp.llama_supports_gpu_offload()


def backends() -> list[str]:
    """The parts of llama.cpp that this build has: ["CPU"], or ["Vulkan", "CPU"]."""
    ggml = ggml_of_llama()
    _start_backends()
    pointers = map(ggml.ggml_backend_reg_get, range(ggml.ggml_backend_reg_count()))
    return [ggml.ggml_backend_reg_name(pointer).decode() for pointer in pointers]


def devices() -> list[Device]:
    """All devices that llama.cpp lists, the CPU included.

    The first call may take some tenths of a second, because the backends start their drivers.
    """
    ggml = ggml_of_llama()
    _start_backends()
    pointers = map(ggml.ggml_backend_dev_get, range(ggml.ggml_backend_dev_count()))
    return [_device(ggml, pointer) for pointer in pointers]


def _device(ggml: Any, pointer: int) -> Device:
    kind = ggml.ggml_backend_dev_type(pointer)
    return Device(
        name=ggml.ggml_backend_dev_name(pointer).decode(errors="replace"),
        description=ggml.ggml_backend_dev_description(pointer).decode(errors="replace").strip(),
        kind=KINDS[kind] if kind < len(KINDS) else "other",
        backend=ggml.ggml_backend_reg_name(ggml.ggml_backend_dev_backend_reg(pointer)).decode(),
        pointer=pointer,
    )


def gpus() -> list[Device]:
    """The devices that layers are placed on; empty if only the CPU is used.

    As llama.cpp chooses them by default (src/llama.cpp): RPC servers and all GPUs, and integrated
    GPUs only if there is no other local one.
    """
    found = devices()
    remote = [one for one in found if one.kind == "GPU" and one.backend == "RPC"]
    local = [one for one in found if one.kind == "GPU" and one.backend != "RPC"]
    integrated = [one for one in found if one.kind == "integrated GPU"]
    same = [one for one in integrated if one.backend == integrated[0].backend]
    return [*remote, *(local or same)]


def placed(llama: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for `llama_cpp.Llama` with the number of layers on the GPU resolved.

    If `n_gpu_layers` is missing or None, all layers are placed on the GPU, if there is one. With 0
    the GPU is not used at all; otherwise llama.cpp would copy weights to it for long prompts.
    """
    arguments = dict(llama)
    if arguments.get("n_gpu_layers") is None:
        arguments["n_gpu_layers"] = ALL_LAYERS if gpus() else 0
    if arguments["n_gpu_layers"] == 0 and arguments.get("op_offload") is None:
        arguments["op_offload"] = False
    return arguments


def free_gpu_memory(params: Any) -> int | None:
    """The free memory in bytes of the GPUs that hold layers of a model; None without them.

    `params` are the model's llama_model_params.
    """
    found = gpus() if params.n_gpu_layers else []
    return sum(one.memory()[0] for one in found) if found else None


def too_little_memory() -> str:
    """A hint for a failed allocation."""
    fewer = ", or a lower --gpu-layers" if gpus() else ""
    return f"there may be too little memory: try a smaller --ctx-size{fewer}"


def offloading(n_gpu_layers: int | None, on: Sequence[Device] | None = None) -> str:
    """What `n_gpu_layers` does on this machine, as one line; "" if nothing is placed on a GPU."""
    found = gpus() if on is None else on
    if n_gpu_layers == 0 or not found:
        return ""
    layers = "all" if n_gpu_layers is None or n_gpu_layers < 0 else f"up to {n_gpu_layers}"
    return f"Offloading {layers} layers to {', '.join(map(str, found))}"
