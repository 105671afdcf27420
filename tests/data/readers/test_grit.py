"""GRIT: img2dataset's output and the official table give back every phrase, box and picture."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from kosmos2_jax.data.readers import grit
from kosmos2_jax.data.readers.pictures import PictureRules
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.vision.preprocessing import load_image

# The sample of GRIT's documentation (spec sections 4.3 and 6).
HANGER = "a wire hanger with a paper cover that reads we heart our customers"
HANGER_CHUNKS = [
    [19, 32, 0.019644069503434333, 0.310540040334, 0.9622142865754519, 0.9603442351023356, 0.79],
    [0, 13, 0.019422357885505368, 0.027634161214033, 0.9593302408854166, 0.969467560450236, 0.67],
]  # fmt: skip
HANGER_EXPRESSIONS = [[19, 66, *HANGER_CHUNKS[0][2:]], [0, 66, *HANGER_CHUNKS[1][2:]]]
DOGS = "two dogs “quoted” on the grass"
DOGS_CHUNKS = [[0, 8, 0.1, 0.2, 0.3, 0.4, 0.7], [0, 8, 0.5, 0.2, 1.0, 0.4, 0.66]]

ROWS = [
    (HANGER, HANGER_CHUNKS, HANGER_EXPRESSIONS, (102, 69)),
    (DOGS, DOGS_CHUNKS, DOGS_CHUNKS, (96, 80)),
    (f"\t{DOGS}", [[1, 9, 0.0, 0.0, 1.0, 1.0, 1.0]], [], (64, 64)),
]


def _floats(annotations: list[list[float]]) -> list[list[float]]:
    """As img2dataset makes them: lists of doubles."""
    return [[float(v) for v in annotation] for annotation in annotations]


def _content(i: int) -> dict[str, Any]:
    caption, chunks, expressions, _ = ROWS[i]
    return {
        "caption": caption.replace("\t", " "),
        "noun_chunks": chunks,
        "ref_exps": expressions,
    }


def _check(documents: list, pictures: list[bytes]) -> None:
    assert [document.content for document in documents] == [_content(i) for i in range(len(ROWS))]
    for document, row in zip(documents, ROWS, strict=True):
        offsets = [a[:2] for a in document.content["noun_chunks"]]
        assert all(isinstance(offset, int) for pair in offsets for offset in pair)
        assert (document.kind, document.size) == ("grounded", row[3])
    assert [document.images for document in documents] == [(encoded,) for encoded in pictures]


@pytest.fixture(scope="module")
def pictures(picture: Callable) -> list[bytes]:
    return [picture(i, size) for i, (*_, size) in enumerate(ROWS)]


@pytest.fixture(scope="module")
def samples(pictures: list[bytes], img2dataset_json: Callable) -> list[tuple[dict, bytes]]:
    return [
        (
            img2dataset_json(
                f"{i:09d}",
                caption,
                size,
                id=str(i),
                noun_chunks=_floats(chunks),
                ref_exps=_floats(expressions),
                clip_similarity_vitb32=0.3,
                clip_similarity_vitl14=0.2,
            ),
            encoded,
        )
        for i, ((caption, chunks, expressions, size), encoded) in enumerate(
            zip(ROWS, pictures, strict=True)
        )
    ]


@pytest.mark.parametrize("layout", ["tar", "folder", "parquet"])
def test_output_of_img2dataset(
    layout: str,
    tmp_path: Path,
    samples: list,
    pictures: list[bytes],
    read: Callable,
    write_img2dataset_tar: Callable,
    write_img2dataset_folder: Callable,
) -> None:
    path = tmp_path / "00000"
    if layout == "tar":
        path = tmp_path / "00000.tar"
        write_img2dataset_tar(path, samples)
    elif layout == "folder":
        write_img2dataset_folder(path, samples)
    else:
        path = tmp_path / "00000.parquet"
        rows = [{**metadata, "jpg": encoded} for metadata, encoded in samples]
        table = pyarrow.Table.from_pylist(rows)
        nested = pyarrow.list_(pyarrow.list_(pyarrow.float64()))
        assert table.schema.field("noun_chunks").type == nested  # as the tool has it
        parquet.write_table(table, path)
    documents, skips = read("grit", path)
    _check(documents, pictures)
    assert skips.reasons("test") == {
        "clipped: offset written as a float": 9,
        "clipped: control character in caption": 1,
    }


def test_pictures_that_lost_their_shape_are_skipped(
    tmp_path: Path, samples: list, read: Callable, write_img2dataset_tar: Callable
) -> None:
    """img2dataset's default is to pad to a square, after which no box fits."""
    path = tmp_path / "00000.tar"
    padded = [
        ({**metadata, "original_width": 1200, "original_height": 602}, jpeg)
        for metadata, jpeg in samples
    ]
    write_img2dataset_tar(path, [*padded, samples[1]])
    documents, skips = read("grit", path)
    assert [document.content["caption"] for document in documents] == [DOGS]
    assert skips.reasons("test")["picture padded or cropped after its boxes were made"] == 3


def test_size_is_that_before_the_picture_was_made_smaller(
    tmp_path: Path, samples: list, read: Callable, write_img2dataset_tar: Callable
) -> None:
    path = tmp_path / "00000.tar"
    write_img2dataset_tar(path, samples)
    documents, _ = read("grit", path, pictures=PictureRules("short", 28))
    assert [load_image(document.images[0]).size for document in documents] == [
        (41, 28),
        (33, 28),
        (28, 28),
    ]
    assert [document.size for document in documents] == [size for *_, size in ROWS]


def test_parquet_without_annotations_is_an_error(
    tmp_path: Path, samples: list, read: Callable
) -> None:
    rows = [{"caption": metadata["caption"], "jpg": encoded} for metadata, encoded in samples]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "00000.parquet")
    with pytest.raises(DataError, match="no column 'noun_chunks'"):
        read("grit", tmp_path / "00000.parquet")


def test_captions_without_annotations_are_kept_on_demand(
    tmp_path: Path, picture: Callable, read: Callable, write_tar: Callable
) -> None:
    path = tmp_path / "00000.tar"
    metadata = json.dumps({"caption": "plain", "noun_chunks": None}).encode()
    write_tar(path, {"0.jpg": picture(0), "0.json": metadata})
    assert read("grit", path)[1].reasons("test") == {"no usable annotation": 1}
    (document,), _ = read("grit", path, keep_without_boxes=True)
    assert document.content == {"caption": "plain", "noun_chunks": [], "ref_exps": []}


def _tsv_row(row: tuple, encoded: bytes) -> str:
    """As the official `prepare_grit.py` writes it, which escapes nothing."""
    caption, chunks, expressions, (width, height) = row
    return "\t".join(
        [
            hashlib.md5(encoded).hexdigest(),
            caption,
            base64.b64encode(encoded).decode(),
            str(width),
            str(height),
            str({"phrase": _floats(chunks), "expression_v1": _floats(expressions)}),
        ]
    )


def test_official_table(tmp_path: Path, pictures: list[bytes], read: Callable) -> None:
    path = tmp_path / "coyo_filtered_tsvs_v1_0.tsv"
    rows = [_tsv_row(row, encoded) for row, encoded in zip(ROWS, pictures, strict=True)]
    path.write_text("\n".join(rows) + "\n")
    documents, skips = read("grit-tsv", path)
    _check(documents, pictures)
    assert documents[1].key == f"{path.name}:1"
    assert skips.reasons("test") == {
        "clipped: offset written as a float": 9,
        "clipped: control character in caption": 1,
    }
    documents, skips = read("grit-tsv", path, min_side=69)
    assert len(documents) == 2
    assert skips.reasons("test")["filtered: picture below the least side"] == 1


def test_through_the_pipeline(
    tmp_path: Path,
    samples: list,
    pictures: list[bytes],
    write_img2dataset_tar: Callable,
    prepare_with_beam: Callable,
) -> None:
    write_img2dataset_tar(tmp_path / "00000.tar", samples)
    rows = [_tsv_row(row, encoded) for row, encoded in zip(ROWS, pictures, strict=True)]
    (tmp_path / "0.tsv").write_text("\n".join(rows))
    for name, file in [("grit", "00000.tar"), ("grit-tsv", "0.tsv")]:
        documents = prepare_with_beam(name, tmp_path / file)
        _check(sorted(documents, key=lambda document: document.key), pictures)
    smaller = ("--image-mode", "square", "--image-size", 32)
    documents = prepare_with_beam("grit", tmp_path / "00000.tar", *smaller)
    assert {load_image(document.images[0]).size for document in documents} == {(32, 32)}
    assert {document.size for document in documents} == {size for *_, size in ROWS}


def test_bad_rows_of_the_official_table(tmp_path: Path, pictures: list, read: Callable) -> None:
    good = _tsv_row(ROWS[1], pictures[1])
    columns = good.split("\t")

    def row(**changes: str) -> str:
        names = ("md5", "caption", "picture", "width", "height", "boxes")
        return "\t".join(changes.get(n, c) for n, c in zip(names, columns, strict=True))

    rows = [
        good,
        row(caption="two dogs\n on the grass"),
        row(picture="?" + columns[2][1:]),
        row(picture=columns[2][:400]),
        row(boxes="{'phrase': __import__('os').getcwd()}"),
        row(boxes="{'phrase': [[0, 8, nan, 0, 1, 1, 1]]}"),
        row(boxes="{'phrase': [[0, 8, 1e999, 0, 1, 1, 1]]}"),
        row(boxes="[" * 5000),
        row(boxes="{" + " " * grit.MAX_LITERAL + "}"),
        row(boxes="[1]"),
        row(boxes="{}"),
        row(width="None"),
        "\t".join(columns[:5]),
        row(caption=""),
    ]
    path = tmp_path / "0.tsv"
    path.write_text("\n".join(rows))
    documents, skips = read("grit-tsv", path, min_side=50)
    assert len(documents) == 1
    reasons = skips.reasons("test")
    assert reasons.pop("clipped: offset written as a float") == 12
    assert reasons == {
        "not six columns": 3,  # two halves, and one without annotations
        "annotations malformed": 4,
        "no usable annotation": 2,
        "annotations too long": 1,
        "broken picture": 1,
        "clipped: dropped: coordinate or score is not a finite number": 1,
        "empty caption": 1,
        "filtered: width or height no number": 1,
        "picture not base64": 1,
    }


BOX = [0.1, 0.2, 0.8, 0.9]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ([0, 3, *BOX, 0.9], None),
        ([0.0, 3.0, *BOX, 0.9], "clipped: offset written as a float"),
        ([0.5, 3, *BOX, 0.9], "clipped: dropped: offset is not a whole number"),
        ([3, 0, *BOX, 0.9], "clipped: dropped: offsets are swapped"),
        ([0, 99, *BOX, 0.9], "clipped: dropped: offset is outside the caption"),
        ([-1, 3, *BOX, 0.9], "clipped: dropped: offset is outside the caption"),
        ([3, 4, *BOX, 0.9], "clipped: dropped: phrase is empty"),
        ([2, 2, *BOX, 0.9], "clipped: dropped: phrase is empty"),
        ([0, 3, 0.8, 0.2, 0.1, 0.9, 0.9], "clipped: dropped: box is reversed or without area"),
        ([0, 3, 0.1, 0.2, 0.1, 0.9, 0.9], "clipped: dropped: box is reversed or without area"),
        ([0, 3, 100, 20, 500, 90, 0.9], "clipped: dropped: box is outside the picture"),
        ([0, 3, *BOX, math.nan], "clipped: dropped: coordinate or score is not a finite number"),
        ([0, 3, *BOX], "clipped: dropped: annotation is not a list of seven numbers"),
        ([0, "3", *BOX, 1], "clipped: dropped: annotation is not a list of seven numbers"),
        ("0 3", "clipped: dropped: annotation is not a list of seven numbers"),
        ([10**400, 3, *BOX, 1], "clipped: dropped: offset is outside the caption"),
    ],
)  # fmt: skip
def test_annotations_one_by_one(annotation: Any, reason: str | None) -> None:
    noted: list[str] = []
    found = grit.parse_annotations([annotation], "dog and cat", noted.append)
    assert noted == ([reason] if reason else [])
    dropped = reason is not None and "dropped" in reason
    assert found == ([] if dropped else [[0, 3, *BOX, 0.9]])
