"""Everything that can go wrong with a request, as a status and a body in OpenAI's shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import AdapterError, LogoError, NativeError, PoolError

log = logging.getLogger(__name__)


class RequestError(LogoError):
    """A request that cannot be answered; `status` is HTTP's, `code` for programs."""

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


def error_body(
    message: str,
    *,
    status: int,
    code: str,
    param: str | None = None,
    problems: Sequence[str] = (),
    hint: str = "",
) -> dict[str, Any]:
    """OpenAI's error object, with the problems and the hint also in its message."""
    text = "; ".join((message, *problems))
    return {
        "error": {
            "message": f"{text}. {hint}" if hint else text,
            "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
            "param": param,
            "code": code,
            "problems": list(problems),
            "hint": hint,
        }
    }


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def as_request_error(error: Exception) -> RequestError:
    """Any failure of the engine as what the client is told.

    A `LogoError` says what is wrong with the request, or with the folder. ValueError is what
    llama_cpp raises for arguments and templates raise for conversations. The rest is a bug here,
    of which the client only hears that there is one.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, LogoError):
        status, code = 400, "invalid_request"
        if isinstance(error, PoolError) and not error.message.startswith("there is no adapter "):
            return _about_files("the folder of adapters cannot be used", 503, error)
        if isinstance(error, PoolError):
            status, code = 404, "model_not_found"
        elif isinstance(error, AdapterError) and not error.message.startswith("the mixture "):
            return _about_files("an adapter cannot be used any more", 409, error)
        elif isinstance(error, AdapterError):
            status, code = 409, "adapter_unusable"
        elif isinstance(error, NativeError):
            status, code = 503, "engine_failed"
        return RequestError(
            error.message, status=status, code=code, problems=error.problems, hint=error.hint
        )
    if isinstance(error, ValueError) or _is_template_error(error):
        return RequestError(f"llama.cpp or the chat template refuses this: {error}")
    return RequestError("an internal error; the server's log says more", status=500, code="bug")


def _about_files(what: str, status: int, error: LogoError) -> RequestError:
    """What says where files lie is for the log."""
    log.warning("%s", error)
    return RequestError(f"{what}; the server's log says why", status=status, code="pool_unusable")


def _is_template_error(error: Exception) -> bool:
    from jinja2 import TemplateError

    return isinstance(error, TemplateError)
