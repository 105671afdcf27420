"""Pixels equal to transformers' image processor, and bad pictures."""

from __future__ import annotations

import io
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmos2_jax.config import IMAGE_MEAN, IMAGE_STD
from kosmos2_jax.errors import ImageError
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.vision.preprocessing import (
    crop_box,
    crop_pixels,
    load_image,
    normalize,
    square_pixels,
)

PICTURES = (
    "carnaby_street.jpg", "corgi.jpg", "man_ball.png", "quadrocopter.jpg", "six_planes.png",
    "snowman.png", "two_dogs.jpg",
)  # fmt: skip


@pytest.fixture(scope="module")
def processor():
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    return clip.CLIPImageProcessorPil(use_square_size=True)


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def noise(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def reference_pixels(processor, image) -> np.ndarray:
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)


@pytest.mark.parametrize("name", PICTURES)
def test_real_pictures_equal_transformers(assets, processor, name):
    path = assets / "images" / name
    ours = normalize(square_pixels(load_image(path), 224))
    with Image.open(path) as image:
        theirs = reference_pixels(processor, image)
    assert ours.dtype == np.float32 and ours.shape == (224, 224, 3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    mode=st.sampled_from(("L", "LA", "RGB", "RGBA", "CMYK")),
)
def test_random_pictures_equal_transformers(processor, seed, width, height, mode):
    image = noise(seed, width, height, mode)
    ours = normalize(square_pixels(load_image(image), 224))
    np.testing.assert_allclose(ours, reference_pixels(processor, image), rtol=0, atol=1e-6)


def reference_crop(image: Image.Image, size: int) -> np.ndarray:
    """torchvision's Resize(size, BICUBIC) and CenterCrop(size), restated."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(size * long / short)
    new_width, new_height = (size, new_long) if width <= height else (new_long, size)
    pixels = np.asarray(image.resize((new_width, new_height), Image.BICUBIC))
    top = int(round((new_height - size) / 2.0))
    left = int(round((new_width - size) / 2.0))
    return pixels[top : top + size, left : left + size]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.sampled_from((28, 64, 224)),
)
def test_crop_equals_restatement(seed, width, height, size):
    image = noise(seed, width, height)
    np.testing.assert_array_equal(crop_pixels(image, size), reference_crop(image, size))


def test_crop_of_real_picture(assets):
    image = load_image(assets / "images" / "two_dogs.jpg")
    np.testing.assert_array_equal(crop_pixels(image, 224), reference_crop(image, 224))


def test_crop_refuses_a_thread_of_a_picture():
    with pytest.raises(ImageError, match="1x100000 pixels is too narrow"):
        crop_pixels(Image.new("RGB", (1, 100_000)), 224)


def test_crop_box_of_the_readme_sample():
    # The sample of GRIT's README: 1024x693, worked out in spec section 4.3.
    outer = Box(0.019422357885505368, 0.027634161214033764, 0.9593302408854166, 0.969467560450236)
    x1, y1, x2, y2 = crop_box(outer, 1024, 693, 224)
    assert (x1, x2) == (0.0, 1.0)
    assert (round(y1, 5), round(y2, 5)) == (0.02763, 0.96947)


def test_crop_box_by_hand():
    # 400x200 becomes 200x100: the crop of 100 is columns 50..150.
    assert crop_box(Box(0.25, 0.0, 0.75, 1.0), 400, 200, 100) == Box(0.0, 0.0, 1.0, 1.0)
    assert crop_box(Box(0.5, 0.1, 0.6, 0.3), 400, 200, 100) == pytest.approx((0.5, 0.1, 0.7, 0.3))
    assert crop_box(Box(0.0, 0.0, 0.25, 1.0), 400, 200, 100) is None  # wholly outside
    assert crop_box(Box(0.0, 0.0, 0.3, 1.0), 400, 200, 100) is None  # a sixth is visible
    assert crop_box(Box(0.0, 0.0, 0.3125, 1.0), 400, 200, 100) is not None  # exactly a fifth
    assert crop_box(Box(0.4, 0.4, 0.4, 0.6), 400, 200, 100) is None  # no area
    assert crop_box(Box(0.6, 0.6, 0.4, 0.4), 400, 200, 100) is None  # both sides reversed
    assert crop_box(Box(float("nan"), 0.0, 1.0, 1.0), 400, 200, 100) is None


unit = st.floats(0, 1, width=32)


@settings(max_examples=300, deadline=None)
@given(st.tuples(unit, unit, unit, unit), st.integers(1, 3000), st.integers(1, 3000))
def test_crop_box_equals_restatement(corners, width, height):
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    scale_w, scale_h = (224, int(224 * height / width)) if width <= height else (
        int(224 * width / height), 224,
    )  # fmt: skip
    xs = np.array([x1, x2]) * scale_w - (scale_w - 224) / 2
    ys = np.array([y1, y2]) * scale_h - (scale_h - 224) / 2
    cx, cy = np.clip(xs, 0, 224), np.clip(ys, 0, 224)
    area, visible = np.prod([np.ptp(xs), np.ptp(ys)]), np.prod([np.ptp(cx), np.ptp(cy)])
    kept = crop_box(Box(x1, y1, x2, y2), width, height, 224)
    if area > 0 and abs(visible / area - 0.2) < 1e-9:
        return
    if area <= 0 or visible <= 0 or visible / area < 0.2:
        assert kept is None
    else:
        assert kept == pytest.approx((cx[0] / 224, cy[0] / 224, cx[1] / 224, cy[1] / 224))


def test_normalize_values():
    pixels = np.array([[[0, 128, 255]]], np.uint8)
    expected = [
        (value / 255 - m) / s
        for value, m, s in zip((0, 128, 255), IMAGE_MEAN, IMAGE_STD, strict=True)
    ]
    np.testing.assert_allclose(normalize(pixels)[0, 0], expected, rtol=1e-7)


def test_every_kind_of_source(tmp_path):
    image = noise(1, 9, 7)
    expected = np.asarray(image)
    path = tmp_path / "nöise.png"
    path.write_bytes(encode(image))
    with path.open("rb") as stream:
        sources = [path, str(path), path.read_bytes(), stream, image, expected, expected[:, ::-1]]
        results = [np.asarray(load_image(source)) for source in sources]
    for result in results[:-1]:
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(results[-1], expected[:, ::-1])


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for file_format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert load_image(data).getpixel((4, 4)) == (255, 0, 0), file_format


def test_odd_modes_keep_their_colours():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    grey = Image.fromarray(np.array([[0, 0x1234], [0x8000, 0xFFFF]], np.uint16))
    cases = [
        (encode(Image.new("RGB", (1, 1), (1, 2, 3))), (1, 2, 3)),
        (encode(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encode(palette, transparency=bytes([0, 255])), (200, 100, 50)),
        (encode(palette, transparency=bytes([255, 0])), (255, 255, 255)),
        (encode(palette, transparency=1), (255, 255, 255)),
        (encode(Image.new("LA", (2, 2), (77, 255))), (77, 77, 77)),
        (encode(Image.new("LA", (2, 2), (0, 51))), (204, 204, 204)),
        (encode(Image.new("RGBA", (2, 2), (9, 8, 7, 0))), (255, 255, 255)),
        (encode(Image.new("1", (2, 2), 1)), (255, 255, 255)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data, colour in cases:
            image = load_image(data)
            assert image.mode == "RGB" and image.getpixel((0, 0)) == colour
        sixteen = np.asarray(load_image(encode(grey)))
    np.testing.assert_array_equal(sixteen[..., 0], [[0, 0x12], [0x80, 0xFF]])
    assert (sixteen == sixteen[..., :1]).all()


def test_cmyk_jpeg_equals_pillow():
    data = encode(noise(3, 16, 16, "CMYK"), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(load_image(data)), expected)


def test_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encode(noise(1, 8, 4), "JPEG", exif=exif)).size == (8, 4)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a picture in a known format"),
        (b"Just some text, no picture at all.\n" * 20, "is not a picture in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, content, sentence):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=sentence) as caught:
        load_image(path)
    assert "bad.jpg" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_path_and_folder(tmp_path):
    with pytest.raises(ImageError, match="nowhere.png' does not exist"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_truncated_pictures_are_one_clear_error(file_format):
    data = encode(noise(5, 40, 30), file_format)
    for length in {0, 1, 5, 20, 60, len(data) // 4, len(data) // 2, len(data) * 3 // 4}:
        with pytest.raises(ImageError) as caught:
            load_image(data[:length])
        assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(
    file_format=st.sampled_from(("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")),
    changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_load_or_are_an_image_error(file_format, changes):
    data = bytearray(encode(noise(6, 12, 10), file_format))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        assert load_image(bytes(data)).mode == "RGB"
    except ImageError as error:
        assert str(error)


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own, from 89 megapixels
def test_hundred_megapixels_are_refused_before_decoding(monkeypatch):
    data = bytearray(encode(Image.new("L", (1, 1))))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    for width, height in ((10_000, 10_000), (20_000, 20_000)):
        header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes(data[24:29])
        data[12:33] = header + zlib.crc32(header).to_bytes(4)
        with pytest.raises(ImageError, match="smaller than 100 megapixels"):
            load_image(bytes(data))
    with pytest.raises(ImageError, match="10001x10000"):
        load_image(Image.new("1", (10_001, 10_000)))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 4), np.uint8), ((4, 4, 4), np.uint8), ((4, 4, 3), np.float32), ((0, 4, 3), np.uint8)],
)
def test_arrays_of_other_kinds_are_refused(shape, dtype):
    with pytest.raises(ImageError, match="must be uint8 of shape"):
        load_image(np.zeros(shape, dtype))


def test_floats_and_wide_integers_are_refused():
    with pytest.raises(ImageError, match="floating-point"):
        load_image(Image.new("F", (2, 2)))
    with pytest.raises(ImageError, match="more than 16 bits"):
        load_image(Image.new("I", (2, 2), 70_000))
