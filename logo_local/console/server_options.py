"""The options of `logo-local serve`: address, access, queue, and upstreams."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from .options import PREFIX, Several, shared
from .terminal import UsageError


class UpstreamUrl(click.ParamType):  # type: ignore[type-arg]  # generic only in recent releases
    """The address of a llama-server, without /v1 at its end.

    Errors do not repeat the value: it may contain a password.
    """

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address; click's usage error for anything else."""
        example = "write it like http://192.168.0.7:8081"
        try:
            parts = urlsplit(str(value))
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            self.fail(f"this is not an address; {example}", param, ctx)
        if "@" in parts.netloc:
            self.fail(f"an address cannot contain a password; {example}", param, ctx)
        if not good or parts.query or parts.fragment:
            self.fail(f"this is not an address; {example}", param, ctx)
        return str(value).rstrip("/").removesuffix("/v1").rstrip("/")


def _not_on_the_command_line(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
    assert option.name is not None
    if value is not None and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
        flag = option.opts[0]
        variable = PREFIX + flag.lstrip("-").replace("-", "_").upper()
        raise UsageError(
            f"{flag} cannot be on the command line, which other users can read",
            f"set {variable}, or {flag.lstrip('-')} in config.toml",
        )
    return value


UPSTREAM = (
    shared(
        "--upstream",
        "upstreams",
        type=Several(UpstreamUrl()),
        metavar="URL[,URL...]",
        help="Only route; these llama-servers, which loaded the same adapters, generate.",
    ),
    shared(
        "--upstream-key",
        metavar="KEY",
        callback=_not_on_the_command_line,
        help="API key of the upstreams; only in the environment or in config.toml.",
    ),
)
SERVER = (
    shared(
        "--host",
        default="127.0.0.1",
        help="Address to listen on; other than loopback requires an API key.",
    ),
    shared(
        "--port", type=click.IntRange(0, 65535), default=8080, help="Port; 0 means any free port."
    ),
    shared(
        "--api-key",
        metavar="KEY",
        help="Require this API key. Prefer the environment variable: others can see command lines.",
    ),
    shared(
        "--allow-host",
        "allowed_hosts",
        multiple=True,
        metavar="NAME",
        help="Additional host name that requests may use; repeatable. In the environment, "
        "separated by spaces.",
    ),
    shared(
        "--allow-origin",
        "allowed_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Origin of web pages that may send requests, such as https://example.org, "
        "tauri://localhost or vscode-webview://*; repeatable.",
    ),
    shared(
        "--any-model",
        is_flag=True,
        help="Treat unknown model names as auto, for clients that send a fixed name.",
    ),
    shared(
        "--parallel",
        type=click.IntRange(1, 64),
        default=1,
        help="Number of requests processed at once, as far as the memory allows.",
    ),
    shared(
        "--queue",
        type=click.IntRange(0),
        default=32,
        help="Maximum number of waiting requests; further ones get status 429.",
    ),
    shared(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        default=600.0,
        help="Maximum seconds per answer.",
    ),
)
