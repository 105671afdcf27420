"""Reading pictures and turning them into the model's pixels exactly as the reference does.

Resizing is Pillow's antialiased bicubic filter on 8-bit pixels: no other resizer gives the same
pixels (spec trap T-39). Inference squashes a picture to a square (spec section 3.2); the official
training resizes its short side and crops the centre (spec section 4.3).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from kosmos2_jax.config import IMAGE_MEAN, IMAGE_STD
from kosmos2_jax.errors import ImageError
from kosmos2_jax.grounding.boxes import Box

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray

# CLIP's statistics for red, green and blue, of pixels in 0..1 (spec section 3.2).

# Pictures of this many pixels or more are refused before a pixel of theirs is decoded.
MAX_PIXELS = 100_000_000

# A box of which less remains in the centre crop is dropped (spec section 4.3).
MIN_VISIBLE = 0.2

# Raster formats only: some of Pillow's other readers run programs or accept any text.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF")

# What Pillow raises, by format, for data that are cut short or broken.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns a picture as RGB.

    What is transparent becomes white, as in transformers since 5.x (the official code and older
    transformers show the hidden colours instead); the EXIF orientation is not applied, as in the
    reference. Of an animation the first frame is taken; 16-bit grey keeps its high byte.

    Args:
      source: path, encoded bytes, open binary file, Pillow picture, or uint8 array [H, W, 3].
      max_pixels: a picture of so many or more is refused before one of them is decoded.

    Raises:
      ImageError: there is no such file, it is no picture, it is broken or cut short, it has
        `max_pixels` or more, or its pixels have no known range.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        _check_pixels(source.width, source.height, "The picture", max_pixels)
        return _to_rgb(source, "The picture")
    name = f"Picture {os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else "Picture"
    with _open(source, name) as image:
        _check_pixels(image.width, image.height, name, max_pixels)
        return _to_rgb(image, name, is_ours=True)


def square_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Returns the picture squashed to a square, uint8 [size, size, 3] (spec section 3.2)."""
    return np.array(_rgb(image).resize((size, size), Image.Resampling.BICUBIC))


def crop_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Returns the centre of the picture, uint8 [size, size, 3], as in the official training.

    The short side is resized to `size`, then the middle of the long one kept (spec section 4.3).

    Raises:
      ImageError: the picture is so narrow that resizing it would take `MAX_PIXELS` or more.
    """
    width, height = _short_side_size(image.width, image.height, size)
    if width * height >= MAX_PIXELS:
        raise ImageError(
            f"A picture of {image.width}x{image.height} pixels is too narrow to crop: use one "
            "with more even sides, or the square mode."
        )
    resized = _rgb(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.array(resized.crop((left, top, left + size, top + size)))


def crop_box(
    box: Box, width: int, height: int, size: int, min_visible: float = MIN_VISIBLE
) -> Box | None:
    """Returns the part of a box that is in the centre crop of `crop_pixels`, if enough of it is.

    Args:
      box: normalised to the whole picture.
      width: of the whole picture in pixels.
      height: of the whole picture in pixels.
      size: of the crop in pixels.
      min_visible: share of the box's area that must be in the crop.

    Returns:
      The visible part normalised to the crop, or None if less than `min_visible` of the area is
      visible or what is visible has no area (spec section 4.3, step 2).
    """
    sides = _short_side_size(width, height, size)
    starts = [(side - size) / 2 for side in sides]
    corners = [
        value * sides[axis % 2] - starts[axis % 2] for axis, value in enumerate(box)
    ]  # in pixels of the crop, not yet clamped to it
    x1, y1, x2, y2 = (min(max(corner, 0.0), float(size)) for corner in corners)
    area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    visible = (x2 - x1) * (y2 - y1)
    # Written so that a box with NaN is dropped too.
    if not (x2 > x1 and y2 > y1 and visible >= min_visible * area):
        return None
    seen = Box(x1 / size, y1 / size, x2 / size, y2 / size)
    # Division may round the sides of a sliver together.
    return seen if seen.x1 < seen.x2 and seen.y1 < seen.y2 else None


def normalize(pixels: np.ndarray) -> np.ndarray:
    """Returns uint8 pixels [..., 3] as the model's input, float32 [..., 3] (spec section 3.2).

    The arithmetic is float64 as in the official code, rounded once at the end.
    """
    return ((pixels / 255.0 - np.asarray(IMAGE_MEAN)) / np.asarray(IMAGE_STD)).astype(np.float32)


def _from_array(pixels: np.ndarray, max_pixels: int) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(
            "A picture given as an array must be uint8 of shape [height, width, 3], "
            f"not {pixels.dtype} of shape {list(pixels.shape)}."
        )
    _check_pixels(pixels.shape[1], pixels.shape[0], "The picture", max_pixels)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _open(source: str | os.PathLike[str] | bytes | BinaryIO, name: str) -> Image.Image:
    """Reads the header of a picture; its pixels stay undecoded."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        return Image.open(stream, formats=_FORMATS)
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist.") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder: give a picture file.") from None
    except PermissionError:
        raise ImageError(f"{name} may not be read: check its permissions.") from None
    except Image.DecompressionBombError:
        raise ImageError(_too_large(name)) from None
    except Image.UnidentifiedImageError:
        raise ImageError(
            f"{name} is not a picture in a known format (JPEG, PNG, WebP, GIF, BMP, PPM, TIFF, "
            "JPEG 2000, AVIF), or is cut short."
        ) from None
    except _DECODING_ERRORS as error:
        raise ImageError(f"{name} cannot be read as a picture: {error}.") from None


def _rgb(image: Image.Image) -> Image.Image:
    """The picture itself if it is RGB: Pillow's `convert` would copy it."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_rgb(image: Image.Image, name: str, *, is_ours: bool = False) -> Image.Image:
    """Decodes; unless it is ours alone, what comes back is another picture."""
    try:
        if image.mode == "I" or image.mode.startswith("I;16"):
            return _from_sixteen_bits(np.asarray(image, np.int64), name)
        if image.mode == "F":
            raise ImageError(f"{name} has floating-point pixels: save it with 8 bits a colour.")
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        if is_ours:
            image.load()
            # Pixels that are mapped from a file would change with it.
            return image.convert("RGB") if image.readonly else _rgb(image)
        return image.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(_too_large(name)) from None
    except _DECODING_ERRORS as error:
        raise ImageError(f"{name} is cut short or broken: {error}.") from None


def _from_sixteen_bits(grey: np.ndarray, name: str) -> Image.Image:
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise ImageError(f"{name} has more than 16 bits a pixel: save it with 8 bits a colour.")
    return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")


def _short_side_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Returns width and height after the short side became `size`."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if not width or not height:
        raise ImageError(f"{name} has no pixels ({width}x{height}).")
    if width * height >= max_pixels:
        raise ImageError(_too_large(f"{name} ({width}x{height})", max_pixels))


def _too_large(name: str, max_pixels: int = MAX_PIXELS) -> str:
    return f"{name} is too large: make it smaller than {max_pixels / 1e6:g} megapixels."
