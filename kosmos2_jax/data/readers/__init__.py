"""Readers of the data that people really have, and the table of them.

A reader takes one file of a source, yields its `Document`s, and counts in `Skips` what it kept,
skipped and clipped, by reason. It needs neither TensorFlow (but for `tfds`) nor Beam.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from etils import epath

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.readers import (
    box_tables,
    boxes,
    captions,
    coco,
    files,
    grit,
    instructions,
    interleaved,
    text,
    voc,
    yolo,
)
from kosmos2_jax.data.readers.base import Reading
from kosmos2_jax.data.skips import DataError


def find_files(inputs: Sequence[str], endings: tuple[str, ...]) -> list[str]:
    """Returns the files below what the user named: files, globs, or folders that hold them.

    Raises:
      DataError: an input is not there, or a folder holds no file with one of these endings.
    """
    found = []
    for given in inputs:
        for path in files.expand_glob(given, "INPUT"):
            if not epath.Path(path).is_dir():
                found.append(path)
                continue
            inner = [str(p) for p in sorted(epath.Path(path).iterdir()) if p.name.endswith(endings)]
            if not inner:
                raise DataError(f"INPUT: the folder {path!r} has no {' or '.join(endings)} files.")
            found += inner
    return found


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of sources.

    Attributes:
      read: `(path, reading, options)` to the documents of one file.
      options: dataclass of the format's own settings.
      find: `(inputs, options)` to the files below what the user named.
      summary: what it is, in a line.
      example: arguments of `tools/prepare_data.py` that work.
    """

    read: Callable[[str, Reading, Any], Iterator[Document]]
    options: type
    find: Callable[[Sequence[str], Any], list[str]]
    summary: str
    example: str


def _find(*endings: str) -> Callable[[Sequence[str], Any], list[str]]:
    return partial(_find_with_options, endings)


def _find_with_options(endings: tuple[str, ...], inputs: Sequence[str], options: Any) -> list[str]:
    return find_files(inputs, endings)


def _find_img2dataset(inputs: Sequence[str], options: Any) -> list[str]:
    return captions.find_img2dataset(inputs)


def _find_folders(inputs: Sequence[str], options: Any) -> list[str]:
    return boxes.folder_paths(inputs)


_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")

FORMATS = {
    "jsonl": Format(
        text.read_jsonl,
        text.JsonlOptions,
        _find(*_JSONL),
        'text: JSON lines with "text", as in the Pile; also .gz and .zst',
        "jsonl pile/*.jsonl.zst --out data/pile",
    ),
    "plain": Format(
        text.read_plain,
        text.PlainOptions,
        _find(".txt", ".txt.gz", ".txt.zst"),
        "text: plain text files",
        "plain books/*.txt --out data/books",
    ),
    "tfds": Format(
        text.read_tfds,
        text.TfdsOptions,
        text.prepare_tfds,
        "text: a set of tensorflow-datasets, by its name",
        "tfds wikipedia/20230601.en --out data/wikipedia",
    ),
    "captions": Format(
        captions.read_img2dataset,
        captions.PairOptions,
        _find_img2dataset,
        "pictures with captions: tars, parquet files or folders of img2dataset",
        "captions laion/*.tar --out data/laion --image-mode short",
    ),
    "captions-tsv": Format(
        captions.read_tsv,
        captions.TsvOptions,
        _find(".tsv", ".tsv.gz"),
        "pictures with captions: lines of caption, tab, URL or path, as CC3M",
        "captions-tsv Train_GCC-training.tsv --images training --out data/cc3m --image-mode short",
    ),
    "grit": Format(
        grit.read_grit,
        grit.GritOptions,
        _find_img2dataset,
        "GRIT: img2dataset's output with noun_chunks and ref_exps",
        "grit grit/*.tar --out data/grit --image-mode short",
    ),
    "grit-tsv": Format(
        grit.read_grit_tsv,
        grit.GritTsvOptions,
        _find(".tsv", ".tsv.gz"),
        "GRIT: the official table of six columns",
        "grit-tsv laion2b_filtered_tsvs_v1/*.tsv --out data/grit --min-side 200",
    ),
    "coco": Format(
        coco.read_coco,
        coco.CocoOptions,
        _find(".json"),
        "your boxes: COCO's JSON, pictures beside it or elsewhere",
        "coco instances.json --images pictures --out data/grit/mine --image-mode short",
    ),
    "yolo": Format(
        yolo.read_yolo,
        yolo.YoloOptions,
        yolo.find_yolo,
        "your boxes: YOLO's data.yaml, or the folder that it lies in",
        "yolo traffic/data.yaml --subset train --out data/grit/traffic",
    ),
    "voc": Format(
        voc.read_voc,
        voc.VocOptions,
        _find_folders,
        "your boxes: a folder of Pascal VOC's XML files",
        "voc VOCdevkit/VOC2012 --image-set train --out data/grit/voc",
    ),
    "labelme": Format(
        voc.read_labelme,
        voc.LabelmeOptions,
        _find_folders,
        "your boxes: a folder of LabelMe's JSON files",
        "labelme drawn --out data/grit/drawn --part 0:0.9",
    ),
    "boxes-csv": Format(
        box_tables.read_box_csv,
        box_tables.BoxTableOptions,
        _find(".csv"),
        "your boxes: CSV with columns image, label, x1, y1, x2, y2",
        "boxes-csv boxes.csv --images pictures --units fractions --out data/grit/mine",
    ),
    "boxes-jsonl": Format(
        box_tables.read_box_jsonl,
        box_tables.BoxTableOptions,
        _find(*_JSONL),
        "your boxes: JSON lines, a picture with its boxes and caption each",
        "boxes-jsonl boxes.jsonl --images pictures --out data/grit/mine",
    ),
    "mmc4": Format(
        interleaved.read_mmc4,
        interleaved.Mmc4Options,
        _find(*_JSONL, ".jsonl.zip"),
        "interleaved: JSON lines of MMC4, pictures in tars or folders",
        "mmc4 docs_no_face_shard_*.jsonl.zip --images 'images/shard_{shard}.tar' --out data/mmc4",
    ),
    "obelics": Format(
        interleaved.read_obelics,
        interleaved.ObelicsOptions,
        _find(".parquet"),
        "interleaved: parquet files of OBELICS, pictures in them or in tars or folders",
        "obelics obelics/*.parquet --images 'images/{stem}.tar' --out data/obelics",
    ),
    "llava": Format(
        instructions.read_llava,
        instructions.LlavaOptions,
        _find(".json", *_JSONL),
        "instructions with pictures: JSON of LLaVA-Instruct",
        "llava llava_instruct_150k.json --images coco/train2017 --out data/llava",
    ),
    "unnatural": Format(
        instructions.read_unnatural,
        instructions.UnnaturalOptions,
        _find(*_JSONL),
        "instructions: JSON lines of Unnatural Instructions",
        "unnatural core_data.jsonl --out data/unnatural",
    ),
    "flan": Format(
        instructions.read_flan,
        instructions.FlanOptions,
        _find(*_JSONL),
        'instructions: JSON lines with "inputs" and "targets", as FLAN',
        "flan flan/*.jsonl.gz --out data/flan",
    ),
}
