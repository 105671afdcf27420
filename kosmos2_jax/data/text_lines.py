"""Documents of plain text as sequences of lines (spec section 4.2).

<s> line </line> line </line> last line </s> line of the next document </line> ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from kosmos2_jax.data.document_content import text_of
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.skips import CLIPPED, Skips, Unusable
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary


def encode_lines(text: str, vocabulary: Kosmos2Vocabulary) -> list[list[int]]:
    """Returns the ids of each line with its marker, `</line>`, or `</s>` at the last one.

    Every line is tokenised on its own. Lines without a token are dropped: the released loader
    drops empty lines and leaves a lone `</line>` for one of blanks only. No lines give [], where
    the released loader has a lone `</s>`.
    """
    lines = [ids for line in text.split("\n") if line and (ids := vocabulary.encode(line))]
    for ids in lines:
        ids.append(vocabulary.end_of_line_id)
    if lines:
        lines[-1][-1] = vocabulary.eos_id
    return lines


def full_sentences(lines: Iterable[list[int]], bos_id: int, max_tokens: int) -> Iterator[list[int]]:
    """Packs lines into sequences by the "full sentence" rule.

    A line is appended whole if it fits, else it begins the next sequence. A line that fits into
    no sequence is cut, and so loses its marker. Documents follow each other without `<s>`.

    Args:
      lines: ids of `encode_lines`, of one document after the other.
      bos_id: `<s>`, with which each sequence begins.
      max_tokens: ids of a sequence at most, 2048 in the released set-up.

    Yields:
      Sequences of 2 to `max_tokens` ids.

    Raises:
      ConfigError: there is no room for anything but `<s>`.
    """
    if max_tokens < 2:
        raise ConfigError(f"Sequences of text need max_tokens of at least 2, not {max_tokens}.")
    sequence = [bos_id]
    for line in lines:
        line = line[: max_tokens - 1]
        if len(sequence) + len(line) > max_tokens:
            yield sequence
            sequence = [bos_id]
        sequence.extend(line)
    if len(sequence) > 1:
        yield sequence


def pack_texts(
    documents: Iterable[Document], vocabulary: Kosmos2Vocabulary, max_tokens: int, skips: Skips
) -> Iterator[dict[str, np.ndarray]]:
    """Turns documents of kind "text" into encoded sequences that run across documents.

    Args:
      documents: read one by one; what is left at their end is yielded too.
      vocabulary: tokens.
      max_tokens: see `full_sentences`.
      skips: counts documents that are kept, empty or no text, and lines that are cut.

    Yields:
      The features of `kosmos2_jax.data.encode_document.encode_document`.

    Raises:
      ConfigError: see `full_sentences`.
    """
    lines = (
        line
        for document in documents
        for line in _document_lines(document, vocabulary, max_tokens, skips)
    )
    for ids in full_sentences(lines, vocabulary.bos_id, max_tokens):
        yield _features(ids)


def _document_lines(
    document: Document, vocabulary: Kosmos2Vocabulary, max_tokens: int, skips: Skips
) -> list[list[int]]:
    try:
        lines = encode_lines(text_of(document.content.get("text"), "text"), vocabulary)
        if not lines:
            raise Unusable("text is empty")
    except Unusable as skip:
        skips.count(document.source, skip.reason)
        return []
    cut = sum(len(line) >= max_tokens for line in lines)
    if cut:
        skips.count(document.source, f"{CLIPPED}line longer than a sequence", cut)
    skips.kept(document.source)
    return lines


def _features(ids: list[int]) -> dict[str, np.ndarray]:
    """Every token but `<s>` is learnt."""
    weights = np.ones(len(ids), np.float32)
    weights[0] = 0.0
    return {
        "targets": np.array(ids, np.int32),
        "loss_weights": weights,
        "image_slots": np.full(len(ids), -1, np.int32),
        "images": np.empty(0, object),
    }
