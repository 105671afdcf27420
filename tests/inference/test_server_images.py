"""Remote pictures: only where allowed, only from public addresses, by the address checked."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kosmos2_jax.serving.images import is_public, read_image
from kosmos2_jax.serving.settings import RequestError, ServerSettings

OPEN = ServerSettings(allow_remote_images=True, max_body_bytes=1000)
LOCAL = (
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1",
    "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
    "2001:0:7f00:1::",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8")


class _Pictures(BaseHTTPRequestHandler):
    hosts: list[str] = []

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/picture")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * (1001 if self.path == "/large" else 1000))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def fetch(url: str, settings: ServerSettings = OPEN, allowed=is_public) -> bytes:
    return asyncio.run(read_image(url, settings, allowed))


@pytest.mark.parametrize("address", LOCAL)
def test_local_addresses_are_refused(address: str):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not(address: str):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_nothing_is_sent_to_this_machine_by_any_name(port: int, host: str):
    before = len(_Pictures.hosts)
    with pytest.raises(RequestError, match="is not at a public address|cannot be found"):
        fetch(f"http://{host}:{port}/picture")
    assert len(_Pictures.hosts) == before


def test_a_picture_is_fetched_by_its_checked_address(port: int):
    seen = []
    url = f"http://localhost:{port}/picture"
    assert fetch(url, allowed=lambda address: not seen.append(address)) == b"x" * 1000
    assert ipaddress.ip_address("127.0.0.1") in seen  # all that the name stands for
    assert _Pictures.hosts[-1] == f"localhost:{port}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost:{port}/redirect", "status 302"),
        ("http://localhost:{port}/large", "more than 1000 bytes"),
        ("http://me:secret@localhost:{port}/picture", "no valid address"),
        ("http://localhost:99999/", "no valid address"),
        ("http:///picture", "no valid address"),
        ("http://127.0.0.1:1/", "no connection"),
        ("ftp://localhost/", "must be a data URL"),
    ],
)
def test_what_is_not_fetched(port: int, url: str, words: str):
    with pytest.raises(RequestError, match=words):
        fetch(url.format(port=port), allowed=lambda _: True)


def test_the_operator_must_allow_it(port: int):
    with pytest.raises(RequestError, match="fetches no pictures"):
        fetch(f"http://localhost:{port}/picture", ServerSettings(), lambda _: True)
