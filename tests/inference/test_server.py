"""`kosmos2_jax.serving` over real sockets: OpenAI's client, plain requests, bad input."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from kosmos2_jax.grounding import GroundedText, Span
from kosmos2_jax.inference.engine import Engine
from kosmos2_jax.inference.questions import Turn
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.serving.app import make_app
from kosmos2_jax.serving.settings import ServerSettings

from ..served import running

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
STAR = "<object><patch_index_0009><patch_index_0027></object>"
ANSWER = f"It is<phrase> a small red star</phrase>{STAR} left of the blue square"
QUESTION = "what colour is the shape?"
PATIENCE = 300  # seconds, for machines that are busy compiling other things
HTTP = httpx2.Client(timeout=PATIENCE)
SETTINGS = ServerSettings(
    max_body_bytes=200_000, max_pixels=1_000_000, max_requests=16, timeout=PATIENCE
)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def data_url(encoded: bytes = png()) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded).decode()}"


def bomb() -> bytes:
    """A valid header of 500 megapixels over few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 25_000, 20_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


@contextlib.contextmanager
def serving(predictor, settings: ServerSettings, engine: Engine | None = None) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    app = make_app(engine or predictor.engine, predictor.questions, settings)
    # Without lifespan, for the engine is not the server's alone.
    with running(app, lifespan="off", ws="none") as url:
        yield url


@pytest.fixture(scope="module")
def predictor(scripted):
    predictor = scripted(f"<grounding> Question: {QUESTION} Answer:", ANSWER)
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def url(predictor) -> Iterator[str]:
    with serving(predictor, SETTINGS) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def user(text: str = QUESTION, image: str | None = data_url(), **more: object) -> dict:
    parts = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    return {"role": "user", "content": parts, **more}


# Good requests ---------------------------------------------------------------------------------


def test_openais_client_gets_what_the_predictor_gives(client: openai.OpenAI, predictor):
    answer = client.chat.completions.create(
        model="kosmos-2", messages=[user()], logprobs=True, extra_body={"grounded": True}
    )
    sampling = dataclasses.replace(predictor.model.sampling, grammar=True)
    expected = predictor.ask(PIXELS, QUESTION, grounded=True, sampling=sampling)
    (choice,) = answer.choices
    assert (
        choice.message.content
        == expected.text
        == ("It is a small red star left of the blue square")
    )
    # JSON has no tuples.
    assert choice.message.boxes == json.loads(json.dumps(expected.to_dict()))["spans"]
    assert choice.message.boxes[0]["text"] == "a small red star"
    assert choice.finish_reason == "stop" and choice.message.problems == []
    tokens = choice.logprobs.content
    assert "<patch_index_0009>" in [entry.token for entry in tokens]
    assert all(entry.logprob <= 0 for entry in tokens)
    assert answer.usage.completion_tokens == len(tokens)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(tokens)


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI):
    asked = {
        "model": "kosmos-2", "messages": [user()], "n": 2, "temperature": 1.0, "seed": 3,
        "max_tokens": 30, "logprobs": True, "extra_body": {"grounded": True},
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    texts, tokens, boxes, reasons = ["", ""], [[], []], [None, None], [None, None]
    usage, events = None, 0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            events += 1
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
            boxes[choice.index] = getattr(choice.delta, "boxes", None)
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert boxes == [choice.message.boxes for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert [[t.token for t in own] for own in tokens] == [
        [t.token for t in choice.logprobs.content] for choice in whole.choices
    ]
    assert usage == whole.usage and events > 6  # pieces, not the whole at once


def test_boxes_are_carried_over(client: openai.OpenAI, predictor):
    first = client.chat.completions.create(
        model="kosmos-2", messages=[user()], extra_body={"grounded": True}
    )
    said = first.choices[0].message.model_dump()
    box = [0.25, 0.25, 0.75, 0.5]
    asked = user("Is the star red?", None, boxes=[{"text": "the star", "boxes": [box]}])
    answer = client.chat.completions.create(
        model="kosmos-2", messages=[user(), said, asked], max_tokens=9
    )
    turns = [
        Turn(QUESTION, GroundedText.from_dict({"text": said["content"], "spans": said["boxes"]}),
             (PIXELS,)),
        Turn(GroundedText("Is the star red?", (Span("the star", 3, 11, (tuple(box),)),))),
    ]  # fmt: skip
    sampling = dataclasses.replace(predictor.model.sampling, max_new_tokens=9, grammar=True)
    question = predictor.questions.chat(turns, sampling=sampling)
    assert len(question.request.prompt.ids) == answer.usage.prompt_tokens
    assert answer.choices[0].message.content == predictor.answer([question])[0][0].text


def test_a_raw_prompt(client: openai.OpenAI, predictor):
    prompt = f"<grounding> Question: {QUESTION} Answer:"
    answer = client.chat.completions.create(
        model="kosmos-2", messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": data_url()}},
            {"type": "text", "text": prompt},
        ]}], extra_body={"raw": True},
    )  # fmt: skip
    sampling = dataclasses.replace(predictor.model.sampling, grammar=True)
    asked = predictor.questions.raw([PIXELS, prompt], sampling)
    assert answer.usage.prompt_tokens == len(asked.request.prompt.ids)
    told = predictor.answer([asked])[0][0]
    assert answer.choices[0].message.content == told.text
    assert answer.choices[0].message.boxes == json.loads(json.dumps(told.to_dict()["spans"]))
    assert told.spans


def test_other_fields_of_openai(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["kosmos-2"]
    assert client.models.retrieve("kosmos-2").object == "model"
    answer = client.chat.completions.create(
        model="kosmos-2",
        messages=[{"role": "system", "content": "Look well."}, user()],
        max_completion_tokens=4,
        user="somebody",
        presence_penalty=0,
    )
    assert answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.NotFoundError, match="gpt"):
        client.chat.completions.create(model="gpt", messages=[user()])


def test_ground_takes_phrases_and_pictures_of_all_kinds(url: str, predictor):
    sampling = SamplingConfig(40, 0, grammar=True)
    asked = {"phrases": ["a star", "the square"], "max_tokens": 40}
    body = HTTP.post(f"{url}/v1/ground", json=asked | {"image": data_url()}).json()
    same = HTTP.post(
        f"{url}/v1/ground", params=asked, content=png(), headers={"Content-Type": "image/png"}
    ).json()
    expected = [predictor.ground(PIXELS, phrase, sampling) for phrase in asked["phrases"]]
    assert body == same and (body["width"], body["height"]) == (40, 30)
    assert body["results"] == json.loads(json.dumps([one.to_dict() for one in expected]))
    assert all(result["spans"] for result in body["results"])  # the grammar always gives one
    described = HTTP.post(
        f"{url}/v1/ground", content=png(), headers={"Content-Type": "image/png"}
    ).json()
    assert described["results"][0]["text"].startswith("An image of")


def test_health_and_metrics(url: str):
    assert HTTP.get(f"{url}/health").json()["status"] == "ok"
    HTTP.post(f"{url}/v1/chat/completions", json={"messages": [user()], "max_tokens": 2})
    text = HTTP.get(f"{url}/metrics").text
    assert 'kosmos2_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "kosmos2_completion_tokens_total" in text and "kosmos2_outputs_running 0.0" in text


# Bad requests ----------------------------------------------------------------------------------


def chat(**fields: object) -> dict:
    return {"messages": [user()], **fields}


BAD = {
    "no body": (b"", 400, "not JSON"),
    "malformed": (b'{"messages": [', 400, "not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', 400, "not JSON"),
    "deep": (b"[" * 100_000, 400, "nested"),
    "long number": (b'{"seed": 1' + b"0" * 5000 + b"}", 400, "not JSON"),
    "a list": ([], 400, "must be an object, not a list"),
    "no messages": ({}, 400, "at least one message"),
    "messages a string": ({"messages": "hi"}, 400, "messages must be a list"),
    "message a string": ({"messages": ["hi"]}, 400, "messages[0] must be an object"),
    "role": ({"messages": [{"role": "king", "content": "a"}]}, 400, "messages[0].role"),
    "assistant last": ({"messages": [user(), {"role": "assistant", "content": "a"}]}, 400, "last"),
    "assistant first": ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "no question"),
    "empty": ({"messages": [user("")]}, 400, "empty"),
    "blank": ({"messages": [user("  \n")]}, 400, "empty"),
    "content": ({"messages": [{"role": "user", "content": 7}]}, 400, "content must be"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, 400, "type"),
    "surrogate": (b'{"messages": [{"role": "user", "content": "a\\ud800"}]}', 400, "half of a"),
    "too long": ({"messages": [user("star " * 500)]}, 400, "shorten it"),
    "unknown": (chat(temprature=1), 400, "did you mean temperature?"),
    "n": (chat(n=0), 400, "n must be a whole number from 1 to 16"),
    "n true": (chat(n=True), 400, "not true or false"),
    "many": (chat(n=10**40), 400, "n must be"),
    "temperature": (chat(temperature="hot"), 400, "temperature must be a number"),
    "infinite": (b'{"messages": [], "temperature": 1e999}', 400, "at least one message"),
    "NaN": (json.dumps(chat(top_p=float("nan"))).encode(), 400, "top_p must be a number"),
    "top_p": (chat(top_p=0), 400, "more than 0"),
    "max_tokens": (chat(max_tokens=10**6), 400, "max_tokens must be a whole number from 1 to 512"),
    "seed": (chat(seed=-1), 400, "seed"),
    "stop": (chat(stop=["a", ""]), 400, "stop must be"),
    "stops": (chat(stop=[1]), 400, "stop must be"),
    "penalty": (chat(frequency_penalty=1), 400, "repetition_penalty"),
    "top_logprobs": (chat(top_logprobs=3), 400, "not supported"),
    "stream": (chat(stream="yes"), 400, "stream must be true or false"),
    "bomb": ({"messages": [user(image=data_url(bomb()))]}, 400, "too large"),
    "base64": ({"messages": [user(image=data_url()[:-3])]}, 400, "cut short"),
    "cut picture": ({"messages": [user(image=data_url(png()[:300]))]}, 400, "cut short"),
    "no picture": ({"messages": [user(image=data_url(b"hello"))]}, 400, "not a picture"),
    "file": ({"messages": [user(image="file:///etc/passwd")]}, 400, "data URL"),
    "path": ({"messages": [user(image="/etc/passwd")]}, 400, "data URL"),
    "remote": ({"messages": [user(image="http://127.0.0.1/a.png")]}, 400, "fetches no pictures"),
    "pictures": ({"messages": [user()] * 9}, 400, "9 pictures"),
    "raw twice": ({"messages": [user()] * 2, "raw": True}, 400, "must be one message"),
    "raw answer": ({"messages": [{"role": "assistant"}], "raw": True}, 400, "must be user"),
    "raw boxes": ({"messages": [user(boxes=[])], "raw": True}, 400, "messages[0].boxes"),
    "raw tags": ({"messages": [user("<patch_index_0999>")], "raw": True}, 400, "_0999>"),
    "raw and grounded": (chat(raw=True, grounded=True), 400, "write <grounding>"),
    "box reversed": (
        {"messages": [user(boxes=[{"text": "shape", "boxes": [[0.5, 0, 0.1, 1]]}])]},
        400, "reversed",
    ),
    "box of words": (
        {"messages": [user(boxes=[{"text": "shape", "boxes": ["abcd"]}])]}, 400, "list of boxes",
    ),
    "phrase elsewhere": (
        {"messages": [user(boxes=[{"text": "dog", "boxes": []}])]}, 400, "not in the content",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_told_what_is_wrong(url: str, case: str):
    body, status, words = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    reply = HTTP.post(f"{url}/v1/chat/completions", content=content, headers=headers)
    message = reply.json()["error"]["message"]
    assert reply.status_code == status and words in message, message
    assert len(message) < 400 and "Traceback" not in message


def test_literal_tags_are_text(url: str, predictor):
    text = "<grounding><phrase> a</phrase> what?"
    reply = HTTP.post(
        f"{url}/v1/chat/completions", json={"messages": [user(text)], "max_tokens": 2}
    ).json()
    expected = predictor.questions.ask(PIXELS, text).request.prompt.ids
    assert reply["usage"]["prompt_tokens"] == len(expected)
    assert predictor.vocabulary.grounding_id not in expected


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("GET", "/v1/chat/completions", {}, b"", 405),
        ("GET", "/nowhere", {}, b"", 404),
        ("POST", "/v1/chat/completions", {"Content-Type": "text/plain"}, b"{}", 415),
        ("POST", "/v1/ground", {"Content-Type": "text/plain"}, b"", 415),
        ("POST", "/v1/ground", {"Content-Type": "image/png"}, b"", 400),
        ("POST", "/v1/ground", {"Content-Type": "image/png"}, bytes(200_001), 413),
        ("POST", "/v1/ground?phrase=%20", {"Content-Type": "image/png"}, b"", 400),
        ("POST", "/v1/ground?phrase=a%3Cphrase%3E", {"Content-Type": "image/png"}, b"", 400),
        ("POST", "/v1/ground", {"Content-Type": "application/json"}, b"{}", 400),
        ("GET", "/v1/models/other", {}, b"", 404),
    ],
)
def test_wrong_ways(url: str, method: str, path: str, headers: dict, content: bytes, status: int):
    reply = HTTP.request(method, url + path, headers=headers, content=content)
    assert reply.status_code == status and reply.json()["error"]["message"].endswith(".")


def test_a_crowd_is_served_or_told_to_come_back(url: str):
    async def crowd() -> list[int]:
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(limits=limits, timeout=PATIENCE) as client:
            body = {"messages": [user()], "max_tokens": 2}
            replies = await asyncio.gather(
                *(client.post(f"{url}/v1/chat/completions", json=body) for _ in range(400))
            )
        for reply in replies:
            assert reply.status_code == 200 or reply.headers["Retry-After"] == "1"
        return [reply.status_code for reply in replies]

    statuses = asyncio.run(crowd())
    assert set(statuses) == {200, 503} and statuses.count(200) >= 16
    assert HTTP.get(f"{url}/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_clients_that_hang_up_free_their_rows(predictor):
    """The engine is held up, so that the client surely goes first."""
    gone = 'kosmos2_requests_total{route="/v1/chat/completions",status="499"} 2.0'
    idle = "kosmos2_outputs_running 0.0", "kosmos2_outputs_waiting 0.0"
    with serving(predictor, SETTINGS) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(chat(n=16, max_tokens=100, temperature=2.0)).encode()
        for sent in (body[:100], body):
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            with predictor.engine._wake, socket.create_connection((host, int(port))) as client:
                client.sendall(head.encode() + sent)
                time.sleep(0.2)
        streamed = chat(n=16, max_tokens=100, temperature=2.0, stream=True)
        with HTTP.stream("POST", f"{url}/v1/chat/completions", json=streamed) as reply:
            assert next(reply.iter_lines()).startswith("data: ")
        for _ in range(PATIENCE * 20):
            text = HTTP.get(f"{url}/metrics").text
            if all(line in text for line in (gone, *idle)):
                break
            time.sleep(0.05)
        assert all(line in text for line in (gone, *idle))
        reply = HTTP.post(f"{url}/v1/chat/completions", json=chat(max_tokens=2))
        assert reply.status_code == 200


def test_a_stream_whose_client_is_gone_before_its_first_event(predictor):
    """The server learns of it when it sends the head of its answer."""
    handles = []

    class Watched(Engine):
        def submit(self, request, *, wait=False):
            handles.append(super().submit(request, wait=wait))
            return handles[-1]

    body = json.dumps(chat(max_tokens=100, temperature=2.0, stream=True)).encode()
    came = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict:
        return next(came, None) or await asyncio.Event().wait()

    async def send(_: dict) -> None:
        raise OSError("the client is gone")

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "asgi": {"spec_version": "2.4"},
    }  # fmt: skip
    with Watched(predictor.config, predictor.params, predictor.vocabulary, rows=1) as engine:
        app = make_app(engine, predictor.questions, SETTINGS)
        with contextlib.suppress(Exception):
            asyncio.run(app(scope, receive, send))
        (handle,) = handles
        assert handle.cancelled


def test_keys_and_time(predictor):
    settings = dataclasses.replace(SETTINGS, api_keys=("first", "second"), timeout=0.001)
    with serving(predictor, settings) as url:
        for key in (None, "Bearer third", "Basic first", "Bearer", "Bearer \xff"):
            headers = {} if key is None else {"Authorization": key.encode("latin-1")}
            reply = HTTP.get(f"{url}/v1/models", headers=headers)
            assert reply.status_code == 401 and "API key" in reply.json()["error"]["message"]
        headers = {"Authorization": "Bearer second"}
        assert HTTP.get(f"{url}/v1/models", headers=headers).status_code == 200
        assert HTTP.get(f"{url}/health").status_code == 200
        body = chat(max_tokens=40)
        reply = HTTP.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        assert reply.status_code in (408, 504) and "too long" in reply.json()["error"]["message"]
