"""Pictures on their way from a source into records: found, checked, made smaller.

Every picture is decoded once, whole, before it is stored, so that training meets none that is
broken.
"""

from __future__ import annotations

import dataclasses
import io
import posixpath
import re
from collections.abc import Sequence
from typing import Protocol

from etils import epath
from PIL import Image

from kosmos2_jax.data.readers import files
from kosmos2_jax.data.skips import DataError, Unusable
from kosmos2_jax.errors import ImageError
from kosmos2_jax.vision import preprocessing

SHORT, SQUARE, ORIGINAL = "short", "square", "original"

IMAGES_HELP = (
    "folder, tar file or glob of tar files that holds the pictures; {stem} stands for the name of "
    "the input file without its endings, {shard} for the number in it"
)


@dataclasses.dataclass(frozen=True)
class PictureRules:
    """What pictures must be, and how they are stored.

    Attributes:
      mode: "original" keeps the encoded bytes as they are; "short" makes the short side `size`
        pixels, for training on the centre (spec section 4.3: the official default) or squashed;
        "square" squashes to `size` x `size`, as inference does (spec section 3.2), after which
        the centre crop is no longer to be had. What is not larger than that stays as it is:
        enlarging it would only take room.
      size: pixels; 224 as in the released model (spec section 0).
      quality: of the JPEG that a picture which is made smaller is stored as. Colour is kept at
        full resolution, which costs a third more bytes and halves the largest error.
      min_side: pixels; a picture with a shorter side is bad.
      max_aspect: a picture whose long side is more than so many times its short side is bad: its
        crop would show almost nothing of it.
    """

    mode: str = ORIGINAL
    size: int = 224
    quality: int = 95
    min_side: int = 2
    max_aspect: float = 20.0


def open_picture(encoded: bytes, rules: PictureRules) -> Image.Image:
    """Decodes a picture whole.

    Returns:
      The picture as RGB, of its own size.

    Raises:
      Unusable: it is no picture, broken, cut short, too large (100 megapixels: such bombs are
        refused before they are decoded), too small or too narrow.
    """
    if not encoded:
        raise Unusable("empty picture")
    try:
        image = preprocessing.load_image(encoded)
    except ImageError as error:
        too_large = "too large" in str(error)
        raise Unusable("picture too large" if too_large else "broken picture") from None
    short, long = sorted(image.size)
    if short < rules.min_side:
        raise Unusable("picture too small")
    if long > rules.max_aspect * short:
        raise Unusable("picture too narrow")
    return image


def stored_picture(encoded: bytes, image: Image.Image, rules: PictureRules) -> bytes:
    """Returns the bytes to store for a picture that `open_picture` decoded: JPEG or as it was."""
    if rules.mode == ORIGINAL:
        return encoded
    size = (rules.size, rules.size)
    if rules.mode == SHORT:
        size = preprocessing._short_side_size(image.width, image.height, rules.size)
    if image.width <= size[0] and image.height <= size[1]:
        return encoded
    stream = io.BytesIO()
    resized = image.resize(size, Image.Resampling.BICUBIC)
    resized.save(stream, "JPEG", quality=rules.quality, subsampling="4:4:4")
    return stream.getvalue()


def is_single_coloured(image: Image.Image) -> bool:
    """Says whether all pixels of an RGB picture are the same."""
    return all(low == high for low, high in image.getextrema())


class PictureStore(Protocol):
    """Where the pictures lie that a file names."""

    def get(self, name: str) -> bytes:
        """Returns the encoded picture of a name or URL, or raises `Unusable`."""


class PictureFolder:
    """Pictures in a folder, by path within it."""

    def __init__(self, folder: str) -> None:
        self._folder = epath.Path(folder)
        if not self._folder.is_dir():
            raise DataError(f"There is no folder of pictures {folder!r}: mend --images.")

    def get(self, name: str) -> bytes:
        """Returns the bytes of a file; names that lead out of the folder find nothing."""
        inner = posixpath.normpath(name)
        if posixpath.isabs(inner) or inner.startswith("..") or "\0" in inner:
            raise Unusable("picture missing")
        try:
            return (self._folder / inner).read_bytes()
        except (OSError, ValueError):
            raise Unusable("picture missing") from None


class PictureTars:
    """Pictures in tar files, by name, with or without folders, or by the URL they came from.

    URLs are known where the tars are img2dataset's, from the JSON beside each picture.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._places: dict[str, files.TarMember] = {}
        for path in paths:
            for key, sample in files.tar_index(path):
                picture = files.picture_of(sample)
                if picture is None:
                    continue
                for name in (picture.name, posixpath.basename(picture.name), key):
                    self._places.setdefault(name, picture)
                if "json" in sample:
                    url = files.url_of(sample["json"].read())
                    if url is not None:
                        self._places.setdefault(url, picture)

    def get(self, name: str) -> bytes:
        """Returns the bytes of a member."""
        place = self._places.get(name)
        if place is None:
            raise Unusable("picture missing")
        return place.read()


def picture_store(where: str, path: str) -> PictureStore:
    """Opens the pictures that belong to a file.

    Args:
      where: a folder, a tar file or a glob of tar files. `{stem}` stands for the name of the file
        without its endings, `{shard}` for the number in it.
      path: the file whose pictures they are.

    Raises:
      DataError: there is no such folder or tar file.
    """
    name = posixpath.basename(path)
    numbers = re.findall(r"shard_(\d+)", name) or re.findall(r"\d+", name)
    if "{shard}" in where and not numbers:
        raise DataError(f"{path!r} has no number in its name: mend --images {where!r}.")
    where = where.replace("{stem}", name.partition(".")[0])
    where = where.replace("{shard}", numbers[0] if numbers else "")
    if where.endswith(".tar"):
        return PictureTars(files.expand_glob(where, "--images"))
    return PictureFolder(where)
