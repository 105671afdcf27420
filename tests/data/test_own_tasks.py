"""Tasks over one's own prepared data: what they ask, what an oracle scores, and boxes of a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqio

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.encode_document import REFERRING, EncodeSettings, encode_document
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.grit import GritConfig
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.data.skips import DataError, Skips
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.tasks import mixtures, own

from . import prepared

MODEL = Kosmos2Config(
    vision=VisionConfig(16, 8, 32, 1, 2, 32),
    resampler=ResamplerConfig(num_latents=4),
    decoder=DecoderConfig(0, 32, 1, 2, 32, 96),
    grid_size=16,
)
COUNT = 6
ANSWER = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sources with a split "test" of the same documents, and a tokenizer."""
    folder = tmp_path_factory.mktemp("own")
    sentences = [f"a {prepared.words(n, 6)} and Question: Answer: An image of" for n in range(40)]
    train_sentencepiece(sentences, folder / "sentencepiece.bpe.model", 80)
    for kind, document in (
        ("grit", "grounded"),
        ("captions", "caption"),
        ("visual_instructions", "instruction"),
    ):
        numbers = range(1, 2 * COUNT, 2)  # of odd ones instructions have a picture
        place = folder / kind / "mine"
        prepared.write(place, (prepared.document(document, n) for n in numbers), 2)
        for file in place.glob("train*"):
            shutil.copy(file, place / file.name.replace("train", "test", 1))
    return folder


@pytest.fixture
def vocabulary(folder: Path) -> Kosmos2Vocabulary:
    rates = {"grounded": 1.0, "captions": 1.0, "visual_instructions": 1.0}
    data = DataConfig(tasks="mixtures", rates=rates, shuffle_buffer=8)
    return mixtures.prepare(folder, data, MODEL, 0)[1]


def measured(task: str, answer: Any) -> dict[str, float]:
    """Figures of a task whose questions are answered so."""
    evaluator = seqio.Evaluator(
        task,
        feature_converter=PackingFeatureConverter(MODEL.vision.image_size),
        eval_split="test",
        sequence_length=feature_lengths(96),
    )

    def predict(dataset: Any) -> list[tuple[int, list[int]]]:
        rows = [(int(index), list(answer(row))) for index, row in dataset.as_numpy_iterator()]
        return [(index, ids + [1] * (ANSWER - len(ids))) for index, ids in rows]

    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    return dict(metrics.result()[task])


def oracle(row: dict[str, np.ndarray]) -> list[int]:
    """Says what it shall learn to say."""
    return row["targets"][row["loss_weights"] > 0].tolist()


def test_an_oracle_is_right_and_who_says_nothing_is_not(vocabulary):
    perfect = {
        own.REC: {"own_rec_accuracy": 1.0},
        own.GROUNDING: {f"own_grounding_r{k}": 1.0 for k in (1, 5, 10)},
        own.QUESTIONS: {"own_vqa_accuracy": 1.0},
    }
    for task, figures in perfect.items():
        assert measured(task, oracle) == figures
        assert set(measured(task, lambda row: []).values()) == {0.0}
    captions = measured(own.CAPTIONS, oracle)
    assert captions["own_captions_bleu4"] == pytest.approx(1.0, abs=1e-6)
    assert (
        captions["own_captions_cider"]
        > measured(own.CAPTIONS, lambda row: [])["own_captions_cider"]
    )


def test_every_phrase_is_asked_for_once(vocabulary):
    dataset = seqio.get_mixture_or_task(own.REC).get_dataset(
        feature_lengths(96), split="test", shuffle=False, num_epochs=1
    )
    truths = [json.loads(e["truth"]) for e in dataset.as_numpy_iterator()]
    assert len(truths) == 2 * COUNT
    asked = sorted((t["phrase"], t["boxes"]) for t in truths)
    documents = [prepared.document("grounded", n) for n in range(1, 2 * COUNT, 2)]
    assert asked == sorted(
        (d.content["caption"][start:end], [box])
        for d in documents
        for start, end, *box, _ in d.content["ref_exps"]
    )


def test_old_data_keep_their_names_apart(folder, vocabulary):
    data = DataConfig(tasks="mixtures", mixture="boxes")
    name, _ = mixtures.prepare_old(folder, data, MODEL, 0)
    assert name == "old.boxes"
    tasks = {task.name for task in seqio.get_mixture_or_task(name).tasks}
    assert tasks == {"old.grounded", "old.referring"}
    assert measured("old.own_rec", oracle) == {"old.own_rec_accuracy": 1.0}
    assert measured("own_rec", oracle) == {"own_rec_accuracy": 1.0}


def test_what_is_not_held_out_is_not_measured(folder, tmp_path, vocabulary):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data/grit/mine/test.json").unlink()
    mixtures.prepare(tmp_path / "data", DataConfig(tasks="mixtures", mixture="boxes"), MODEL, 0)
    assert own.REC not in seqio.TaskRegistry.names()


def test_referring_asks_for_all_phrases_in_an_order_that_changes(vocabulary):
    settings = EncodeSettings(4, 96, grounded_as=REFERRING, grit=GritConfig(image_mode="square"))
    document, skips = prepared.document("grounded", 3), Skips()
    texts = set()
    for draw in range(8):
        (features,) = encode_document(document, vocabulary, settings, 0, skips, draw)
        learnt = features["targets"][features["loss_weights"] > 0]
        # Two boxes of two cells between their tags, and </s>.
        assert vocabulary.is_location(learnt).sum() == 4
        texts.add(vocabulary.decode(features["targets"]))
    assert len(texts) == 2
    phrases = [document.content["caption"][s:e] for s, e, *_ in document.content["ref_exps"]]
    assert all(f"<phrase> {phrase}</phrase>" in text for text in texts for phrase in phrases)
    bad = prepared.document("grounded", 3)
    bad.content["caption"] = bad.content["caption"].replace("a ", "< ", 1)
    assert encode_document(bad, vocabulary, settings, 0, skips) == []
    assert skips.reasons(bad.source) == {"phrase holds '<'": 1}


def write_coco(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(prepared.picture(number))
    images = [{"id": n, "file_name": f"{n}.png", "width": 16, "height": 16} for n in range(count)]
    boxes = [{"image_id": n, "category_id": 1, "bbox": [2, 2, 8, 8]} for n in range(count)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "star"}]}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def test_boxes_of_a_run_are_prepared_once_and_held_out_in_part(folder, tmp_path, vocabulary):
    boxes = write_coco(tmp_path / "boxes", 40)
    data = DataConfig(tasks="mixtures", mixture="boxes", boxes=str(boxes), held_out=0.25)
    data = dataclasses.replace(data, tokenizer=str(folder / "sentencepiece.bpe.model"))
    mixtures.prepare(tmp_path / "data", data, MODEL, 0)
    place = tmp_path / "data/grit/own"
    written = {file: file.stat().st_mtime_ns for file in place.glob("*.tfrecord")}
    counts = [json.loads((place / f"{s}.json").read_text())["counts"] for s in ("train", "test")]
    kept = [count["own"]["kept"] for count in counts]
    assert sum(kept) == 40
    assert kept[1] == pytest.approx(10, abs=5)
    mixtures.prepare(tmp_path / "data", data, MODEL, 0)
    assert written == {file: file.stat().st_mtime_ns for file in place.glob("*.tfrecord")}
    with pytest.raises(DataError, match="made with other options"):
        mixtures.prepare(tmp_path / "data", dataclasses.replace(data, held_out=0.5), MODEL, 0)
    whole = dataclasses.replace(data, held_out=1.0)
    mixtures.prepare(tmp_path / "whole", whole, MODEL, 0)
    assert not (tmp_path / "whole/grit/own/train.json").exists()
    assert measured("own_rec", oracle) == {"own_rec_accuracy": 1.0}


def test_boxes_that_are_not_there_are_named(tmp_path):
    data = DataConfig(tasks="mixtures", mixture="boxes", boxes=str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="none.json"):
        mixtures.prepare(tmp_path, data, MODEL, 0)
    with pytest.raises(ConfigError, match="either data.mixture"):
        mixtures.prepare(tmp_path, DataConfig(tasks="mixtures"), MODEL, 0)
