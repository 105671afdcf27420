"""What every request passes through: the key, the limit of requests, the counting."""

from __future__ import annotations

import hmac
import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kosmos2_jax.serving.metrics import ServerMetrics
from kosmos2_jax.serving.replies import error_body
from kosmos2_jax.serving.settings import RequestError, ServerSettings

HEALTH = "/health"
HUNG_UP = 499  # as nginx counts clients that did not wait


class Gate:
    """ASGI middleware. Whether the server lives may be asked without a key and however busy."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        metrics: ServerMetrics,
        routes: frozenset[str],
    ) -> None:
        """Stands before `app`; `routes` are counted by name, all other paths together."""
        self._app, self._settings, self._metrics, self._routes = app, settings, metrics, routes
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), HUNG_UP

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, watched)
            else:
                headers = {"Retry-After": "1"} if refusal.status == 503 else None
                reply = JSONResponse(error_body(refusal), refusal.status, headers)
                await reply(scope, receive, watched)
        except Exception:
            status = 500  # which is answered further outwards
            raise
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - started)

    def _refusal(self, scope: Scope) -> RequestError | None:
        if scope["path"] == HEALTH:
            return None
        if self._settings.api_keys and not self._has_key(Headers(scope=scope)):
            return RequestError(
                "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
                status=401,
                code="invalid_api_key",
            )
        if self._in_flight > self._settings.max_requests:
            return RequestError(
                f"{self._settings.max_requests} requests are being answered, and no more may be "
                "at a time: try again later.",
                status=503,
                code="overloaded",
            )
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        matches = [
            hmac.compare_digest(given.strip().encode(), key.encode())
            for key in self._settings.api_keys
        ]
        return scheme.lower() == "bearer" and any(matches)
