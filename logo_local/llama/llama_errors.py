"""Translates errors of llama_cpp's class into errors of this package, and checks its arguments."""

from __future__ import annotations

import inspect
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from jinja2 import TemplateError
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Llava15ChatHandler

from ..errors import ContextError, LogoError, ModelError, PromptError, SettingsError
from ..files.base_model import BaseModel
from .interrupts import interrupts_held

CONTEXT_STEP = 256  # tokens: GGML_PAD of n_ctx in llama.cpp's src/llama-context.cpp
MAX_CONTEXT = 2**31 - CONTEXT_STEP  # llama.cpp rounds up, and counts with 32 bits

_opening = threading.Lock()


class Closed:
    """Replaces the freed parts of a closed engine: any access raises PromptError."""

    def __getattr__(self, name: str) -> Any:
        raise PromptError("the engine is closed", hint="open another one: LoGo(...)")


@contextmanager
def model_errors(path: str | Path, base: BaseModel, *, offloads: bool) -> Iterator[None]:
    """Translate the parent's ValueError for a model or a context that cannot be created.

    `offloads` says whether layers are placed on a GPU, whose memory may be too small.
    """
    try:
        yield
    except ValueError as error:
        raise ModelError(
            f"llama.cpp cannot use {path}: {error}",
            hint="if it does not fit into the GPU's memory, give --gpu-layers N with N below "
            f"{base.n_blocks + 1}, 0 for the CPU only, or a smaller --ctx-size"
            if offloads
            else "is the file whole, does this llama.cpp know its architecture, "
            "and does --ctx-size fit into memory?",
        ) from error


@contextmanager
def loading(
    path: str | Path, n_ctx: int, base: BaseModel, *, offloads: bool = False
) -> Iterator[None]:
    """Load a model within this block, with errors translated and Ctrl+C deferred to its end.

    Holds a lock: llama_cpp redirects the process's output while it loads, and two threads would
    restore each other's redirected output.
    """
    check_context(n_ctx, base)
    with _opening, model_errors(path, base, offloads=offloads), interrupts_held():
        yield


@contextmanager
def prompt_errors() -> Iterator[None]:
    """Translate errors for a prompt that does not fit the context or the chat template."""
    try:
        yield
    except LogoError:
        raise
    except Exception as error:
        if "exceed context window" in str(error):
            raise ContextError(
                f"the prompt does not fit: {error}",
                hint="shorten it, or give a larger --ctx-size",
            ) from error
        # Templates raise their own errors for unsupported input, such as a system message.
        if not any(f.filename == "<template>" for f in traceback.extract_tb(error.__traceback__)):
            raise
        raise PromptError(
            f"the model's chat template refuses this conversation: {_reason(error)}",
            hint="some know no system message; --raw does without a template",
        ) from error


def _reason(error: Exception) -> str:
    """The reason of a template's error: its own message, or the type of a bug (TypeError)."""
    text = str(error)
    in_its_own_words = isinstance(error, (ValueError, TemplateError))
    return text if in_its_own_words else f"{type(error).__name__}: {text}"


def problems_of(llama: Mapping[str, Any]) -> list[str]:
    """Problems with the arguments for the parent class."""
    # The parent accepts any keyword and ignores unknown ones.
    known = inspect.signature(Llama.__init__).parameters
    problems = [f"there is no setting {name!r}" for name in llama if name not in known]
    if llama.get("lora_path"):
        problems.append("lora_path cannot be given: put that adapter into the adapters folder")
    if llama.get("vocab_only"):
        problems.append("vocab_only cannot be given: without weights nothing is routed or answered")
    if isinstance(llama.get("chat_handler"), Llava15ChatHandler):
        problems.append("chat handlers with images are not supported: only text is routed")
    return problems


def rounded_up(n_ctx: int) -> int:
    """`n_ctx` as llama.cpp rounds it; llama_cpp's arrays would be too short for it otherwise."""
    return -(-n_ctx // CONTEXT_STEP) * CONTEXT_STEP


def check_context(n_ctx: int, base: BaseModel) -> None:
    """Raise SettingsError for an impossible context size, before memory is allocated.

    Assumes keys and values of all heads in 16 bits. Models with a sliding window need less, so only
    contexts beyond the training context are checked.
    """
    n_heads = max(base.n_head, 1)
    n_bytes = n_ctx * base.n_blocks * 4 * max(base.n_head_kv, 1) * (base.n_embd // n_heads)
    total = psutil.virtual_memory().total
    if n_ctx >= MAX_CONTEXT or (n_ctx > base.n_ctx_train and n_bytes > total):
        raise SettingsError(
            f"a context of {n_ctx:,} tokens takes {n_bytes / 2**30:,.0f} GiB for keys and values, "
            f"and this machine has {total / 2**30:,.0f}",
            hint=f"--ctx-size: the model was trained with {base.n_ctx_train:,}",
        )
