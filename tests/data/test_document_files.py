"""Documents that a program makes: the same whoever makes them, complete or made anew."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kosmos2_jax.data.document_files import encode_png, shard_files, write_documents
from kosmos2_jax.data.documents import Document, from_tf_example
from kosmos2_jax.data.scene_language import parse_expression
from kosmos2_jax.data.scene_records import SceneAnnotation, scene_record
from kosmos2_jax.data.scenes import SceneConfig
from kosmos2_jax.vision.preprocessing import load_image

MAKE = functools.partial(scene_record, split="test", seed=3, config=SceneConfig())


def _fail(index: int) -> Document:
    raise ZeroDivisionError(index)


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        assert write_documents(folder, "test", 600, MAKE, {}, processes=processes)
    names = [path.name for path in shard_files(tmp_path / "1", "test", 16)]
    assert sorted(p.name for p in (tmp_path / "3").iterdir()) == sorted([*names, "test.json"])
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_every_record_is_in_one_shard_and_reads_back(tmp_path: Path) -> None:
    write_documents(tmp_path, "test", 21, MAKE, {}, num_shards=4)
    found = {}
    for number, file in enumerate(shard_files(tmp_path, "test", 4)):
        for place, raw in enumerate(tf.data.TFRecordDataset(str(file)).as_numpy_iterator()):
            found[number + 4 * place] = from_tf_example(raw)
    assert sorted(found) == list(range(21))
    assert all(found[index] == MAKE(index) for index in found)


def test_pictures_come_back_as_they_were() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(load_image(encode_png(pixels))), pixels)


def test_what_is_there_is_kept_until_settings_change(tmp_path: Path) -> None:
    told: list[int] = []
    write = functools.partial(
        write_documents, tmp_path, "train", make=MAKE, num_shards=2, progress=told.append
    )
    assert write(count=300, settings={"seed": 3})
    assert told == [250, 300]
    assert not write(count=300, settings={"seed": 3})
    assert write(count=300, settings={"seed": 4})
    assert write(count=10, settings={"seed": 4}, num_shards=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "train-00000-of-00001.tfrecord",
        "train.json",
    ]


def test_an_unfinished_split_is_made_anew(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_documents(tmp_path, "train", 5, _fail, {})
    assert not (tmp_path / "train.json").exists()
    assert write_documents(tmp_path, "train", 5, MAKE, {})


def test_a_failing_helper_process_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="helper"):
        write_documents(tmp_path, "train", 5, functools.partial(divmod, "x"), {}, processes=2)
    assert not (tmp_path / "train.json").exists()


def test_annotations_survive_json() -> None:
    for index in range(50):
        annotation = MAKE(index).content
        read = SceneAnnotation.from_dict(json.loads(json.dumps(annotation)))
        assert read.to_dict() == annotation
        assert 0 <= read.phrase < len(read.caption.spans)


def test_held_out_marks_what_training_never_shows() -> None:
    config = SceneConfig()
    marks = {"train": 0, "test": 0}
    for split in marks:
        for index in range(300):
            record = scene_record(index, split, seed=0, config=config)
            read = SceneAnnotation.from_dict(record.content)
            marks[split] += read.phrase_held_out + sum(r.held_out for r in read.referring)
            for referring in read.referring:
                target = parse_expression(referring.text).target
                if target.color is not None:
                    pair = (target.color, target.shape)
                    assert referring.held_out == (pair in config.held_out)
    assert marks["train"] == 0
    assert 60 < marks["test"] < 250


def test_making_records_needs_neither_tensorflow_nor_jax() -> None:
    """Or else every helper process would take seconds to start."""
    program = """
import sys
from kosmos2_jax.data import document_files, easy_vqa_records, examples, scene_records, text_model
assert not {"tensorflow", "jax", "seqio"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
