"""Sources as their own tools write them, and what the tests need to read them."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.data import document_files, prepare
from kosmos2_jax.data.documents import Document, from_tf_example
from kosmos2_jax.data.readers import FORMATS
from kosmos2_jax.data.readers.base import Reading, Share
from kosmos2_jax.data.readers.pictures import PictureRules
from kosmos2_jax.data.skips import Skips

from ... import programs

SOURCE = "test"


def draw_picture(seed: int, size: tuple[int, int] = (96, 80), format: str = "JPEG") -> bytes:
    """An encoded picture of smooth colours with a little noise, another one for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    stream = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(stream, format, quality=90)
    return stream.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """`(seed, size=(96, 80), format="JPEG")` to an encoded picture."""
    return draw_picture


@pytest.fixture
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[Document], Skips]]:
    """`(format, path, share=..., pictures=..., **options)` to documents and counts.

    Without a share, and unless `store=False`, the file is also prepared, with three shards, and
    must come back from the records just so.
    """
    return functools.partial(_read, tmp_path_factory)


@pytest.fixture
def prepare_with_beam(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[Document]]:
    """`(format, path, *args)` to the documents that `tools/prepare_data.py` makes of them."""
    pytest.importorskip("apache_beam")
    tool = programs.tool("prepare_data")

    def run(format: str, path: Path, *args: object) -> list[Document]:
        out = tmp_path_factory.mktemp("out")
        words = [format, path, "--out", out, "--source", SOURCE, "--shards", 3, *args]
        status = tool.main([*map(str, words), "--direct_running_mode=in_memory", "--processes=1"])
        said = capsys.readouterr()
        assert status == 0, said.err
        documents = stored_documents(out)
        assert json.loads(said.out.splitlines()[-1])["documents"] == len(documents)
        return documents

    return run


def stored_documents(out: Path) -> list[Document]:
    """All documents in the records of a folder, in order of their shards."""
    import tensorflow as tf

    files = sorted(tf.io.gfile.glob(document_files.shard_pattern(out, "train")))
    raw = tf.data.TFRecordDataset(files).as_numpy_iterator()
    return [from_tf_example(record) for record in raw]


def _read(
    folders: pytest.TempPathFactory,
    format: str,
    path: Path,
    share: Share | None = None,
    store: bool = True,
    pictures: PictureRules | None = None,
    **options: Any,
) -> tuple[list[Document], Skips]:
    skips = Skips()
    reading = Reading(SOURCE, path.name, skips, pictures or PictureRules(), share or Share())
    settings = FORMATS[format].options(**options)
    documents = list(FORMATS[format].read(str(path), reading, settings))
    assert skips.num_kept(SOURCE) == len(documents)
    assert all(document.source == SOURCE for document in documents)
    assert len({document.key for document in documents}) == len(documents)
    if store and share is None and documents:
        out = folders.mktemp("out")
        plan = prepare.make_plan(
            format, [str(path)], str(out), options=settings, pictures=pictures, source=SOURCE,
            num_shards=3,
        )  # fmt: skip
        progress = prepare.convert_all(plan, max_skipped=1.0)
        assert progress.skips.to_dict() == skips.to_dict()
        stored = {document.key: document for document in stored_documents(out)}
        if format != "tfds":  # whose keys depend on the shares
            assert stored == {document.key: document for document in documents}
    return documents, skips


@pytest.fixture(scope="session")
def img2dataset_json() -> Callable[..., dict[str, Any]]:
    """`(key, caption, size, **additional)` to the JSON that img2dataset 1.47 writes."""
    return _img2dataset_json


def _img2dataset_json(
    key: str, caption: str, size: tuple[int, int], **additional: Any
) -> dict[str, Any]:
    return {
        **additional,
        "caption": caption,
        "url": f"http://127.0.0.1:8765/{key}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": size[0],
        "height": size[1],
        "original_width": size[0] * 4,
        "original_height": size[1] * 4,
        "exif": "{}",
        "sha256": "b97825997df04bd823207fd145331ffc3c3b62ec4e3a3adaac83c93debe87bdf",
    }


@pytest.fixture(scope="session")
def write_img2dataset_tar() -> Callable[[Path, Sequence[tuple[dict[str, Any], bytes]]], None]:
    """Writes (JSON, JPEG) pairs as img2dataset 1.47 does with `--output_format webdataset`.

    Checked once by hand: with the times of its files the tar had the tool's bytes.
    """
    return _write_img2dataset_tar


def _write_img2dataset_tar(path: Path, samples: Sequence[tuple[dict[str, Any], bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for metadata, encoded in samples:
            for ending, content in img2dataset_files(metadata, encoded).items():
                info = tarfile.TarInfo(f"{metadata['key']}.{ending}")
                info.size = len(content)
                info.mtime = 1795252197.506639
                info.mode = 0o444
                info.uname = info.gname = "bigdata"
                tar.addfile(info, io.BytesIO(content))


def img2dataset_files(metadata: dict[str, Any], encoded: bytes) -> dict[str, bytes]:
    """The files of one sample by ending."""
    caption = metadata["caption"]
    return {
        "jpg": encoded,
        "json": json.dumps(metadata, indent=4).encode(),
        "txt": b"" if caption is None else caption.encode(),
    }


@pytest.fixture(scope="session")
def write_img2dataset_folder() -> Callable[[Path, Sequence[tuple[dict[str, Any], bytes]]], None]:
    """Writes (JSON, JPEG) pairs as img2dataset does with `--output_format files`."""

    def write(folder: Path, samples: Sequence[tuple[dict[str, Any], bytes]]) -> None:
        folder.mkdir(parents=True)
        for metadata, encoded in samples:
            for ending, content in img2dataset_files(metadata, encoded).items():
                (folder / f"{metadata['key']}.{ending}").write_bytes(content)

    return write


@pytest.fixture(scope="session")
def write_tar() -> Callable[[Path, dict[str, bytes]], None]:
    """Writes a plain tar file of these members."""

    def write(path: Path, members: dict[str, bytes]) -> None:
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    return write
