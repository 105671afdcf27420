"""Pairs become grounded documents; whatever is wrong with one is counted."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

pytest.importorskip("spacy")

from kosmos2_jax.data.documents import Document  # noqa: E402
from kosmos2_jax.data.grit_builder import schema, stage  # noqa: E402
from kosmos2_jax.data.grit_builder.detectors import (  # noqa: E402
    Detections,
    DetectorError,
    PrecomputedConfig,
    Query,
)
from kosmos2_jax.data.grit_builder.stage import GritBuildConfig, GritStage  # noqa: E402
from kosmos2_jax.data.readers.pictures import SHORT, PictureRules  # noqa: E402
from kosmos2_jax.data.skips import DataError, Skips  # noqa: E402

BOX = (0.1, 0.2, 0.6, 0.8)


def encoded(size: tuple[int, int] = (64, 48)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (9, 99, 200)).save(stream, "PNG")
    return stream.getvalue()


def pair(key: str, caption: str, size: tuple[int, int] = (64, 48)) -> Document:
    return Document("caption", (encoded(size),), {"caption": caption}, None, "pairs", key)


class FirstPhrase:
    """Gives the first phrase a box, but fails on pictures 13 pixels wide."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def detect(self, queries: Sequence[Query]) -> list[Detections]:
        self.batches.append(len(queries))
        if any(query.image.width == 13 for query in queries):
            raise DetectorError("The detector has no luck with 13.")
        return [Detections.of([(0, BOX, 0.9)]) for _ in queries]


def build(pairs: Sequence[Document], **changes) -> tuple[list[Document], Skips, FirstPhrase]:
    skips, detector = Skips(), FirstPhrase()
    config = GritBuildConfig(**changes)
    return stage.ground_captions(pairs, "built", detector, config, skips), skips, detector


def test_what_is_wrong_with_a_pair_is_counted() -> None:
    pairs = [
        pair("a", "a dog in a field of flowers"),
        pair("b", "running fast"),
        pair("c", "a dog " * 300),
        pair("d", "a cat", (13, 20)),
        pair("e", "freedom for him"),
        pair("f", "雪だるま" * 9),
        pair("g", "a house"),
    ]
    documents, skips, detector = build(pairs)
    kept = {document.key: document for document in documents}
    assert {"a", "g"} <= set(kept) <= {"a", "f", "g"}
    content = kept["a"].content
    assert content["noun_chunks"] == [[0, 5, *BOX, 0.9]]
    assert content["ref_exps"] == [[0, 27, *BOX, 0.9]]
    assert (kept["a"].kind, kept["a"].size, kept["a"].source) == ("grounded", (64, 48), "built")
    assert kept["a"].images == pairs[0].images
    reasons = skips.reasons("built")
    assert reasons[stage.LONG] == 1 and reasons["detector failed: DetectorError"] == 1
    assert reasons[stage.NO_CHUNK] == 3 - ("f" in kept)
    assert skips.num_kept("built") == len(kept)
    # All at once, then in their own batches where that failed.
    assert detector.batches == [len(kept) + 1, *[1] * (len(kept) + 1)]
    # A failure counts towards the limit; what the recipe leaves out does not.
    assert skips.num_skipped("built") == 1


def test_boxes_that_are_not_good_enough_leave_no_document() -> None:
    class Unsure:
        def detect(self, queries: Sequence[Query]) -> list[Detections]:
            return [Detections.of([(0, BOX, 0.65)]) for _ in queries]

    skips = Skips()
    pairs = [pair("a", "a dog")]
    assert not stage.ground_captions(pairs, "built", Unsure(), GritBuildConfig(), skips)
    assert skips.reasons("built") == {
        stage.NO_BOX: 1,
        "filtered: box below the score threshold": 1,
    }


def test_the_detector_sees_pictures_as_they_came_and_they_are_stored_smaller() -> None:
    rules = PictureRules(SHORT, 24)
    (document,), _, _ = build([pair("a", "a dog", (96, 48))], pictures=rules)
    assert document.size == (96, 48)
    assert Image.open(io.BytesIO(document.images[0])).size == (48, 24)


def test_only_pairs_can_be_grounded() -> None:
    text = Document("text", (), {"text": "a dog"}, None, "pairs", "a")
    with pytest.raises(DataError, match="'a' of 'pairs' is no picture with a caption"):
        build([text])


def test_precomputed_boxes_through_the_stage(tmp_path: Path) -> None:
    lines = [
        {"key": "a", "boxes": [{"phrase": "A Dog", "box": BOX, "score": 0.8}]},
        {"key": "a", "boxes": [{"phrase": "a unicorn", "box": BOX}]},
        {"key": "c", "boxes": [{"phrase": "two cats", "box": [0, 0, i, i]} for i in (0.4, 1)]},
    ]
    file = tmp_path / "boxes.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    runner = GritStage(PrecomputedConfig(str(file)), GritBuildConfig(batch_size=2))
    pairs = [pair("a", "a dog runs"), pair("b", "a dog"), pair("c", "two cats.")]
    skips, shard = Skips(), epath.Path(tmp_path / "train-00000-of-00001.tfrecord")
    documents = list(runner.run(iter(pairs), "built", skips, shard))
    assert [d.key for d in documents] == ["a", "c"]
    assert documents[0].content["ref_exps"] == [[0, 5, *BOX, 0.8]]
    assert [a[:2] for a in documents[1].content["ref_exps"]] == [[0, 8]] * 2
    found = schema.statistics([str(shard.with_suffix(".parquet"))])
    assert (found.images, found.boxes, found.spans, found.words) == (2, 3, 2, 2.0)
    assert json.dumps(runner.settings()) and "batch_size" not in runner.settings()
    for bad in ("{", '{"key": 1}', '{"key": "a", "boxes": [1]}', '{"key": "a", "boxes": 7}'):
        file.write_text(f"{json.dumps(lines[0])}\n{bad}")
        with pytest.raises(DetectorError, match="line 2 of .* is malformed"):
            PrecomputedConfig(str(file)).open()


def test_detections_are_arrays() -> None:
    found = Detections.of([])
    assert found.boxes.shape == (0, 4) and found.phrase_ids.dtype == np.int64
