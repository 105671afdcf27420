"""Pictures of requests: data URLs, and remote ones where the operator allows them."""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Callable

import anyio
from PIL import Image

from kosmos2_jax.errors import ImageError
from kosmos2_jax.serving.settings import RequestError, ServerSettings
from kosmos2_jax.vision.preprocessing import load_image
from kosmos2_jax.vision.remote import Address, fetch, is_public

_FETCHES = anyio.CapacityLimiter(16)  # at a time; each may wait for as long as `fetch` does


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
    get = functools.partial(fetch, url, ("http", "https"), settings.max_body_bytes, allowed)
    try:
        return await anyio.to_thread.run_sync(get, limiter=_FETCHES, abandon_on_cancel=True)
    except ImageError as error:
        raise RequestError(str(error), code="invalid_image_url") from None


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
