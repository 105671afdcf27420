"""The routes of a server.

POST /v1/chat/completions   as OpenAI's, see `kosmos2_jax.serving.chat`
POST /v1/ground             see `kosmos2_jax.serving.ground`
GET  /v1/models             the one model
GET  /health                200 while requests can be answered, else 503
GET  /metrics               for Prometheus
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.inference.engine import Engine
from kosmos2_jax.inference.questions import Question, Questions
from kosmos2_jax.inference.requests import Handle, Output
from kosmos2_jax.serving.chat import read_chat
from kosmos2_jax.serving.fields import read_json
from kosmos2_jax.serving.follow import follow, outputs_of
from kosmos2_jax.serving.gate import HEALTH, HUNG_UP, Gate
from kosmos2_jax.serving.ground import GroundRequest, read_ground
from kosmos2_jax.serving.images import decode_image, read_image
from kosmos2_jax.serving.metrics import ServerMetrics
from kosmos2_jax.serving.replies import ChatReply, error_body, status_of
from kosmos2_jax.serving.settings import RequestError, ServerSettings

_DECODERS = 4  # pictures decoded at a time: each may take 8 bytes for each of its pixels
_TEXTS = ("model", "phrase", "phrases", "stop")
_PICTURES = ("image/", "application/octet-stream")  # types of bodies that are a picture


def make_app(engine: Engine, questions: Questions, settings: ServerSettings) -> Starlette:
    """The ASGI application; the engine is closed when it shuts down."""
    server = _Server(engine, questions, settings)
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/ground", server.ground, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.model),
        Route(HEALTH, server.health),
        Route("/metrics", server.metrics_text),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(engine.close)

    names = frozenset(route.path for route in routes)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Gate, settings, server.metrics, names)],
        exception_handlers={
            Kosmos2Error: _on_error, HTTPException: _on_http_error, Exception: _on_error,
            ClientDisconnect: _on_hang_up,
        },
        lifespan=lifespan,
    )  # fmt: skip


async def _on_error(_: Request, error: Exception) -> Response:
    status = status_of(error)
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse(error_body(error), status, headers)


async def _on_hang_up(_: Request, __: Exception) -> Response:
    return Response(status_code=HUNG_UP)  # which nobody reads, but the metrics


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:200]}"
    message = {404: f"There is no {what}.", 405: f"{what} is not possible: use another method."}
    problem = RequestError(message.get(error.status_code, error.detail), error.status_code)
    return JSONResponse(error_body(problem), error.status_code, error.headers)


class _Server:
    """Answers requests by an engine."""

    def __init__(self, engine: Engine, questions: Questions, settings: ServerSettings) -> None:
        self._engine, self._questions, self._settings = engine, questions, settings
        self._started = int(time.time())
        self._decoders = anyio.CapacityLimiter(_DECODERS)
        self.metrics = ServerMetrics(engine)

    async def health(self, _: Request) -> Response:
        """Whether requests can be answered."""
        if self._engine.failed:
            return JSONResponse({"status": "failed"}, 503)
        state = {"running": self._engine.running, "waiting": self._engine.waiting}
        return JSONResponse({"status": "ok"} | state)

    async def metrics_text(self, _: Request) -> Response:
        """For Prometheus."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        """The one model there is."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The model by its name."""
        name = request.path_params["name"]
        if name != self._settings.model:
            raise RequestError(f"There is no model {name[:100]!r} here.", 404, "model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._settings.model, "object": "model", "created": self._started,
            "owned_by": "kosmos2_jax",
        }  # fmt: skip

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions."""
        body = await self._body(request, json_only=True)
        return await _unless_gone(request, self._chat(body))

    async def _chat(self, body: bytes) -> Response:
        deadline = self._deadline()
        asked = await self._work(
            lambda: read_chat(read_json(body), self._questions, self._settings)
        )
        encoded = [await read_image(url, self._settings) for url in asked.image_urls]
        question = await self._work(lambda: asked.question(self._questions, self._decode(encoded)))
        handle = self._submit(question)
        reply = ChatReply(
            self._settings.model, self._questions.vocabulary, question, asked.logprobs
        )
        if asked.stream:
            pieces = self._counted(handle, deadline)
            events = reply.events(handle, pieces, asked.include_usage)
            return _Stream(handle, events)
        (outputs,) = await self._outputs([handle], deadline)
        return JSONResponse(reply.whole(outputs))

    async def ground(self, request: Request) -> Response:
        """Boxes of phrases, or a description."""
        body = await self._body(request, json_only=False)
        return await _unless_gone(request, self._ground(request, body))

    async def _ground(self, request: Request, body: bytes) -> Response:
        deadline = self._deadline()
        is_picture = _content_type(request).startswith(_PICTURES)
        data = _query(request) if is_picture else await self._work(lambda: read_json(body))
        asked = read_ground(data, self._questions, self._settings, has_image=is_picture)
        if asked.image_url is not None:
            body = await read_image(asked.image_url, self._settings)
        image, questions = await self._work(lambda: self._look_for(asked, body))
        handles = self._submit_all(questions)
        outputs = await self._outputs(handles, deadline)
        results = [
            question.read(output).to_dict()
            for question, own in zip(questions, outputs, strict=True)
            for output in own
        ]
        size = {"width": image.width, "height": image.height}
        return JSONResponse({"model": self._settings.model, **size, "results": results})

    def _look_for(self, asked: GroundRequest, encoded: bytes) -> tuple[Image.Image, list[Question]]:
        image = decode_image(encoded, self._settings)
        return image, asked.questions(self._questions, image)

    def _decode(self, encoded: list[bytes]) -> list[Image.Image]:
        return [decode_image(picture, self._settings) for picture in encoded]

    async def _work(self, call: Callable[[], Any]) -> Any:
        """What takes a while, in a thread."""
        return await anyio.to_thread.run_sync(call, limiter=self._decoders)

    def _submit(self, question: Question) -> Handle:
        handle = self._engine.submit(question.request)
        self.metrics.prompt_tokens.inc(handle.prompt_length)
        return handle

    def _submit_all(self, questions: list[Question]) -> list[Handle]:
        handles: list[Handle] = []
        try:
            handles.extend(self._submit(question) for question in questions)
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    async def _outputs(self, handles: list[Handle], deadline: float) -> list[tuple[Output, ...]]:
        try:
            outputs = await asyncio.gather(*(outputs_of(handle, deadline) for handle in handles))
        finally:
            for handle in handles:
                handle.cancel()
        self.metrics.completion_tokens.inc(sum(len(one.ids) for own in outputs for one in own))
        return outputs

    async def _counted(self, handle: Handle, deadline: float) -> AsyncIterator[Any]:
        async with contextlib.aclosing(follow(handle, deadline)) as pieces:
            async for piece in pieces:
                self.metrics.completion_tokens.inc(len(piece.ids))
                yield piece

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._settings.timeout

    async def _body(self, request: Request, *, json_only: bool) -> bytes:
        """The body, within the limits."""
        kind = _content_type(request)
        if not (kind == "application/json" or not json_only and kind.startswith(_PICTURES)):
            other = "" if json_only else ", or a picture as image/png or the like"
            raise RequestError(f"Send application/json{other}.", 415, "unsupported_media_type")
        limit = self._settings.max_body_bytes
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.timeout):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise RequestError(
                            f"The body has more than {limit} bytes: send a smaller picture.",
                            413,
                            "too_large",
                        )
        except TimeoutError:
            raise RequestError("The body took too long to come.", 408, "timeout") from None
        return bytes(body)


class _Stream(StreamingResponse):
    """Events of a request, which is cancelled if its client goes before the first of them."""

    def __init__(self, handle: Handle, events: AsyncIterator[str]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._handle.cancel()  # `events` do so only once they have begun


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _query(request: Request) -> dict[str, Any]:
    """Fields of the query as JSON would have them: numbers and true as such."""
    fields: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        fields[name] = values if name in ("phrases", "stop") else values[-1]
        if name not in _TEXTS:
            with contextlib.suppress(ValueError):  # it is a string then
                fields[name] = json.loads(fields[name])
    return fields


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Works until the client hangs up."""
    working = asyncio.ensure_future(work)
    hanging_up = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({working, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, hanging_up):
            task.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
