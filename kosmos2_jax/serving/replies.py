"""Answers in OpenAI's form: whole ones, and streams of server-sent events."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kosmos2_jax.errors import BusyError, Kosmos2Error
from kosmos2_jax.grounding.grounded_text import GroundedText
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.live_text import LiveText
from kosmos2_jax.inference.questions import Question
from kosmos2_jax.inference.requests import CANCELLED, LENGTH, Handle, Output, Piece
from kosmos2_jax.serving.settings import RequestError

_DEFECT = "Something went wrong in the server; its log says what."


def error_body(error: Exception) -> dict[str, Any]:
    """As OpenAI's errors."""
    status = status_of(error)
    return {
        "error": {
            "message": str(error) if status < 500 or isinstance(error, Kosmos2Error) else _DEFECT,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
    }


def status_of(error: Exception) -> int:
    """The status of HTTP that tells an error."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, BusyError):
        return 503
    return 400 if isinstance(error, Kosmos2Error) else 500


class ChatReply:
    """One answer, whole or in chunks."""

    def __init__(
        self, model: str, vocabulary: Kosmos2Vocabulary, question: Question, logprobs: bool
    ) -> None:
        """Of a question that was asked by a model's name."""
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._model, self._vocabulary, self._question = model, vocabulary, question
        self._logprobs = logprobs

    def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        """A `chat.completion`; messages have `boxes`, and `problems` where something is wrong."""
        choices = []
        for number, output in enumerate(outputs):
            grounded = self._question.read(output)
            message = {"role": "assistant", "content": grounded.text, "refusal": None}
            choices.append(
                {
                    "index": number,
                    "message": message | _boxes(grounded),
                    "logprobs": self._log_probs(output.ids, output.log_probs),
                    "finish_reason": _reason(output.finish_reason),
                }
            )
        body = self._body("chat.completion", choices)
        return body | {"usage": self.usage(sum(len(output.ids) for output in outputs))}

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """Numbers of tokens, pictures' slots included."""
        prompt_tokens = len(self._question.request.prompt.ids)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    async def events(
        self, handle: Handle, pieces: AsyncIterator[Piece], include_usage: bool
    ) -> AsyncIterator[str]:
        """The answer as server-sent events.

        Text comes as it is written; the last event of each output has its boxes and why it ended.

        Args:
          handle: of the question.
          pieces: of the handle.
          include_usage: whether numbers of tokens come last.
        """
        writers = [LiveText(self._question) for _ in range(handle.request.sampling.num_outputs)]
        try:
            for number in range(len(writers)):
                yield self._event(number, {"role": "assistant", "content": ""})
            async for piece in pieces:
                new = writers[piece.output].receive(piece)
                if new or piece.ids:
                    log_probs = self._log_probs(piece.ids, piece.log_probs)
                    yield self._event(piece.output, {"content": new}, log_probs)
            outputs = handle.result()
            for number, output in enumerate(outputs):
                rest, grounded = writers[number].end(output)
                delta = {"content": rest} | _boxes(grounded)
                yield self._event(number, delta, reason=_reason(output.finish_reason))
            if include_usage:
                usage = self.usage(sum(len(output.ids) for output in outputs))
                yield _sse(self._body("chat.completion.chunk", []) | {"usage": usage})
            yield "data: [DONE]\n\n"
        except Exception as error:  # the status was sent long ago
            if status_of(error) == 500:
                logging.getLogger(__name__).exception("a stream broke off")
            yield _sse(error_body(error))

    def _event(
        self, number: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> str:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _sse(self._body("chat.completion.chunk", [choice]))

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id, "object": kind, "created": self._created, "model": self._model,
            "choices": choices,
        }  # fmt: skip

    def _log_probs(self, ids: Sequence[int], log_probs: Sequence[float]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = []
        for token, value in zip(ids, log_probs, strict=True):
            text = self._vocabulary.tokens[token].replace("▁", " ")
            entry = {"token": text, "logprob": value, "bytes": list(text.encode())}
            content.append(entry | {"top_logprobs": []})
        return {"content": content, "refusal": None}


def _boxes(grounded: GroundedText) -> dict[str, Any]:
    data = grounded.to_dict()
    return {"boxes": data["spans"], "problems": data["problems"]}


def _reason(finish_reason: str) -> str:
    return "length" if finish_reason in (LENGTH, CANCELLED) else "stop"


def _sse(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
