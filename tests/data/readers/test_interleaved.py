"""MMC4 and OBELICS: every picture at its place in the text again, by Kosmos-1's filters."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from kosmos2_jax.data.readers import interleaved
from kosmos2_jax.data.readers.interleaved import PictureLink
from kosmos2_jax.data.readers.pictures import PictureRules
from kosmos2_jax.data.skips import DataError, Unusable
from kosmos2_jax.vision.preprocessing import load_image

ALL = {"keep_one_picture_pages": 1.0}


def _page(sentences: list[str], places: list[int], number: int = 0) -> dict[str, Any]:
    """A page as MMC4's own files have it (its documentation's sample, shortened)."""
    return {
        "text_list": sentences,
        "url": f"http://www.example.com/{number}.html",
        "image_info": [
            {
                "face_detections": None,
                "image_name": f"{number:04x}{i:08x}.jpg",
                "matched_sim": 0.27694183588027954,
                "matched_text_index": place,
                "raw_url": f"http://www.example.com/{number}/{i}.jpg",
            }
            for i, place in enumerate(places)
        ],
        "similarity_matrix": [[0.25] * len(sentences) for _ in places],
        "could_have_url_duplicate": 0,
    }


PAGES = [
    _page(["Press the lock.", "It locks.\tAll doors.", "Look."], [2, 1], 0),
    _page(["“Only one.”", "", "More."], [0], 1),
    _page(["A", "B"], [0, 0, 1], 2),
]
PARTS = [
    ["Press the lock.", 0, "It locks.\tAll doors.", 1, "Look."],
    [0, "“Only one.” More."],
    [0, 1, "A", 2, "B"],
]
# Numbers of the pictures in reading order: of page 0 the second one comes first.
ORDER = [[1, 0], [0], [0, 1, 2]]


def _picture_of(picture: Callable, page: int, number: int) -> bytes:
    return picture(10 * page + number)


def _all_pictures(picture: Callable) -> dict[str, bytes]:
    return {
        info["image_name"]: _picture_of(picture, number, i)
        for number, page in enumerate(PAGES)
        for i, info in enumerate(page["image_info"])
    }


def _check(documents: list, picture: Callable) -> None:
    assert [document.content["parts"] for document in documents] == PARTS
    assert [document.images for document in documents] == [
        tuple(_picture_of(picture, page, i) for i in order) for page, order in enumerate(ORDER)
    ]
    assert {(document.kind, document.size) for document in documents} == {("interleaved", None)}


@pytest.mark.parametrize("layout", ["folder", "tar", "img2dataset"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mmc4(
    zipped: bool,
    layout: str,
    tmp_path: Path,
    picture: Callable,
    read: Callable,
    write_tar: Callable,
    write_img2dataset_tar: Callable,
    img2dataset_json: Callable,
) -> None:
    name = "docs_no_face_shard_3_v2.jsonl"
    content = "".join(json.dumps(page) + "\n" for page in PAGES).encode()
    path = tmp_path / name
    path.write_bytes(content)
    if zipped:  # as it is published
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
    where = "images_{shard}.tar"
    if layout == "folder":  # as MMC4's own download script names it
        where = "{stem}_images"
        (tmp_path / "docs_no_face_shard_3_v2_images").mkdir()
        for file, encoded in _all_pictures(picture).items():
            (tmp_path / "docs_no_face_shard_3_v2_images" / file).write_bytes(encoded)
    elif layout == "tar":
        write_tar(tmp_path / "images_3.tar", _all_pictures(picture))
    else:
        samples = [
            ({**img2dataset_json(f"{n}{i}", "", (96, 80)), "url": info["raw_url"]}, encoded)
            for n, page in enumerate(PAGES)
            for i, info in enumerate(page["image_info"])
            for encoded in [_picture_of(picture, n, i)]
        ]
        write_img2dataset_tar(tmp_path / "images_3.tar", samples)
    documents, skips = read("mmc4", path, images=str(tmp_path / where), **ALL)
    _check(documents, picture)
    assert skips.reasons("test") == {}
    assert documents[2].key == f"{path.name}:2"


def _obelics_rows(make_picture: Callable[[int, int], Any]) -> list[dict[str, Any]]:
    """The pages as OBELICS has them: at each place a picture or a text."""
    rows = []
    for number, parts in enumerate(PARTS):
        order = iter(ORDER[number])
        images = [None if isinstance(p, str) else make_picture(number, next(order)) for p in parts]
        texts = [part if isinstance(part, str) else None for part in parts]
        metadata = json.dumps([None if image is None else {} for image in images])
        rows.append(
            {"images": images, "metadata": metadata, "general_metadata": "{}", "texts": texts}
        )
    return rows


@pytest.mark.parametrize("layout", ["bytes", "struct", "tar", "img2dataset"])
def test_obelics(
    layout: str,
    tmp_path: Path,
    picture: Callable,
    read: Callable,
    write_tar: Callable,
    write_img2dataset_tar: Callable,
    img2dataset_json: Callable,
) -> None:
    def make_picture(page: int, i: int) -> Any:
        encoded = _picture_of(picture, page, i)
        if layout == "bytes":
            return encoded
        if layout == "struct":  # as a list of datasets.Image is stored
            return {"bytes": encoded, "path": None}
        info = PAGES[page]["image_info"][i]
        return info["image_name"] if layout == "tar" else info["raw_url"]

    path = tmp_path / "train-00003-of-01335.parquet"
    options = dict(ALL)
    if layout == "tar":
        write_tar(tmp_path / "train-00003-of-01335.tar", _all_pictures(picture))
        options["images"] = str(tmp_path / "{stem}.tar")
    elif layout == "img2dataset":
        samples = [
            ({**img2dataset_json(f"{n}{i}", "", (96, 80)), "url": info["raw_url"]}, encoded)
            for n, page in enumerate(PAGES)
            for i, info in enumerate(page["image_info"])
            for encoded in [_picture_of(picture, n, i)]
        ]
        write_img2dataset_tar(tmp_path / "00000.tar", samples)
        options["images"] = str(tmp_path / "*.tar")
    parquet.write_table(pyarrow.Table.from_pylist(_obelics_rows(make_picture)), path)
    documents, skips = read("obelics", path, **options)
    _check(documents, picture)
    assert skips.reasons("test") == {}


def test_through_the_pipeline(
    tmp_path: Path, picture: Callable, write_tar: Callable, prepare_with_beam: Callable
) -> None:
    (tmp_path / "shard_3.jsonl").write_text("".join(json.dumps(page) + "\n" for page in PAGES))
    write_tar(tmp_path / "shard_3.tar", _all_pictures(picture))
    rows = _obelics_rows(lambda page, i: PAGES[page]["image_info"][i]["image_name"])
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "shard_3.parquet")
    for name, file in [("mmc4", "shard_3.jsonl"), ("obelics", "shard_3.parquet")]:
        documents = prepare_with_beam(
            name, tmp_path / file, "--images", tmp_path / "shard_{shard}.tar",
            "--keep-one-picture-pages", 1,
        )  # fmt: skip
        _check(sorted(documents, key=lambda document: document.key), picture)


def test_obelics_of_links_alone_keeps_nothing(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "0.parquet"
    rows = _obelics_rows(lambda page, i: f"http://www.example.com/{page}/{i}.jpg")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    documents, skips = read("obelics", path)
    assert not documents
    assert skips.reasons("test") == {
        "clipped: left out of a page: picture missing": 6,
        "filtered: page without a picture left": 3,
    }
    with pytest.raises(DataError, match="Nothing of source 'test'"):
        skips.check()
    with pytest.raises(DataError, match="no column 'text', only images, metadata"):
        read("obelics", path, texts_column="text")


def _flat() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (100, 100), "navy").save(stream, "JPEG")
    return stream.getvalue()


def test_filters_of_pictures_and_pages(tmp_path: Path, picture: Callable, read: Callable) -> None:
    good = [picture(i) for i in range(7)]
    images = [picture(90, (63, 200)), _flat(), good[0][:-80], b"", *good]
    path = tmp_path / "0.parquet"
    rows = [
        {"images": [*images, None], "texts": [None] * len(images) + ["after"]},
        {"images": [None], "texts": ["no picture"]},
        {"images": [good[0]], "texts": [None]},
        {"images": [_flat(), None], "texts": [None, "only a flat one"]},
        {"images": [good[1]], "texts": ["both at a place"]},
        {"images": [good[1]], "texts": ["too", "long"]},
        {"images": None, "texts": ["null"]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    documents, skips = read("obelics", path, **ALL)
    assert [document.content["parts"] for document in documents] == [
        [0, 1, 2, 3, 4, "after"],
        [0, "both at a place"],
    ]
    assert documents[0].images == tuple(good[:5])
    assert skips.reasons("test") == {
        "filtered: page without a picture left": 2,
        "filtered: picture beyond the number for a page": 2,
        "filtered: picture of a single colour": 2,
        "images and texts are not lists of one length": 2,
        "clipped: left out of a page: broken picture": 1,
        "clipped: left out of a page: empty picture": 1,
        "filtered: picture below the least side": 1,
        "page without text": 1,
    }
    documents, _ = read(
        "obelics", path, min_picture_side=0, keep_single_coloured=True, max_pictures=99, **ALL
    )
    assert documents[0].images == (images[0], images[1], *good)


def test_half_of_the_pages_with_one_picture_are_kept(
    tmp_path: Path, picture: Callable, read: Callable
) -> None:
    rows = [{"images": [picture(0), None], "texts": [None, f"page {i}"]} for i in range(400)]
    rows += [{"images": [picture(0)] * 2 + [None], "texts": [None] * 2 + ["two"]}] * 10
    path = tmp_path / "0.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    documents, skips = read("obelics", path)
    assert 160 < len(documents) - 10 < 240
    assert skips.reasons("test") == {"filtered: page with one picture": 410 - len(documents)}
    skips.check()  # what a recipe leaves out is not bad
    assert read("obelics", path)[0] == documents
    assert len(read("obelics", path, keep_one_picture_pages=0.0)[0]) == 10


def test_pictures_of_pages_are_made_smaller(
    tmp_path: Path, picture: Callable, read: Callable
) -> None:
    rows = [{"images": [picture(0, (300, 200)), None], "texts": [None, "text"]}]
    path = tmp_path / "0.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (document,), _ = read("obelics", path, pictures=PictureRules("short", 100), **ALL)
    assert load_image(document.images[0]).size == (150, 100)


@pytest.mark.parametrize(
    ("change", "parts", "reason"),
    [
        ({"text_list": ["a", 3]}, None, "text_list is not a list of strings"),
        ({"text_list": "ab"}, None, "text_list is not a list of strings"),
        ({"image_info": {}}, None, "image_info is not a list"),
        ({"image_info": ["x"]}, ["a b"], "clipped: left out of a page: picture without a name"),
        (
            {"image_info": [{"image_name": "x", "matched_text_index": 2}]},
            ["a b"],
            "clipped: left out of a page: picture without a place",
        ),
        (
            {"text_list": ["a", "<image\uff1e", "b"]},
            ["a b"],
            "clipped: left out of a page: disguised tag in text of a page",
        ),
        (
            {"image_info": [{"image_name": "x", "matched_text_index": 1}]},
            ["a", PictureLink(("x",)), "b"],
            None,
        ),
    ],
)
def test_pages_of_mmc4_one_by_one(change: dict, parts: list | None, reason: str | None) -> None:
    noted: list[str] = []
    raw = json.dumps({"text_list": ["a", "b"], "image_info": [], **change}).encode()
    try:
        assert interleaved.parse_mmc4(raw, noted.append) == parts
    except Unusable as problem:
        assert parts is None
        noted.append(problem.reason)
    assert noted == ([reason] if reason else [])
