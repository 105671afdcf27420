"""The quickstart's data: drawn scenes and easy-vqa, all their tasks in one mixture."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import seqio

from kosmos2_jax.data import easy_vqa_records
from kosmos2_jax.data.preprocessing import ModelInputs
from kosmos2_jax.data.scene_records import SceneAnnotation, scene_record
from kosmos2_jax.data.scenes import SceneConfig
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

from . import easy_vqa, scenes

NAME = "quickstart"
SEEING = "quickstart_seeing"
RATES = {
    scenes.REFERRING: 5.0,
    scenes.CAPTION: 0.5,
    scenes.GROUNDING: 1.0,
    easy_vqa.NAME: 1.5,
}
# Of the warm start of the vision tower.
SEEING_RATES = {scenes.INVENTORY: 3.0, easy_vqa.CONTENTS: 1.0}
_TEXT_SCENES = 800  # whose words the text model sees: each of them many times


def prepare(
    data_dir: Path,
    *,
    train_scenes: int,
    test_scenes: int,
    pieces: int,
    image_size: int,
    num_latents: int,
    grid_size: int,
    word_weight: float,
    seed: int,
) -> tuple[str, Kosmos2Vocabulary]:
    """Makes what is missing of the data in `data_dir` and registers tasks and mixture.

    Args:
      data_dir: gets `scenes/`, `easy_vqa/` and `sentencepiece.bpe.model`.
      train_scenes: scenes drawn for training.
      test_scenes: scenes drawn for the test, with combinations that training never shows.
      pieces: size of the text model at most.
      image_size: pixels a side.
      num_latents: slots a picture takes.
      grid_size: location cells a side.
      word_weight: see `kosmos2_jax.data.examples.encode_example`.
      seed: of the scenes.

    Returns:
      The mixture's name, and the vocabulary.
    """
    data_dir = Path(data_dir)
    config = SceneConfig(image_size=image_size)
    processes = os.cpu_count() or 1
    for split, count in (("train", train_scenes), ("test", test_scenes)):
        scenes.write_scenes(data_dir, split, count, seed, config, processes=processes)
        easy_vqa.write_easy_vqa(data_dir, split, image_size)
    # Trained anew each time: that takes half a second and can never be out of date.
    model_file = data_dir / "sentencepiece.bpe.model"
    train_sentencepiece(sentences(), model_file, pieces)
    vocabulary = Kosmos2Vocabulary(model_file, grid_size)
    return register(
        data_dir, ModelInputs(vocabulary, num_latents, image_size, word_weight=word_weight)
    ), vocabulary


def register(data_dir: Path, inputs: ModelInputs, rates: Mapping[str, float] | None = None) -> str:
    """Registers all tasks over `data_dir` and mixtures, in place of older ones.

    Args:
      data_dir: where `write_scenes` and `write_easy_vqa` wrote.
      inputs: what of the model the data must know.
      rates: share of examples by name of task, in any unit; by default `RATES`.

    Returns:
      The name of the training mixture.
    """
    scenes.register(data_dir, inputs)
    easy_vqa.register(data_dir, inputs)
    for name, shares in ((NAME, rates or RATES), (SEEING, SEEING_RATES)):
        if name in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, list(shares.items()))
    return NAME


def sentences() -> Iterator[str]:
    """The text that the quickstart's sentencepiece model is trained on."""
    for index in range(_TEXT_SCENES):
        record = scene_record(index, "train", seed=0, config=SceneConfig(held_out=()))
        annotation = SceneAnnotation.from_dict(record.annotation)
        yield annotation.caption.text
        yield from (referring.text for referring in annotation.referring)
    yield from itertools.islice(easy_vqa_records.sentences(), 2 * _TEXT_SCENES)
