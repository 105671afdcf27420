"""Grounding DINO and OWLv2, as transformers has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from kosmos2_jax.data.grit_builder.detectors import Detections, DetectorError, Query

# What scores less is no candidate: these models give hundreds of boxes for every picture.
_LEAST_SCORE = 0.1

_OWL = ("owlv2", "owlvit")
_GROUNDING_DINO = ("grounding-dino",)


@dataclasses.dataclass(frozen=True)
class TransformersConfig:
    """A detector of transformers that takes phrases.

    Attributes:
      model: folder of a copy of its repository, with weights in safetensors, such as those of
        `IDEA-Research/grounding-dino-base` and `google/owlv2-base-patch16-ensemble`.
    """

    model: str

    def open(self) -> TransformersDetector:
        """Loads the model, onto a GPU if torch sees one.

        Raises:
          DetectorError: torch or transformers is not installed, or the folder holds no such model.
        """
        try:
            import torch
            import transformers
        except ImportError as error:
            raise DetectorError(
                f"{error.name} is not installed: run `pip install 'kosmos2-jax[torch]'`."
            ) from None
        try:
            processor = transformers.AutoProcessor.from_pretrained(
                self.model, local_files_only=True
            )
            model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
                self.model, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise DetectorError(
                f"{self.model!r} holds no detector of transformers: {' '.join(str(error).split())}"
            ) from None
        if model.config.model_type not in (*_OWL, *_GROUNDING_DINO):
            raise DetectorError(
                f"{self.model!r} is a model of type {model.config.model_type!r}: give Grounding "
                "DINO or OWLv2."
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return TransformersDetector(processor, model.eval().to(device))


class TransformersDetector:
    """Asks Grounding DINO or OWLv2."""

    def __init__(self, processor: Any, model: Any) -> None:
        """Takes a processor and its model in memory."""
        self._processor = processor
        self._model = model
        self._is_owl = model.config.model_type in _OWL

    def detect(self, queries: Sequence[Query]) -> list[Detections]:
        """Answers all queries at once."""
        import torch

        read = self._owl_inputs if self._is_owl else self._dino_inputs
        inputs, columns = read(queries)
        with torch.inference_mode():
            outputs = self._model(**inputs.to(self._model.device))
        scores = outputs.logits.float().sigmoid()
        answers = []
        for number, query in enumerate(queries):
            by_phrase = _phrase_scores(scores[number], columns[number])
            best, phrase = by_phrase.max(dim=1)
            kept = torch.nonzero(best > _LEAST_SCORE)[:, 0]
            boxes = self._corners(outputs.pred_boxes[number, kept].float(), query)
            answers.append(
                Detections(
                    boxes.cpu().double().numpy(),
                    best[kept].cpu().double().numpy(),
                    phrase[kept].cpu().numpy(),
                )
            )
        return answers

    def _owl_inputs(self, queries: Sequence[Query]) -> tuple[Any, list[list[list[int]]]]:
        """Inputs, and for each query and phrase its columns of the logits: one each."""
        inputs = self._processor(
            text=[list(query.phrases) for query in queries],
            images=[query.image for query in queries],
            return_tensors="pt",
            truncation=True,
        )
        return inputs, [[[i] for i in range(len(query.phrases))] for query in queries]

    def _dino_inputs(self, queries: Sequence[Query]) -> tuple[Any, list[list[list[int]]]]:
        """Inputs, and for each query and phrase its columns of the logits: those of its tokens.

        Phrases are joined as the model was trained, in small letters, with full stops between.
        """
        texts, ends = zip(*map(_join, (query.phrases for query in queries)), strict=True)
        inputs = self._processor(
            text=list(texts),
            images=[query.image for query in queries],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        tokenizer = self._processor.tokenizer
        columns = []
        for text, spans in zip(texts, ends, strict=True):
            offsets = tokenizer(text, return_offsets_mapping=True, truncation=True)[
                "offset_mapping"
            ]
            columns.append(
                [[i for i, (a, b) in enumerate(offsets) if x <= a < b <= y] for x, y in spans]
            )
        return inputs, columns

    def _corners(self, boxes: Any, query: Query) -> Any:
        """From centres and sizes to corners, as fractions of the picture."""
        import torch

        x, y, width, height = boxes.unbind(1)
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)
        if self._is_owl:  # which sees the picture in the upper left corner of a square
            side = max(query.image.size)
            across, down = side / query.image.width, side / query.image.height
            corners = corners * corners.new_tensor([across, down, across, down])
        return corners


def _join(phrases: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
    text, spans = "", []
    for phrase in phrases:
        phrase = phrase.lower().replace(".", " ")
        spans.append((len(text), len(text) + len(phrase)))
        text += f"{phrase}. "
    return text.rstrip(), spans


def _phrase_scores(scores: Any, columns: Sequence[Sequence[int]]) -> Any:
    """[boxes, columns] to [boxes, phrases]: the best column of each; 0 for a phrase without one."""
    import torch

    parts = []
    for own in columns:
        read = [column for column in own if column < scores.shape[1]]  # not cut off
        parts.append(scores[:, read].amax(dim=1) if read else scores.new_zeros(len(scores)))
    return torch.stack(parts, dim=1)
