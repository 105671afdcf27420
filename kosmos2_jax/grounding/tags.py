"""The tags of Kosmos-2's markup and how to find them in a string (spec section 3.1)."""

from __future__ import annotations

import re
import unicodedata

from kosmos2_jax.errors import MarkupError

BOS = "<s>"
PAD = "<pad>"
EOS = "</s>"
UNK = "<unk>"
MASK = "<mask>"
END_OF_DOCUMENT = "</doc>"
IMAGE_OPEN = "<image>"
IMAGE_CLOSE = "</image>"
END_OF_CHUNK = "</chunk>"
END_OF_LINE = "</line>"
PHRASE_OPEN = "<phrase>"
PHRASE_CLOSE = "</phrase>"
OBJECT_OPEN = "<object>"
OBJECT_CLOSE = "</object>"
DELIMITER = "</delimiter_of_multi_objects/>"
GROUNDING = "<grounding>"

# In the order of their ids: the four before the pieces, then those after them.
FIRST_TAGS = (BOS, PAD, EOS, UNK)
BASE_TAGS = (MASK, END_OF_DOCUMENT, IMAGE_OPEN, IMAGE_CLOSE, END_OF_CHUNK, END_OF_LINE)
GROUNDING_TAGS = (PHRASE_OPEN, PHRASE_CLOSE, OBJECT_OPEN, OBJECT_CLOSE, DELIMITER, GROUNDING)

# The reference takes any number of digits; more than 18 would overflow the arithmetic of boxes.
LOCATION_PATTERN = r"<patch_index_\d{1,18}>"
MARKUP_TAG = re.compile(
    "|".join([re.escape(tag) for tag in BASE_TAGS + GROUNDING_TAGS] + [LOCATION_PATTERN])
)
ANY_TAG = re.compile("|".join([re.escape(tag) for tag in FIRST_TAGS] + [MARKUP_TAG.pattern]))


def location_token(cell: int) -> str:
    """Returns the token of a grid cell, always padded to four digits: `<patch_index_0044>`."""
    return f"<patch_index_{cell:04d}>"


def find_tag(text: str) -> str | None:
    """Returns the first tag that `text` holds, or would hold once a tokenizer normalises it."""
    match = ANY_TAG.search(text) or ANY_TAG.search(unicodedata.normalize("NFKC", text))
    return match.group() if match else None


def has_tags(text: str) -> bool:
    """Says whether `text` holds one of the model's tags."""
    return find_tag(text) is not None


def require_no_tags(text: str, what: str) -> str:
    """Returns `text` unchanged if it holds no tags.

    A tag in what a user wrote would become a special token (trap T-46), so none is let in and
    none is silently taken out.

    Args:
      text: what a user wrote.
      what: how to call it in the message, for example "The question".

    Raises:
      MarkupError: it holds a tag.
    """
    tag = find_tag(text)
    if tag is not None:
        raise MarkupError(f"{what} must not hold the tag {tag}: remove it.")
    return text
