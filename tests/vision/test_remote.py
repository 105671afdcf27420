"""Remote pictures: only from public addresses, by the address that was checked."""

from __future__ import annotations

import io
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.errors import ImageError
from kosmos2_jax.vision import remote
from kosmos2_jax.vision.remote import fetch, is_public, open_image

LOCAL = (
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1",
    "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
    "2001:0:7f00:1::",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8")


BOTH = ("http", "https")


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
        if self.path == "/slow":
            while True:  # until the other side goes
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        self.wfile.write(b"x" * (1001 if self.path == "/large" else 1000))

    def log_message(self, *_: object) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # the slow answer breaks off


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with _Quiet(("127.0.0.1", 0), _Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def get(url: str, allowed=None) -> bytes:
    return fetch(url, BOTH, 1000, allowed)


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
    with pytest.raises(ImageError, match="is not at a public address|cannot be found"):
        get(f"http://{host}:{port}/picture")
    with pytest.raises(ImageError, match="is not at a public address|cannot be found"):
        open_image(f"https://{host}:{port}/picture")
    assert len(_Pictures.hosts) == before


def test_a_picture_is_fetched_by_its_checked_address(port: int):
    seen = []
    url = f"http://localhost:{port}/picture?size=1#part"
    assert get(url, lambda address: not seen.append(address)) == b"x" * 1000
    assert ipaddress.ip_address("127.0.0.1") in seen  # all that the name stands for
    assert _Pictures.hosts[-1] == f"localhost:{port}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost:{port}/redirect", "status 302"),
        ("http://localhost:{port}/large", "more than 1000 bytes"),
        ("http://me:secret@localhost:{port}/picture", "no valid address"),
        ("http://localhost:{port}/a b", "no valid address"),
        ("http://localhost:{port}/\r\nX: y", "cannot|no valid|status|fetched"),
        ("http://localhost:99999/", "no valid address"),
        ("http:///picture", "no valid address"),
        ("http://127.0.0.1:1/", "no connection"),
        ("https://localhost:{port}/picture", "fetched .*Error"),  # it speaks no TLS
        ("ftp://localhost/", "begins with http:// or https://"),
    ],
)
def test_what_is_not_fetched(port: int, url: str, words: str):
    with pytest.raises(ImageError, match=words):
        get(url.format(port=port), lambda _: True)


def test_a_picture_that_drips_is_given_up(port: int, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)
    with pytest.raises(ImageError, match="did not come within 0.3 seconds"):
        fetch(f"http://127.0.0.1:{port}/slow", BOTH, allowed=lambda _: True)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ImageError, match="did not come within 0.3 seconds"):
            get(f"http://127.0.0.1:{silent.getsockname()[1]}/", lambda _: True)


def test_pictures_of_users_come_by_https_or_from_files(tmp_path):
    with pytest.raises(ImageError, match="begins with https://"):
        open_image("http://example.org/a.png")
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(encoded, "PNG")
    (tmp_path / "a.png").write_bytes(encoded.getvalue())
    assert open_image(str(tmp_path / "a.png")).size == (3, 2)
    assert open_image(encoded.getvalue()).size == (3, 2)
