"""Many clients, hostile ones among them, against a server on this machine.

    python tools/load_test.py                  # a tiny random model; --model for another
    python tools/load_test.py --minutes 10     # repeats, and looks at the server's memory

First one client asks alone, which gives the answers and the speed to compare with; then 32 clients
send the same 200 requests, 20 of which are hostile. The server is `kosmos2 serve` in a process of
its own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kosmos2_jax.startup import prepare_environment

prepare_environment()

import httpx2  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import sentencepiece  # noqa: E402
from PIL import Image  # noqa: E402

from kosmos2_jax.config import preset  # noqa: E402
from kosmos2_jax.grounding import Kosmos2Vocabulary  # noqa: E402
from kosmos2_jax.inference.model import Kosmos2Model  # noqa: E402
from kosmos2_jax.interop import orbax_io  # noqa: E402

_EVERY_HOSTILE = 10  # one request of so many
_CHAT = "/v1/chat/completions"
_PATIENCE = 600.0


@dataclasses.dataclass(frozen=True)
class Call:
    """A request; `status` is what a hostile one must get, None for one that must be answered."""

    path: str
    body: bytes
    status: int | None = None
    hangs_up: bool = False


def main() -> None:
    """Runs the test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="checkpoint; a tiny random one by default")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=0, help="of repeats for the memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or _make_model(Path(folder))
        command = [sys.executable, "-m", "kosmos2_jax", "serve", "--model", str(model)]
        with subprocess.Popen(
            [*command, "--port", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                url = _address(server)
                result = asyncio.run(_measure(url, psutil.Process(server.pid), args))
            finally:
                server.terminate()
    print(json.dumps(result))
    sys.exit(
        0 if result["right"] == result["good"] and result["refused"] == result["hostile"] else 1
    )


async def _measure(url: str, server: psutil.Process, args: argparse.Namespace) -> dict[str, Any]:
    calls = _make_calls(args.requests)
    good = [call for call in calls if call.status is None]
    async with httpx2.AsyncClient(
        base_url=url, timeout=_PATIENCE, limits=httpx2.Limits(max_connections=args.clients)
    ) as http:
        await _send_all(http, calls, args.clients)  # compiles
        alone, expected = await _timed(http, good, 1)
        crowd, found = await _timed(http, calls, args.clients)
        kept = [reply for call, reply in zip(calls, found, strict=True) if call.status is None]
        refused = [
            reply[0] == call.status
            for call, reply in zip(calls, found, strict=True)
            if call.status is not None
        ]
        before = server.memory_info().rss
        repeats, end = 0, time.monotonic() + 60 * args.minutes
        while time.monotonic() < end:
            await _send_all(http, calls, args.clients)
            repeats += 1
        grown = server.memory_info().rss - before
    return {
        "good": len(good), "hostile": len(refused), "refused": sum(refused),
        "right": sum(a == b for a, b in zip(kept, expected, strict=True)),
        "alone_per_second": len(good) / alone, "crowd_per_second": len(good) / crowd,
        "throughput_ratio": alone / crowd, "repeats": repeats, "grown_mb": grown / 1e6,
    }  # fmt: skip


async def _timed(http: httpx2.AsyncClient, calls: list[Call], clients: int) -> tuple[float, list]:
    started = time.monotonic()
    replies = await _send_all(http, calls, clients)
    return time.monotonic() - started, replies


async def _send_all(http: httpx2.AsyncClient, calls: list[Call], clients: int) -> list[Any]:
    """Statuses and answers in the order of the calls."""
    replies: list[Any] = [None] * len(calls)
    rest = iter(range(len(calls)))

    async def client() -> None:
        for number in rest:
            replies[number] = await _send(http, calls[number])

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


async def _send(http: httpx2.AsyncClient, call: Call) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    if call.hangs_up:
        async with http.stream("POST", call.path, content=call.body, headers=headers) as reply:
            async for _ in reply.aiter_lines():
                return reply.status_code, None
    reply = await http.post(call.path, content=call.body, headers=headers)
    data = reply.json()
    if call.path == _CHAT and reply.status_code == 200:
        data = [(c["message"]["content"], c["finish_reason"]) for c in data["choices"]]
    elif reply.status_code == 200:
        data = [(one["text"], [span["boxes"] for span in one["spans"]]) for one in data["results"]]
    return reply.status_code, data


def _make_calls(count: int) -> list[Call]:
    """Mixed settings, lengths and pictures; each with a seed of its own."""
    rng = np.random.default_rng(0)
    pictures = [_data_url(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(8)]
    hostile = _hostile_calls(pictures[0])
    calls = []
    for number in range(count):
        if number % _EVERY_HOSTILE == _EVERY_HOSTILE // 2:
            calls.append(hostile[number // _EVERY_HOSTILE % len(hostile)])
            continue
        how = {"seed": number, "max_tokens": 32 + 8 * (number % 3)}
        how["temperature"] = (0.0, 0.7, 1.0)[number % 3]
        if number % 4 == 0:
            body = {"image": pictures[number % 8], "phrase": "a small red star", **how}
            calls.append(Call("/v1/ground", json.dumps(body).encode()))
            continue
        text = {"type": "text", "text": ("What is it?", "Where is the blue square?")[number % 2]}
        picture = {"type": "image_url", "image_url": {"url": pictures[number % 8]}}
        message = {"role": "user", "content": [picture, text]}
        body = {"messages": [message], "grounded": number % 2 == 0, "n": 1 + number % 2, **how}
        calls.append(Call(_CHAT, json.dumps(body).encode()))
    return calls


def _hostile_calls(picture: str) -> list[Call]:
    def chat(url: str, **more: Any) -> bytes:
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What?"},
        ]
        return json.dumps({"messages": [{"role": "user", "content": parts}], **more}).encode()

    return [
        Call(_CHAT, b'{"messages": [', 400),
        Call(_CHAT, b"[" * 100_000, 400),
        Call(_CHAT, chat(picture[:-3]), 400),
        Call(_CHAT, chat(picture[: len(picture) // 2]), 400),
        Call(_CHAT, chat(picture, temperature="hot"), 400),
        Call(_CHAT, chat("http://169.254.169.254/latest"), 400),
        Call(_CHAT, bytes(17_000_000), 413),
        Call(_CHAT, chat(picture, n=10**9), 400),
        Call(_CHAT, chat(picture, stream=True, max_tokens=100), 200, hangs_up=True),
        Call("/v1/ground", json.dumps({"image": picture, "phrase": "<phrase>"}).encode(), 400),
    ]


def _data_url(pixels: np.ndarray) -> str:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found.group()
    raise RuntimeError(f"kosmos2 serve ended with status {server.wait()}")


def _make_model(folder: Path) -> Path:
    """Wide enough that reading weights takes the most of the time, as in a real model."""
    pieces = folder / "small"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small red star left of the blue square", "Where is it? What?"]),
        model_prefix=str(pieces), vocab_size=60, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    vocabulary = Kosmos2Vocabulary(pieces.with_suffix(".model"), grid_size=8)
    config = preset("tiny").replace(
        grid_size=8,
        decoder={
            "vocab_size": vocabulary.vocab_size, "hidden_size": 512, "num_heads": 8,
            "mlp_dim": 2048, "num_layers": 8,
        },
    )  # fmt: skip
    params = Kosmos2Model(config).init(jax.random.key(0))
    orbax_io.save_folder(folder / "model", params, config, vocabulary)
    return folder / "model"


if __name__ == "__main__":
    main()
