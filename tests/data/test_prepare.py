"""Preparing a source: complete, resumable at the shard, and never silent about what is bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from kosmos2_jax.data import document_files, prepare
from kosmos2_jax.data.documents import Document, from_tf_example
from kosmos2_jax.data.readers.pictures import PictureRules
from kosmos2_jax.data.skips import DataError


def _write(folder: Path, *counts: int, bad: int = 0) -> list[str]:
    """Files of so many good documents each, the last with bad lines too; gives the texts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for number, count in enumerate(counts):
        new = [f"document {i} of file {number}" for i in range(count)]
        lines = [json.dumps({"text": text}) for text in new]
        if number == len(counts) - 1:
            lines += ["{"] * bad
        (folder / f"{number:02d}.jsonl").write_text("\n".join(lines) + "\n")
        texts += new
    return texts


def _documents(out: Path) -> list[Document]:
    files = sorted(tf.io.gfile.glob(document_files.shard_pattern(out, "train")))
    raw = tf.data.TFRecordDataset(files).as_numpy_iterator()
    return [from_tf_example(record) for record in raw]


def _bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.tfrecord")}


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., prepare.Plan]:
    """`(**settings)` to the plan for the folder "in"."""

    def make(**settings: object) -> prepare.Plan:
        inputs = [str(tmp_path / "in")]
        return prepare.make_plan("jsonl", inputs, str(tmp_path / "out"), **settings)

    return make


@pytest.mark.parametrize(("files", "shards", "expected"), [(3, 2, 3), (3, 8, 9), (1, 5, 5)])
def test_every_document_is_in_one_shard(
    files: int, shards: int, expected: int, tmp_path: Path, plan: Callable
) -> None:
    texts = _write(tmp_path / "in", *[7] * files)
    progress = prepare.convert_all(plan(num_shards=shards, source="pile"))
    assert progress.num_shards == expected
    found = _documents(tmp_path / "out")
    assert sorted(document.content["text"] for document in found) == sorted(texts)
    assert {document.source for document in found} == {"pile"}
    assert len({document.key for document in found}) == len(texts)
    assert len(_bytes(tmp_path / "out")) == expected
    summary = json.loads((tmp_path / "out" / "train.json").read_text())
    assert summary["counts"] == {"pile": {"kept": len(texts), "reasons": {}}}
    assert (
        summary["bytes"]
        == progress.num_bytes
        == sum(map(len, _bytes(tmp_path / "out").values())) - 16 * len(texts)
    )


def test_a_run_goes_on_where_it_was(tmp_path: Path, plan: Callable) -> None:
    texts = _write(tmp_path / "in", 5, 6, 7)
    whole = plan(num_shards=3)
    assert prepare.start(whole) == [0, 1, 2]
    prepare.convert(whole, 1)
    with pytest.raises(DataError, match="Only 1 of 3 shards are finished: run the same command"):
        prepare.finish(whole)
    first = (tmp_path / "out" / "train-00001-of-00003.tfrecord").stat().st_mtime_ns
    for stale in (
        "train-00000-of-00003.tfrecord.writing-1",
        "progress/train-00000-of-00003.partial",
    ):
        (tmp_path / "out" / stale).write_text(
            '{"bytes": 1, "counts": {"out": {"kept": 1, "reasons": {}}}}'
        )
    assert prepare.start(whole) == [0, 2]
    prepare.convert_all(whole)
    assert sorted(document.content["text"] for document in _documents(tmp_path / "out")) == sorted(
        texts
    )
    assert (tmp_path / "out" / "train-00001-of-00003.tfrecord").stat().st_mtime_ns == first
    assert prepare.start(whole) == []
    left = {path.name for path in (tmp_path / "out" / "progress").iterdir()}
    assert left == {"train.settings.json", *(f"train-{i:05d}-of-00003.json" for i in range(3))}


def test_other_settings_are_refused(tmp_path: Path, plan: Callable) -> None:
    _write(tmp_path / "in", 5, 5)
    prepare.convert_all(plan(num_shards=2))
    before = _bytes(tmp_path / "out")
    for changed, settings in [
        ("shards", {"num_shards": 4}),
        ("source", {"num_shards": 2, "source": "other"}),
        ("pictures", {"num_shards": 2, "pictures": PictureRules("short")}),
    ]:
        with pytest.raises(DataError, match=f"made with other {changed}: name another --out"):
            prepare.convert_all(plan(**settings))
    (tmp_path / "in" / "00.jsonl").write_text('{"text": "changed"}')
    with pytest.raises(DataError, match="made with other inputs"):
        prepare.convert_all(plan(num_shards=2))
    assert _bytes(tmp_path / "out") == before
    _write(tmp_path / "in", 5, 5)
    prepare.convert_all(plan(num_shards=2, split="validation"))
    assert len(_bytes(tmp_path / "out")) == 4


def test_two_processes_at_one_shard_make_the_same(tmp_path: Path, plan: Callable) -> None:
    _write(tmp_path / "in", 5)
    whole = plan(num_shards=1)
    prepare.convert_all(whole)
    before = _bytes(tmp_path / "out")
    whole.mark("json", 0).unlink()
    prepare.convert(whole, 0)
    assert _bytes(tmp_path / "out") == before


def test_too_much_that_is_bad_is_an_error_and_nothing_is_lost(
    tmp_path: Path, plan: Callable
) -> None:
    texts = _write(tmp_path / "in", 50, 44, bad=6)
    with pytest.raises(DataError, match=r"^6\.0% of source 'out' .*not JSON: 6\)"):
        prepare.convert_all(plan(num_shards=2))
    assert not (tmp_path / "out" / "train.json").exists()
    before = _bytes(tmp_path / "out")
    progress = prepare.convert_all(plan(num_shards=2), max_skipped=0.07)
    assert progress.skips.num_skipped("out") == 6
    assert _bytes(tmp_path / "out") == before and len(_documents(tmp_path / "out")) == len(texts)


def test_a_bad_source_stops_early(tmp_path: Path, plan: Callable) -> None:
    _write(tmp_path / "in", 5)
    (tmp_path / "in" / "00.jsonl").write_text("{\n" * prepare.MIN_EXAMPLES_TO_STOP)
    for number in range(1, 4):
        (tmp_path / "in" / f"{number:02d}.jsonl").write_text('{"text": "good"}\n')
    with pytest.raises(DataError, match="Nothing of source 'out' can be used"):
        prepare.convert_all(plan(num_shards=4))
    assert len(_bytes(tmp_path / "out")) == 1
    progress = prepare.convert_all(plan(num_shards=4), max_skipped=1.0)
    assert progress.skips.num_kept("out") == 3


@pytest.mark.parametrize(
    ("format", "inputs", "message"),
    [
        ("jsonl", ["pilee/*.jsonl"], "nothing is found at 'pilee/.*how it is spelt"),
        ("jsonl", ["{tmp}/nothing.jsonl"], "nothing is found at"),
        ("jsonl", ["{tmp}/empty.jsonl"], "empty.jsonl' is empty: get it again"),
        ("jsonl", ["{tmp}/folder"], "has no .jsonl or .jsonl.gz or .jsonl.zst files"),
        ("jsonl", ["{tmp}/a.jsonl", "{tmp}/*.jsonl"], "named twice"),
        ("captions", ["{tmp}/folder"], "no tar or parquet files"),
    ],
)
def test_inputs_that_cannot_be(
    format: str, inputs: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    if "twice" in message:
        (tmp_path / "empty.jsonl").unlink()
        (tmp_path / "a.jsonl").write_text("{}")
    inputs = [path.replace("{tmp}", str(tmp_path)) for path in inputs]
    with pytest.raises(DataError, match=message):
        prepare.make_plan(format, inputs, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_the_user_can_mend_in_the_midst_of_a_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "llava.json").write_text("{}")
    options = prepare.FORMATS["llava"].options(images=str(tmp_path))
    broken = prepare.make_plan(
        "llava",
        [str(tmp_path / "llava.json")],
        str(tmp_path / "out"),
        options=options,
        num_shards=2,
    )
    with pytest.raises(DataError, match="llava.json' is not a JSON list"):
        prepare.convert_all(broken)
    assert not _bytes(tmp_path / "out")
    (tmp_path / "llava.json").unlink()
    with pytest.raises(DataError, match="cannot be read: No such file|made with other inputs"):
        prepare.convert_all(broken)
