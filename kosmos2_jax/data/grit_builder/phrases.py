"""Phrases of a caption that may have boxes: noun chunks and their expressions (spec section 6)."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from kosmos2_jax.data.grit_builder.abstract_nouns import ABSTRACT_NOUNS
from kosmos2_jax.data.skips import CLIPPED
from kosmos2_jax.errors import ConfigError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Span, Token

# Dependents that name other things beside the root of a chunk: clear's "conj", and "appos", which
# parsers make of lists ("a cat, a dog and three birds").
_BESIDE = frozenset(("conj", "appos"))


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A noun chunk of a caption.

    Attributes:
      text: of the chunk.
      head: lemma of its noun, in small letters.
      span: its characters in the caption, half-open.
      expression: characters of the referring expression that it is expanded to; `span` where there
        is nothing to add.
    """

    text: str
    head: str
    span: tuple[int, int]
    expression: tuple[int, int]


@functools.lru_cache(maxsize=2)
def load_parser(name: str) -> Language:
    """Loads spaCy's model of a name, once a process, without what is not needed here.

    Raises:
      ConfigError: spaCy or the model is not installed.
    """
    try:
        with contextlib.nullcontext() if _may_need_torch(name) else _torch_hidden():
            import spacy

        return spacy.load(name, exclude=["ner"])
    except (ImportError, OSError) as error:
        missing = "spaCy" if isinstance(error, ImportError) else f"spaCy's model {name!r}"
        raise ConfigError(
            f"{missing} is not installed, or not for this version of spaCy: run `pip install "
            "'kosmos2-jax[grit]'`, or name another --parser."
        ) from None


def _may_need_torch(name: str) -> bool:
    """Whether a model of spaCy is no package, or one that asks for transformers."""
    try:
        return any("transformers" in needed for needed in metadata.requires(name) or ())
    except metadata.PackageNotFoundError:
        return True


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Lets spaCy's thinc find no torch: it imports it wherever it is installed, a second's work."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def find_phrases(
    captions: Sequence[str], parser: Language
) -> list[tuple[list[Phrase], collections.Counter[str]]]:
    """Parses captions.

    Args:
      captions: any number.
      parser: see `load_parser`.

    Returns:
      For each caption its phrases in order of the text, and counts of chunks that were dropped, by
      reason.
    """
    return [phrases_of(doc) for doc in parser.pipe(captions)]


def phrases_of(doc: Doc) -> tuple[list[Phrase], collections.Counter[str]]:
    """Returns the phrases of a parsed caption, and counts of chunks dropped, by reason."""
    phrases = []
    dropped: collections.Counter[str] = collections.Counter()
    for chunk in doc.noun_chunks:
        head = chunk.root.lemma_.lower()
        if chunk.root.pos_ == "PRON":
            dropped[f"{CLIPPED}chunk dropped: pronoun"] += 1
        elif head in ABSTRACT_NOUNS:
            dropped[f"{CLIPPED}chunk dropped: abstract noun"] += 1
        else:
            span = (chunk.start_char, chunk.end_char)
            phrases.append(Phrase(chunk.text, head, span, expand(chunk)))
    return phrases, dropped


def expand(chunk: Span) -> tuple[int, int]:
    """Returns the characters of the referring expression of a noun chunk.

    The children of its root in the dependency tree are added, and theirs, recursively; a chunk
    with conjuncts stays as it is (spec section 6), and so does one whose words would not follow
    one another.
    """
    root = chunk.root
    span = (chunk.start_char, chunk.end_char)
    if root.conjuncts or any(child.dep_ in _BESIDE for child in root.children):
        return span
    tokens = _without_outer_punctuation([*root.subtree])
    first, last = tokens[0], tokens[-1]
    if last.i - first.i + 1 != len(tokens) or first.i > chunk.start or last.i < chunk.end - 1:
        return span
    return first.idx, last.idx + len(last)


def _without_outer_punctuation(tokens: list[Token]) -> list[Token]:
    words = [i for i, token in enumerate(tokens) if not token.is_punct and not token.is_space]
    return tokens[words[0] : words[-1] + 1] if words else tokens
