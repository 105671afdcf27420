"""Benchmarks as seqio tasks: published tokens, what is lost, and what a model is asked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import seqio
from PIL import Image

from kosmos2_jax.config import preset
from kosmos2_jax.data.benchmarks.records import CaptionRecord, PhraseRecord, QuestionRecord
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.grounding import markup
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.tasks import benchmarks
from kosmos2_jax.training.run_config import EvaluationConfig
from kosmos2_jax.training.sheets import sheet_items
from kosmos2_jax.training.task_evaluation import TaskEvaluation
from kosmos2_jax.training.task_scoring import Sample, TaskResult

SIZE = 28  # of the tiny model's pictures
LENGTHS = feature_lengths(128, 1)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(stream, "PNG")
    return stream.getvalue()


def people(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]


SENTENCE = "[/EN#1/people A man] in [/EN#2/clothing a blue hard hat] near [/EN#3/other <i> it] .\n"
XML_BOX = "<object><name>{}</name><bndbox>{}</bndbox></object>"


def xml(*boxes: tuple[int, int, int, int]) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    objects = (
        XML_BOX.format(entity, "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, box, strict=True)))
        for entity, box in enumerate(boxes, 1)
    )
    size = "<size><width>64</width><height>32</height></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of some benchmarks, files as they are published."""
    folder = tmp_path_factory.mktemp("downloads")
    phrases = {
        "file_name": "7.jpg",
        "width": 64,
        "height": 32,
        "original_img_id": 7,
        "sentence_id": 0,
        "caption": "A man in a blue hard hat near <i> it .",
        # The last one holds a "<", which no phrase with boxes may (trap T-19).
        "tokens_positive_eval": [[[0, 5]], [[9, 24]], [[30, 36]]],
    }
    image = {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": 64, "height": 32}
    objects = [
        {"id": 1, "image_id": 1, "bbox": [0, 0, 32, 32]},
        {"id": 2, "image_id": 2, "bbox": [0, 0, 64, 32]},
    ]
    images = [image | {"caption": "left man"}, image | {"id": 2, "caption": "all"}]
    questions = [
        {"question_id": number, "image_id": 1, "question": f"What is it {number}?"}
        for number in range(4)
    ]
    annotations = [
        {"question_id": n, "image_id": 1, "answer_type": "yes/no", "answers": people(*["yes"] * 10)}
        for n in range(4)
    ]
    files: dict[str, Any] = {
        "flickr30k_grounding/flickr30k-images/7.jpg": picture(),
        "flickr30k_grounding/flickr30k_entities/Sentences/7.txt": SENTENCE,
        "flickr30k_grounding/flickr30k_entities/Annotations/7.xml": xml(
            (0, 0, 32, 32), (32, 0, 65, 16), (0, 0, 8, 8)
        ),
        "flickr30k_grounding/mdetr_annotations/final_flickr_separateGT_test.json": {
            "images": [phrases]
        },
        "refcoco/train2014/COCO_train2014_000000000001.jpg": picture(),
        "refcoco/mdetr_annotations/finetune_refcoco_val.json": {
            "images": images,
            "annotations": objects,
        },
        "vqav2/val2014/COCO_val2014_000000000001.jpg": picture(),
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": {"questions": questions},
        "vqav2/v2_mscoco_val2014_annotations.json": {"annotations": annotations},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def vocabulary(downloads: Path, assets: Path) -> Kosmos2Vocabulary:
    """The real one; all tasks over `downloads` are registered with it."""
    tokenizer = str(assets / "tokenizer" / "sentencepiece.bpe.model")
    model = preset("tiny").replace(grid_size=32)
    mixture, found = benchmarks.prepare(downloads, DataConfig(tokenizer=tokenizer), model, 0)
    assert mixture == ""
    return found


def evaluate(
    name: str, vocabulary: Kosmos2Vocabulary, *answers: str, limit: int | None = None
) -> dict[str, float]:
    """The task's figures for a model that writes these answers."""
    evaluator = seqio.Evaluator(
        name,
        feature_converter=PackingFeatureConverter(SIZE),
        eval_split="test",
        sequence_length=LENGTHS,
        num_examples=limit,
    )

    def predict(dataset: Any) -> list[tuple[int, list[int]]]:
        numbers = [int(index) for index, _ in dataset.as_numpy_iterator()]
        tokens = [vocabulary.encode_markup(answer) + [vocabulary.eos_id] for answer in answers]
        assert len(numbers) == len(tokens)
        longest = max(map(len, tokens))
        padded = [ids + [vocabulary.eos_id] * (longest - len(ids)) for ids in tokens]
        return list(zip(numbers, padded, strict=True))

    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    found = {key: float(value) for key, value in metrics.result()[name].items()}
    evaluator.close()
    return {key.removeprefix(f"{name}_"): value for key, value in found.items()}


def test_grounding_prompt_has_the_published_tokens(vocabulary):
    """Spec section 5.2: the tokens of "A man in a blue hard hat"."""
    task = seqio.get_mixture_or_task("flickr30k_grounding_test")
    second = list(task.get_dataset(LENGTHS, "test", shuffle=False).as_numpy_iterator())[1]
    first = int(np.argmax(second["loss_weights"] > 0))
    published = [95, 242, 12, 64007, 10, 1486, 354, 3958, 64008]
    assert second["targets"][first - 10 : first].tolist() == [64012, *published]
    assert second["targets"][:2].tolist() == [0, 64003]


def test_what_is_lost_counts_only_where_all_are_asked(vocabulary):
    left = markup.render_object([(0.0, 0.0, 0.5, 1.0)], 32)
    # The third phrase cannot be asked.
    figures = evaluate("flickr30k_grounding_test", vocabulary, left, "no boxes")
    assert figures["r1"] == pytest.approx(1 / 3) and figures["lost"] == 1.0
    figures = evaluate("flickr30k_grounding_test", vocabulary, left, limit=1)
    assert figures["r1"] == 1.0


def test_a_model_answers(vocabulary):
    """A random one, which finds nothing: what counts is that it is asked, and asked everything."""
    config = preset("tiny").replace(grid_size=32, decoder={"vocab_size": vocabulary.vocab_size})
    model = Kosmos2Model(config, SamplingConfig(max_new_tokens=2))
    config = EvaluationConfig(tasks=("refcoco_val",), batch_size=2)
    rows = batch_sharding(make_mesh({}, jax.devices()[:1]))
    evaluation = TaskEvaluation(model, vocabulary, config, LENGTHS, rows)
    result = evaluation(model.init(jax.random.key(0)))["refcoco_val"]
    assert result.metrics == {"refcoco_val_accuracy": 0.0, "refcoco_val_lost": 0.0}
    assert [record.expressions for record in result.targets] == [("left man",), ("all",)]
    assert len(result.outputs) == 2 and result.predictions == [None, None]
    first, second = sheet_items(result)
    assert (first.caption, first.predicted, first.true) == ("left man", (), (Box(0, 0, 0.5, 1),))
    assert second.caption == "all"


def test_sheets_show_what_was_asked():
    phrase = PhraseRecord("1", "x", (64, 32), "a red hat", 2, 9, (), (Box(0, 0, 32, 32),))
    question = QuestionRecord("2", "x", "Red?", ("Yes.", "no"))
    caption = CaptionRecord("3", "x", ("A hat.",))
    records, found = [phrase, question, caption], [[Box(0, 0, 64, 16)], "yes", "a cap"]
    black = (np.zeros((4, 4, 3), np.uint8),)
    samples = [Sample(number, "", black) for number in range(3)]
    items = sheet_items(TaskResult({}, predictions=found, targets=records, samples=samples))
    assert [item.caption for item in items] == ["red hat", "Red? yes", "A hat. / a cap"]
    assert items[0].predicted == (Box(0, 0, 1, 0.5),) and items[0].true == (Box(0, 0, 0.5, 1),)
    assert [item.correct for item in items] == [None, True, None]


def test_what_is_missing_is_named(vocabulary):
    with pytest.raises(DataError, match="lacks train2014, .* of refcocog: see tools/prepare_eval"):
        seqio.get_mixture_or_task("refcocog_val").get_dataset(LENGTHS, "test")


def test_a_question_that_is_too_long_is_named(vocabulary):
    short = feature_lengths(8, 1)
    dataset = seqio.get_mixture_or_task("vqav2_val2014").get_dataset(short, "test", shuffle=False)
    with pytest.raises(Exception, match=r"Example '0' of vqav2_val2014 has \d+ tokens"):
        list(dataset.as_numpy_iterator())
