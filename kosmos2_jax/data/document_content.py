"""Reading the content of a document, which may hold anything, with care."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kosmos2_jax.data.skips import Unusable
from kosmos2_jax.grounding import tags


def text_of(value: object, what: str) -> str:
    """Returns `value` if it is text that can be tokenised.

    Tags are the model's alone (trap T-46). Readers blank out those that someone wrote; text that
    holds one all the same is not used, as what is learnt of it would read as markup.

    Args:
      value: anything.
      what: how to call it in the reason, for example "caption".

    Raises:
      Unusable: it is no text, empty, no valid Unicode, or holds a tag.
    """
    if not isinstance(value, str):
        raise Unusable(f"{what} is missing or no text")
    if not value or value.isspace():
        raise Unusable(f"{what} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, on which sentencepiece fails
            raise Unusable(f"{what} is not valid Unicode") from None
    if tags.has_tags(value):
        raise Unusable(f"{what} holds a tag")
    return value


def list_of(content: Mapping[str, Any], name: str) -> list[Any]:
    """Returns the list of this name.

    Raises:
      Unusable: there is none.
    """
    value = content.get(name)
    if not isinstance(value, list):
        raise Unusable(f"{name} are missing or no list")
    return value
