"""Token ids of Kosmos-2 over any sentencepiece model and any grid (spec section 3.1).

    <s> <pad> </s> <unk> | pieces | <mask> </doc> <image> </image> </chunk> </line> |
    <phrase> </phrase> <object> </object> </delimiter_of_multi_objects/> <grounding> | cells

The class serves wherever seqio wants a `seqio.Vocabulary`, without importing seqio; TensorFlow
is imported by `encode_tf` and `decode_tf` only.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kosmos2_jax.errors import CheckpointError, MarkupError
from kosmos2_jax.grounding import tags
from kosmos2_jax.grounding.boxes import OFFICIAL, box_to_cells
from kosmos2_jax.grounding.grounded_text import GroundedText, Span, sorted_spans

if TYPE_CHECKING:
    import sentencepiece
    import tensorflow as tf

# sentencepiece's own ids: unk 0, bos 1, eos 2, pieces from 3; ours are one more from there on.
_SPM_FIRST_PIECE = 3
_FIRST_PIECE = len(tags.FIRST_TAGS)
_WORD_START = "▁"


class Kosmos2Vocabulary:
    """The vocabulary: pieces of text, tags and location tokens.

    The files are read at first use, so that a seqio task can name files that come later.

    Attributes:
      model_file: the sentencepiece model (`sentencepiece.bpe.model`, though it is a unigram one).
      grid_size: location cells a side; 0 for a vocabulary without grounding, as Kosmos-1's.
      dict_file: fairseq's `dict.txt`, only checked against the model, or None.
    """

    extra_ids = 0  # seqio: nothing is added to the vocabulary
    bos_id = 0
    pad_id = 1
    eos_id = 2
    unk_id = 3

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        grid_size: int = 32,
        dict_file: str | os.PathLike[str] | None = None,
    ):
        """Names the files; see the class for the arguments."""
        self.model_file = model_file
        self.grid_size = grid_size
        self.dict_file = dict_file

    @functools.cached_property
    def model_bytes(self) -> bytes:
        """The sentencepiece model as stored.

        Raises:
          CheckpointError: the file cannot be read.
        """
        return _read(self.model_file, "sentencepiece model")

    @functools.cached_property
    def tokenizer(self) -> sentencepiece.SentencePieceProcessor:
        """The sentencepiece processor; its ids are not those of this vocabulary.

        Raises:
          CheckpointError: a file is missing, broken, or does not fit the other one.
        """
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(self.model_bytes)
        except RuntimeError:
            raise CheckpointError(f"{self.model_file} is not a sentencepiece model.") from None
        layout = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
        if layout != (0, 1, 2, -1):
            raise CheckpointError(
                f"{self.model_file} must be trained with unk_id=0, bos_id=1, eos_id=2 and no "
                f"pad_id, but has {', '.join(map(str, layout))}."
            )
        if self.dict_file is not None:
            self._check_dict(processor)
        return processor

    def _check_dict(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        lines = _read(self.dict_file, "dictionary").decode("utf-8").split("\n")
        listed = [line.rpartition(" ")[0] for line in lines if line]
        ids = list(range(_SPM_FIRST_PIECE, processor.vocab_size()))
        pieces = processor.id_to_piece(ids)
        if len(listed) != len(pieces):
            raise CheckpointError(
                f"{self.dict_file} lists {len(listed)} pieces but {self.model_file} has "
                f"{len(pieces)}: they belong to different models."
            )
        for number, (ours, theirs) in enumerate(zip(listed, pieces, strict=True), start=1):
            if ours != theirs:
                raise CheckpointError(
                    f"Line {number} of {self.dict_file} is {ours!r} but {self.model_file} has "
                    f"{theirs!r} there: they belong to different models."
                )

    @functools.cached_property
    def _ids_of(self) -> Callable[[str], tuple[int, ...]]:
        """Ids of plain text, the last ones remembered.

        Tagging a caption asks for it and for what stands before its phrases several times.
        """
        encode, offset, unk_id = self.tokenizer.encode, _FIRST_PIECE - _SPM_FIRST_PIECE, self.unk_id

        @functools.lru_cache(maxsize=64)
        def ids_of(text: str) -> tuple[int, ...]:
            return tuple([i + offset if i else unk_id for i in encode(text)])

        return ids_of

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        """All tokens in order of their ids."""
        ids = list(range(_SPM_FIRST_PIECE, self.tokenizer.vocab_size()))
        pieces = tuple(self.tokenizer.id_to_piece(ids))
        locations = tuple(tags.location_token(cell) for cell in range(self.grid_size**2))
        grounding = tags.GROUNDING_TAGS if self.grid_size else ()
        return tags.FIRST_TAGS + pieces + tags.BASE_TAGS + grounding + locations

    @functools.cached_property
    def _tag_ids(self) -> dict[str, int]:
        """Ids of what `encode_markup` takes for one token: all that comes after the pieces."""
        return {token: self.mask_id + i for i, token in enumerate(self.tokens[self.mask_id :])}

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids: 65,037 for the released model, 64,007 for Kosmos-1."""
        grounding = len(tags.GROUNDING_TAGS) + self.grid_size**2 if self.grid_size else 0
        return self.mask_id + len(tags.BASE_TAGS) + grounding

    @functools.cached_property
    def mask_id(self) -> int:
        """Id of `<mask>`, the first after the pieces."""
        return self.tokenizer.vocab_size() - _SPM_FIRST_PIECE + _FIRST_PIECE

    @property
    def end_of_document_id(self) -> int:
        """Id of `</doc>`."""
        return self.mask_id + 1

    @property
    def begin_image_id(self) -> int:
        """Id of `<image>`."""
        return self.mask_id + 2

    @property
    def end_image_id(self) -> int:
        """Id of `</image>`."""
        return self.mask_id + 3

    @property
    def end_of_chunk_id(self) -> int:
        """Id of `</chunk>`."""
        return self.mask_id + 4

    @property
    def end_of_line_id(self) -> int:
        """Id of `</line>`."""
        return self.mask_id + 5

    @property
    def phrase_id(self) -> int:
        """Id of `<phrase>`."""
        return self._grounding_id(tags.PHRASE_OPEN)

    @property
    def end_phrase_id(self) -> int:
        """Id of `</phrase>`."""
        return self._grounding_id(tags.PHRASE_CLOSE)

    @property
    def object_id(self) -> int:
        """Id of `<object>`."""
        return self._grounding_id(tags.OBJECT_OPEN)

    @property
    def end_object_id(self) -> int:
        """Id of `</object>`."""
        return self._grounding_id(tags.OBJECT_CLOSE)

    @property
    def delimiter_id(self) -> int:
        """Id of `</delimiter_of_multi_objects/>`."""
        return self._grounding_id(tags.DELIMITER)

    @property
    def grounding_id(self) -> int:
        """Id of `<grounding>`."""
        return self._grounding_id(tags.GROUNDING)

    @property
    def first_location_id(self) -> int:
        """Id of cell 0; those of the other cells follow."""
        return self._grounding_id(tags.GROUNDING) + 1

    def _grounding_id(self, tag: str) -> int:
        if not self.grid_size:
            raise MarkupError(f"A vocabulary with grid_size=0 has no {tag}.")
        return self.end_of_line_id + 1 + tags.GROUNDING_TAGS.index(tag)

    def location_id(self, cell: int) -> int:
        """Returns the id of a cell's location token.

        Raises:
          MarkupError: the cell is outside the grid.
        """
        if not 0 <= cell < self.grid_size**2:
            raise MarkupError(
                f"Location token {cell} outside the {self.grid_size}x{self.grid_size} grid."
            )
        return self.first_location_id + cell

    def is_location(self, token_ids: int | np.ndarray) -> np.ndarray:
        """Says of one id or an array of them which are those of location tokens."""
        first = self.first_location_id if self.grid_size else self.vocab_size
        return (np.asarray(token_ids) >= first) & (np.asarray(token_ids) < self.vocab_size)

    def image_ids(self, num_latents: int) -> list[int]:
        """Returns `<image>`, ids for the slots, `</image>`, as inference uses them (spec 3.2.4).

        The slots take the ids of the first pieces, 4 onwards, which the model never looks at but
        the rule against repeated n-grams does; a small vocabulary begins again at 4.
        """
        pieces = self.mask_id - _FIRST_PIECE
        slots = [_FIRST_PIECE + slot % pieces for slot in range(num_latents)]
        return [self.begin_image_id, *slots, self.end_image_id]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of plain text; tags in it are text like any other (trap T-46)."""
        return list(self._ids_of(text))

    def encode_markup(self, markup: str) -> list[int]:
        """Returns the ids of text with tags, as the official inference code (spec 5.1).

        Each stretch of text between tags begins a new word; hence `</object>.` becomes
        `</object> ▁ .` here, while training and generation have `</object> .` (trap T-34). The
        official code takes the last piece, `⟨`, for a tag too; that accident is left out.

        Raises:
          MarkupError: a tag is not of this vocabulary.
        """
        ids: list[int] = []
        cursor = 0
        for match in tags.MARKUP_TAG.finditer(markup):
            tag = match.group()
            if tag not in self._tag_ids:
                raise MarkupError(
                    f"{tag} at character {match.start()} is not of this vocabulary, whose grid "
                    f"is {self.grid_size}x{self.grid_size}."
                )
            ids += self.encode(markup[cursor : match.start()])
            ids.append(self._tag_ids[tag])
            cursor = match.end()
        return ids + self.encode(markup[cursor:])

    def encode_grounded(self, grounded: GroundedText, quantiser: str = OFFICIAL) -> list[int]:
        """Returns the ids of a grounded caption as training has them (spec section 4.3).

        The text is tokenised whole and tags are inserted between its tokens. No `<grounding>`,
        `<s>` or `</s>` is added. A span without boxes gets its phrase tags only.

        Args:
          grounded: the text; literal tags in it are text like any other.
          quantiser: see `box_to_cells`.

        Raises:
          MarkupError: spans overlap, do not fit the text or fall inside its tokens.
          BoxError: a box is malformed.
        """
        ids = self.encode(grounded.text)
        result: list[int] = []
        cursor = 0
        for span in sorted_spans(grounded):
            start, end = self.token_range(grounded.text, span)
            if not cursor <= start < end <= len(ids):
                raise MarkupError(
                    f"Phrase {span.text!r} at characters {span.start} to {span.end} shares a "
                    "token with another phrase or has none of its own."
                )
            result += ids[cursor:start]
            result += [self.phrase_id, *ids[start:end], self.end_phrase_id]
            result += self._object_ids(span, quantiser)
            cursor = end
        return result + ids[cursor:]

    def token_range(self, text: str, span: Span) -> tuple[int, int]:
        """Returns the range of a phrase's tokens by tokenising what comes before (spec 4.3).

        Raises:
          MarkupError: the phrase begins inside a token.
        """
        before, through = self.encode(text[: span.start]), self.encode(text[: span.end])
        pairs = zip(before, through, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        # At most the last token may differ, as where the phrase continues a word.
        if shared < len(before) - 1:
            raise MarkupError(
                f"Phrase {span.text!r} at characters {span.start} to {span.end} begins inside a "
                "token: move it to the beginning of a word."
            )
        return shared, len(through)

    def _object_ids(self, span: Span, quantiser: str) -> list[int]:
        ids: list[int] = []
        for box in span.boxes:
            ids.append(self.delimiter_id if ids else self.object_id)
            ids += map(self.location_id, box_to_cells(box, self.grid_size, quantiser))
        return [*ids, self.end_object_id] if ids else ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns ids as markup, up to the first `</s>` (spec section 3.1).

        `<s>` and `<pad>` are left out; ids that no token has become `<unk>`, as in seqio.
        """
        pieces = []
        for token_id in np.asarray(ids).tolist():
            if token_id == self.eos_id:
                break
            if token_id not in (self.bos_id, self.pad_id):
                known = 0 <= token_id < self.vocab_size
                pieces.append(self.tokens[token_id if known else self.unk_id])
        return "".join(pieces).replace(_WORD_START, " ").strip()

    def encode_tf(self, text: tf.Tensor) -> tf.Tensor:
        """Returns `encode(text)` for a scalar string, as int32 [length], inside a TF graph."""
        import tensorflow as tf
        import tensorflow_text

        ids = tensorflow_text.SentencepieceTokenizer(model=self.model_bytes).tokenize(text)
        offset = _FIRST_PIECE - _SPM_FIRST_PIECE
        return tf.where(ids == 0, self.unk_id, ids + offset)

    def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns `decode` of int32 ids [..., length] as strings [...], inside a TF graph."""
        import tensorflow as tf

        silent = (self.bos_id, self.pad_id, self.eos_id)
        table = tf.constant(["" if i in silent else t for i, t in enumerate(self.tokens)])
        ended = tf.cumsum(tf.cast(ids == self.eos_id, tf.int32), axis=-1) > 0
        known = tf.logical_and(ids >= 0, ids < self.vocab_size)
        ids = tf.where(ended, self.eos_id, tf.where(known, ids, self.unk_id))
        joined = tf.strings.reduce_join(tf.gather(table, ids), axis=-1)
        return tf.strings.strip(tf.strings.regex_replace(joined, _WORD_START, " "))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Kosmos2Vocabulary) or self.grid_size != other.grid_size:
            return False
        return self.model_file == other.model_file or self.model_bytes == other.model_bytes

    def __hash__(self) -> int:
        # Equal models may lie in different files, so the file's name must not count.
        return hash((Kosmos2Vocabulary, self.grid_size))

    def __reduce__(self) -> tuple[Any, ...]:
        return Kosmos2Vocabulary, (self.model_file, self.grid_size, self.dict_file)

    def __repr__(self) -> str:
        return f"Kosmos2Vocabulary({str(self.model_file)!r}, grid_size={self.grid_size})"


def _read(file: str | os.PathLike[str], what: str) -> bytes:
    # Path objects of other file systems (such as etils.epath) bring their own `read_bytes`.
    path = file if hasattr(file, "read_bytes") else Path(file)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read the {what} {file}: {error.strerror}.") from None
