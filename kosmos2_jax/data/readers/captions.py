"""Pictures with captions: img2dataset's layouts, and tables of captions beside a folder.

Empty captions, and examples without a picture or with a bad one, are skipped; what else becomes
of odd captions, `base.clean_line` says.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from etils import epath

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.readers import files
from kosmos2_jax.data.readers.base import (
    REQUIRED,
    Note,
    Reading,
    clean_line,
    option,
    parse_json,
    string,
)
from kosmos2_jax.data.readers.pictures import (
    IMAGES_HELP,
    PictureRules,
    PictureStore,
    open_picture,
    picture_store,
    stored_picture,
)
from kosmos2_jax.data.skips import FILTERED, DataError, Unusable

# Names that CC12M put in the place of people's.
_PERSON_TAG = re.compile(r"<[A-Z]+>")


@dataclasses.dataclass(frozen=True)
class Img2datasetOptions:
    """Where img2dataset's output has captions and pictures."""

    caption_field: str = option("caption", "field or column that holds the caption")
    image_column: str = option("jpg", "parquet column that holds the picture (--encode_format)")


@dataclasses.dataclass(frozen=True)
class PairOptions(Img2datasetOptions):
    """Settings of `read_img2dataset`."""

    keep: str = option(
        "", "fields or columns to keep beside the caption, with commas between: url,id"
    )

    @property
    def kept(self) -> list[str]:
        """The names in `keep`."""
        return [name.strip() for name in self.keep.split(",") if name.strip()]


@dataclasses.dataclass(frozen=True)
class RawPair:
    """What img2dataset wrote about one picture.

    Attributes:
      metadata: the JSON beside the picture, or the row of the parquet file.
      encoded: the picture.
    """

    metadata: dict[str, Any]
    encoded: bytes


def find_img2dataset(inputs: Sequence[str]) -> list[str]:
    """Returns the shards below what the user named.

    Args:
      inputs: tar files, parquet files, folders of samples, globs of them, or the output folder of
        img2dataset, of which the tars are taken, else the folders of samples, else the parquet
        files (which beside tars and folders hold metadata only).

    Raises:
      DataError: an input is not there, or has nothing of the kind.
    """
    shards = []
    for given in inputs:
        for path in files.expand_glob(given, "INPUT"):
            shards += _shards_in(path) if epath.Path(path).is_dir() else [path]
    return shards


def _shards_in(folder: str) -> list[str]:
    entries = sorted(epath.Path(folder).iterdir())
    tars = [entry for entry in entries if entry.suffix == ".tar"]
    folders = [entry for entry in entries if entry.is_dir()]
    parquet = [entry for entry in entries if entry.suffix == ".parquet"]
    if any(entry.suffix == ".json" and not entry.name.endswith("_stats.json") for entry in entries):
        return [folder]
    found = tars or folders or parquet
    if not found:
        raise DataError(f"INPUT: the folder {folder!r} has no tar or parquet files of img2dataset.")
    return [str(path) for path in found]


def img2dataset_pairs(
    path: str,
    options: Img2datasetOptions,
    columns: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Iterator[tuple[str, Any]]:
    """Yields a key and a function that gives the `RawPair`, for each example of a shard.

    Args:
      path: a tar file, a parquet file, or a folder of samples.
      options: where captions and pictures are.
      columns: further columns that a parquet file must have.
      optional: further columns that are read if it has them.
    """
    if path.endswith(".parquet"):
        required = [options.caption_field, options.image_column, *columns]
        extra = ("status", "original_width", "original_height", *optional)
        for key, row in files.parquet_rows(path, required, extra):
            yield key, row if isinstance(row, Unusable) else partial(_pair_of_row, row, options)
        return
    is_folder = epath.Path(path).is_dir()
    for key, sample in files.folder_samples(path) if is_folder else files.tar_samples(path):
        bad = isinstance(sample, Unusable)
        yield key, sample if bad else partial(_pair_of_sample, sample, options)


def _pair_of_row(row: dict[str, Any], options: Img2datasetOptions) -> RawPair:
    if row.get("status", "success") != "success":
        raise Unusable(f"{FILTERED}img2dataset could not get the picture")
    encoded = row[options.image_column]
    if not isinstance(encoded, bytes):
        raise Unusable("picture missing")
    return RawPair(row, encoded)


def _pair_of_sample(sample: files.Sample, options: Img2datasetOptions) -> RawPair:
    picture = files.picture_of(sample)
    if picture is None:
        raise Unusable("picture missing")
    metadata = parse_json(sample["json"].read()) if "json" in sample else {}
    if metadata.get(options.caption_field) is None and "txt" in sample:
        metadata[options.caption_field] = sample["txt"].read()
    return RawPair(metadata, picture.read())


def read_img2dataset(
    path: str, reading: Reading, options: PairOptions = PairOptions()
) -> Iterator[Document]:
    """Yields the pairs of a shard of img2dataset: webdataset tar, parquet, or folder of files."""

    def parse(key: str, pair: Any) -> Iterator[Document]:
        raw = pair()
        caption = parse_caption(string(raw.metadata, options.caption_field), reading.note)
        image, _, _ = checked_picture(raw.encoded, reading.pictures)
        content: dict[str, Any] = {"caption": caption}
        if options.kept:
            content["metadata"] = _known(raw.metadata, options.kept)
        yield reading.document("caption", key, content, image)

    return reading.documents(img2dataset_pairs(path, options, (), options.kept), parse)


def _known(metadata: dict[str, Any], names: Sequence[str]) -> dict[str, str | int | float]:
    """The text and the finite numbers among these fields."""
    known: dict[str, str | int | float] = {}
    for name in names:
        value = metadata.get(name)
        if isinstance(value, str):
            known[name] = value.encode("utf-8", "replace").decode()
        elif isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            known[name] = value
    return known


def parse_caption(text: str, note: Note) -> str:
    """Returns a caption cleaned to one line, without space around it."""
    return clean_line(text, "caption", note).strip()


def checked_picture(encoded: bytes, rules: PictureRules) -> tuple[bytes, int, int]:
    """Returns the picture as it is stored, and width and height that it came with.

    Raises:
      Unusable: it is a bad picture.
    """
    image = open_picture(encoded, rules)
    return stored_picture(encoded, image, rules), image.width, image.height


@dataclasses.dataclass(frozen=True)
class TsvOptions:
    """Settings of `read_tsv`; captions with person tags are dropped as in Kosmos-1 (spec 4.6)."""

    images: str = option(REQUIRED, IMAGES_HELP)
    keep_person_tags: bool = option(
        False,
        "keep captions that hold <PERSON> and the like, which Kosmos-1 drops",
    )


def parse_tsv_row(raw: bytes, note: Note, keep_person_tags: bool = False) -> tuple[str, str]:
    """Returns caption and URL or path of a line `caption<TAB>URL` of CC3M.

    Raises:
      Unusable: the line is not UTF-8 or has not two columns, or the caption is empty, or it holds
        a person tag (which the recipe leaves out).
    """
    try:
        columns = raw.decode().split("\t")
    except UnicodeDecodeError:
        raise Unusable("not UTF-8") from None
    if len(columns) != 2 or not columns[1].strip():
        raise Unusable("not two columns")
    if not keep_person_tags and _PERSON_TAG.search(columns[0]):
        raise Unusable(f"{FILTERED}person tag")
    return parse_caption(columns[0], note), columns[1].strip()


def find_picture(store: PictureStore, url: str) -> bytes:
    """Returns the picture of a URL or path.

    It is looked for under the URL itself, which finds paths, and pictures in img2dataset's tars;
    then under the CRC-32 of the URL, as the download script that CC3M's users share names files.

    Raises:
      Unusable: it is missing.
    """
    try:
        return store.get(url)
    except Unusable:
        return store.get(str(zlib.crc32(url.encode())))


def read_tsv(path: str, reading: Reading, options: TsvOptions) -> Iterator[Document]:
    """Yields the pairs of a table of captions and URLs or paths, such as CC3M's, without a header.

    Raises:
      DataError: there are no pictures where `options.images` says.
    """
    store = picture_store(options.images, path)

    def parse(key: str, raw: bytes) -> Iterator[Document]:
        caption, url = parse_tsv_row(raw, reading.note, options.keep_person_tags)
        image, _, _ = checked_picture(find_picture(store, url), reading.pictures)
        yield reading.document("caption", key, {"caption": caption}, image)

    return reading.documents(files.lines(path), parse)
