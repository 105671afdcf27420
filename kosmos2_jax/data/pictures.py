"""The last step of reading: encoded pictures become the pixels the model sees.

Pictures travel encoded through shuffling, mixing and packing, and are decoded only here: pixels
take ten times the room. No TensorFlow; decoding with Pillow leaves other threads alone.

Pictures that were stored at the training size are decoded and nothing else. Pillow is as fast at
that as `tf.io.decode_jpeg` (0.32 ms for 224 pixels a side), whose default differs from it by up to
16 grey levels. Decoding large JPEGs straight to about the size needed (Pillow's `draft`) differs
by up to 19 grey levels from resizing (measured on photographs), so it is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kosmos2_jax.data.grit import CROP, SQUARE
from kosmos2_jax.errors import ConfigError, ImageError
from kosmos2_jax.vision.preprocessing import crop_pixels, load_image, square_pixels

_RESIZERS = {CROP: crop_pixels, SQUARE: square_pixels}

BROKEN = "broken picture"  # the reason under which examples are counted


def decode_picture(encoded: bytes, size: int, image_mode: str = SQUARE) -> np.ndarray:
    """Decodes a picture and brings it to the training size exactly as the reference does.

    Args:
      encoded: JPEG, PNG, or another format that `load_image` reads.
      size: pixels a side.
      image_mode: what becomes of a picture of another size: "crop" takes its centre, as the
        official training (spec 4.3), "square" squashes it, as all of inference (spec 3.2, trap
        T-23). Boxes must have been mapped likewise, see `kosmos2_jax.data.grit.GritConfig`.

    Returns:
      uint8 [size, size, 3].

    Raises:
      ImageError: the picture is broken, cut short or too large.
      ConfigError: there is no such mode.
    """
    if image_mode not in _RESIZERS:
        raise ConfigError(f"There is no image mode {image_mode!r}: use 'crop' or 'square'.")
    image = load_image(encoded)
    if image.size == (size, size):
        return np.asarray(image)
    return _RESIZERS[image_mode](image, size)


def decode_row(row: Mapping[str, np.ndarray], pixels: np.ndarray, image_mode: str = SQUARE) -> int:
    """Decodes the pictures of a row; what shows a broken one is learnt nothing of.

    A broken picture stays black, and the whole example it belongs to gets no weight.

    Args:
      row: of `kosmos2_jax.data.packing.make_row`, `images` filled up to N or not. Its
        `loss_weights` are changed in place.
      pixels: uint8 [N, S, S, 3], all 0; written in place.
      image_mode: see `decode_picture`.

    Returns:
      How many examples lost their weights.
    """
    broken = set()
    for picture, segment in enumerate(row["image_segments"].tolist()):
        if not segment:
            break
        try:
            pixels[picture] = decode_picture(row["images"][picture], pixels.shape[1], image_mode)
        except ImageError:
            broken.add(segment)
    for segment in broken:
        row["loss_weights"][row["segment_ids"] == segment] = 0.0
    return len(broken)
