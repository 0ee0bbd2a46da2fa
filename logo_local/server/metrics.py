"""Prometheus metrics: counts and times, never prompts."""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .middleware import App, Message, Receive, Scope, Send
from .upstreams import Upstreams
from .workers import Job, Workers

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one server."""

    def __init__(self, workers: Workers) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "logo_requests", "Requests by endpoint and status.", ["endpoint", "status"],
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "logo_tokens", "Tokens of prompts and answers.", ["kind"], registry=registry
        )
        self.routed = Counter(
            "logo_routed", "Answers that used the adapter.", ["adapter"], registry=registry
        )
        self.waited = Histogram(
            "logo_wait_seconds", "Time in the queue.", registry=registry, buckets=_SECONDS
        )
        self.phases = Histogram(
            "logo_phase_seconds", "Time of an answer's phases.", ["phase"], registry=registry,
            buckets=_SECONDS,
        )  # fmt: skip
        Gauge("logo_waiting", "Requests in the queue.", registry=registry).set_function(
            lambda: len(workers.waiting)
        )
        Gauge("logo_running", "Requests that are being answered.", registry=registry).set_function(
            lambda: workers.n_running
        )
        Gauge("logo_adapters", "Adapters in the pool.", registry=registry).set_function(
            lambda: len(workers.engines[0].pool.adapters)
        )
        Gauge(
            "logo_adapter_bytes", "Memory of the loaded adapters.", registry=registry
        ).set_function(lambda: sum(llm.pool.resident_bytes for llm in workers.engines))

    def watch(self, upstreams: Upstreams) -> None:
        """Add gauges for the state of each upstream."""
        up = Gauge(
            "logo_upstream_up", "1 if the upstream is used.", ["upstream"], registry=self._registry
        )
        running = Gauge(
            "logo_upstream_running", "Requests sent to the upstream that are not answered yet.",
            ["upstream"], registry=self._registry,
        )  # fmt: skip
        for one in upstreams.all:
            up.labels(one.url).set_function(partial(_number, one, "is_up"))
            running.labels(one.url).set_function(partial(_number, one, "running"))

    def answered(self, job: Job, answer: dict[str, Any]) -> None:
        """Count an answer, or the last chunk of one, with its route and usage."""
        self.waited.observe(job.waited)
        logo, usage = answer.get("logo") or {}, answer.get("usage") or {}
        for adapter in logo.get("route", {}).get("adapters", ()):
            self.routed.labels(adapter["name"]).inc()
        for phase, ms in logo.get("timings_ms", {}).items():
            if phase != "load":
                self.phases.labels(phase).observe(ms / 1000)
        self.tokens.labels("prompt").inc(usage.get("prompt_tokens", 0))
        self.tokens.labels("answer").inc(usage.get("completion_tokens", 0))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def _number(of: object, name: str) -> float:
    return float(getattr(of, name))


class Counted:
    """ASGI middleware that counts requests, if the application has `Metrics` in its state."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count its status."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                endpoint = getattr(scope.get("route"), "path", "other")
                scope["app"].state.metrics.requests.labels(endpoint, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)
