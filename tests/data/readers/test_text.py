"""Text: every document of JSON lines, plain files and tensorflow-datasets is found again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from kosmos2_jax.data.readers import files, text
from kosmos2_jax.data.readers.base import Share
from kosmos2_jax.data.skips import DataError

TEXTS = [f"Document {i}.\nIts second line is “{'long ' * (i % 7)}”.\n\tEnd" for i in range(40)]


def _zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK = {"": bytes, ".gz": gzip.compress, ".zst": _zstd}


def _jsonl(texts: list[str]) -> bytes:
    """As the Pile is: no ASCII escapes, further fields."""
    lines = [json.dumps({"text": t, "meta": {"pile_set_name": "x"}}) for t in texts]
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize("ending", PACK)
def test_json_lines(ending: str, tmp_path: Path, read: Callable) -> None:
    path = tmp_path / f"00.jsonl{ending}"
    path.write_bytes(PACK[ending](_jsonl(TEXTS)))
    documents, skips = read("jsonl", path)
    assert [document.content for document in documents] == [{"text": t} for t in TEXTS]
    assert {document.kind for document in documents} == {"text"}
    assert documents[7].key == f"{path.name}:7"
    assert skips.reasons("test") == {}


def test_through_the_pipeline(tmp_path: Path, tfds_dir: Path, prepare_with_beam: Callable) -> None:
    (tmp_path / "00.jsonl.zst").write_bytes(_zstd(_jsonl(TEXTS)))
    (tmp_path / "00.txt").write_text("\n***\n".join(TEXTS))
    sources = {
        "jsonl": (tmp_path / "00.jsonl.zst",),
        "plain": (tmp_path / "00.txt", "--separator", "***"),
        "tfds": (Path("little_wiki"), "--data-dir", tfds_dir),
    }
    for name, args in sources.items():
        found = [document.content["text"] for document in prepare_with_beam(name, *args)]
        assert sorted(found) == sorted(TEXTS)


def test_zst_files_of_several_frames(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "00.jsonl.zst"
    path.write_bytes(_zstd(_jsonl(TEXTS[:20])) + _zstd(_jsonl(TEXTS[20:])))
    assert len(read("jsonl", path)[0]) == 40


@pytest.mark.parametrize("shares", [1, 3, 7])
def test_shares_are_disjoint_and_complete(shares: int, tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "00.jsonl"
    path.write_bytes(_jsonl(TEXTS) + b"not json\n")
    parts = [read("jsonl", path, Share(i, shares)) for i in range(shares)]
    found = sorted(document.content["text"] for documents, _ in parts for document in documents)
    assert found == sorted(TEXTS)
    assert sum(skips.num_skipped("test") for _, skips in parts) == 1


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_files_that_are_cut_short_are_read_up_to_there(
    ending: str, tmp_path: Path, read: Callable
) -> None:
    path = tmp_path / f"00.jsonl{ending}"
    packed = PACK[ending](_jsonl([f"{i} {hash(str(i))}" for i in range(20000)]))
    path.write_bytes(packed[: len(packed) // 2])
    documents, skips = read("jsonl", path, store=False)
    assert len(documents) < 20000
    assert skips.reasons("test")["file cut short or broken"] == 1


def test_bad_lines_are_counted_by_reason(tmp_path: Path, read: Callable) -> None:
    lines = [
        b'{"text": "good"}',
        b"",
        b'{"text": "cut',
        b'{"text": "\xff"}',
        b'{"text": " \\n "}',
        b'{"text": 3}',
        b'["text"]',
        b"[" * 100_000,
        b'{"text": "half \\ud83d a pair, \\u0000 nothing"}',
        b'\xef\xbb\xbf{"text": "<grounding>see <patch_index_0001>"}',
        '{"text": "<image\uff1e"}'.encode(),
    ]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(lines))
    documents, skips = read("jsonl", path)
    assert [document.content["text"] for document in documents] == [
        "good",
        "half \ufffd a pair,   nothing",
        " " * 11 + "see " + " " * 18,
    ]
    assert skips.reasons("test") == {
        "not JSON": 2,
        "clipped: broken character in document": 1,
        "clipped: control character in document": 1,
        "clipped: literal tag in document": 1,
        "disguised tag in document": 1,
        "empty document": 1,
        "no string 'text'": 1,
        "not UTF-8": 1,
        "not a JSON object": 1,
    }


def test_lines_without_end_are_not_held(
    tmp_path: Path, read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 100)
    path = tmp_path / "long.jsonl"
    path.write_bytes(_jsonl(["a"]) + b"x" * 350 + b"\n" + _jsonl(["b"]) + b"y" * 200)
    documents, skips = read("jsonl", path, text_field="text")
    assert [document.content["text"] for document in documents] == ["a", "b"]
    assert skips.reasons("test") == {"line too long": 2}


def test_plain_text(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("One.\r\nTwo.\n\nThr\xe9e.\n".encode("latin-1"))
    documents, skips = read("plain", path)
    assert [d.content["text"] for d in documents] == ["One.\nTwo.\n\nThr\ufffde."]
    assert skips.reasons("test") == {"clipped: not UTF-8": 1}
    assert [d.content["text"] for d in read("plain", path, separator="")[0]] == [
        "One.\nTwo.",
        "Thr\ufffde.",
    ]
    parts = [read("plain", path, Share(i, 2), separator="") for i in range(2)]
    assert [len(documents) for documents, _ in parts] == [1, 1]
    assert [skips.reasons("test") for _, skips in parts] == [{"clipped: not UTF-8": 1}, {}]


def test_long_plain_text_is_split_at_a_line(
    tmp_path: Path, read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_MAX_PLAIN_DOCUMENT", 50)
    path = tmp_path / "book.txt"
    lines = [f"This is line {i}." for i in range(10)]
    path.write_text("\n".join(lines))
    documents, skips = read("plain", path)
    assert "\n".join(d.content["text"] for d in documents).split("\n") == lines
    assert skips.reasons("test") == {"clipped: long document split": len(documents) - 1}
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n")
    assert read("plain", empty)[1].reasons("test") == {"empty document": 1}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of tensorflow-datasets with the features "text" and "id"."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    info = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "id": tfds.features.Scalar(np.int32)}
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="little_wiki",
        version="1.0.0",
        features=info,
        split_datasets={"train": [(i, {"text": t, "id": i}) for i, t in enumerate(TEXTS)]},
        data_dir=folder,
        disable_shuffling=True,
    )
    return folder


@pytest.mark.parametrize("shares", [1, 3])
def test_tensorflow_datasets(shares: int, tfds_dir: Path, read: Callable) -> None:
    options = {"data_dir": str(tfds_dir)}
    assert text.prepare_tfds(["little_wiki"], text.TfdsOptions(**options)) == ["little_wiki"]
    parts = [read("tfds", Path("little_wiki"), Share(i, shares), **options) for i in range(shares)]
    documents = [document for part, _ in parts for document in part]
    assert [document.content["text"] for document in documents] == TEXTS
    assert len({document.key for document in documents}) == len(TEXTS)


def test_tensorflow_datasets_that_are_not_there(tfds_dir: Path, read: Callable) -> None:
    options = {"data_dir": str(tfds_dir)}
    with pytest.raises(DataError, match="no set 'litle_wiki'"):
        text.prepare_tfds(["litle_wiki"], text.TfdsOptions(**options))
    with pytest.raises(DataError, match="no text feature 'id', only id, text"):
        read("tfds", Path("little_wiki"), feature="id", **options)
    with pytest.raises(DataError, match="no split 'test', only train"):
        read("tfds", Path("little_wiki"), tfds_split="test", **options)
