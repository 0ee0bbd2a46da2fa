"""logo-local: selects and blends LoRA adapters for every prompt.

    from logo_local import LoGo
    llm = LoGo("model.gguf", adapters="adapters/")
    messages = [{"role": "user", "content": "a prompt"}]
    print(llm.create_chat_completion(messages)["choices"][0]["message"]["content"])

Importing the package is fast: each name below is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convert import Conversion, convert_adapter, plan_conversion
    from .engine import LoGo
    from .errors import (
        AdapterError,
        AdapterMemoryError,
        ContextError,
        ConversionError,
        LogoError,
        MixtureError,
        ModelError,
        NativeError,
        PoolError,
        PromptError,
        RpcError,
        SettingsError,
        UnknownAdapterError,
    )
    from .fake import FakeLoGo
    from .files.adapter_file import AdapterFile
    from .files.base_model import BaseModel
    from .files.folder import Problem
    from .files.pool import Pool
    from .routing.route import Route
    from .rpc import use_rpc_servers

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "AdapterFile",
    "AdapterMemoryError",
    "BaseModel",
    "ContextError",
    "Conversion",
    "ConversionError",
    "FakeLoGo",
    "LoGo",
    "LogoError",
    "MixtureError",
    "ModelError",
    "NativeError",
    "Pool",
    "PoolError",
    "Problem",
    "PromptError",
    "Route",
    "RpcError",
    "SettingsError",
    "UnknownAdapterError",
    "__version__",
    "convert_adapter",
    "plan_conversion",
    "use_rpc_servers",
]

_HOMES = {
    "AdapterFile": "files.adapter_file",
    "BaseModel": "files.base_model",
    "Conversion": "convert",
    "FakeLoGo": "fake",
    "LoGo": "engine",
    "Pool": "files.pool",
    "Problem": "files.folder",
    "Route": "routing.route",
    "convert_adapter": "convert",
    "plan_conversion": "convert",
    "use_rpc_servers": "rpc",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value  # the next access does not call this
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
