"""Open the engine for a program, and show llama.cpp's messages if this fails."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import config
from ..completions import Engine
from ..errors import LogoError, ModelError
from ..files.folder import nothing_usable
from ..routing import settings
from ..rpc import at_loss, prepare_connections, use_rpc_servers
from .abort import Ending
from .terminal import ProgressBar, UsageError, aside, is_verbose, say

Progress = Callable[[str, int, int], None]

# llama.cpp's message for an evaluation that Ctrl+C stopped, which is not an error.
_ABORTED = ("compute status: 1", "failed with error 1", "failed to decode, ret = 2")
_LOST = ("send failed", "recv failed")  # an RPC server, which an error reports
_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h; 5 continues the message before


class _LlamaLog:
    """llama.cpp's log: errors are collected while a model is opened, and shown afterwards.

    In this release llama_cpp's own filter is off by one level: it prints warnings, many of which
    appear for every model, and hides the errors.
    """

    def __init__(self) -> None:
        import llama_cpp

        self.kept: list[str] | None = None
        self._continued = False
        # The library keeps only the pointer, so this object must keep the function.
        self._callback = llama_cpp.llama_log_callback(self._receive)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _data: Any) -> None:
        self._continued = level == _ERROR or (level == 5 and self._continued)
        line = text.decode(errors="replace").strip()
        if not (self._continued and line) or line.endswith(_ABORTED) or line.startswith(_LOST):
            return
        if self.kept is None:
            say(f"llama.cpp: {line}", "yellow")
        else:
            self.kept.append(line)


_llama_log = cache(_LlamaLog)

# Options that are engine settings with the same name, if a command has them.
_SAME = (*settings.OPTIONS, "links_out", "n_gpu_layers", "escape_special", "chat_template_kwargs")


def open_by_options(
    ctx: click.Context,
    model: str,
    given: Mapping[str, Any],
    progress: Progress | None = None,
    *,
    needs_adapters: bool = False,
    on_loss: Callable[[LogoError], object] | None = None,
) -> Engine:
    """The engine for a command's options, closed when the command ends.

    The function that opens it is the context's object, set by the command group. `progress`
    gets the progress of `LoGo`; the default is a bar on standard error. Raises UsageError if an
    adapter folder is required but not given, and PoolError if it is empty and `needs_adapters`.
    `on_loss` handles the loss of an RPC server; the default prints it and ends the process.
    """
    adapters = given["adapters"]
    if given.get("base_only"):
        model, adapters = str(config.demo_model()) if model == "demo" else model, None
    elif (
        model == "demo" and ctx.get_parameter_source("adapters") is not ParameterSource.COMMANDLINE
    ):
        adapters = None  # the configured folder is for another model
    elif adapters is None and model != "demo":
        others = ", or --base-only" if "base_only" in given else ""
        raise UsageError(
            "no adapters given",
            f"add --adapters DIR, the folder that holds them{others}: "
            f"{ctx.command_path} {model} --adapters DIR",
        )
    chosen = {name: given[name] for name in _SAME if name in given}
    for name, llama_names in (
        ("threads", ("n_threads", "n_threads_batch")),
        ("ctx_size", ("n_ctx",)),
    ):
        if given[name] is not None:
            chosen |= dict.fromkeys(llama_names, given[name])
    if given.get("rpc"):
        chosen |= {"rpc": given["rpc"], "rpc_public": given["rpc_public"]}
        chosen["on_loss"] = on_loss or Ending()
    # llama_cpp's own default is a fixed seed, which 0 also selects.
    chosen["seed"] = given["seed"] or secrets.randbits(31) + 1
    opened: Callable[..., Engine] = ctx.obj
    with ProgressBar() as bar:
        llm = opened(model, adapters, progress=progress or bar, **chosen)
    ctx.call_on_close(llm.close)
    if is_verbose():
        n = len(llm.pool.names)
        say(f"loaded {llm.base.path} with {n} adapters in {llm.timings_ms['load']:.0f} ms", "dim")
    if needs_adapters and not llm.pool.names:
        raise nothing_usable(llm.pool.folder or Path(), [])
    return llm


@cache
def _aside_once(text: str) -> None:
    """As `aside`, once in a process: several engines are on the same GPU."""
    aside(text)


def open_engine(
    model_path: str,
    adapters: Path | None,
    *,
    rpc: Sequence[str] = (),
    rpc_public: bool = False,
    on_loss: Callable[[LogoError], object] | None = None,
    **settings: Any,
) -> Engine:
    """A `LoGo`; ModelError with llama.cpp's messages if it cannot load the model.

    Its layers are placed on the RPC servers in `rpc`. `on_loss` is called if one is lost.
    """
    from ..engine import LoGo
    from ..llama.devices import offloading

    log = _llama_log()
    if rpc:
        if on_loss is not None:
            at_loss(on_loss)
        use_rpc_servers(rpc, public=rpc_public)
        say(
            "warning: the connections to RPC servers are neither encrypted nor authenticated",
            "yellow",
        )
    layers = settings.get("n_gpu_layers")
    if placement := offloading(layers):
        _aside_once(placement)
    elif layers:
        say(
            "warning: no GPU was found, see logo-local doctor; --gpu-layers has no effect", "yellow"
        )
    kept: list[str] = []
    log.kept = kept
    try:
        llm = LoGo(model_path, adapters, **settings)
    except ModelError as error:
        raise ModelError(
            error.message, problems=(*error.problems, *kept), hint=error.hint
        ) from error
    finally:
        log.kept = None
    if rpc:
        prepare_connections()
    return llm
