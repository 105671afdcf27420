"""The quickstart's data: drawn scenes and easy-vqa, all their tasks in one mixture."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import seqio

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.data import easy_vqa_records
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.scene_records import SceneAnnotation, scene_record
from kosmos2_jax.data.scenes import SceneConfig
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

from . import easy_vqa, scenes

NAME = "quickstart"
SEEING = "quickstart_seeing"
RATES = {
    scenes.REFERRING: 5.0,
    scenes.CAPTION: 0.5,
    scenes.GROUNDING: 1.0,
    easy_vqa.NAME: 2.0,
}
# Of the warm start of the vision tower.
SEEING_RATES = {scenes.INVENTORY: 3.0, easy_vqa.CONTENTS: 2.0}
_TEXT_SCENES = 800  # whose words the text model sees: each of them many times


def prepare(
    folder: Path, data: DataConfig, model: Kosmos2Config, seed: int
) -> tuple[str, Kosmos2Vocabulary]:
    """Makes what is missing of the data in `folder` and registers tasks and mixture.

    Args:
      folder: gets `scenes/`, `easy_vqa/` and `sentencepiece.bpe.model`.
      data: how many scenes and pieces of text there are, and `rates` in place of `RATES`.
      model: whose pictures and grid the examples are for.
      seed: of the scenes.

    Returns:
      The mixture's name, and the vocabulary.

    Raises:
      ConfigError: another mixture is asked for.
    """
    if data.mixture not in ("", NAME):
        raise ConfigError(f"data.mixture {data.mixture!r} needs data.tasks=mixtures")
    folder, image_size = Path(folder), model.vision.image_size
    config = SceneConfig(image_size=image_size)
    processes = os.cpu_count() or 1
    for split, count in (("train", data.train_scenes), ("test", data.test_scenes)):
        scenes.write_scenes(folder, split, count, seed, config, processes=processes)
        easy_vqa.write_easy_vqa(folder, split, image_size)
    # Trained anew each time: that takes half a second and can never be out of date.
    model_file = folder / "sentencepiece.bpe.model"
    train_sentencepiece(sentences(), model_file, data.pieces)
    vocabulary = Kosmos2Vocabulary(model_file, model.grid_size)
    settings = TaskSettings(vocabulary, data.encode_settings(model), seed, data.shuffle_buffer)
    return register(folder, settings, data.rates), vocabulary


def register(
    data_dir: Path, settings: TaskSettings, rates: Mapping[str, float] | None = None
) -> str:
    """Registers all tasks over `data_dir` and mixtures, in place of older ones.

    Args:
      data_dir: where `write_scenes` and `write_easy_vqa` wrote.
      settings: how documents become examples.
      rates: share of examples by name of task, in any unit; by default `RATES`.

    Returns:
      The name of the training mixture.
    """
    scenes.register(data_dir, settings)
    easy_vqa.register(data_dir, settings)
    for name, shares in ((NAME, rates or RATES), (SEEING, SEEING_RATES)):
        if name in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, list(shares.items()))
    return NAME


def sentences() -> Iterator[str]:
    """The text that the quickstart's sentencepiece model is trained on."""
    for index in range(_TEXT_SCENES):
        record = scene_record(index, "train", seed=0, config=SceneConfig(held_out=()))
        annotation = SceneAnnotation.from_dict(record.content)
        yield annotation.caption.text
        yield from (referring.text for referring in annotation.referring)
    yield from itertools.islice(easy_vqa_records.sentences(), 2 * _TEXT_SCENES)
