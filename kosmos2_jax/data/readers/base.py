"""What all readers share: records that may be unusable, clean text, and the loop over a file.

A record is what a file holds for one example, before it is parsed. Wherever a file yields
something that is no record (a line that is too long, the place where it is cut short), an
`Unusable` stands in its place, so that it is counted once and the rest goes on.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.readers.pictures import PictureRules
from kosmos2_jax.data.skips import CLIPPED, Skips, Unusable
from kosmos2_jax.grounding import tags

T = TypeVar("T")

# Told the reason of everything that is clipped or left out of an example.
Note = Callable[[str], None]

# A record and what names it within its file.
Records = Iterable[tuple[str, Any]]

_LINE_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TEXT_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_LINE_ENDS = re.compile("\r\n?")
_SURROGATES = re.compile("[\ud800-\udfff]")


REQUIRED = dataclasses.MISSING


def option(default: Any, meaning: str) -> Any:
    """A field of a reader's settings; its meaning is shown by `tools/prepare_data.py --help`."""
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True)
class Share:
    """Every so-manieth record of a file, for several processes to divide it.

    Attributes:
      index: which of the shares, counted from 0.
      of: how many there are.
    """

    index: int = 0
    of: int = 1

    def take(self, things: Iterable[T]) -> Iterator[T]:
        """Yields this share of `things`."""
        return (thing for i, thing in enumerate(things) if i % self.of == self.index)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How one file is to be read.

    Attributes:
      source: name of the source, for counts.
      name: of the file within the source; keys of documents begin with it.
      skips: where to count.
      pictures: what pictures must be and how they are stored.
      share: which of the records to read.
    """

    source: str
    name: str
    skips: Skips
    pictures: PictureRules = PictureRules()
    share: Share = Share()

    def note(self, reason: str) -> None:
        """Counts something that is clipped or left out."""
        self.skips.count(self.source, reason)

    def documents(
        self, records: Records, parse: Callable[[str, Any], Iterable[Document]]
    ) -> Iterator[Document]:
        """Yields the documents of this reading's share of the records, counting all.

        Args:
          records: of the whole file.
          parse: makes documents of a key and a record, or raises `Unusable`.
        """
        self.skips.kept(self.source, 0)
        for key, record in self.share.take(records):
            try:
                if isinstance(record, Unusable):
                    raise record
                # Names of files may be no UTF-8.
                key = f"{self.name}:{key}".encode("utf-8", "replace").decode()
                for document in parse(key, record):
                    self.skips.kept(self.source)
                    yield document
            except Unusable as problem:
                self.note(problem.reason)

    def document(self, kind: str, key: str, content: dict[str, Any], *images: bytes) -> Document:
        """A document of this source without a size."""
        return Document(kind, images, content, None, self.source, key)


def parse_json(raw: bytes) -> dict[str, Any]:
    """Returns the JSON object that a line holds.

    Raises:
      Unusable: it is not UTF-8, not JSON, or not an object.
    """
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Unusable("not UTF-8") from None
    except (ValueError, RecursionError):
        raise Unusable("not JSON") from None
    if not isinstance(value, dict):
        raise Unusable("not a JSON object")
    return value


def string(record: dict[str, Any], field: str) -> str:
    """Returns a field that must be a string, decoded where it is bytes.

    Raises:
      Unusable: it is missing, something else, or not UTF-8.
    """
    value = record.get(field)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Unusable("not UTF-8") from None
    if not isinstance(value, str):
        raise Unusable(f"no string {field!r}")
    return value


def clean_line(text: str, what: str, note: Note) -> str:
    """Returns text that is to be one line, such as a caption, of the same length.

    Tabs, line breaks and other control characters become spaces (the tokenizer makes nothing else
    of them, trap T-33), halves of UTF-16 pairs become U+FFFD, and literal tags, which would read
    as markup (trap T-46), are blanked out. Offsets into the text stay true.

    Args:
      text: any string.
      what: what it is, for the reason: "caption".
      note: told what was clipped.

    Raises:
      Unusable: nothing is left, or a tag hides behind other forms of its characters.
    """
    return _clean(text, what, note, _LINE_CONTROLS)


def clean_text(text: str, what: str, note: Note) -> str:
    """Returns text of many lines; as `clean_line`, but line breaks (as "\\n") and tabs stay."""
    return _clean(_LINE_ENDS.sub("\n", text), what, note, _TEXT_CONTROLS)


def _clean(text: str, what: str, note: Note, controls: re.Pattern[str]) -> str:
    if _SURROGATES.search(text):
        note(f"{CLIPPED}broken character in {what}")
        text = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
    if controls.search(text):
        note(f"{CLIPPED}control character in {what}")
        text = controls.sub(" ", text)
    if tags.has_tags(text):
        text = tags.ANY_TAG.sub(lambda match: " " * len(match.group()), text)
        if tags.has_tags(text):
            raise Unusable(f"disguised tag in {what}")
        note(f"{CLIPPED}literal tag in {what}")
    if not text.strip():
        raise Unusable(f"empty {what}")
    return text
