"""The registered tasks under `seqio.Evaluator`, answered by an oracle and by a fool."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import easy_vqa as package
import numpy as np
import pytest
import seqio
import tensorflow as tf

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data import easy_vqa_records
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.encode_document import EncodeSettings
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import packed_batches
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.markup import parse
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.model import prompts_of
from kosmos2_jax.tasks import easy_vqa, quickstart, scenes
from kosmos2_jax.vision.preprocessing import load_image

ANSWER_LENGTH = 48
Answer = Callable[[Mapping[str, np.ndarray]], Sequence[int]]


@pytest.fixture(scope="module", autouse=True)
def _registered(data_dir: Path, vocabulary: Kosmos2Vocabulary) -> None:
    easy_vqa.write_easy_vqa(data_dir, "test")
    inputs = TaskSettings(vocabulary, EncodeSettings(num_latents=4), shuffle_buffer=64)
    assert quickstart.register(data_dir, inputs) == "quickstart"
    # Once more, as a second run in the same process does.
    quickstart.register(data_dir, inputs, {scenes.REC: 1.0})


def _oracle(row: Mapping[str, np.ndarray]) -> Sequence[int]:
    """Says what it shall learn to say."""
    return row["targets"][row["loss_weights"] > 0].tolist()


def _evaluate(task: str, answer: Answer, limit: int | None = None) -> dict[str, float]:
    evaluator = seqio.Evaluator(
        task,
        feature_converter=PackingFeatureConverter(64),
        eval_split="test",
        sequence_length=feature_lengths(100),
        num_examples=limit,
    )

    def predict(dataset: tf.data.Dataset) -> list[tuple[int, list[int]]]:
        answers = []
        for index, row in dataset.as_numpy_iterator():
            ids = list(answer(row))
            answers.append((int(index), ids + [1] * (ANSWER_LENGTH - len(ids))))
        return answers[::-1]  # order must not matter

    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    return dict(metrics.result()[task])


def test_an_oracle_is_right_but_for_the_grid() -> None:
    rec = _evaluate(scenes.REC, _oracle)
    assert set(rec) == {"rec_accuracy", "rec_accuracy_seen", "rec_accuracy_held_out"}
    assert rec["rec_accuracy"] > 0.9
    recall = _evaluate(scenes.GROUNDING, _oracle)
    names = {f"phrase_grounding_r{k}{s}" for k in (1, 5, 10) for s in ("", "_seen", "_held_out")}
    assert set(recall) == names
    assert recall["phrase_grounding_r1"] > 0.9
    assert _evaluate(easy_vqa.NAME, _oracle, 300) == {"vqa_accuracy": 1.0}


def test_a_fool_is_wrong(vocabulary: Kosmos2Vocabulary) -> None:
    corner = [vocabulary.object_id, *[vocabulary.location_id(0)] * 2, vocabulary.end_object_id]
    for answer in (lambda _: corner, lambda _: [], lambda _: [vocabulary.eos_id, 0, 5]):
        assert _evaluate(scenes.REC, answer)["rec_accuracy"] == 0.0
        assert _evaluate(scenes.GROUNDING, answer)["phrase_grounding_r10"] == 0.0
        assert _evaluate(easy_vqa.NAME, answer, 50)["vqa_accuracy"] == 0.0


def test_only_boxes_of_the_asked_phrase_count(vocabulary: Kosmos2Vocabulary) -> None:
    """Boxes that follow another phrase are none of this one (spec section 5.2)."""
    other = vocabulary.encode_markup("<phrase> a star</phrase>")
    assert _evaluate(scenes.REC, lambda row: other + list(_oracle(row)))["rec_accuracy"] == 0.0
    more = vocabulary.encode_markup(" and<phrase> a star</phrase><object></object>")
    said = _evaluate(scenes.REC, lambda row: list(_oracle(row))[:-1] + more)
    assert said == _evaluate(scenes.REC, _oracle)


def test_seen_and_held_out_are_told_apart() -> None:
    box, far = Box(0.0, 0.0, 0.5, 0.5), Box(0.6, 0.6, 1.0, 1.0)
    targets = [{"boxes": [box], "held_out": held} for held in (False, False, True)]
    assert scenes.rec_accuracy(targets, [[box, far], [far, box], [box]]) == {
        "rec_accuracy": 2 / 3,
        "rec_accuracy_seen": 1 / 2,
        "rec_accuracy_held_out": 1.0,
    }
    recall = scenes.grounding_recall(targets[:2], [[box, far], [far, box]])
    assert recall["phrase_grounding_r1"] == recall["phrase_grounding_r1_seen"] == 0.5
    assert recall["phrase_grounding_r5"] == 1.0
    assert "phrase_grounding_r1_held_out" not in recall


def test_captions_read_back_as_written(vocabulary: Kosmos2Vocabulary) -> None:
    dataset = seqio.get_mixture_or_task(scenes.CAPTION).get_dataset(None, "test", shuffle=False)
    plural = 0
    for row in dataset.as_numpy_iterator():
        said = parse(vocabulary.decode(row["targets"]), 8)
        assert said.text.startswith("An image of a") or said.text.startswith("An image of t")
        assert not said.problems
        assert all(said.text[s.start : s.end] == s.text for s in said.spans)
        plural += any(len(s.boxes) > 1 for s in said.spans)
    assert plural > 5


def test_pictures_of_one_scene_are_the_same_in_every_task() -> None:
    firsts = [
        next(
            seqio.get_mixture_or_task(name)
            .get_dataset(None, "test", shuffle=False)
            .as_numpy_iterator()
        )["images"]
        for name in (scenes.CAPTION, scenes.REFERRING, scenes.REC, scenes.GROUNDING)
    ]
    assert all((first == firsts[0]).all() for first in firsts)


def test_contents_of_a_picture_are_what_its_questions_tell() -> None:
    shape, color = ("what shape is present?", "circle"), ("what color is the circle?", "red")
    asked = ("is there a triangle?", "no")
    assert easy_vqa_records.tell([asked, shape, color]) == "a red circle"
    assert easy_vqa_records.tell([shape]) == "a circle"
    assert easy_vqa_records.tell([color, asked]) == "a red shape"
    assert easy_vqa_records.tell([asked]) == "a shape"


def test_every_question_of_easy_vqa_is_asked_once(vocabulary: Kosmos2Vocabulary) -> None:
    dataset = seqio.get_mixture_or_task(easy_vqa.NAME).get_dataset(None, "test", shuffle=False)
    asked: Counter[str] = Counter()
    for row in dataset.as_numpy_iterator():
        asked[vocabulary.decode(row["targets"]).rpartition("</image>")[2].strip()] += 1
    questions, answers, _ = package.get_test_questions()
    pairs = zip(questions, answers, strict=True)
    assert asked == Counter(f"Question: {question} Answer: {answer}" for question, answer in pairs)


def test_the_text_model_reads_the_training_questions() -> None:
    questions, answers, _ = package.get_train_questions()
    assert sorted(easy_vqa_records.sentences()) == sorted(
        f"Question: {question} Answer: {answer}"
        for question, answer in zip(questions, answers, strict=True)
    )


def test_preparing_makes_everything_and_then_nothing(tmp_path: Path) -> None:
    data = DataConfig(train_scenes=30, test_scenes=10)
    model = Kosmos2Config(
        vision=VisionConfig(32, 8, 32, 1, 2, 32),
        resampler=ResamplerConfig(num_latents=4),
        decoder=DecoderConfig(0, 32, 1, 2, 32, 128),
        grid_size=4,
    )
    name, vocabulary = quickstart.prepare(tmp_path, data, model, 0)
    assert vocabulary.grid_size == 4
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tfrecord")}
    quickstart.prepare(tmp_path, data, model, 0)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tfrecord")}
    mixture = seqio.get_mixture_or_task(name)
    row = next(mixture.get_dataset(None, "train", shuffle=True, seed=0).as_numpy_iterator())
    assert load_image(row["images"][0]).size == (32, 32)
    with pytest.raises(ConfigError, match="needs data.tasks=mixtures"):
        other = dataclasses.replace(data, mixture="kosmos2_pretrain")
        quickstart.prepare(tmp_path, other, model, 0)


def test_prompts_end_before_the_first_learnt_token(vocabulary: Kosmos2Vocabulary) -> None:
    lengths = feature_lengths(60)
    batches = packed_batches(scenes.REC, lengths, 8, 0, image_size=64, pack=False, split="test")
    batch = next(batches)
    for row, length in enumerate(prompts_of(batch).lengths):
        assert batch["tokens"][row, length - 1] == vocabulary.end_phrase_id
        assert batch["targets"][row, length - 1] == vocabulary.object_id
        assert batch["loss_weights"][row, : length - 1].sum() == 0
    batches.close()


def test_a_scene_that_does_not_fit_is_one_clear_error() -> None:
    lengths = feature_lengths(10)
    with pytest.raises(ConfigError, match="raise the length"):
        next(packed_batches(scenes.REC, lengths, 8, 0, image_size=64, pack=False, split="test"))
