"""The friendly face of the model: describe, ground, refer, ask, and more.

predictor = Predictor.from_pretrained("kosmos-2/")
predictor.describe("dogs.jpg").entities()
predictor.describe(["dogs.jpg", "cats.jpg"])                  # many at once
sampled = SamplingConfig(temperature=0.7, top_p=0.9, num_outputs=3)
question = predictor.questions.describe("dogs.jpg", sampling=sampled)
predictor.answer([question])[0]                               # three descriptions
for piece in predictor.stream(question): ...                  # as they are written
predictor.top_boxes("dogs.jpg", "a dog", count=5)
predictor.choose([Path("dogs.jpg"), "Question: Dogs or cats? Answer:"], ["dogs", "cats"])
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kosmos2_jax.config import NONE, Kosmos2Config
from kosmos2_jax.errors import CheckpointError, ConfigError
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.engine import Engine
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.quantization import check_storage, place_parameter
from kosmos2_jax.inference.questions import Question, Questions, Segment
from kosmos2_jax.inference.requests import Handle
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.inference.scoring import score_continuations, top_boxes
from kosmos2_jax.interop.convert import load
from kosmos2_jax.models.products import Kernel
from kosmos2_jax.vision.preprocessing import ImageSource

Images = ImageSource | Sequence[ImageSource]
Answers = GroundedText | list[GroundedText]


class Predictor:
    """A model with its tokenizer, ready for pictures.

    A picture is a path, a public address (https://…), encoded bytes, an open file, a Pillow
    picture or a uint8 array [H, W, 3]; a list of them gives a list of results, made together.
    Boxes are fractions of the picture's width and height. Every result is a `GroundedText` whose
    boxes have scores of 0..1, see `kosmos2_jax.inference.reading.ScoredBox`; its `problems` say
    what the model did wrong.

    Attributes:
      model: architecture and default settings.
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
        max_new_tokens: int = SamplingConfig.max_new_tokens,
        quantization: str = NONE,
        dtype: str = "float32",
        progress: Callable[[int], None] | None = None,
    ) -> Predictor:
        """Reads a checkpoint of any format: Hugging Face, fairseq or our own.

        Args:
          path: a folder, or a fairseq `.pt` file.
          tokenizer: folder with the tokenizer's files, where `path` has none.
          max_new_tokens: longest answer.
          quantization: "none", or "int8" for a quarter of the memory and, on a CPU, answers
            sooner, see `kosmos2_jax.inference.quantization`.
          dtype: of weights and activations: "float32", or "bfloat16" for half the memory and twice
            the speed on GPU and TPU. CPUs are slower with it.
          progress: called with the bytes read so far after each tensor.

        Raises:
          CheckpointError: nothing there, damaged, of another model, or without tokenizer.
          ConfigError: an unknown quantization or dtype.
        """
        check_storage(quantization, dtype)
        done = 0

        def place(name: str, array: np.ndarray) -> jax.Array | Kernel:
            nonlocal done
            done += array.nbytes
            if progress is not None:
                progress(done)
            return place_parameter(name, array, quantization, dtype)

        checkpoint = load(path, tokenizer, place=place)
        if checkpoint.vocabulary is None:
            raise CheckpointError(
                f"{os.fspath(path)} has no tokenizer files; name the folder that has them "
                "(sentencepiece.bpe.model or tokenizer.json) as the tokenizer"
            )
        sampling = SamplingConfig(
            max_new_tokens=max_new_tokens,
            no_repeat_ngram_size=checkpoint.generation.get("no_repeat_ngram_size", 0),
        )
        # Checkpoints hold one subtree for each layer, whatever the training did.
        config = checkpoint.config.replace(scan_layers=False, dtype=dtype)
        return cls(Kosmos2Model(config, sampling), checkpoint.params, checkpoint.vocabulary)

    @functools.cached_property
    def engine(self) -> Engine:
        """What writes; other requests may share it, see `kosmos2_jax.inference.engine`."""
        return Engine(self.config, self.params, self.vocabulary)

    @property
    def config(self) -> Kosmos2Config:
        """The architecture."""
        return self.model.config

    @property
    def questions(self) -> Questions:
        """What can be asked, as requests to the engine."""
        return Questions(self.config, self.vocabulary, self.model.sampling)

    def describe(
        self, image: Images, detailed: bool = False, sampling: SamplingConfig | None = None
    ) -> Answers:
        """What is in the picture, see `Questions.describe`."""
        return self._each(image, lambda one: self.questions.describe(one, detailed, sampling))

    def ground(self, image: Images, phrase: str, sampling: SamplingConfig | None = None) -> Answers:
        """Where the phrase is, see `Questions.ground`."""
        return self._each(image, lambda one: self.questions.ground(one, phrase, sampling))

    def refer(
        self, image: Images, box: Sequence[float], sampling: SamplingConfig | None = None
    ) -> Answers:
        """What is in the box, see `Questions.refer`."""
        return self._each(image, lambda one: self.questions.refer(one, box, sampling))

    def ask(
        self,
        image: Images | None,
        question: str | GroundedText,
        grounded: bool = False,
        sampling: SamplingConfig | None = None,
    ) -> Answers:
        """The answer to a question, see `Questions.ask`."""
        return self._each(image, lambda one: self.questions.ask(one, question, grounded, sampling))

    def answer(self, questions: Sequence[Question]) -> list[tuple[GroundedText, ...]]:
        """The outputs of any questions, all at once; raises as `Engine.submit`."""
        outputs = self.engine.generate([question.request for question in questions])
        return [
            tuple(question.read(output) for output in own)
            for question, own in zip(questions, outputs, strict=True)
        ]

    def stream(self, question: Question) -> Handle:
        """Asks without waiting: iterate over what comes back for pieces of markup."""
        return self.engine.submit(question.request)

    def top_boxes(self, image: ImageSource, phrase: str, count: int = 10) -> GroundedText:
        """The phrase with its `count` most likely boxes, best first.

        Here scores are probabilities of whole boxes, see
        `kosmos2_jax.inference.scoring.top_boxes`; errors are as of `Questions.ground`.
        """
        prompt = self.questions.box_prompt(image, phrase)
        found = top_boxes(self.config, self.params, prompt, count)
        text = phrase.strip()
        boxes, scores, marginal_scores = zip(*found, strict=True)
        return GroundedText(text, (Span(text, 0, len(text), boxes, scores, marginal_scores),))

    def score(self, segments: Sequence[Segment], answers: Sequence[str]) -> list[np.ndarray]:
        """Log-probability of each token of each answer after a prompt, `</s>` not counted.

        Args:
          segments: the prompt, as of `Questions.raw`.
          answers: texts; tags in them are text.

        Raises:
          As `Questions.raw`, and
          MarkupError: an answer is empty, or too long with its prompt.
        """
        return self._score(segments, [self.vocabulary.encode(answer) for answer in answers])

    def choose(self, segments: Sequence[Segment], choices: Sequence[str]) -> str:
        """The most likely of some texts as the whole answer to a prompt; raises as `score`."""
        ids = [[*self.vocabulary.encode(choice), self.vocabulary.eos_id] for choice in choices]
        scores = self._score(segments, ids)
        return choices[max(range(len(choices)), key=lambda number: scores[number].sum())]

    def close(self) -> None:
        """Ends what is being written."""
        self.engine.close()

    def _score(self, segments: Sequence[Segment], ids: list[list[int]]) -> list[np.ndarray]:
        prompt = self.questions.prompt(segments)
        return score_continuations(self.config, self.params, [prompt], [ids])[0]

    def _each(self, images: Images | None, ask: Callable[[Any], Question]) -> Answers:
        """The first output for a picture, or a list of them for a list."""
        if isinstance(images, list | tuple):
            return [outputs[0] for outputs in self.answer([ask(image) for image in images])]
        return self.answer([ask(images)])[0][0]
