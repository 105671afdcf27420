"""What a benchmark asks and what it holds true: one record type for each kind of task.

Boxes are in pixels of the picture, which need not be read for them. Pictures are paths. Whatever
the benchmark keeps secret (answers of test splits) is empty or None.
"""

from __future__ import annotations

import dataclasses

from kosmos2_jax.grounding.boxes import Box


@dataclasses.dataclass(frozen=True)
class PhraseRecord:
    """Phrase grounding: where is a phrase of a caption? (spec section 5.2)

    Attributes:
      id: of the phrase.
      image: path of the picture.
      size: its width and height in pixels.
      caption: the whole caption.
      start: first character of the phrase in it.
      end: character after the last one.
      phrase_types: such as "people"; the phrase counts in each.
      boxes: the true ones, at least one.
    """

    id: str
    image: str
    size: tuple[int, int]
    caption: str
    start: int
    end: int
    phrase_types: tuple[str, ...]
    boxes: tuple[Box, ...]

    @property
    def phrase(self) -> str:
        """The phrase itself."""
        return self.caption[self.start : self.end]


@dataclasses.dataclass(frozen=True)
class ReferringRecord:
    """Comprehension (where is it?) and generation (what is it?) of referring expressions.

    Attributes:
      id: of the expression, or of the object that all of `expressions` refer to.
      image: path of the picture.
      size: its width and height in pixels.
      expressions: for comprehension one; for generation all that people gave.
      box: of the object.
    """

    id: str
    image: str
    size: tuple[int, int]
    expressions: tuple[str, ...]
    box: Box


@dataclasses.dataclass(frozen=True)
class CaptionRecord:
    """Captioning.

    Attributes:
      id: of the picture.
      image: its path.
      captions: what people wrote.
    """

    id: str
    image: str
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class QuestionRecord:
    """A question with a free answer.

    Attributes:
      id: of the question.
      image: path of the picture.
      question: as people asked it.
      answers: what people answered; none where it is secret.
      group: kind of the answer, as "yes/no", or empty.
      context: text that the answer is to be read off, or empty.
    """

    id: str
    image: str
    question: str
    answers: tuple[str, ...]
    group: str = ""
    context: str = ""


@dataclasses.dataclass(frozen=True)
class Option:
    """A candidate: how probable is `answer` after `prompt`?

    Attributes:
      prompt: text before it, after the picture if there is one.
      answer: what is scored, without the space that parts the two.
    """

    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True)
class ChoiceRecord:
    """A choice among candidates by their likelihood.

    Attributes:
      id: of the question.
      options: the candidates in the benchmark's order.
      answer: index of the right one; None where it is secret.
      image: path of the picture; None for language tasks.
      group: such as the dimension in SEED-Bench, or empty.
    """

    id: str
    options: tuple[Option, ...]
    answer: int | None
    image: str | None = None
    group: str = ""


@dataclasses.dataclass(frozen=True)
class NameRecord:
    """Classification: what is in the picture?

    Attributes:
      id: of the picture.
      image: its path.
      names: all that are right.
    """

    id: str
    image: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MatrixRecord:
    """Raven's matrices: which picture comes next?

    Attributes:
      id: of the matrix.
      images: paths of those that are given, in reading order.
      candidates: paths of those to choose from.
      answer: index of the right one.
    """

    id: str
    images: tuple[str, ...]
    candidates: tuple[str, ...]
    answer: int


@dataclasses.dataclass(frozen=True)
class DescribedRecord:
    """Classification by descriptions: which of the classes is in the picture?

    Attributes:
      id: of the picture.
      image: its path.
      category: what all classes are, as "woodpecker".
      names: of the classes.
      descriptions: of each class, sentences that name it.
      answer: index of the right class.
    """

    id: str
    image: str
    category: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    answer: int


Record = (
    PhraseRecord
    | ReferringRecord
    | CaptionRecord
    | QuestionRecord
    | ChoiceRecord
    | NameRecord
    | MatrixRecord
    | DescribedRecord
)
