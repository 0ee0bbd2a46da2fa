"""Reads and writes llama.cpp's tensors; the only module with ctypes beyond llama_cpp's own API.

llama.cpp calls `cb_eval` for every node of its graph. To read the input of a weight, or to find an
adapter's tensors, the node's sources must be followed. They are only reachable through the layout
of the C struct `ggml_tensor` (ggml.h of the llama.cpp in llama-cpp-python 0.3.36). `check_layout`
validates this layout against the library before it is used.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp._ctypes_extensions import load_shared_library

from ..errors import NativeError
from .interrupts import interrupted, interrupts_held

MAX_DIMS, MAX_OP_PARAMS, MAX_SRC, MAX_NAME = 4, 64, 10, 64
TYPE_F32, TYPE_Q8_0 = 0, 8
USAGE_WEIGHTS = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS
NORMALISATIONS = ("RMS_NORM", "NORM")
# Operations allowed between a norm and the projection: gain, bias, reshaping.
AFTER_NORM = ("MUL", "ADD", "VIEW", "RESHAPE", "CONT")

_logger_lock = threading.Lock()


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` up to the field `name`; later fields are not read."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * MAX_DIMS),  # elements along each dimension, fastest first
        ("nb", ctypes.c_size_t * MAX_DIMS),  # bytes from one element to the next
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * (MAX_OP_PARAMS // 4)),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * MAX_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * MAX_NAME),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@cache
def _ggml() -> ctypes.CDLL:
    """libggml-base, from the folder of libllama, with the functions used here declared."""
    lib: ctypes.CDLL = load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
    p, i64, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    i32 = ctypes.c_int
    for name, result, arguments in (
        ("ggml_init", p, [_InitParams]),
        ("ggml_free", None, [p]),
        ("ggml_new_tensor_2d", p, [p, i32, i64, i64]),
        ("ggml_mul_mat", p, [p, p, p]),
        ("ggml_set_name", p, [p, ctypes.c_char_p]),
        ("ggml_op_desc", ctypes.c_char_p, [p]),
        ("ggml_backend_tensor_get", None, [p, p, size, size]),
        ("ggml_backend_tensor_set", None, [p, p, size, size]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [p]),
        ("ggml_backend_buffer_set_usage", None, [p, i32]),
        ("ggml_nbytes", size, [p]),
        ("ggml_quantize_chunk", size, [i32, p, p, i64, i64, i64, p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@cache
def check_layout() -> None:
    """Compare `GgmlTensor` with the library: raises NativeError, naming the version, if it differs.

    Builds one matrix product without data and looks for the known values in the struct. Takes well
    under a millisecond, once per process.
    """
    lib = _ggml()
    arena = lib.ggml_init(_InitParams(mem_size=1 << 16, mem_buffer=None, no_alloc=True))
    try:
        weight = lib.ggml_new_tensor_2d(arena, TYPE_F32, 3, 5)
        x = lib.ggml_new_tensor_2d(arena, TYPE_F32, 3, 7)
        lib.ggml_set_name(weight, b"layout-check")
        product = Tensor(lib.ggml_mul_mat(arena, weight, x))
        found = GgmlTensor.from_address(weight)
        wrong = [
            field
            for field, same in (
                ("type", found.type == TYPE_F32),
                ("ne", list(found.ne) == [3, 5, 1, 1]),
                ("nb", list(found.nb) == [4, 12, 60, 60]),
                ("name", bytes(found.name) == b"layout-check"),
                ("src", list(product.struct.src[:3]) == [weight, x, None]),
                ("op", product.op == "MUL_MAT"),
            )
            if not same
        ]
    finally:
        lib.ggml_free(arena)
    if wrong:
        raise NativeError(
            f"llama-cpp-python {llama_cpp.__version__} lays out its tensors otherwise "
            f"than this version of logo-local reads them ({', '.join(wrong)})",
            hint='install the version it was made for: pip install "llama-cpp-python~=0.3.36", '
            "or use --signal each-entropy, which reads no tensor",
        )


class Tensor:
    """A view of one live `ggml_tensor`.

    A graph tensor is only valid during the callback that received it, a weight as long as its
    model or adapter is loaded.
    """

    __slots__ = ("address", "struct")

    def __init__(self, address: int) -> None:
        self.address = address
        self.struct = GgmlTensor.from_address(address)

    @property
    def name(self) -> str:
        """The tensor's name; for a copy on another backend ("CUDA0#name#0"), the original's."""
        text = bytes(self.struct.name).decode("utf-8", "replace")
        return text.split("#")[1] if text.count("#") >= 2 else text

    @property
    def is_copy(self) -> bool:
        """Whether this is a copy of a tensor on another backend."""
        return bytes(self.struct.name).count(b"#") >= 2

    @property
    def op(self) -> str:
        """ggml's name of the operation that computes this tensor, for example MUL_MAT."""
        description: bytes = _ggml().ggml_op_desc(self.address)
        return description.decode()

    def source(self, i: int) -> Tensor | None:
        """The operation's i-th operand."""
        address = self.struct.src[i]
        return None if address is None else Tensor(address)

    def before_norm(self) -> Tensor | None:
        """The input of the norm that produced this tensor; None if it is not a norm's output."""
        node: Tensor | None = self
        while node is not None:
            if node.op in NORMALISATIONS:
                return node.source(0)
            # A sum with another activation is a residual, not the norm's bias.
            other = node.source(1)
            added = node.op == "ADD" and other is not None and other.op != "NONE"
            if node.op not in AFTER_NORM or added:
                return None
            node = node.source(0)
        return None

    def memory(self) -> npt.NDArray[np.uint8] | None:
        """A writable view of a weight's bytes; None if they are not in main memory."""
        buffer = self.struct.buffer
        if not buffer or not _ggml().ggml_backend_buffer_is_host(buffer):
            return None
        n_bytes = _ggml().ggml_nbytes(self.address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(self.struct.data))

    def mark_as_weight(self) -> None:
        """Let llama.cpp compute with this tensor where its buffer is, instead of copying it.

        It marks the buffers of a model's weights like this, but not those of adapters.
        """
        _ggml().ggml_backend_buffer_set_usage(self.struct.buffer, USAGE_WEIGHTS)

    def write(self, values: npt.NDArray[np.generic]) -> None:
        """Overwrite a weight with the bytes of `values`, on any backend.

        Raises NativeError if the sizes differ.
        """
        n_bytes = _ggml().ggml_nbytes(self.address)
        if values.nbytes != n_bytes or not values.flags.c_contiguous:
            raise NativeError(f"{self.name} has {n_bytes} bytes, not {values.nbytes}")
        _ggml().ggml_backend_tensor_set(self.address, values.ctypes.data, 0, n_bytes)

    def rows(self) -> npt.NDArray[np.float32]:
        """All rows (n_tokens, d) of a float32 activation, one per token.

        Copies from any backend. Raises NativeError for another type or shape.
        """
        width, tokens, *rest = self.struct.ne
        step = self.struct.nb[1]
        if self.struct.type != TYPE_F32 or rest != [1, 1] or self.struct.nb[0] != 4:
            raise NativeError(
                f"the activation {self.name} is not a float32 matrix "
                f"(type {self.struct.type}, shape {list(self.struct.ne)})",
                hint="use --signal each-entropy, which reads no activation",
            )
        rows = np.empty((tokens, width), dtype=np.float32)  # (n_tokens, d)
        if step == rows.strides[0]:
            _ggml().ggml_backend_tensor_get(self.address, rows.ctypes.data, 0, rows.nbytes)
        else:
            for i, row in enumerate(rows):
                _ggml().ggml_backend_tensor_get(self.address, row.ctypes.data, i * step, row.nbytes)
        return rows


class EvalCallback:
    """A callback that llama.cpp calls for every graph node, in the contexts it is attached to.

    Subclasses implement `_look`. With `ask`, it returns whether the node's data is needed, else
    whether the pass continues. An exception in it ends the pass and is stored for `check`.
    """

    def __init__(self) -> None:
        check_layout()
        self._error: BaseException | None = None
        # Stored on the object, because llama.cpp holds only the raw pointer.
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_node)

    def attach(self, params: Any) -> None:
        """Set this in `llama_context_params`; it must outlive the context created from them."""
        params.cb_eval = self.callback
        params.cb_eval_user_data = None

    def start(self) -> None:
        """Reset; call before each decode."""
        self._error = None

    def check(self) -> None:
        """Raise the exception that was stored while llama.cpp computed."""
        if self._error is not None:
            raise self._error

    def _look(self, node: Tensor, *, ask: bool) -> bool:
        raise NotImplementedError

    def _on_node(self, address: int, ask: bool, _user_data: object) -> bool:
        if self._error is None and not interrupted():
            # An exception must not propagate into C: it would be printed and lost.
            try:
                return self._look(Tensor(address), ask=ask)
            except BaseException as error:
                self._error = error
        return ask  # request every node, so that the pass ends at the next one


@contextmanager
def log_disabled() -> Iterator[None]:
    """Disable llama_cpp's logger within this block, which one thread enters at a time."""
    logger = logging.getLogger("llama-cpp-python")
    with _logger_lock:
        before = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(before)


def load_adapter(model: Any, path: Path) -> Any:
    """llama.cpp's handle of a GGUF LoRA file; None if rejected. Free it before the model.

    llama_cpp prints llama.cpp's log, which has a line for every tensor if the base is quantised.
    Its logger is disabled during the load, so one adapter is loaded at a time. Raises
    KeyboardInterrupt after the load if Ctrl+C was pressed during it.
    """
    handle = None
    try:
        with interrupts_held(), log_disabled():
            handle = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
    except KeyboardInterrupt:
        if handle:
            llama_cpp.llama_adapter_lora_free(handle)
        raise
    return handle


@cache
def _cpu() -> ctypes.CDLL | None:
    """libggml-cpu, for its vectorised number conversions; None if it is not a single file.

    They are 10 to 20 times faster for float16 than those of numpy and libggml-base.
    """
    p, i64, folder = ctypes.c_void_p, ctypes.c_int64, Path(llama_cpp.__file__).parent / "lib"
    try:
        lib: ctypes.CDLL = load_shared_library("ggml-cpu", folder)
        lib.ggml_cpu_init()
        for name in ("ggml_cpu_fp16_to_fp32", "ggml_cpu_fp32_to_fp16"):
            getattr(lib, name).restype, getattr(lib, name).argtypes = None, [p, p, i64]
        lib.ggml_get_type_traits_cpu.restype = p
    except (OSError, RuntimeError, AttributeError):
        return None
    return lib


def widened(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Convert `values` from float16 to float32."""
    cpu, source = _cpu(), np.ascontiguousarray(values)
    if cpu is None:
        return values.astype(np.float32)
    out = np.empty(values.shape, np.float32)
    cpu.ggml_cpu_fp16_to_fp32(source.ctypes.data, out.ctypes.data, out.size)
    return out


def scaled_f16(values: npt.NDArray[np.generic], factor: float) -> npt.NDArray[np.float16] | None:
    """factor * values, float16, rounded once from float32; None if numpy would be faster."""
    cpu = _cpu()
    if cpu is None:
        return None
    wide, out = widened(values), np.empty(values.shape, np.float16)
    np.multiply(wide, np.float32(factor), out=wide)
    cpu.ggml_cpu_fp32_to_fp16(wide.ctypes.data, out.ctypes.data, out.size)
    return out


def quantized_q8_0(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """`rows` (..., n) float32, n a multiple of 32, in ggml's Q8_0 format, as flat bytes.

    On some processors, ties are rounded differently than in gguf.
    """
    n, cpu = rows.shape[-1], _cpu()
    out = np.empty(rows.size // 32 * 34, np.uint8)
    source = np.ascontiguousarray(rows)
    if cpu is None:
        _ggml().ggml_quantize_chunk(
            TYPE_Q8_0, source.ctypes.data, out.ctypes.data, 0, rows.size // n, n, None
        )
    else:  # `from_float` is the first field of ggml_type_traits_cpu
        address = ctypes.c_void_p.from_address(cpu.ggml_get_type_traits_cpu(TYPE_Q8_0)).value
        assert address is not None
        convert = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)
        convert(source.ctypes.data, out.ctypes.data, rows.size)
    return out
