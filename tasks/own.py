"""seqio tasks over your own prepared data: all phrases asked for, and what is measured of them.

What is measured is the split "test" of prepared folders, which `tools/prepare_data.py --split
test` writes, and `data.boxes` too:

  own_rec        boxes: each phrase that has one box, as referring expression comprehension
  own_grounding  boxes: each phrase after the words of the caption before it
  own_captions   pictures with captions
  own_questions  pictures with questions
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import seqio
from etils import epath

from kosmos2_jax.data import document_tasks, examples, grit
from kosmos2_jax.data.document_tasks import TRUTH, Documents, TaskSettings, truth_of
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.encode_document import REFERRING, Features
from kosmos2_jax.data.examples import Example, Picture, Text
from kosmos2_jax.data.label_captions import OPENING
from kosmos2_jax.data.phrase_boxes import boxes_of_phrase, first_box_accuracy, phrase_recall
from kosmos2_jax.data.skips import DataError, Skips
from kosmos2_jax.errors import MarkupError
from kosmos2_jax.evaluation.vqa import vqa_accuracy
from kosmos2_jax.grounding import tags
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText

from .captioning import caption_figures

REC = "own_rec"
GROUNDING = "own_grounding"
CAPTIONS = "own_captions"
QUESTIONS = "own_questions"
SPLIT = "test"

# Examples of a document that are asked about, each with its truth, which JSON can hold.
Build = Callable[[Document, TaskSettings], Iterator[tuple[Example, Any]]]
# (targets, predictions) to figures by name.
Measure = Callable[[list[Any], list[Any]], dict[str, float]]


def register_referring(name: str, folders: Sequence[str], settings: TaskSettings) -> None:
    """Adds a task that asks for all phrases of a grounded document in a row, for training.

    Args:
      name: of the task.
      folders: outputs of `tools/prepare_data.py`.
      settings: how documents become examples.
    """
    encode = dataclasses.replace(settings.encode, grounded_as=REFERRING)
    settings = dataclasses.replace(settings, encode=encode)
    document_tasks.add_task(name, folders, settings, ("grounded",))


def register_measures(
    places: Mapping[str, Sequence[str]], settings: TaskSettings, prefix: str = ""
) -> None:
    """Adds the tasks that measure, in place of older ones, over folders that have their split.

    Args:
      places: prepared folders by kind of data: "grit", "captions" and "visual_instructions".
      settings: how documents become examples.
      prefix: of the names of tasks and figures.
    """
    boxes = boxes_of_phrase(settings.vocabulary.grid_size)
    tasks: dict[str, tuple[str, tuple[str, ...], Build, Any, Measure]] = {
        REC: ("grit", ("grounded",), _ask_boxes, boxes, _rec_accuracy),
        GROUNDING: ("grit", ("grounded",), _ask_in_caption, boxes, _grounding_recall),
        CAPTIONS: ("captions", ("caption", "grounded"), _ask_caption, _plain, _caption_figures),
        QUESTIONS: ("visual_instructions", ("instruction",), _ask_questions, _plain, _accuracy),
    }
    for name, (kind, documents, build, read, measure) in tasks.items():
        name = prefix + name
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        folders = [f for f in places.get(kind, ()) if (epath.Path(f) / f"{SPLIT}.json").exists()]
        if folders:
            document_tasks.add_task(
                name,
                folders,
                settings,
                documents,
                _encode_with(build),
                splits=(SPLIT,),
                postprocess_fn=read,
                metric_fns=[_named(prefix, measure)],
            )


def _named(prefix: str, measure: Measure) -> Measure:
    """The measure, with a prefix to the names of its figures."""

    def figures(targets: list[Any], predictions: list[Any]) -> dict[str, float]:
        return {prefix + name: value for name, value in measure(targets, predictions).items()}

    return figures


def _encode_with(build: Build) -> document_tasks.Encode:
    """Encodes all that is asked of each document; nothing that is measured is cut or left out."""

    def encode(documents: Documents, settings: TaskSettings, skips: Skips) -> Iterator[Features]:
        for document, _ in documents:
            skips.kept(document.source)
            try:
                asked = list(build(document, settings))
            except MarkupError as problem:
                raise DataError(
                    f"Document {document.key!r} of {document.source!r} cannot be asked about: "
                    f"{problem}"
                ) from None
            for example, truth in asked:
                yield {**_encoded(example, document, settings), TRUTH: truth}

    return encode


def _encoded(example: Example, document: Document, settings: TaskSettings) -> Features:
    encode = settings.encode
    features = examples.encode_example(
        example, settings.vocabulary, encode.num_latents, encode.quantiser
    )
    if len(features["targets"]) > encode.max_tokens:
        raise DataError(
            f"Document {document.key!r} of {document.source!r} has {len(features['targets'])} "
            f"tokens: set data.length to {len(features['targets']) - 1} or more."
        )
    return features


def _chosen(document: Document, settings: TaskSettings) -> GroundedText:
    """The caption with the phrases that training learns, in a picture as inference sees it."""
    config = dataclasses.replace(settings.encode.grit, image_mode=grit.SQUARE)
    size = document.size or (config.image_size, config.image_size)
    annotations = document.content[grit.ANNOTATIONS[config.phrase_mode]]
    return grit.choose(document.content["caption"], annotations, size, config).caption


def _ask_boxes(document: Document, settings: TaskSettings) -> Iterator[tuple[Example, Any]]:
    for span in _chosen(document, settings).spans:
        if len(span.boxes) == 1:
            example = examples.referring_example(document.images[0], [(span.text, span.boxes)])
            yield example, _truth(span.text, span.boxes)


def _ask_in_caption(document: Document, settings: TaskSettings) -> Iterator[tuple[Example, Any]]:
    caption = _chosen(document, settings)
    for number, span in enumerate(caption.spans):
        example = examples.grounding_example(document.images[0], caption, number)
        yield example, _truth(span.text, span.boxes)


def _ask_caption(document: Document, settings: TaskSettings) -> Iterator[tuple[Example, Any]]:
    caption = tags.require_no_tags(document.content["caption"], "The caption")
    answer = caption.removeprefix(OPENING).strip()
    picture = Picture(document.images[0])
    yield Example((picture, Text(OPENING, False), Text(answer, True))), answer


def _ask_questions(document: Document, settings: TaskSettings) -> Iterator[tuple[Example, Any]]:
    for question, answer in document.content["turns"]:
        yield examples.question_example(document.images, [(question, answer)]), [answer]


def _truth(phrase: str, boxes: Sequence[Box]) -> dict[str, Any]:
    return {"phrase": phrase, "boxes": [list(box) for box in boxes]}


def _plain(output: str, example: Mapping[str, Any], is_target: bool) -> Any:
    """What the model wrote, without tags: one that grounds its words is not wrong for that."""
    if is_target:
        return truth_of(example)
    return " ".join(tags.ANY_TAG.sub("", output).split())


def _rec_accuracy(targets: list[Any], predictions: list[list[Box]]) -> dict[str, float]:
    return {"own_rec_accuracy": first_box_accuracy(targets, predictions)}


def _grounding_recall(targets: list[Any], predictions: list[list[Box]]) -> dict[str, float]:
    found = phrase_recall(targets, predictions)
    return {f"own_grounding_{key}": value for key, value in found.items()}


def _caption_figures(targets: list[str], predictions: list[str]) -> dict[str, float]:
    found = caption_figures([[target] for target in targets], predictions)
    return {f"own_captions_{key}": value for key, value in found.items()}


def _accuracy(targets: list[list[str]], predictions: list[str]) -> dict[str, float]:
    return {"own_vqa_accuracy": vqa_accuracy(targets, predictions)}
