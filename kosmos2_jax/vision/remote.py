"""Pictures by address, from the Internet only: never from this machine or its network.

A picture is fetched from an address that was checked, not from a name that could mean another one
a moment later; redirects are not followed, proxies of the environment not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, urlsplit

from PIL import Image

from kosmos2_jax.errors import ImageError
from kosmos2_jax.vision.preprocessing import ImageSource, load_image

TIMEOUT = 15.0  # seconds for connecting and reading together
MAX_BYTES = 64 * 2**20
_PORTS = {"http": 80, "https": 443}
_PIECE = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/32")  # holds addresses of version 4, local ones too

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def open_image(source: ImageSource) -> Image.Image:
    """As `load_image`, and of a string that begins with "https://" what is at that address.

    Raises:
      ImageError: as of `load_image`; the address is not public, or does not answer with a picture
        of at most 64 MiB within 15 seconds.
    """
    if isinstance(source, str) and "://" in source[:8]:
        return load_image(fetch(source, ("https",)))
    return load_image(source)


def fetch(
    url: str,
    schemes: Sequence[str],
    max_bytes: int = MAX_BYTES,
    allowed: Callable[[Address], bool] | None = None,
) -> bytes:
    """What is at an address.

    Args:
      url: the address.
      schemes: "https", and "http" where it will do.
      max_bytes: longest body.
      allowed: which addresses may be connected to; those that are public by default.

    Raises:
      ImageError: it may not be fetched, cannot be, is too large or takes too long.
    """
    parts, port = _split(url, schemes)
    addresses = _resolve(parts.hostname, port)
    if not addresses or not all(map(allowed or is_public, addresses)):
        raise _error("is not at a public address")
    deadline = time.monotonic() + TIMEOUT
    for address in addresses:
        try:
            connection = _connect(address, parts, port, deadline)
        except OSError:
            continue  # as with a machine that has no version 6
        # The socket itself: the connection lets go of it when the answer has begun.
        watch = threading.Timer(max(deadline - time.monotonic(), 0), _cut, [connection.sock])
        watch.start()
        try:
            return _read(connection, parts, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise _error(f"did not come within {TIMEOUT:g} seconds") from None
            raise _error(f"could not be fetched ({type(error).__name__})") from None
        finally:
            watch.cancel()
            connection.close()
    raise _error("could not be fetched: no connection")


def is_public(address: Address) -> bool:
    """Whether it is out in the Internet, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo or ()
        for inner in (address.ipv4_mapped, address.sixtofour, *teredo):
            if inner is not None and not is_public(inner):
                return False
        if address in _NAT64 or address.is_site_local:
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast


def _split(url: str, schemes: Sequence[str]) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        parts.netloc.encode("ascii")
        (parts.path + parts.query).encode("ascii")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _error("has no valid address") from None
    if parts.scheme not in schemes:
        begins = " or ".join(f"{scheme}://" for scheme in schemes)
        raise _error(f"must have an address that begins with {begins}")
    if not host or "@" in parts.netloc or any(ord(letter) <= 32 for letter in url):
        raise _error("has no valid address")
    return parts, _PORTS[parts.scheme] if port is None else port


def _resolve(host: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _error("is on a host that cannot be found") from None
    return [ipaddress.ip_address(entry[4][0].partition("%")[0]) for entry in found]


def _connect(
    address: Address, parts: SplitResult, port: int, deadline: float
) -> http.client.HTTPConnection:
    """A connection to the address, over which nothing was said yet."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection = http.client.HTTPConnection(parts.hostname, port)
    connection.sock = socket.create_connection((str(address), port), left)
    if parts.scheme == "https":
        # The certificate is checked against the name.
        connection.sock = ssl.create_default_context().wrap_socket(
            connection.sock, server_hostname=parts.hostname, do_handshake_on_connect=False
        )
    return connection


def _read(
    connection: http.client.HTTPConnection, parts: SplitResult, max_bytes: int, deadline: float
) -> bytes:
    if isinstance(connection.sock, ssl.SSLSocket):
        connection.sock.do_handshake()
    target = parts._replace(scheme="", netloc="", path=parts.path or "/", fragment="").geturl()
    # Unpacking what is compressed could fill the memory.
    headers = {"Host": parts.netloc, "Accept-Encoding": "identity"}
    connection.request("GET", target, headers=headers)
    response = connection.getresponse()
    if response.status != 200:
        raise _error(f"was answered with status {response.status}")
    body = bytearray()
    while piece := response.read1(_PIECE):
        body += piece
        if len(body) > max_bytes:
            raise _error(f"has more than {max_bytes} bytes")
        if time.monotonic() >= deadline:
            raise TimeoutError
    if time.monotonic() >= deadline:
        raise TimeoutError  # it ended because it was cut
    return bytes(body)


def _cut(connected: socket.socket) -> None:
    """Ends what waits for the other side, however long that is silent."""
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended already


def _error(fault: str) -> ImageError:
    return ImageError(f"The remote picture {fault}.")
