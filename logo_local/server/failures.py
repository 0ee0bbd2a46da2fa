"""Errors of requests, as an HTTP status and a body in OpenAI's format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import (
    AdapterError,
    AdapterMemoryError,
    ContextError,
    LogoError,
    MixtureError,
    NativeError,
    PoolError,
    UnknownAdapterError,
)

log = logging.getLogger(__name__)


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(LogoError):
    """A request that cannot be answered; `status` is HTTP's, `code` is for programs."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
        problems: Sequence[str] = (),
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, problems=problems, hint=hint)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object, with the problems and the hint also in its message."""
        text = str(self)
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": f"{text}. {self.hint}" if self.hint else text,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
                "problems": list(self.problems),
                "hint": self.hint,
            }
        }


# Status and code by error class; the first match counts.
_KINDS: Mapping[type[LogoError], tuple[int, str]] = {
    UnknownAdapterError: (404, "model_not_found"),
    AdapterMemoryError: (400, "adapter_memory_exceeded"),
    PoolError: (503, "pool_unusable"),
    MixtureError: (409, "adapter_unusable"),
    AdapterError: (409, "pool_unusable"),
    NativeError: (503, "engine_failed"),
    ContextError: (400, "context_length_exceeded"),  # with this code, agents shorten a conversation
    LogoError: (400, "invalid_request"),
}


def as_request_error(error: Exception) -> RequestError:
    """Convert any failure of the engine into a client error.

    A `LogoError` describes a problem of the request or of the folder, including template errors and
    prompts that do not fit. Everything else is a bug here, and the client gets no details.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, LogoError):
        status, code = next(answer for kind, answer in _KINDS.items() if isinstance(error, kind))
        if code == "pool_unusable":  # paths are only for the log
            log.warning("%s", error)
            what = "the folder of adapters, or one in it, cannot be used"
            return RequestError(f"{what}; the server's log says why", status=status, code=code)
        return RequestError(
            error.message, status=status, code=code, problems=error.problems, hint=error.hint
        )
    return RequestError("an internal error; the server's log says more", status=500, code="bug")
