"""The friendly face of the model: describe, ground, refer, ask."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kosmos2_jax.config import NONE, Kosmos2Config
from kosmos2_jax.errors import CheckpointError, ConfigError
from kosmos2_jax.grounding import prompts
from kosmos2_jax.grounding.grounded_text import GroundedText
from kosmos2_jax.grounding.tags import GROUNDING
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.decoding import GenerationConfig
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.prompt_batch import Prompt, batch_prompts, build_prompt
from kosmos2_jax.inference.quantization import check_quantization, place_parameter
from kosmos2_jax.inference.reading import Output, read_boxes_of, read_caption
from kosmos2_jax.interop.convert import load
from kosmos2_jax.models.products import Kernel
from kosmos2_jax.vision.preprocessing import ImageSource, load_image, square_pixels


class Predictor:
    """A model with its tokenizer, ready for pictures.

    A picture is a path, encoded bytes, an open file, a Pillow picture or a uint8 array
    [H, W, 3]. Boxes are fractions of the picture's width and height. Every result is a
    `GroundedText` whose boxes have scores of 0..1, see
    `kosmos2_jax.inference.reading.box_scores`; its `problems` say what the model did wrong.

    Attributes:
      model: architecture and generation settings.
      params: of the model.
      vocabulary: of the model.
    """

    def __init__(self, model: Kosmos2Model, params: Any, vocabulary: Kosmos2Vocabulary) -> None:
        """Takes a model in memory; `from_pretrained` reads one.

        Raises:
          ConfigError: vocabulary and model differ in size.
        """
        if vocabulary.vocab_size != model.config.decoder.vocab_size:
            raise ConfigError(
                f"the vocabulary has {vocabulary.vocab_size} tokens, the model "
                f"{model.config.decoder.vocab_size}"
            )
        self.model = model
        self.params = params
        self.vocabulary = vocabulary

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        *,
        max_new_tokens: int = GenerationConfig.max_new_tokens,
        quantization: str = NONE,
        progress: Callable[[int], None] | None = None,
    ) -> Predictor:
        """Reads a checkpoint of any format: Hugging Face, fairseq or our own.

        Args:
          path: a folder, or a fairseq `.pt` file.
          tokenizer: folder with the tokenizer's files, where `path` has none.
          max_new_tokens: longest answer.
          quantization: "none", or "int8" for a quarter of the memory and, on a CPU, answers
            sooner, see `kosmos2_jax.inference.quantization`.
          progress: called with the bytes read so far after each tensor.

        Raises:
          CheckpointError: nothing there, damaged, of another model, or without tokenizer.
          ConfigError: an unknown quantization.
        """
        check_quantization(quantization)
        done = 0

        def place(name: str, array: np.ndarray) -> jax.Array | Kernel:
            nonlocal done
            done += array.nbytes
            if progress is not None:
                progress(done)
            return place_parameter(name, array, quantization)

        checkpoint = load(path, tokenizer, place=place)
        if checkpoint.vocabulary is None:
            raise CheckpointError(
                f"{os.fspath(path)} has no tokenizer files; name the folder that has them "
                "(sentencepiece.bpe.model or tokenizer.json) as the tokenizer"
            )
        generation = GenerationConfig(
            max_new_tokens=max_new_tokens,
            no_repeat_ngram_size=checkpoint.generation.get("no_repeat_ngram_size", 0),
        )
        # Checkpoints hold one subtree for each layer, whatever the training did.
        config = checkpoint.config.replace(scan_layers=False)
        return cls(Kosmos2Model(config, generation), checkpoint.params, checkpoint.vocabulary)

    @property
    def config(self) -> Kosmos2Config:
        """The architecture."""
        return self.model.config

    def describe(self, image: ImageSource, detailed: bool = False) -> GroundedText:
        """What is in the picture, with the places of things.

        A brief caption keeps the words "An image of" that it begins with, as in transformers; a
        detailed one is the description alone. A model without location tokens gives no boxes.

        Raises:
          ImageError: the picture cannot be read.
        """
        prompt = prompts.describe(detailed)
        grounded = self.vocabulary.grid_size > 0
        if not grounded:
            prompt = prompt.removeprefix(GROUNDING)
        output = self._ask_about(image, prompt)
        beginning = "" if detailed else prompt.removeprefix(GROUNDING)
        return read_caption(self.vocabulary, output, beginning, grounded=grounded)

    def ground(self, image: ImageSource, phrase: str) -> GroundedText:
        """Where the phrase is: the phrase as text, with one span that has its boxes.

        The model stops after the boxes; no caption is written around them. If it gives the phrase
        no box there is no span and `problems` say why.

        Raises:
          ImageError: the picture cannot be read.
          MarkupError: the phrase is empty or holds tags.
          ConfigError: the model has no location tokens.
        """
        prompt = prompts.ground(phrase)
        self._require_locations("ground")
        output = self._ask_about(image, prompt, stop_ids=(self.vocabulary.end_object_id,))
        return read_boxes_of(self.vocabulary, output, phrase.strip())

    def refer(self, image: ImageSource, box: Sequence[float]) -> GroundedText:
        """What is in the box: the words that follow "It is", boxes of things they name included.

        Args:
          image: the picture.
          box: x1, y1, x2, y2 as fractions of the picture.

        Raises:
          ImageError: the picture cannot be read.
          BoxError: the box is reversed, outside of the picture or not a number.
          ConfigError: the model has no location tokens.
        """
        self._require_locations("refer")
        output = self._ask_about(image, prompts.refer(box, self.vocabulary.grid_size))
        return read_caption(self.vocabulary, output, "", grounded=False)

    def ask(self, image: ImageSource, question: str, grounded: bool = False) -> GroundedText:
        """The answer to a question, with boxes if `grounded`.

        Raises:
          ImageError: the picture cannot be read.
          MarkupError: the question is empty, holds tags or is too long.
          ConfigError: `grounded`, but the model has no location tokens.
        """
        prompt = prompts.ask(question, grounded)
        if grounded:
            self._require_locations("ground an answer")
        output = self._ask_about(image, prompt)
        return read_caption(self.vocabulary, output, "", grounded=grounded)

    def _require_locations(self, task: str) -> None:
        if not self.vocabulary.grid_size:
            raise ConfigError(
                f"this model has no location tokens, so it cannot {task}; it can describe and "
                "answer without boxes"
            )

    def _ask_about(self, image: ImageSource, prompt: str, stop_ids: tuple[int, ...] = ()) -> Output:
        pixels = square_pixels(load_image(image), self.config.vision.image_size)
        latents = self.config.resampler.num_latents
        row = build_prompt(self.vocabulary, latents, [pixels, prompt])
        return self._run([row], dataclasses.replace(self.model.generation, stop_ids=stop_ids))[0]

    def _run(self, rows: Sequence[Prompt], generation: GenerationConfig) -> list[Output]:
        """What the model writes after each row, all rows at once."""
        # One token at least must find room.
        batch = batch_prompts(rows, max_length=self.config.decoder.max_length - 1)
        # The default of accelerators is faster but does not give the reference's outputs (T-41).
        with jax.default_matmul_precision("highest"):
            generated = jax.device_get(self.model.generate(self.params, batch, generation))
        ends = (generation.eos_id, *generation.stop_ids)
        outputs = []
        for tokens, length, log_probs in zip(*generated, strict=True):
            kept = [i for i in range(length) if tokens[i] != generation.eos_id]
            outputs.append(
                Output(
                    tuple(int(tokens[i]) for i in kept),
                    tuple(float(log_probs[i]) for i in kept),
                    complete=int(tokens[length - 1]) in ends,
                )
            )
        return outputs
