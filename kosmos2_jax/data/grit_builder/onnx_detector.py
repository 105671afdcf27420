"""A detector of a closed vocabulary, such as COCO's 80 classes, that onnxruntime runs.

It knows no phrases: WordNet tells which class a phrase names (`wordnet`). Where two phrases of a
caption name one class ("a man beside another man") it cannot tell whose a box is, so that neither
has one.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from kosmos2_jax.data.grit_builder.detectors import Detections, DetectorError, Query, require_folder
from kosmos2_jax.data.grit_builder.selection import suppress
from kosmos2_jax.data.grit_builder.wordnet import Bridge, WordNet

if TYPE_CHECKING:
    import onnxruntime

# What scores less is no candidate, and of boxes of one class that overlap more the best stays:
# NanoDet's own settings are 0.05 and 0.6, and most boxes below 0.1 are of nothing.
_LEAST_SCORE = 0.1
_NMS_IOU = 0.6


@dataclasses.dataclass(frozen=True)
class OnnxDescription:
    """What detector.json says.

    Attributes:
      model: ONNX file; it takes one picture, float32.
      wordnet: folder with index.noun, data.noun and noun.exc. Both are relative to detector.json.
      size: width and height of the input.
      fit: how pictures get that size: "stretch", or "pad", which keeps their ratio and makes black
        borders.
      layout: of the input: NCHW or NHWC.
      channels: their order: RGB or BGR.
      mean: to be subtracted from each channel, of values 0..255.
      std: to divide by then.
      output: "rows": [N, 6] of x1, y1, x2, y2 in pixels of the input, score and class, as models
        with their own choice of boxes have it; "gfl": scores [M, classes] and, for each side,
        distances in bins [M, 4 * bins] for each scale, as NanoDet has it.
      classes: names, in the model's order.
      synonyms: more names that phrases may have for a class.
    """

    model: str
    wordnet: str
    size: tuple[int, int]
    fit: str
    layout: str
    channels: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    output: str
    classes: tuple[str, ...]
    synonyms: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (
            ("fit", ("stretch", "pad")), ("layout", ("NCHW", "NHWC")), ("channels", ("RGB", "BGR")),
            ("output", tuple(_READ)),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}")
        for name, length in (("size", 2), ("mean", 3), ("std", 3)):
            numbers = getattr(self, name)
            if len(numbers) != length or not all(isinstance(n, int | float) for n in numbers):
                raise ValueError(f"{name} must be {length} numbers")
        if min(*self.size, *self.std) <= 0 or not self.classes:
            raise ValueError("size and std must be above 0, and classes not empty")
        unknown = set(self.synonyms) - set(self.classes)
        if unknown:
            raise ValueError(f"synonyms are of {min(unknown)!r}, which is no class")


@dataclasses.dataclass(frozen=True)
class OnnxConfig:
    """A detector of a closed vocabulary.

    Attributes:
      model: JSON file with the fields of `OnnxDescription`.
    """

    model: str

    def open(self) -> OnnxDetector:
        """Loads the model.

        Raises:
          DetectorError: onnxruntime is not installed, or a file is missing or not what it must be.
        """
        path = Path(require_folder(self.model, "description of an ONNX detector"))
        try:
            described = OnnxDescription(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DetectorError(
                f"{self.model!r} does not describe an ONNX detector: {error}."
            ) from None
        bridge = Bridge(
            described.classes, described.synonyms, WordNet(path.parent / described.wordnet)
        )
        return OnnxDetector(_session(path.parent / described.model), described, bridge)


def _session(path: Path) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError:
        raise DetectorError(
            "onnxruntime is not installed: run `pip install 'kosmos2-jax[grit]'`."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the builder has a process for each core
    try:
        return onnxruntime.InferenceSession(str(path), options)
    except Exception as error:  # onnxruntime's own have no base but this
        raise DetectorError(f"{str(path)!r} cannot be loaded: {_line(error)}") from None


class OnnxDetector:
    """Asks a model in onnxruntime, one picture after the other."""

    def __init__(
        self, session: onnxruntime.InferenceSession, described: OnnxDescription, bridge: Bridge
    ) -> None:
        """Takes a model in memory, what it is, and what tells classes of phrases."""
        self._session = session
        self._input = session.get_inputs()[0].name
        self._described = described
        self._bridge = bridge

    def detect(self, queries: Sequence[Query]) -> list[Detections]:
        """Answers queries. Raises `DetectorError` where the model fails."""
        return [self._of(query) for query in queries]

    def _of(self, query: Query) -> Detections:
        named = [self._bridge.class_of(phrase) for phrase in query.phrases]
        counts = collections.Counter(named)
        phrases = {
            number: i
            for i, number in enumerate(named)
            if number is not None and counts[number] == 1
        }
        if not phrases:
            return Detections.of([])
        found = self.classes_in(query.image)
        parts = []
        for number, phrase in phrases.items():
            own = found.phrase_ids == number
            boxes = Detections(found.boxes[own], found.scores[own], np.full(own.sum(), phrase))
            parts.append(suppress(boxes, _NMS_IOU, collections.Counter()))
        return Detections(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.phrase_ids for part in parts]),
        )

    def classes_in(self, image: Image.Image) -> Detections:
        """What the model finds, before suppression; ids are those of classes."""
        described = self._described
        left, top, width, height = _place(image, described)
        values = prepare(image, described)
        try:
            outputs = self._session.run(None, {self._input: values})
        except Exception as error:  # onnxruntime's own have no base but this
            raise DetectorError(f"{described.model!r} fails: {_line(error)}") from None
        try:
            boxes, scores, ids = _READ[described.output](outputs, described)
        except ValueError as error:
            raise DetectorError(
                f"{described.model!r} has outputs that are not {described.output!r}: {error}."
            ) from None
        kept = scores > _LEAST_SCORE
        boxes = (boxes[kept] - [left, top, left, top]) / [width, height, width, height]
        return Detections(boxes, scores[kept].astype(np.float64), ids[kept])


def prepare(image: Image.Image, described: OnnxDescription) -> np.ndarray:
    """Returns a picture as the model takes it: float32, with a batch of 1."""
    left, top, width, height = _place(image, described)
    canvas = Image.new("RGB", described.size)
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    pixels = np.asarray(canvas, np.float32)
    if described.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    pixels = (pixels - np.float32(described.mean)) / np.float32(described.std)
    return pixels[None] if described.layout == "NHWC" else pixels.transpose(2, 0, 1)[None]


def _place(image: Image.Image, described: OnnxDescription) -> tuple[int, int, int, int]:
    """Left, top, width and height of a picture within the input, in pixels."""
    across, down = described.size
    if described.fit == "stretch":
        return 0, 0, across, down
    scale = min(across / image.width, down / image.height)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return (across - width) // 2, (down - height) // 2, width, height


_Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [N, 4] in pixels, scores, classes


def _read_rows(outputs: Sequence[np.ndarray], described: OnnxDescription) -> _Found:
    if outputs[0].shape[-1] != 6:
        raise ValueError(f"the first is {list(outputs[0].shape)}, not of rows of 6")
    rows = outputs[0].reshape(-1, 6)
    return rows[:, :4].astype(np.float64), rows[:, 4], rows[:, 5].astype(np.int64)


def _read_gfl(outputs: Sequence[np.ndarray], described: OnnxDescription) -> _Found:
    """Generalised focal loss's heads (arXiv 2006.04388), decoded as in NanoDet.

    A side lies at the mean of its distribution over bins, in strides from the centre of its cell.
    """
    parts = []
    classes = len(described.classes)
    scales = {array.shape[-2]: array for array in outputs if array.shape[-1] == classes}
    sides = {array.shape[-2]: array for array in outputs if array.shape[-1] != classes}
    if not scales or scales.keys() != sides.keys():
        shapes = ", ".join(str(list(array.shape)) for array in outputs)
        raise ValueError(f"there are {shapes} for {classes} classes")
    for cells, array in scales.items():
        scores = array.reshape(cells, classes)
        centres, stride = _centres(cells, described.size)
        bins = sides[cells].reshape(cells, 4, -1).astype(np.float64)
        weights = np.exp(bins - bins.max(axis=2, keepdims=True))
        means = weights @ np.arange(bins.shape[2]) / weights.sum(axis=2) * stride
        boxes = np.concatenate([centres - means[:, :2], centres + means[:, 2:]], axis=1)
        best = scores.argmax(axis=1)
        parts.append((boxes, scores[np.arange(cells), best], best))
    boxes, scores, ids = map(np.concatenate, zip(*parts, strict=True))
    return boxes, scores, ids


def _centres(cells: int, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Centres [cells, 2] in pixels of a grid of so many cells, and its stride, a power of two."""
    for stride in (4, 8, 16, 32, 64, 128):
        columns, rows = (-(-side // stride) for side in size)
        if columns * rows == cells:
            y, x = np.mgrid[:rows, :columns].reshape(2, -1)
            return (np.stack([x, y], axis=1) + 0.5) * stride, stride
    raise ValueError(f"a picture of {size[0]}x{size[1]} has no grid of {cells} cells")


_READ = {"rows": _read_rows, "gfl": _read_gfl}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
