"""Packing: everything comes out once, whole and in the right place; rows are full."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmos2_jax.config import preset
from kosmos2_jax.data.grit import CROP, SQUARE
from kosmos2_jax.data.packing import SEQUENCES, SKIP_REASONS, Packer, RowLimits, make_row, pack
from kosmos2_jax.data.pictures import decode_picture, decode_row
from kosmos2_jax.errors import ConfigError, ImageError
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.vision.preprocessing import crop_pixels, square_pixels

LATENTS = 2


def _example(layout: Sequence[int], number: int, latents: int = LATENTS) -> dict[str, Any]:
    """Tokens of the layout, 0 for a picture; all values tell where they come from.

    Ids of 0 and weights of 0 are among them: they are no padding.
    """
    ids, weights, slots, images = [0], [0.0], [-1], []
    for part in layout:
        if part:
            first = 5 + 1000 * number + len(ids)
            ids += [0, *range(first, first + part - 1)]
            weights += [(number % 7 + 1) / 8 * (k % 3 > 0) for k in range(part)]
            slots += [-1] * part
        else:
            ids += [3] * (latents + 2)
            weights += [0.0] * (latents + 2)
            begin = len(images) * latents
            slots += [-1, *range(begin, begin + latents), -1]
            images.append(f"{number}/{len(images)}".encode())
    return {
        "targets": np.array([*ids, 2], np.int32),
        "loss_weights": np.array([*weights, 0.5], np.float32),
        "image_slots": np.array([*slots, -1], np.int32),
        "images": images,
    }


def _unpack(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the model is shown of each segment, undoing what packing does."""
    found = []
    for segment in range(1, row["segment_ids"].max() + 1):
        here = row["segment_ids"] == segment
        slots = row["image_slots"][here]
        pictures = sorted(set(slots[slots >= 0] // LATENTS))
        assert [row["image_segments"][p] for p in pictures] == [segment] * len(pictures)
        first = pictures[0] * LATENTS if pictures else 0
        found.append(
            {
                "tokens": row["tokens"][here].tolist(),
                "targets": row["targets"][here].tolist(),
                "loss_weights": row["loss_weights"][here].tolist(),
                "positions": row["positions"][here].tolist(),
                "image_slots": np.where(slots < 0, -1, slots - first).tolist(),
                "images": [row["images"][p] for p in pictures],
            }
        )
    return found


def _expected(example: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokens": example["targets"][:-1].tolist(),
        "targets": example["targets"][1:].tolist(),
        "loss_weights": example["loss_weights"][1:].tolist(),
        "positions": list(range(len(example["targets"]) - 1)),
        "image_slots": example["image_slots"][:-1].tolist(),
        "images": example["images"],
    }


LAYOUTS = st.lists(st.sampled_from([0, 0, 1, 2, 5, 9, 20]), max_size=6)
LIMITS = st.builds(
    RowLimits,
    length=st.integers(1, 60),
    images=st.integers(0, 5),
    pad_id=st.sampled_from([0, 1]),
    open_rows=st.integers(1, 5),
    slack=st.integers(0, 8),
)


@given(layouts=st.lists(LAYOUTS, max_size=25), limits=LIMITS)
@settings(max_examples=300, deadline=None)
def test_everything_comes_out_once_and_whole(layouts: list[list[int]], limits: RowLimits) -> None:
    examples = [_example(layout, number) for number, layout in enumerate(layouts)]
    fitting = [
        example
        for example in examples
        if len(example["targets"]) - 1 <= limits.length and len(example["images"]) <= limits.images
    ]
    rows = list(pack(examples, limits))
    found = [unpacked for row in rows for unpacked in _unpack(row)]
    assert sorted(map(repr, found)) == sorted(repr(_expected(example)) for example in fitting)
    for row in rows:
        segments = row["segment_ids"]
        # Segments lie side by side in order, padding behind them.
        used = segments[segments > 0]
        assert (np.diff(used) >= 0).all() and set(used) == set(range(1, used.max() + 1))
        empty = segments == 0
        assert not empty[: used.size].any()
        assert (row["tokens"][empty] == limits.pad_id).all()
        assert (row["targets"][empty] == limits.pad_id).all()
        assert not row["loss_weights"][empty].any() and not row["positions"][empty].any()
        assert (row["image_slots"][empty] == -1).all()
        assert len(row["images"]) == (row["image_segments"] > 0).sum()
        assert (row["image_segments"][len(row["images"]) :] == 0).all()


@given(layouts=st.lists(LAYOUTS, max_size=25), limits=LIMITS, cut=st.integers(0, 25))
@settings(max_examples=100, deadline=None)
def test_a_packer_goes_on_where_another_was(
    layouts: list[list[int]], limits: RowLimits, cut: int
) -> None:
    examples = [_example(layout, number) for number, layout in enumerate(layouts)]
    whole, first = Packer(limits), Packer(limits)
    rows = [row for example in examples for row in whole.add(example)]
    parts = [row for example in examples[:cut] for row in first.add(example)]
    second = Packer(limits, first.open, first.counts)
    parts += [row for example in examples[cut:] for row in second.add(example)]
    np.testing.assert_equal(parts + second.flush(), rows + whole.flush())
    assert second.counts.tolist() == whole.counts.tolist()


def test_golden_row() -> None:
    """Worked out by hand: two examples, the second with two pictures, in a row of 20."""
    text = {
        "targets": np.array([0, 7, 0, 2], np.int32),
        "loss_weights": np.array([0, 0.5, 0, 0.25], np.float32),
        "image_slots": np.full(4, -1, np.int32),
        "images": [],
    }
    page = {
        "targets": np.array([0, 3, 4, 4, 5, 9, 3, 4, 4, 5, 8, 2], np.int32),
        "loss_weights": np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1], np.float32),
        "image_slots": np.array([-1, -1, 0, 1, -1, -1, -1, 2, 3, -1, -1, -1], np.int32),
        "images": ["a", "b"],
    }
    row = make_row([page, {**text, "note": b"of the text"}, page], RowLimits(26, 5))
    assert row.pop("notes") == [b"", b"of the text", b""]
    assert {name: values.tolist() for name, values in row.items() if name != "images"} == {
        "tokens": [0, 3, 4, 4, 5, 9, 3, 4, 4, 5, 8, 0, 7, 0, 0, 3, 4, 4, 5, 9, 3, 4, 4, 5, 8, 1],
        "targets": [3, 4, 4, 5, 9, 3, 4, 4, 5, 8, 2, 7, 0, 2, 3, 4, 4, 5, 9, 3, 4, 4, 5, 8, 2, 1],
        "loss_weights": [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0.5, 0, 0.25]
        + [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0],
        "positions": [*range(11), 0, 1, 2, *range(11), 0],
        "segment_ids": [1] * 11 + [2] * 3 + [3] * 11 + [0],
        "image_slots": [-1, -1, 0, 1, -1, -1, -1, 2, 3, -1, -1, -1, -1, -1]
        + [-1, -1, 4, 5, -1, -1, -1, 6, 7, -1, -1, -1],
        "image_segments": [1, 1, 3, 3, 0],
    }
    assert row["images"] == ["a", "b", "a", "b"]
    assert {n: v.dtype.name for n, v in row.items() if n != "images"} == {
        **dict.fromkeys(row.keys() - {"images"}, "int32"),
        "loss_weights": "float32",
    }


def test_what_fits_no_row_is_counted_by_reason() -> None:
    limits = RowLimits(length=12, images=1, slack=0)
    packer = Packer(limits)
    nothing = {**_example([3], 4), "loss_weights": np.zeros(5, np.float32)}
    for example in [
        _example([10], 0),  # `<s>` and 10 ids predict 10 ids and `</s>`: 11 places
        _example([11], 1),
        _example([12], 2),
        _example([0, 0, 1], 3),
        nothing,
        {name: values[:1] for name, values in _example([1], 5).items()},
    ]:
        packer.add(example)
    assert packer.counts.tolist() == [2, 1, 1, 2]
    assert len(SKIP_REASONS) == 3
    assert len(packer.flush()) == 1  # the row of 12 left when it was full


def test_rows_leave_when_full_or_oldest() -> None:
    packer = Packer(RowLimits(length=10, images=0, open_rows=2, slack=0))
    assert packer.add(_example([5], 0)) == []  # 6 of 10
    assert packer.add(_example([7], 1)) == []  # 8 of 10
    assert packer.add(_example([1], 2)) == []  # first fit: 8 of 10
    (oldest,) = packer.add(_example([6], 3))
    assert oldest["segment_ids"].max() == 2
    (full,) = packer.add(_example([1], 4))
    assert full["segment_ids"].tolist() == [1] * 8 + [2] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"image_slots": np.full(8, -1, np.int32)},
        {"images": [b"1", b"2", b"3"]},
        {"images": []},
        {"loss_weights": np.ones(7, np.float32)},
    ],
)
def test_contradictory_features_are_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pictures and"):
        Packer(RowLimits(20, 4)).add({**_example([0, 2], 0), **changes})


@pytest.mark.parametrize("name", ["length", "images", "open_rows", "slack"])
def test_limits_must_make_sense(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        RowLimits(**{"length": 8, "images": 1, name: -1})


def _papers_lengths(count: int, seed: int) -> list[dict[str, Any]]:
    """Captions of 10 to 60 words, text of up to 2,048 tokens, pages of 1 to 5 pictures."""
    rng = np.random.default_rng(seed)
    examples = []
    for number, kind in enumerate(rng.choice(3, count, p=np.array([93, 2234, 47]) / 2374)):
        if kind == 0:
            layout = [int(np.clip(rng.lognormal(6.0, 1.0), 20, 2046))]
        elif kind == 1:
            layout = [0, int(rng.integers(10, 61) * 1.3)]
        else:
            pictures = int(rng.integers(1, 6))
            layout = [0, int(np.clip(rng.lognormal(4.5, 0.8), 10, 300))] * pictures
        examples.append(_example(layout, number % 1000, latents=64))
    return examples


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_of_the_papers_lengths_are_full(seed: int) -> None:
    limits = RowLimits(length=2048, images=24)
    rows = list(pack(_papers_lengths(4000, seed), limits))
    assert np.mean([row["segment_ids"] > 0 for row in rows]) >= 0.98
    # What waits at a time is bounded, and so is how unfull the last rows make it.
    assert np.mean([row["segment_ids"] > 0 for row in rows[: -limits.open_rows]]) >= 0.983


def _jpeg(pixels: np.ndarray, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_pictures_of_the_training_size_are_decoded_and_nothing_else(subsampling: int) -> None:
    encoded = _jpeg(_noise(np.random.default_rng(0), 48, 48), quality=90, subsampling=subsampling)
    plain = Image.open(io.BytesIO(encoded)).convert("RGB").resize((48, 48), Image.BICUBIC)
    for mode in (CROP, SQUARE):
        np.testing.assert_array_equal(decode_picture(encoded, 48, mode), np.asarray(plain))


def test_pictures_of_other_sizes_are_resized_as_the_reference_does() -> None:
    encoded = _jpeg(_noise(np.random.default_rng(0), 60, 90))
    image = Image.open(io.BytesIO(encoded))
    np.testing.assert_array_equal(decode_picture(encoded, 32, SQUARE), square_pixels(image, 32))
    np.testing.assert_array_equal(decode_picture(encoded, 32, CROP), crop_pixels(image, 32))
    with pytest.raises(ConfigError, match="'circle'"):
        decode_picture(encoded, 32, "circle")


def test_uncompressed_pictures_are_pictures_too() -> None:
    """As drawn scenes hand theirs over: a header and the pixels."""
    pixels = _noise(np.random.default_rng(0), 8, 8)
    np.testing.assert_array_equal(decode_picture(b"P6 8 8 255\n" + pixels.tobytes(), 8), pixels)


@pytest.mark.parametrize("damage", [b"", b"no picture", 0.5])
def test_nothing_is_learnt_of_a_broken_picture(damage: bytes | float) -> None:
    good = _jpeg(_noise(np.random.default_rng(1), 16, 16))
    broken = damage if isinstance(damage, bytes) else good[: int(len(good) * damage)]
    with pytest.raises(ImageError):
        decode_picture(broken, 16)
    examples = [_example([0, 4, 0, 3], 1), _example([6], 2), _example([0, 5], 3)]
    examples[0]["images"] = [good, broken]
    examples[2]["images"] = [good]
    row = make_row(examples, RowLimits(64, 4))
    weights = row["loss_weights"].copy()
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    assert decode_row(row, pixels) == 1
    spoilt = row["segment_ids"] == 1
    assert weights[spoilt].any() and not row["loss_weights"][spoilt].any()
    np.testing.assert_array_equal(row["loss_weights"][~spoilt], weights[~spoilt])
    expected = decode_picture(good, 16)
    np.testing.assert_array_equal(pixels, [expected, 0 * expected, expected, 0 * expected])


def test_packed_and_unpacked_training_agree() -> None:
    """256 examples, one a row and packed: the same loss and gradients to 1e-5 (spec 4.5)."""
    # As shallow as may be: nearly all time goes into compiling.
    config = preset("tiny").replace(vision={"num_layers": 1}, decoder={"num_layers": 2})
    model = Kosmos2Model(config)
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    latents, size = config.resampler.num_latents, config.vision.image_size
    examples = []
    for number in range(256):
        pictures = int(rng.choice([0, 1, 1, 1, 2, 3]))
        layout = [part for _ in range(pictures) for part in (0, int(rng.integers(1, 9)))]
        example = _example(layout or [int(rng.integers(1, 20))], number, latents)
        example["targets"] %= config.decoder.vocab_size
        example["images"] = [_jpeg(_noise(rng, size, size), quality=95) for _ in example["images"]]
        examples.append(example)

    limits = RowLimits(64, 5, slack=0)
    step = jax.jit(jax.value_and_grad(model.loss_fn, has_aux=True))

    def sums(rows: list[dict[str, Any]]) -> tuple[float, float, list[Any]]:
        found = []
        for start in range(0, len(rows), 16):
            chunk = rows[start : start + 16]
            chunk += [make_row((), limits)] * (16 - len(chunk))
            pixels = np.zeros((16, limits.images, size, size, 3), np.uint8)
            assert not any(decode_row(*pair) for pair in zip(chunk, pixels, strict=True))
            batch = {name: np.stack([row[name] for row in chunk]) for name in SEQUENCES}
            (loss, aux), gradients = step(params, {**batch, "images": pixels})
            found.append([loss, aux["weight"], *jax.tree.leaves(gradients)])
        loss, weight, *gradients = (np.sum(parts, axis=0) for parts in zip(*found, strict=True))
        return loss, weight, gradients

    packed = list(pack(examples, limits))
    assert np.mean([row["segment_ids"].max() for row in packed]) > 3
    loss, weight, gradients = sums(packed)
    one_loss, one_weight, one_gradients = sums([make_row([e], limits) for e in examples])
    assert weight == pytest.approx(one_weight, rel=1e-6)
    assert loss == pytest.approx(one_loss, rel=1e-5)
    # Biases of keys have a gradient of 0 but for rounding, hence a floor.
    floor = 1e-4 * np.sqrt(sum(np.sum(g**2) for g in one_gradients))
    for ours, theirs in zip(gradients, one_gradients, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * max(np.linalg.norm(theirs), floor)
