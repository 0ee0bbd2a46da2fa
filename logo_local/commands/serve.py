"""`logo-local serve`: the options, the socket, and shutdown."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..completions import SAMPLED, Engine, Sampling
from ..console.background import self_profiles_in_background
from ..console.opening import open_by_options
from ..console.options import (
    ESCAPE_SPECIAL,
    MODEL,
    MODEL_ARGUMENT,
    QUIET,
    ROUTES_ALONE,
    SAMPLING,
    TEMPLATE_KWARGS,
    VERBOSE_SERVER,
    options,
)
from ..console.prompts import named_model
from ..console.server_options import SERVER, UPSTREAM
from ..console.terminal import UsageError, is_verbose, say
from ..errors import LogoError, RpcError, SettingsError
from ..extras import install_hint

if TYPE_CHECKING:
    from ..server.middleware import Rules


@click.command()
@MODEL_ARGUMENT
@options(
    VERBOSE_SERVER,
    QUIET,
    MODEL,
    *SERVER,
    *UPSTREAM,
    ESCAPE_SPECIAL,
    TEMPLATE_KWARGS,
    *SAMPLING,
    *ROUTES_ALONE,
)
@click.pass_context
def serve(ctx: click.Context, /, model: str | None, **given: Any) -> None:
    """Start a server with an OpenAI-compatible API and a web page.

    The model of a request is auto (adapters that match), base, or base:NAME for one adapter. --temp
    is the default temperature, --max-tokens an upper limit. Ctrl+C or SIGTERM finishes the running
    requests.

    With --upstream this server only selects the adapters; how answers are sampled is then up to the
    request and to the upstream.
    """
    model = named_model(ctx, model, given)
    try:
        from ..server import restart
        from ..server.http import listen
        from ..server.request_log import show
    except ImportError as error:
        raise SettingsError(
            f"serve needs packages that are not installed ({error.name})",
            hint=install_hint("server"),
        ) from error
    rules = _rules(given)
    if given["rpc"] and given["parallel"] > 1:
        raise UsageError(
            "with --rpc, the server answers one request at a time", "leave out --parallel"
        )
    if given["upstreams"]:
        _say_what_has_no_effect(ctx)
    if is_verbose():
        show()
    inherited = restart.inherited_socket()
    with inherited or _socket(given["host"], given["port"]) as bound:
        if inherited is None:
            engines = _engines(ctx, model, given)
        else:
            engines = _engines_again(ctx, model, given, bound, rules)
        first = engines[0]
        with self_profiles_in_background(first, given):
            say(
                f"{first.base.path.name} with {len(first.pool.names)} adapters at "
                f"{_address(given['host'], bound)} (Ctrl+C stops)"
            )
            listen(
                engines,
                bound,
                rules=rules,
                defaults=Sampling(**{name: given[name] for name in (*SAMPLED, "seed")}),
                most_waiting=given["queue"],
                seconds=given["time_limit"],
                any_model=given["any_model"],
                upstreams=given["upstreams"] or (),
                upstream_key=given["upstream_key"],
                restarts=bool(given["rpc"]) and restart.is_possible(),
            )


def _say_what_has_no_effect(ctx: click.Context) -> None:
    names = (*SAMPLED, "seed", "mixture", "escape_special")
    given = [
        f"--{name.replace('_', '-')}"
        for name in names
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        say(f"warning: with --upstream, {', '.join(given)} has no effect", "yellow")


def _rules(given: Mapping[str, Any]) -> Rules:
    """The access rules. UsageError if they would allow everybody."""
    from ..server.middleware import LOOPBACK, Rules

    host, key = given["host"], given["api_key"]
    own = _is_loopback(host)
    if not own and not key:
        raise UsageError(
            f"others can reach {host}, so an API key is required",
            "set LOGO_LOCAL_API_KEY to a long random text, or leave out --host",
        )
    if key is not None and (not key or key != key.strip() or not _is_visible(key)):
        raise UsageError(
            "the API key must be made of visible ASCII characters", "choose another one"
        )
    for origin in given["allowed_origins"]:
        if "://" not in origin or origin.startswith("*"):
            raise UsageError(
                f"{origin!r} is not an origin",
                "write it like https://example.org or tauri://localhost",
            )
    hosts = [*LOOPBACK, *(name.lower() for name in given["allowed_hosts"])]
    return Rules(
        hosts=[*hosts, host.lower()],
        any_address=not own,
        origins=[origin.rstrip("/") for origin in given["allowed_origins"]],
        api_key=key,
    )


def _is_visible(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _socket(host: str, port: int) -> socket.socket:
    """Bind the socket before the model is loaded, so that errors are reported at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio detects TCP by the protocol, and then does not delay small packets by 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name != "nt":  # where it has another meaning
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)
        return bound
    except OSError as error:
        bound.close()
        raise SettingsError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}",
            hint="choose another with --port; --port 0 takes a free one",
        ) from error


def _address(host: str, bound: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{bound.getsockname()[1]}/"


def _engines_again(
    ctx: click.Context, model: str, given: dict[str, Any], bound: socket.socket, rules: Rules
) -> list[Engine]:
    """The engines after a restart, when all RPC servers answer; until then the status is 503."""
    from ..server import restart

    with restart.unavailable(bound, rules):
        while True:
            restart.wait_for(given["rpc"], public=given["rpc_public"])
            with suppress(RpcError):  # lost again, before it was used
                return _engines(ctx, model, given, restart.restarting(bound))


def _engines(
    ctx: click.Context,
    model: str,
    given: dict[str, Any],
    on_loss: Callable[[LogoError], object] | None = None,
) -> list[Engine]:
    """The requested number of engines, or as many as fit into memory; each is warmed up."""
    import psutil

    n = given["parallel"]
    given |= {"past": False, "links_out": False}
    if given["self_profile"]:
        given["self_profile"] = "kept"
    if n > 1 and given["threads"] is None:
        given["threads"] = max(1, (os.cpu_count() or n) // n)
    before = _private_bytes()
    engines = [open_by_options(ctx, model, given, on_loss=on_loss)]
    engines[0].route("Hello")  # what is computed once per pool is computed before the first request
    each = _private_bytes() - before
    while len(engines) < n:
        if psutil.virtual_memory().available < 2 * each:  # half of it for others
            say(f"warning: the memory allows only {len(engines)} answers at once", "yellow")
            break
        engines.append(open_by_options(ctx, model, given))
        engines[-1].route("Hello")
    return engines


def _private_bytes() -> int:
    """The memory of this process without the model's file, which all engines share."""
    import psutil

    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))
