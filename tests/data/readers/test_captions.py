"""Captions: img2dataset's three layouts and CC3M's table give back every pair and picture."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from kosmos2_jax.data.readers import captions
from kosmos2_jax.data.readers.base import Share
from kosmos2_jax.data.skips import DataError

CAPTIONS = [
    "a snowman by a fire, \ttabbed",
    "two dogs “quoted” on the grass",
    " a corgi\n",
    "日本語の説明 🐕",
    *(f"picture {i}" for i in range(12)),
]
CLEAN = [caption.replace("\t", " ").strip() for caption in CAPTIONS]

# As img2dataset 1.47 writes with `--output_format parquet`.
SCHEMA = pyarrow.schema(
    [
        ("caption", pyarrow.string()),
        ("url", pyarrow.string()),
        ("key", pyarrow.string()),
        ("status", pyarrow.string()),
        ("error_message", pyarrow.string()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("original_width", pyarrow.int32()),
        ("original_height", pyarrow.int32()),
        ("exif", pyarrow.string()),
        ("sha256", pyarrow.string()),
        ("jpg", pyarrow.binary()),
    ]
)
FAILED = dict.fromkeys(("width", "height", "original_width", "original_height", "exif", "sha256"))


@pytest.fixture(scope="module")
def samples(picture: Callable, img2dataset_json: Callable) -> list[tuple[dict[str, Any], bytes]]:
    return [
        (img2dataset_json(f"{i:09d}", caption, (96, 80)), picture(i))
        for i, caption in enumerate(CAPTIONS)
    ]


def _check(documents: list, samples: list) -> None:
    assert [document.content for document in documents] == [{"caption": c} for c in CLEAN]
    assert [document.images for document in documents] == [(jpeg,) for _, jpeg in samples]
    assert {(document.kind, document.size) for document in documents} == {("caption", None)}


def test_webdataset_tars(
    tmp_path: Path, samples: list, write_img2dataset_tar: Callable, read: Callable
) -> None:
    path = tmp_path / "00000.tar"
    write_img2dataset_tar(path, samples)
    documents, skips = read("captions", path)
    _check(documents, samples)
    assert documents[3].key == "00000.tar:000000003"
    assert skips.reasons("test") == {"clipped: control character in caption": 2}
    halves = [read("captions", path, Share(i, 2))[0] for i in range(2)]
    assert halves[0] == documents[::2] and halves[1] == documents[1::2]


def test_folders_of_files(
    tmp_path: Path, samples: list, write_img2dataset_folder: Callable, read: Callable
) -> None:
    write_img2dataset_folder(tmp_path / "00000", samples)
    documents, _ = read("captions", tmp_path / "00000")
    _check(documents, samples)


def test_parquet(tmp_path: Path, samples: list, read: Callable) -> None:
    rows = [{**metadata, "jpg": encoded} for metadata, encoded in samples]
    failed = {**rows[0], **FAILED, "status": "failed_to_download", "jpg": None}
    lost = {**rows[0], "jpg": None}
    table = pyarrow.Table.from_pylist([*rows, failed, lost], SCHEMA)
    parquet.write_table(table, tmp_path / "00000.parquet", row_group_size=5)
    documents, skips = read("captions", tmp_path / "00000.parquet")
    _check(documents, samples)
    reasons = skips.reasons("test")
    assert reasons.pop("filtered: img2dataset could not get the picture") == 1
    assert reasons.pop("picture missing") == 1
    parquet.write_table(table.drop_columns(["jpg"]), tmp_path / "metadata.parquet")
    with pytest.raises(DataError, match="has no column 'jpg', only caption, url"):
        read("captions", tmp_path / "metadata.parquet")


def test_what_to_take_of_an_output_folder(
    tmp_path: Path,
    samples: list,
    write_img2dataset_tar: Callable,
    write_img2dataset_folder: Callable,
) -> None:
    tars, folders, tables = (tmp_path / name for name in ("tars", "folders", "tables"))
    for folder in (tars, folders, tables):
        folder.mkdir()
        (folder / "00000.parquet").write_bytes(b"")
        (folder / "00000_stats.json").write_text("{}")
    write_img2dataset_tar(tars / "00000.tar", samples)
    write_img2dataset_folder(folders / "00000", samples)

    def find(*inputs: Path) -> list[str]:
        return captions.find_img2dataset([str(path) for path in inputs])

    assert find(tars, folders) == [str(tars / "00000.tar"), str(folders / "00000")]
    assert find(tables) == [str(tables / "00000.parquet")]
    assert find(folders / "00000") == [str(folders / "00000")]
    assert find(tmp_path / "t*" / "*.tar") == [str(tars / "00000.tar")]
    for missing in (tmp_path / "nothing", tmp_path / "*.tar"):
        with pytest.raises(DataError, match="check how it is spelt"):
            find(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tar or parquet files"):
        find(tmp_path / "empty")


def test_through_the_pipeline(
    tmp_path: Path, samples: list, write_img2dataset_tar: Callable, prepare_with_beam: Callable
) -> None:
    write_img2dataset_tar(tmp_path / "00000.tar", samples)
    documents = prepare_with_beam("captions", tmp_path)
    _check(sorted(documents, key=lambda document: document.key), samples)
    table = [f"{caption}\t{i}.jpg" for i, caption in enumerate(CLEAN)]
    (tmp_path / "cc3m.tsv").write_text("\n".join(table))
    (tmp_path / "images").mkdir()
    for i, (_, encoded) in enumerate(samples):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(encoded)
    documents = prepare_with_beam(
        "captions-tsv", tmp_path / "cc3m.tsv", "--images", tmp_path / "images"
    )
    _check(sorted(documents, key=lambda d: int(d.key.rpartition(":")[2])), samples)


def test_bad_samples_are_counted_by_reason(
    tmp_path: Path, samples: list, write_tar: Callable, read: Callable
) -> None:
    jpeg = samples[0][1]

    def metadata(caption: Any) -> bytes:
        return json.dumps({"caption": caption}).encode()

    path = tmp_path / "bad.tar"
    write_tar(
        path,
        {
            "00.jpg": jpeg, "00.json": metadata("good"),
            "01.jpg": jpeg, "01.txt": b"only text",
            "02.json": metadata("no picture"),
            "03.jpg": jpeg[:-100], "03.json": metadata("cut short"),
            "04.jpg": jpeg, "04.json": metadata(" \n"),
            "05.jpg": jpeg, "05.json": metadata(None),
            "06.jpg": jpeg, "06.json": b"{",
            "07.jpg": jpeg, "07.txt": b"\xff",
            "08.jpg": jpeg, "08.json": metadata("a <image> of"),
            "09.jpg": b"", "09.json": metadata("nothing"),
            "sub/09.png": jpeg, "sub/09.txt": b"other folder",
        },
    )  # fmt: skip
    documents, skips = read("captions", path)
    assert [d.content["caption"] for d in documents] == [
        "good", "only text", "a         of", "other folder",
    ]  # fmt: skip
    assert skips.reasons("test") == {
        "broken picture": 1,
        "clipped: control character in caption": 1,
        "clipped: literal tag in caption": 1,
        "empty caption": 1,
        "empty picture": 1,
        "no string 'caption'": 1,
        "not JSON": 1,
        "not UTF-8": 1,
        "picture missing": 1,
    }


def test_names_that_are_no_utf8(tmp_path: Path, samples: list, read: Callable) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for ending, content in {"jpg": samples[0][1], "txt": b"good"}.items():
            info = tarfile.TarInfo(f"caf\udce9.{ending}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (document,), _ = read("captions", path)
    assert document.key == "0.tar:caf?"


def test_tars_cut_anywhere_give_what_is_whole(
    tmp_path: Path, samples: list, write_img2dataset_tar: Callable, read: Callable
) -> None:
    whole = tmp_path / "whole.tar"
    write_img2dataset_tar(whole, samples)
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        ends = [member.offset_data + member.size for member in tar]
        end = tar.offset
    random_places = random.Random(0).sample(range(1, end), 60)
    for place in [*random_places, *ends[:9], *(e + -e % 512 for e in ends[:9]), end, 511, 512, 0]:
        path = tmp_path / "cut.tar"
        path.write_bytes(content[:place])
        documents, skips = read("captions", path, store=place == end)
        complete = sum(e <= place for e in ends[1::3])  # picture and JSON are all that is needed
        assert len(documents) == complete, place
        assert skips.num_skipped("test") >= 1, place


def test_tars_with_broken_bytes_never_crash(
    tmp_path: Path, samples: list, write_img2dataset_tar: Callable, read: Callable
) -> None:
    whole = tmp_path / "whole.tar"
    write_img2dataset_tar(whole, samples[:6])
    rng = random.Random(1)
    for _ in range(150):
        content = bytearray(whole.read_bytes())
        for _ in range(rng.choice([1, 20, 400])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path = tmp_path / "broken.tar"
        path.write_bytes(content)
        documents, skips = read("captions", path, store=False)
        assert len(documents) <= 6


def test_parquet_with_broken_bytes_never_crashes(
    tmp_path: Path, samples: list, read: Callable
) -> None:
    rows = [{**metadata, "jpg": encoded} for metadata, encoded in samples]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), sink, row_group_size=4)
    rng = random.Random(2)
    for number in range(150):
        content = bytearray(sink.getvalue())
        for _ in range(rng.choice([1, 20, 400])):
            near_the_end = rng.randrange(2) * (len(content) - 3000)
            content[rng.randrange(near_the_end, len(content))] = rng.randrange(256)
        path = tmp_path / "broken.parquet"
        path.write_bytes(content if number % 3 else content[: rng.randrange(len(content))])
        try:
            documents, skips = read("captions", path, store=False)
        except DataError as error:
            assert "has no column" in str(error)  # its name is broken
        else:
            assert len(documents) + skips.num_skipped("test") > 0


TSV = [("a dog <PERSON> saw", 0), ("a very typical bus station", 1), ("sierra looked stunning", 2)]


def _url(i: int) -> str:
    return f"http://example.com/pictures/{i}.jpg?size=big"


@pytest.mark.parametrize("layout", ["path", "crc", "tar"])
def test_tables_of_captions(
    layout: str,
    tmp_path: Path,
    picture: Callable,
    read: Callable,
    img2dataset_json: Callable,
    write_img2dataset_tar: Callable,
) -> None:
    images = tmp_path / "training"
    images.mkdir()
    names = [f"{i}.jpg" if layout == "path" else _url(i) for i in range(3)]
    if layout == "tar":
        sample = [
            ({**img2dataset_json(str(i), "", (96, 80)), "url": _url(i)}, picture(i))
            for i in range(3)
        ]
        write_img2dataset_tar(tmp_path / "training.tar", sample)
        images = tmp_path / "training.tar"
    for i in range(3) if layout != "tar" else ():
        # The name that the download script shared by CC3M's users gives a picture.
        crc = str(zlib.crc32(_url(i).encode("utf-8")) & 0xFFFFFFFF)
        (images / (crc if layout == "crc" else names[i])).write_bytes(picture(i))
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_text("".join(f"{caption}\t{names[i]}\n" for caption, i in TSV))
    documents, skips = read("captions-tsv", path, images=str(images))
    assert [(d.content["caption"], d.images) for d in documents] == [
        (caption, (picture(i),)) for caption, i in TSV[1:]
    ]
    assert skips.reasons("test") == {"filtered: person tag": 1}
    assert len(read("captions-tsv", path, images=str(images), keep_person_tags=True)[0]) == 3


def test_bad_rows_of_tables(tmp_path: Path, picture: Callable, read: Callable) -> None:
    (tmp_path / "1.jpg").write_bytes(picture(1))
    path = tmp_path / "bad.tsv"
    path.write_bytes(
        b"good\t1.jpg\nno column\nthree\t1.jpg\t\ngone\t2.jpg\n\xff\t1.jpg\n\t1.jpg\nx\t\n"
    )
    documents, skips = read("captions-tsv", path, images=str(tmp_path))
    assert len(documents) == 1
    assert skips.reasons("test") == {
        "not two columns": 3,
        "empty caption": 1,
        "not UTF-8": 1,
        "picture missing": 1,
    }
