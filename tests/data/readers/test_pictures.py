"""Pictures: checked by a real decode, made smaller as training would, found where they lie."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.data.readers import pictures
from kosmos2_jax.data.readers.pictures import PictureRules, open_picture, stored_picture
from kosmos2_jax.data.skips import DataError, Unusable
from kosmos2_jax.vision.preprocessing import crop_pixels, load_image, square_pixels

RULES = PictureRules()


def _png_header(width: int, height: int) -> bytes:
    """A PNG of these sides whose pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def _reason(encoded: bytes, rules: PictureRules = RULES) -> str:
    with pytest.raises(Unusable) as caught:
        open_picture(encoded, rules)
    return caught.value.reason


def test_bad_pictures_are_told_apart(picture: Callable[..., bytes]) -> None:
    good = picture(1)
    assert _reason(b"") == "empty picture"
    assert _reason(b"not a picture") == "broken picture"
    assert _reason(good[:-50]) == "broken picture"
    assert _reason(good[:20]) == "broken picture"
    assert _reason(_png_header(50_000, 50_000)) == "picture too large"
    assert _reason(_png_header(0, 10)) == "broken picture"
    assert _reason(picture(1, (1, 1), "PNG")) == "picture too small"
    assert _reason(picture(1, (300, 1), "PNG")) == "picture too small"
    assert _reason(picture(1, (300, 10))) == "picture too narrow"
    assert open_picture(picture(1, (200, 10)), RULES).size == (200, 10)


def test_pictures_as_they_are_keep_their_bytes(picture: Callable[..., bytes]) -> None:
    for format in ("JPEG", "PNG", "WEBP", "GIF"):
        encoded = picture(2, (640, 480), format)
        assert stored_picture(encoded, open_picture(encoded, RULES), RULES) is encoded


@pytest.mark.parametrize("size", [(640, 480), (301, 700), (225, 225)])
def test_short_side_shows_training_the_same_centre(
    size: tuple[int, int], picture: Callable[..., bytes]
) -> None:
    encoded = picture(3, size)
    image = load_image(encoded)
    stored = stored_picture(encoded, image, dataclasses.replace(RULES, mode=pictures.SHORT))
    again = load_image(stored)
    assert min(again.size) == 224 and len(stored) < len(picture(3, size, "PNG"))
    difference = crop_pixels(again, 224).astype(int) - crop_pixels(image, 224)
    assert np.abs(difference).mean() < 1.0


def test_square_is_what_inference_makes(picture: Callable[..., bytes]) -> None:
    encoded = picture(4, (500, 300))
    rules = PictureRules(pictures.SQUARE, size=112, quality=98)
    stored = load_image(stored_picture(encoded, load_image(encoded), rules))
    assert stored.size == (112, 112)
    difference = np.asarray(stored).astype(int) - square_pixels(load_image(encoded), 112)
    assert np.abs(difference).mean() < 1.0


def test_real_photographs_lose_little(assets: Path) -> None:
    for file in sorted((assets / "images").iterdir()):
        image = load_image(file)
        rules = PictureRules(pictures.SHORT)
        stored = load_image(stored_picture(file.read_bytes(), image, rules))
        difference = np.abs(crop_pixels(stored, 224).astype(int) - crop_pixels(image, 224))
        assert difference.mean() < 3.0 and difference.max() < 25, file.name


@pytest.mark.parametrize("mode", [pictures.SHORT, pictures.SQUARE])
def test_small_pictures_are_not_enlarged(mode: str, picture: Callable[..., bytes]) -> None:
    encoded = picture(5, (224, 180))
    assert stored_picture(encoded, load_image(encoded), PictureRules(mode)) is encoded


def test_single_colours() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (100, 100), (200, 30, 77)).save(stream, "JPEG")
    assert pictures.is_single_coloured(load_image(stream.getvalue()))
    dotted = Image.new("RGB", (100, 100))
    dotted.putpixel((50, 50), (0, 0, 9))
    assert not pictures.is_single_coloured(dotted)


def test_folders_give_no_file_outside_of_them(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.jpg").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    store = pictures.picture_store(str(tmp_path / "images"), "shard.jsonl")
    assert store.get("a/1.jpg") == store.get("a/../a/./1.jpg") == b"inside"
    for name in ("../secret", str(tmp_path / "secret"), "a/../../secret", "a", "", "\0", "\ud800"):
        with pytest.raises(Unusable, match="picture missing"):
            store.get(name)


def test_tars_are_found_by_pattern(tmp_path: Path, write_tar: Callable) -> None:
    write_tar(tmp_path / "images_7.tar", {"x/one.jpg": b"1", "two.png": b"2", "readme": b""})
    where = str(tmp_path / "images_{shard}.tar")
    store = pictures.picture_store(where, "docs_no_face_shard_7_v2.jsonl.zip")
    assert [store.get(name) for name in ("x/one.jpg", "one.jpg", "two.png", "two")] == [
        b"1", b"1", b"2", b"2",
    ]  # fmt: skip
    with pytest.raises(Unusable, match="picture missing"):
        store.get("readme")
    with pytest.raises(DataError, match="--images: nothing is found at .*images_8.tar"):
        pictures.picture_store(where, "docs_no_face_shard_8_v2.jsonl.zip")
    with pytest.raises(DataError, match="no number in its name"):
        pictures.picture_store(where, "docs.jsonl")
    with pytest.raises(DataError, match="no folder of pictures .*/docs_images'"):
        pictures.picture_store(str(tmp_path / "{stem}_images"), "docs.jsonl.zip")
    (tmp_path / "images_9.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match="images_9.tar' is not a tar file"):
        pictures.picture_store(where, "docs_9.jsonl")
