"""Remote pictures of requests: only where the operator allows them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kosmos2_jax.serving.images import read_image
from kosmos2_jax.serving.settings import RequestError, ServerSettings
from kosmos2_jax.vision.remote import is_public

OPEN = ServerSettings(allow_remote_images=True, max_body_bytes=1000)


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/picture"
        server.shutdown()


def read(url: str, settings: ServerSettings, allowed=is_public) -> bytes:
    return asyncio.run(read_image(url, settings, allowed))


def test_the_operator_must_allow_it(url: str):
    assert read(url, OPEN, lambda _: True) == b"x" * 1000
    with pytest.raises(RequestError, match="fetches no pictures"):
        read(url, ServerSettings(), lambda _: True)


def test_addresses_of_this_machine_are_refused(url: str):
    with pytest.raises(RequestError, match="is not at a public address") as caught:
        read(url, OPEN)
    assert caught.value.status == 400 and caught.value.code == "invalid_image_url"


def test_other_addresses_are_no_pictures():
    with pytest.raises(RequestError, match="must be a data URL"):
        read("ftp://localhost/", OPEN, lambda _: True)
