"""What a run reads, as a frozen dataclass; no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.data.encode_document import EncodeSettings
from kosmos2_jax.data.grit import GritConfig
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.ranges import COUNT, Range, check_ranges


@dataclasses.dataclass(frozen=True)
class RehearsalConfig:
    """Old data that are mixed in, so that a model does not forget what it could.

    Attributes:
      share: of the examples of a run that are old ones, from 0, for none, to below 1.
      tasks: as of `DataConfig`, and so are the others. The names of tasks and figures of
        `kosmos2_jax.tasks.mixtures` have "old." before them here; a module that may be asked for
        new and old data has `prepare_old` beside `prepare`, or names its tasks by their folder.
      folder: where the old data lie.
      mixture: name of a mixture.
      rates: a mixture of your own.
    """

    share: float = 0.0
    tasks: str = "mixtures"
    folder: str = ""
    mixture: str = ""
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges({"share": Range(least=0, below=1)}, vars(self), "data.rehearsal.")
        if self.share and not self.folder:
            raise ConfigError(
                "data.rehearsal.share asks for old data: set data.rehearsal.folder to where they "
                "lie, or the share to 0"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches.

    Attributes:
      tasks: module that prepares and registers the data, of `kosmos2_jax.tasks` or your own: its
        `prepare(folder, data, model, seed)` gives the mixture's name and the vocabulary.
      folder: where the data lie; empty for `data` in the work folder.
      mixture: name of a mixture in `kosmos2_jax.tasks.mixtures`.
      rates: a mixture of your own, instead: examples by kind or folder, in any unit; see there.
      boxes: a COCO file of boxes, which is prepared as `grit/own` in `folder`; empty for none.
      pictures: where the pictures of that file are; empty for beside it.
      held_out: share of them that is not trained on but measured, as the split "test"; 1 for all,
        to evaluate a finished model.
      rehearsal: old data that are mixed in.
      tokenizer: a sentencepiece model; empty for `sentencepiece.bpe.model` in `folder`.
      train_scenes: the quickstart's drawn pictures for training.
      test_scenes: its drawn pictures for the test.
      pieces: size of the sentencepiece model that it trains.
      batch_size: rows of one update over all devices.
      length: tokens of a row; 2,048 in the papers, spec 0.
      images: pictures of a row at most.
      pack: whether examples share rows; one a row otherwise.
      open_rows: rows that wait for examples, see `kosmos2_jax.data.packing.RowLimits`.
      streams: parts that the data are dealt to, see
        `kosmos2_jax.data.packed_pipeline.packed_batches`.
      shuffle_buffer: examples of each task and stream that are shuffled; they travel with
        checkpoints, pictures and all.
      threads: that decode pictures.
      max_skipped: the largest share of bad examples of a source that is borne.
      image_mode: "crop" or "square", see `kosmos2_jax.data.grit.GritConfig`; spec 4.3.
      score_threshold: boxes of a lower score are left out; spec 4.3.
      phrase_mode: "expression" or "phrase", see `kosmos2_jax.data.grit.GritConfig`; spec 4.3.
      grounding_probability: chance that a caption of the task "grit" shows its boxes; spec 4.3.
      comprehension_probability: see `kosmos2_jax.data.encode_document.EncodeSettings`; spec 4.7.
      quantiser: how boxes become cells; spec 3.3, trap T-16.
      max_images: pictures of an example at most; spec 4.4.
      word_weight: loss weight of words beside location tokens; 1 as in the published code.
    """

    tasks: str = "quickstart"
    folder: str = ""
    mixture: str = ""
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    boxes: str = ""
    pictures: str = ""
    held_out: float = 0.2
    rehearsal: RehearsalConfig = RehearsalConfig()
    tokenizer: str = ""
    train_scenes: int = 40_000
    test_scenes: int = 1_000
    pieces: int = 200
    batch_size: int = 32
    length: int = 128
    images: int = 1
    pack: bool = False
    open_rows: int = 4
    streams: int = 8
    shuffle_buffer: int = 256
    threads: int = 1
    max_skipped: float = 0.05
    image_mode: str = GritConfig.image_mode
    score_threshold: float = GritConfig.score_threshold
    phrase_mode: str = GritConfig.phrase_mode
    grounding_probability: float = GritConfig.grounding_probability
    comprehension_probability: float = EncodeSettings.comprehension_probability
    quantiser: str = EncodeSettings.quantiser
    max_images: int = EncodeSettings.max_images
    word_weight: float = EncodeSettings.word_weight

    def __post_init__(self) -> None:
        counts = ("batch_size", "length", "streams", "shuffle_buffer", "threads")
        shares = {"max_skipped": Range(least=0, below=1), "held_out": Range(above=0, most=1)}
        check_ranges(dict.fromkeys(counts, COUNT) | shares, vars(self), "data.")

    def encode_settings(self, model: Kosmos2Config) -> EncodeSettings:
        """How documents become examples for this model.

        Raises:
          ConfigError: a setting makes no sense.
        """
        return EncodeSettings(
            num_latents=model.resampler.num_latents,
            max_tokens=model.decoder.max_length,
            max_images=self.max_images,
            quantiser=self.quantiser,
            word_weight=self.word_weight,
            comprehension_probability=self.comprehension_probability,
            grit=GritConfig(
                score_threshold=self.score_threshold,
                phrase_mode=self.phrase_mode,
                image_mode=self.image_mode,
                image_size=model.vision.image_size,
                grounding_probability=self.grounding_probability,
            ),
        )
