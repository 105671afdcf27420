"""What a server tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kosmos2_jax.inference.engine import Engine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServerMetrics:
    """Counters of one server, with a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        """Watches an engine."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "kosmos2_requests", "Requests answered", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "kosmos2_request_seconds", "From the first byte to the last", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("kosmos2_requests_in_flight", "Being worked on", registry=registry)
        self.prompt_tokens = Counter(
            "kosmos2_prompt_tokens", "Tokens read, pictures' slots included", registry=registry
        )
        self.completion_tokens = Counter(
            "kosmos2_completion_tokens", "Tokens written", registry=registry
        )
        running = Gauge("kosmos2_outputs_running", "Outputs being written", registry=registry)
        running.set_function(lambda: engine.running)
        waiting = Gauge("kosmos2_outputs_waiting", "Outputs that wait for a row", registry=registry)
        waiting.set_function(lambda: engine.waiting)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
