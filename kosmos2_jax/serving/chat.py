"""OpenAI's chat completions, with boxes.

A message may have a field `boxes` beside its `content`: a list of phrases of the text with their
boxes, as answers have it, so that an answer can be sent back as it came:

    {"role": "user", "content": "What is beside the dog?",
     "boxes": [{"text": "the dog", "boxes": [[0.1, 0.2, 0.5, 0.9]]}]}

`start` and `end`, in characters of the text, are needed only where the phrase is in it twice.

With `"raw": true` the one message is the prompt itself, tags and all: its parts in their order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from PIL import Image

from kosmos2_jax.grounding.boxes import check_box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.inference.questions import Question, Questions, Turn
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.serving.fields import Fields, read_sampling
from kosmos2_jax.serving.settings import RequestError, ServerSettings

# Fields of OpenAI's requests that say nothing about the answer's text.
_OF_NO_MEANING = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
)  # fmt: skip
_SYSTEM, _USER, _ASSISTANT = ("system", "developer"), "user", "assistant"
_MAX_MESSAGES = 1000
_TEXT, _IMAGE = "text", "image_url"

Part = tuple[str, str]  # kind and value of a part of a message


@dataclasses.dataclass(frozen=True)
class ParsedTurn:
    """A turn whose pictures are not yet read."""

    question: GroundedText
    answer: GroundedText | None
    image_urls: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A request that was read.

    Attributes:
      turns: of the conversation; none for a raw prompt.
      raw: parts of a raw prompt, ("text", TEXT) and ("image_url", URL).
      sampling: how to answer.
      grounded: whether boxes are asked for.
      stream: whether the answer is wanted piece by piece.
      include_usage: whether a stream ends with numbers of tokens.
      logprobs: whether tokens with their log-probabilities are wanted.
    """

    turns: tuple[ParsedTurn, ...]
    raw: tuple[Part, ...]
    sampling: SamplingConfig
    grounded: bool
    stream: bool
    include_usage: bool
    logprobs: bool

    @property
    def image_urls(self) -> tuple[str, ...]:
        """Of all turns, in reading order."""
        raw = (value for kind, value in self.raw if kind == _IMAGE)
        return (*raw, *(url for turn in self.turns for url in turn.image_urls))

    def question(self, questions: Questions, images: Sequence[Image.Image]) -> Question:
        """What the engine is asked; `images` are those of `image_urls`."""
        rest = iter(images)
        if self.raw:
            segments = [next(rest) if kind == _IMAGE else value for kind, value in self.raw]
            return questions.raw(segments, self.sampling)
        turns = [
            Turn(turn.question, turn.answer, tuple(next(rest) for _ in turn.image_urls))
            for turn in self.turns
        ]
        return questions.chat(turns, self.grounded, self.sampling)


def read_chat(data: Any, questions: Questions, settings: ServerSettings) -> ChatRequest:
    """Reads the body of a request.

    Raises:
      RequestError: something in it is missing, unknown or of the wrong kind.
      BoxError: a box is malformed.
    """
    fields = Fields(data)
    check_model(fields, settings)
    has_grammar = questions.vocabulary.grid_size > 0
    options = Fields(fields.any("stream_options") or {}, "stream_options")
    if fields.whole("top_logprobs", 0, 0, 20):
        raise fields.error("top_logprobs", "is not supported: only written tokens have logprobs")
    messages, raw = fields.list("messages"), fields.flag("raw")
    request = ChatRequest(
        turns=() if raw else _read_turns(messages),
        raw=_read_raw(messages) if raw else (),
        sampling=read_sampling(fields, questions.sampling, settings, has_grammar),
        grounded=fields.flag("grounded"),
        stream=fields.flag("stream"),
        include_usage=options.flag("include_usage"),
        logprobs=fields.flag("logprobs"),
    )
    if raw and request.grounded:
        raise fields.error("grounded", "is for questions: write <grounding> into a raw prompt")
    if len(request.image_urls) > settings.max_images:
        raise RequestError(
            f"The messages have {len(request.image_urls)} pictures: at most "
            f"{settings.max_images} may come at once.",
            param="messages",
        )
    options.ignore("include_obfuscation")
    options.end()
    fields.ignore(*_OF_NO_MEANING)
    fields.end()
    return request


def check_model(fields: Fields, settings: ServerSettings) -> None:
    """Raises `RequestError` if another model is asked for; none at all will do."""
    name = fields.text("model", settings.model)
    if name != settings.model:
        raise RequestError(
            f"There is no model {name[:100]!r} here, only {settings.model!r}.",
            status=404,
            code="model_not_found",
            param="model",
        )


def _read_turns(messages: list[Any]) -> tuple[ParsedTurn, ...]:
    if not messages:
        raise RequestError("messages must hold at least one message.", param="messages")
    if len(messages) > _MAX_MESSAGES:
        raise RequestError(f"messages holds more than {_MAX_MESSAGES}.", param="messages")
    turns: list[ParsedTurn] = []
    texts: list[GroundedText] = []
    urls: list[str] = []
    asked = False
    for number, message in enumerate(messages):
        fields = Fields(message, f"messages[{number}]")
        role = fields.text("role")
        if role not in (*_SYSTEM, _USER, _ASSISTANT):
            raise fields.error("role", "must be system, developer, user or assistant")
        text, new_urls = _read_content(fields, is_answer=role == _ASSISTANT)
        fields.ignore("name", "refusal", "problems", "annotations")
        fields.end()
        if role != _ASSISTANT:
            texts.append(text)
            urls += new_urls
            asked |= role == _USER
        elif not asked:
            raise fields.error("role", "is assistant, but there is no question before it")
        else:
            turns.append(ParsedTurn(_join(texts), text, tuple(urls)))
            texts, urls, asked = [], [], False
    if not asked:
        raise RequestError("The last message must be the user's.", param="messages")
    turns.append(ParsedTurn(_join(texts), None, tuple(urls)))
    return tuple(turns)


def _read_raw(messages: list[Any]) -> tuple[Part, ...]:
    if len(messages) != 1:
        raise RequestError("A raw prompt must be one message.", param="messages")
    fields = Fields(messages[0], "messages[0]")
    if fields.text("role") != _USER:
        raise fields.error("role", "of a raw prompt must be user")
    content = fields.any("content")
    if isinstance(content, str):
        parts = [(_TEXT, fields.clean("content", content))]
    elif isinstance(content, list):
        parts = _read_parts(content, fields.path("content"))
    else:
        raise fields.error("content", "must be a string or a list of parts")
    fields.end()
    if not parts:
        raise fields.error("content", "is empty")
    return tuple(parts)


def _read_content(fields: Fields, is_answer: bool) -> tuple[GroundedText, list[str]]:
    content = fields.any("content")
    if isinstance(content, str):
        text, urls = fields.clean("content", content), []
    elif isinstance(content, list):
        parts = _read_parts(content, fields.path("content"))
        text = " ".join(value for kind, value in parts if kind == _TEXT)
        urls = [value for kind, value in parts if kind == _IMAGE]
    elif content is None and is_answer:
        text, urls = "", []
    else:
        raise fields.error("content", "must be a string or a list of parts")
    if urls and is_answer:
        raise fields.error("content", "of an assistant's message must not hold pictures")
    spans = (
        _read_span(Fields(entry, f"{fields.path('boxes')}[{number}]"), text)
        for number, entry in enumerate(fields.list("boxes"))
    )
    # What a model wrote without a phrase cannot be said again.
    kept = (span for span in spans if not (is_answer and span.start == span.end))
    return GroundedText(text, tuple(kept)), urls


def _read_parts(parts: list[Any], path: str) -> list[Part]:
    found: list[Part] = []
    for number, entry in enumerate(parts):
        part = Fields(entry, f"{path}[{number}]")
        kind = part.text("type")
        if kind == _TEXT:
            found.append((kind, _required(part, "text")))
        elif kind == _IMAGE:
            value = part.any("image_url")
            if isinstance(value, str):
                value = {"url": value}
            image = Fields(value, part.path("image_url"))
            found.append((kind, _required(image, "url")))
            image.ignore("detail")  # pictures have one size only
            image.end()
        else:
            raise part.error("type", "must be text or image_url")
        part.end()
    return found


def _read_span(fields: Fields, text: str) -> Span:
    phrase = _required(fields, "text")
    start = fields.whole("start", None, 0, len(text))
    end = fields.whole("end", None, 0, len(text))
    if (start is None) != (end is None):
        raise fields.error("start", "and end must come together, or neither")
    if start is None:
        if text.count(phrase) != 1 or not phrase:
            often = "twice or more" if phrase and phrase in text else "not"
            raise fields.error("text", f"is {often} in the content: give start and end too")
        start = text.index(phrase)
        end = start + len(phrase)
    boxes = fields.list("boxes")
    if not all(isinstance(box, list) for box in boxes):
        raise fields.error("boxes", "must be a list of boxes [x1, y1, x2, y2]")
    fields.ignore("scores", "marginal_scores", "phrase_score")
    fields.end()
    return Span(phrase, start, end, tuple(check_box(box) for box in boxes))


def _required(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if value is None:
        raise fields.error(name, "is missing")
    return value


def _join(texts: Sequence[GroundedText]) -> GroundedText:
    """Texts with blanks between them; spans move along."""
    whole = ""
    spans: list[Span] = []
    for text in texts:
        whole += " " if whole and text.text else ""
        spans += (
            dataclasses.replace(span, start=span.start + len(whole), end=span.end + len(whole))
            for span in text.spans
        )
        whole += text.text
    return GroundedText(whole, tuple(spans))
