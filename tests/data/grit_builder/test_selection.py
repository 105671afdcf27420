"""Which boxes are kept, and statistics as the paper's table."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.grit_builder import schema, selection
from kosmos2_jax.data.grit_builder.detectors import Detections
from kosmos2_jax.data.grit_builder.phrases import Phrase
from kosmos2_jax.data.grit_builder.selection import SelectionConfig
from kosmos2_jax.data.grit_builder.stage import ground
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.errors import ConfigError

HANGER = "a wire hanger with a paper cover that reads we heart our customers"
# The published sample (spec sections 4.3 and 6).
CHUNKS = [
    [19, 32, 0.019644069503434333, 0.310540040334, 0.9622142865754519, 0.9603442351023356, 0.79],
    [0, 13, 0.019422357885505368, 0.027634161214033, 0.9593302408854166, 0.969567560450236, 0.67],
]  # fmt: skip
EXPRESSIONS = [[19, 66, *CHUNKS[0][2:]], [0, 66, *CHUNKS[1][2:]]]
PHRASES = [
    Phrase("a wire hanger", "hanger", (0, 13), (0, 66)),
    Phrase("a paper cover", "cover", (19, 32), (19, 66)),
    Phrase("our customers", "customer", (53, 66), (53, 66)),
]
FOUND = Detections.of(
    [
        (0, CHUNKS[1][2:6], CHUNKS[1][6]),
        (1, CHUNKS[0][2:6], CHUNKS[0][6]),
        (2, (0.2, 0.2, 0.4, 0.4), 0.3),
        (1, (0.02, 0.3, 0.96, 0.96), 0.7),
        (1, (0.9, 0.9, 0.9, 0.95), 0.9),
        (0, (0.1, float("nan"), 0.2, 0.4), 0.9),
    ]
)


def test_the_published_sample() -> None:
    counts: collections.Counter[str] = collections.Counter()
    config = SelectionConfig(keep_contained=True)
    assert ground(HANGER, PHRASES, FOUND, config, counts) == {
        "caption": HANGER, "noun_chunks": CHUNKS, "ref_exps": EXPRESSIONS,
    }  # fmt: skip
    assert counts == {
        selection.BELOW: 1, selection.OVERLAPS: 1, selection.BAD_BOX: 2,
    }  # fmt: skip
    content = ground(HANGER, PHRASES, FOUND, SelectionConfig(), counts)
    assert content["ref_exps"] == EXPRESSIONS[1:] and content["noun_chunks"] == CHUNKS
    assert counts[selection.CONTAINED] == 1


def test_what_has_no_box_contains_nothing() -> None:
    """The paper's example: with a box of the field alone, its own expression is kept."""
    phrases = [
        Phrase("a dog", "dog", (0, 5), (0, 27)),
        Phrase("a field", "field", (9, 16), (9, 27)),
        Phrase("flowers", "flower", (20, 27), (20, 27)),
    ]
    box, other = (0.1, 0.1, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)

    def expressions(*found: tuple[int, tuple[float, ...], float]) -> list[list[float]]:
        content = ground(
            "", phrases, Detections.of(found), SelectionConfig(), collections.Counter()
        )
        return [a[:2] for a in content["ref_exps"]]

    assert expressions((0, box, 0.9), (1, other, 0.9), (2, other, 0.8)) == [[0, 27]]
    assert expressions((1, other, 0.9)) == [[9, 27]]
    assert expressions((1, other, 0.9), (1, box, 0.8)) == [[9, 27], [9, 27]]
    assert expressions() == []


def _reference_nms(boxes: np.ndarray, scores: np.ndarray, limit: float) -> list[int]:
    torch = pytest.importorskip("torch")
    order = torch.argsort(-torch.from_numpy(scores), stable=True).tolist()
    kept: list[int] = []
    b = torch.from_numpy(boxes)
    for i in order:
        rest = b[kept]
        low, high = torch.maximum(b[i, :2], rest[:, :2]), torch.minimum(b[i, 2:], rest[:, 2:])
        inner = (high - low).clamp(min=0).prod(1)
        areas = (rest[:, 2:] - rest[:, :2]).prod(1) + (b[i, 2:] - b[i, :2]).prod()
        if not bool((inner / (areas - inner) > limit).any()):
            kept.append(i)
    return kept


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_suppression(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.random((12, 2)) * 0.5
    boxes = np.concatenate([low, low + 0.05 + rng.random((12, 2)) * 0.4], axis=1)
    scores = rng.random(12)
    found = selection.suppress(
        Detections(boxes, scores, np.arange(12)), limit, collections.Counter()
    )
    assert found.phrase_ids.tolist() == _reference_nms(boxes, scores, limit)


def test_the_score_must_be_above_the_threshold() -> None:
    counts: collections.Counter[str] = collections.Counter()
    found = Detections.of([(0, (0, 0, 1, 1), score) for score in (0.65, 0.6500001, 0.1)])
    kept = selection.above_threshold(found, 0.65, counts)
    assert kept.scores.tolist() == [0.6500001] and counts == {selection.BELOW: 2}
    outside = Detections.of([(0, (-0.1, 0.5, 1.2, 1.0), 0.9)])
    kept = selection.above_threshold(outside, 0.65, counts)
    assert kept.boxes.tolist() == [[0.0, 0.5, 1.0, 1.0]]


@pytest.mark.parametrize("name", ["score_threshold", "nms_iou"])
def test_settings_that_make_no_sense(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 0 and at most 1"):
        SelectionConfig(**{name: 1.5})


def test_the_published_schema_and_its_statistics(tmp_path: Path) -> None:
    content = {"caption": HANGER, "noun_chunks": CHUNKS, "ref_exps": EXPRESSIONS}
    metadata = {"url": "http://x/1.jpg", "id": 371, "clip_similarity_vitb32": 0.29}
    documents = [
        Document("grounded", (b"",), {**content, "metadata": metadata}, (1024, 693), "s", "0"),
        Document("grounded", (b"",), content, (64, 48), "s", "1"),
    ]
    path = tmp_path / "train-00000-of-00001.parquet"
    schema.write_parquet(epath.Path(path), [schema.row(document) for document in documents])
    rows = parquet.read_table(path).to_pylist()
    # Names and order of the published files (spec section 6).
    assert (
        list(rows[0])
        == (
            "key clip_similarity_vitb32 clip_similarity_vitl14 id url caption width height "
            "noun_chunks ref_exps"
        ).split()
    )
    assert rows[0]["noun_chunks"] == CHUNKS and rows[0]["ref_exps"] == EXPRESSIONS
    assert (rows[0]["id"], rows[0]["url"]) == ("371", "http://x/1.jpg")
    assert (rows[1]["url"], rows[1]["width"], rows[1]["height"]) == (None, 64, 48)
    found = schema.statistics([str(path)])
    assert (found.images, found.boxes, found.spans, found.words) == (2, 4, 4, 11.0)
    assert "114,978,233" in found.table() and found.table().splitlines()[1].split()[2:4] == [
        "2",
        "4",
    ]
    path.write_bytes(b"x")
    with pytest.raises(DataError, match="not a parquet file"):
        schema.statistics([str(path)])
