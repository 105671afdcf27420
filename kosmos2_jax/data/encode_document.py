"""From a document to the token features of its examples (spec sections 4.1 to 4.4 and 4.7).

Pictures stay encoded: they are decoded last, after examples are mixed and packed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from kosmos2_jax.data import examples, grit, text_lines
from kosmos2_jax.data.chance import chance
from kosmos2_jax.data.document_content import list_of, text_of
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.examples import Boxes, Example, Picture, Text
from kosmos2_jax.data.grit import GritConfig
from kosmos2_jax.data.skips import CLIPPED, FILTERED, DataError, Skips, Unusable
from kosmos2_jax.errors import ConfigError, MarkupError
from kosmos2_jax.grounding import markup, tags
from kosmos2_jax.grounding.boxes import OFFICIAL, Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.ranges import COUNT, SHARE, Range, check_ranges

Features = dict[str, np.ndarray]

CAPTION, INSTRUCTION, REFERRING = "caption", "instruction", "referring"

# Referring expression generation, spec section 4.7: words before the phrase that stands for the
# box, that phrase, and words after the box; the answer is "{expression}.".
GENERATION_TEMPLATES = (
    ("What is", " it", "? It is"),
    ("What is", " this", "? This is"),
    ("Describe", " this object", ". This object is"),
    ("", " It", " is"),
    ("", " This", " is"),
    ("", " The object", " is"),
)


@dataclasses.dataclass(frozen=True)
class EncodeSettings:
    """How documents become examples.

    Attributes:
      num_latents: slots a picture takes; spec 0.
      max_tokens: ids of a sequence at most, `<s>` included; spec 4.2.
      max_images: pictures of an example at most; spec 4.4.
      quantiser: how boxes become cells; spec 3.3, trap T-16.
      word_weight: see `kosmos2_jax.data.examples.encode_example`; spec 4.5.
      grounded_as: "caption"; "instruction" for the grounded instructions that the paper derives
        from GRIT, spec 4.7; or "referring" for the boxes of all phrases.
      comprehension_probability: chance that such an instruction asks for boxes, not for the
        expression; not published, so half.
      grit: what is chosen from the annotations of grounded documents.
    """

    num_latents: int = 64
    max_tokens: int = 2048
    max_images: int = 5
    quantiser: str = OFFICIAL
    word_weight: float = 1.0
    grounded_as: str = CAPTION
    comprehension_probability: float = 0.5
    grit: GritConfig = GritConfig()

    def __post_init__(self) -> None:
        if self.grounded_as not in (CAPTION, INSTRUCTION, REFERRING):
            raise ConfigError(
                "grounded_as must be 'caption', 'instruction' or 'referring', not "
                f"{self.grounded_as!r}."
            )
        ranges = {
            "comprehension_probability": SHARE,
            "max_tokens": Range(least=2),
            "max_images": COUNT,
            "num_latents": COUNT,
        }
        check_ranges(ranges, vars(self))


@dataclasses.dataclass(frozen=True)
class _Job:
    """One document and all that its encoding depends on."""

    document: Document
    vocabulary: Kosmos2Vocabulary
    settings: EncodeSettings
    seed: int
    draw: int
    skips: Skips

    def chance(self, what: str) -> float:
        document = self.document
        return chance(self.seed, self.draw, document.source, document.key, what)

    def clipped(self, reason: str) -> None:
        self.skips.count(self.document.source, CLIPPED + reason)


def annotations_source(source: str) -> str:
    """The name under which `Skips` has the counts of a source's annotations, one a box."""
    return f"{source} annotations"


def encode_document(
    document: Document,
    vocabulary: Kosmos2Vocabulary,
    settings: EncodeSettings,
    seed: int,
    skips: Skips,
    draw: int = 0,
) -> list[Features]:
    """Encodes the example or, of long text, the examples of a document.

    By kind of document; "learnt" means a loss weight above 0:
      text: sequences of this document alone by the rule of `kosmos2_jax.data.text_lines`, whose
        `pack_texts` packs across documents.
      caption: the picture, the caption; learnt from the first token after `</image>` to `</s>`.
      grounded, as caption: the same with `<grounding>` and tags, which are learnt too, or, by
        chance or where no box is left, the plain caption.
      grounded, as instruction: one phrase, drawn by chance; either the phrase is given and its
        boxes are learnt, or its boxes are given in one of `GENERATION_TEMPLATES` and the phrase
        is learnt. Prompts are tokenised as those of inference are, see `encode_markup`.
      grounded, as referring: all phrases one after the other, in an order drawn by chance, each
        given with its boxes to be learnt; several questions for the price of one picture.
      interleaved: pictures and text in turn; only text is learnt, and `</s>` after text.
      instruction: pictures, then `Question: ... Answer: ...` of each turn; answers are learnt.

    What holds a tag is skipped, see `document_content.text_of`; line breaks but those of kind
    "text" are blanks (trap T-33). What is longer than `max_tokens` is cut there, pictures and
    tokens together; what then stands behind the last token to be learnt goes too, and `</s>` with
    it. A page is cut before the picture after `max_images` in the same way. Grounded captions are
    not cut but skipped, as a cut would leave phrases without boxes.

    Args:
      document: anything in it that is malformed is counted in `skips`.
      vocabulary: tokens and the grid of locations.
      settings: how to encode.
      seed: of all that is left to chance.
      skips: counts the document as kept or skipped, and, under `annotations_source`, its
        annotations.
      draw: number of the epoch; another one gives other chances.

    Returns:
      For each example `targets` int32 [n], `loss_weights` float32 [n] and `image_slots` int32 [n]
      as `kosmos2_jax.data.examples.encode_example` describes them, and `images`, objects [N] of
      encoded bytes. An empty list for a document that is skipped.

    Raises:
      ConfigError: a grounded document with a vocabulary without location tokens.
      DataError: there is no such kind of document.
    """
    encode = _ENCODERS.get(document.kind)
    if encode is None:
        raise DataError(
            f"Document {document.key!r} of {document.source!r} is of unknown kind "
            f"{document.kind!r}: use one of {', '.join(_ENCODERS)}."
        )
    if document.kind == "grounded" and not vocabulary.grid_size:
        raise ConfigError(
            f"Source {document.source!r} has boxes, for which the vocabulary has no location "
            "tokens: set its grid_size, or read the source as captions."
        )
    try:
        if not isinstance(document.content, dict):
            raise Unusable("content is missing")
        result = encode(_Job(document, vocabulary, settings, seed, draw, skips))
    except Unusable as skip:
        skips.count(document.source, skip.reason)
        return []
    if document.kind != "text":  # pack_texts has counted it
        skips.kept(document.source)
    return result


def _encode_text(job: _Job) -> list[Features]:
    return list(
        text_lines.pack_texts([job.document], job.vocabulary, job.settings.max_tokens, job.skips)
    )


def _encode_caption(job: _Job) -> list[Features]:
    caption = text_of(job.document.content.get("caption"), "caption")
    return [_encode_captioned(job, GroundedText(caption))]


def _encode_grounded(job: _Job) -> list[Features]:
    grit_config = job.settings.grit
    content = job.document.content
    chosen = grit.choose(
        text_of(content.get("caption"), "caption"),
        content.get(grit.ANNOTATIONS[grit_config.phrase_mode]),
        _size(job),
        grit_config,
    )
    _count_annotations(job, chosen.kept, chosen.reasons)
    if job.settings.grounded_as == INSTRUCTION:
        return [_encode_grounded_instruction(job, chosen.caption)]
    if job.settings.grounded_as == REFERRING:
        return [_encode_referring(job, chosen.caption)]
    if job.chance("grounding") >= grit_config.grounding_probability:
        return [_encode_captioned(job, GroundedText(chosen.caption.text))]
    try:
        caption, unfit = grit.fit_to_tokens(chosen.caption, job.vocabulary)
    except MarkupError:
        raise Unusable("phrase begins inside a token") from None
    _count_annotations(job, -unfit.total(), unfit)
    return [_encode_captioned(job, caption)]


def _encode_captioned(job: _Job, caption: GroundedText) -> Features:
    example = examples.caption_example(_only_picture(job), caption)
    return _encode(job, example, may_cut=not caption.spans)


def _encode_grounded_instruction(job: _Job, caption: GroundedText) -> Features:
    if not caption.spans:
        raise Unusable(f"{FILTERED}caption without a phrase to ask for")
    span = caption.spans[int(job.chance("phrase") * len(caption.spans))]
    picture = _only_picture(job)
    if job.chance("task") < job.settings.comprehension_probability:
        example = _asked(picture, [span])
    else:
        number = int(job.chance("template") * len(GENERATION_TEMPLATES))
        prompt = generation_prompt(
            number, span.boxes, job.vocabulary.grid_size, job.settings.quantiser
        )
        answer = GroundedText(span.text.strip().removesuffix(".") + ".")
        example = Example((Picture(picture), Text(prompt, False), Text(answer, True)))
    return _encode(job, example, may_cut=False)


def _encode_referring(job: _Job, caption: GroundedText) -> Features:
    if not caption.spans:
        raise Unusable(f"{FILTERED}caption without a phrase to ask for")
    spans = sorted(caption.spans, key=lambda span: job.chance(f"place of {span.start}"))
    return _encode(job, _asked(_only_picture(job), spans), may_cut=False)


def _asked(picture: bytes, spans: Sequence[Span]) -> Example:
    try:
        return examples.referring_example(picture, [(span.text, span.boxes) for span in spans])
    except MarkupError:
        raise Unusable("phrase holds '<'") from None


def generation_prompt(
    number: int, boxes: Sequence[Box], grid_size: int, quantiser: str = OFFICIAL
) -> str:
    """Returns the markup of one of `GENERATION_TEMPLATES`, up to the expression.

    Raises:
      BoxError: a box is malformed.
    """
    before, subject, after = GENERATION_TEMPLATES[number]
    phrase = f"{tags.PHRASE_OPEN}{subject}{tags.PHRASE_CLOSE}"
    place = markup.render_object(boxes, grid_size, quantiser)
    return f"{tags.GROUNDING}{before}{phrase}{place}{after}"


def _encode_interleaved(job: _Job) -> list[Features]:
    document, most = job.document, job.settings.max_images
    parts: list[Picture | Text | Boxes] = []
    pictures = 0
    for part in list_of(document.content, "parts"):
        if isinstance(part, str):
            if part and not part.isspace():
                parts.append(Text(GroundedText(text_of(part, "text")), True))
        elif type(part) is int and 0 <= part < len(document.images):
            parts.append(Picture(document.images[part]))
            pictures += 1
            if pictures > most:
                # `_encode` takes this one away again, and `</s>`, as the page has not ended.
                job.clipped("page with too many pictures")
                break
        else:
            raise Unusable("part of a page is neither text nor one of its pictures")
    if parts and isinstance(parts[-1], Picture) and pictures <= most:
        job.clipped("page that ends with pictures")
    return [_encode(job, Example(tuple(parts)))]


def _encode_instruction(job: _Job) -> list[Features]:
    document = job.document
    if len(document.images) > job.settings.max_images:
        raise Unusable("instruction with too many pictures")
    turns = []
    for turn in list_of(document.content, "turns"):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise Unusable("turn is not a question and an answer")
        turns.append((text_of(turn[0], "question"), text_of(turn[1], "answer")))
    return [_encode(job, examples.question_example(document.images, turns))]


def _size(job: _Job) -> tuple[int, int]:
    """Width and height of the picture that boxes refer to."""
    size, config = job.document.size, job.settings.grit
    if size is None and config.image_mode == grit.SQUARE:
        return config.image_size, config.image_size  # boxes need no size there
    if size is None or not all(isinstance(side, int) and 1 <= side < _TOO_LONG for side in size):
        raise Unusable("size of the picture is missing or impossible")
    return size


def _only_picture(job: _Job) -> bytes:
    if len(job.document.images) != 1:
        raise Unusable("caption without exactly one picture")
    return job.document.images[0]


def _count_annotations(job: _Job, kept: int, reasons: grit.Counts) -> None:
    source = annotations_source(job.document.source)
    if kept:
        job.skips.kept(source, kept)
    for reason, n in reasons.items():
        job.skips.count(source, reason, n)


def _encode(job: _Job, example: Example, *, may_cut: bool = True) -> Features:
    settings = job.settings
    if not all(job.document.images):
        raise Unusable("picture without any bytes")
    try:
        features = examples.encode_example(
            example, job.vocabulary, settings.num_latents, settings.quantiser, settings.word_weight
        )
    except MarkupError:
        raise Unusable("nothing to learn") from None
    if len(features["targets"]) > settings.max_tokens:
        if not may_cut:
            raise Unusable("grounded example longer than a sequence")
        job.clipped("example longer than a sequence")
    (learnt,) = features["loss_weights"][: settings.max_tokens].nonzero()
    # To learn when to end, and nothing else, is nothing to learn.
    if not learnt.size or features["targets"][learnt[0]] == job.vocabulary.eos_id:
        raise Unusable("nothing to learn")
    end = learnt[-1] + 1
    cut = {name: features[name][:end] for name in ("targets", "loss_weights", "image_slots")}
    num_images = cut["image_slots"].max() // settings.num_latents + 1
    return {**cut, "images": features["images"][:num_images]}


_TOO_LONG = 1 << 31  # pixels a side that no picture format knows

_ENCODERS: dict[str, Callable[[_Job], list[Features]]] = {
    "text": _encode_text,
    "caption": _encode_caption,
    "grounded": _encode_grounded,
    "interleaved": _encode_interleaved,
    "instruction": _encode_instruction,
}
