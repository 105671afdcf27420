"""Pictures of requests: data URLs, and remote ones where the operator allows them.

A remote picture is fetched from an address that was checked, not from a name that could mean
another one a moment later; redirects are not followed, proxies of the environment not used.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

import httpx2
from PIL import Image

from kosmos2_jax.serving.settings import RequestError, ServerSettings
from kosmos2_jax.vision.preprocessing import load_image

REMOTE_TIMEOUT = 15.0  # seconds for resolving, connecting and reading together
_NAT64 = ipaddress.ip_network("64:ff9b::/32")  # holds addresses of version 4, local ones too

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


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


async def read_image(
    url: str, settings: ServerSettings, allowed: Callable[[Address], bool] = is_public
) -> bytes:
    """The encoded picture that a URL stands for.

    Args:
      url: `data:image/...;base64,...`, or a remote address.
      settings: of the server.
      allowed: which addresses may be connected to.

    Raises:
      RequestError: it is no such URL, damaged, not allowed, too large, or the remote side fails.
    """
    if url[:5].lower() == "data:":
        return _from_data_url(url)
    if url[:7].lower() != "http://" and url[:8].lower() != "https://":
        raise RequestError(
            "A picture's URL must be a data URL: data:image/png;base64,...",
            code="invalid_image_url",
        )
    if not settings.allow_remote_images:
        raise RequestError(
            "This server fetches no pictures: send a data URL, data:image/png;base64,...",
            code="invalid_image_url",
        )
    try:
        async with asyncio.timeout(REMOTE_TIMEOUT):
            return await _fetch(url, settings.max_body_bytes, allowed)
    except TimeoutError:
        raise _remote_error(f"did not come within {REMOTE_TIMEOUT:g} seconds") from None


def decode_image(encoded: bytes, settings: ServerSettings) -> Image.Image:
    """The picture as RGB. Raises `ImageError` where it is none, broken or too large."""
    return load_image(encoded, settings.max_pixels)


def _from_data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RequestError(
            "A picture's data URL must be data:image/png;base64,...", code="invalid_image_url"
        )
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            "A picture's base64 text is cut short or damaged.", code="invalid_image_url"
        ) from None


async def _fetch(url: str, max_bytes: int, allowed: Callable[[Address], bool]) -> bytes:
    parts, port = _split(url)
    addresses = await _resolve(parts.hostname, port)
    if not addresses or not all(map(allowed, addresses)):
        raise _remote_error("is not at a public address")
    for address in addresses:
        try:
            return await _fetch_from(address, parts, port, max_bytes)
        except httpx2.ConnectError:
            continue  # as with a machine that has no version 6
        except httpx2.HTTPError as error:
            raise _remote_error(f"could not be fetched ({type(error).__name__})") from None
    raise _remote_error("could not be fetched: no connection")


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        host = parts.hostname
        parts.netloc.encode("ascii")
    except ValueError:
        host = None
    if not host or "@" in parts.netloc:
        raise _remote_error("has no valid address")
    return parts, port


async def _resolve(host: str, port: int) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _remote_error("is on a host that cannot be found") from None
    return [ipaddress.ip_address(entry[4][0].partition("%")[0]) for entry in found]


async def _fetch_from(address: Address, parts: SplitResult, port: int, max_bytes: int) -> bytes:
    host = f"[{address}]" if address.version == 6 else str(address)
    target = parts._replace(netloc=f"{host}:{port}", fragment="").geturl()
    # Unpacking what is compressed could fill the memory.
    headers = {"Host": parts.netloc, "Accept-Encoding": "identity"}
    # Certificates are checked against the name, not the address.
    extensions = {"sni_hostname": parts.hostname}
    async with (
        httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=None) as client,
        client.stream("GET", target, headers=headers, extensions=extensions) as response,
    ):
        if response.status_code != 200:
            raise _remote_error(f"was answered with status {response.status_code}")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > max_bytes:
                raise _remote_error(f"has more than {max_bytes} bytes")
        return bytes(body)


def _remote_error(fault: str) -> RequestError:
    return RequestError(f"The remote picture {fault}.", code="invalid_image_url")
