"""Pages of text with pictures between: MMC4 and OBELICS.

Pictures that are missing or bad are left out and the page kept, for links to pictures die; a page
that has no picture left, or no text, is not kept. The further filters are those of Kosmos-1, which
Kosmos-2 took over (spec section 4.4); its filters of language and gibberish are left to whoever
made the pages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from kosmos2_jax.data.chance import chance
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.readers import files
from kosmos2_jax.data.readers.base import (
    REQUIRED,
    Note,
    Reading,
    clean_text,
    option,
    parse_json,
)
from kosmos2_jax.data.readers.pictures import (
    IMAGES_HELP,
    PictureStore,
    is_single_coloured,
    open_picture,
    picture_store,
    stored_picture,
)
from kosmos2_jax.data.skips import CLIPPED, FILTERED, Unusable


@dataclasses.dataclass(frozen=True)
class PictureLink:
    """The place of a picture in a page.

    Attributes:
      names: under which it may be found, in this order.
      encoded: the picture itself, where the page brings it along.
    """

    names: tuple[str, ...] = ()
    encoded: bytes | None = None


Part = str | PictureLink


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageFilters:
    """Which pictures and pages are kept; all defaults are Kosmos-1's (spec section 4.4)."""

    min_picture_side: int = option(64, "leave out pictures with a shorter side (Kosmos-1's rule)")
    keep_single_coloured: bool = option(
        False, "keep pictures of a single colour, which Kosmos-1 leaves out"
    )
    max_pictures: int = option(5, "leave out the pictures of a page after so many (Kosmos-1's)")
    keep_one_picture_pages: float = option(
        0.5, "share of the pages with one picture that is kept, drawn by key (Kosmos-1's)"
    )


def page_document(
    parts: list[Part],
    load: Callable[[PictureLink], bytes],
    reading: Reading,
    filters: PageFilters,
    key: str,
) -> Document:
    """Makes a document of a page: loads, checks and filters its pictures.

    Args:
      parts: text, cleaned, and pictures in reading order.
      load: gives the encoded picture of a link, or raises `Unusable`.
      reading: how to read.
      filters: what to keep.
      key: of the document.

    Raises:
      Unusable: the page is not kept.
    """
    if not any(isinstance(part, str) for part in parts):
        raise Unusable("page without text")
    kept: list[str | int] = []
    images: list[bytes] = []
    for part in parts:
        if isinstance(part, str):
            kept.append(part)
        elif len(images) >= filters.max_pictures:
            reading.note(f"{FILTERED}picture beyond the number for a page")
        else:
            try:
                images.append(_page_picture(load(part), reading, filters))
                kept.append(len(images) - 1)
            except Unusable as problem:
                filtered = problem.reason.startswith(FILTERED)
                prefix = "" if filtered else f"{CLIPPED}left out of a page: "
                reading.note(prefix + problem.reason)
    if not images:
        raise Unusable(f"{FILTERED}page without a picture left")
    if len(images) == 1 and chance("page with one picture", key) >= filters.keep_one_picture_pages:
        raise Unusable(f"{FILTERED}page with one picture")
    return reading.document("interleaved", key, {"parts": kept}, *images)


def _page_picture(encoded: bytes, reading: Reading, filters: PageFilters) -> bytes:
    image = open_picture(encoded, reading.pictures)
    if min(image.size) < filters.min_picture_side:
        raise Unusable(f"{FILTERED}picture below the least side")
    if not filters.keep_single_coloured and is_single_coloured(image):
        raise Unusable(f"{FILTERED}picture of a single colour")
    return stored_picture(encoded, image, reading.pictures)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mmc4Options(PageFilters):
    """Settings of `read_mmc4`."""

    images: str = option(REQUIRED, IMAGES_HELP)


def parse_mmc4(raw: bytes, note: Note) -> list[Part]:
    """Returns the parts of a page of MMC4: `text_list`, `image_info` with `matched_text_index`.

    Each picture stands before the sentence it was matched to. Sentences between two pictures are
    one text, joined by spaces; empty ones are left out.

    Raises:
      Unusable: the line is not a JSON object in UTF-8 with these lists.
    """
    page = parse_json(raw)
    sentences, infos = page.get("text_list"), page.get("image_info")
    if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
        raise Unusable("text_list is not a list of strings")
    if not isinstance(infos, list):
        raise Unusable("image_info is not a list")
    pictures: list[list[PictureLink]] = [[] for _ in sentences]
    for info in infos:
        names, place = _mmc4_picture(info, len(sentences))
        if not names:
            note(f"{CLIPPED}left out of a page: picture without a name")
        elif place is None:
            note(f"{CLIPPED}left out of a page: picture without a place")
        else:
            pictures[place].append(PictureLink(names))
    parts: list[Part] = []
    for links, sentence in zip(pictures, sentences, strict=True):
        parts += links
        _add_text(parts, sentence, " ", note)
    return parts


def _mmc4_picture(info: Any, num_sentences: int) -> tuple[tuple[str, ...], int | None]:
    if not isinstance(info, dict):
        return (), None
    fields = (info.get("image_name"), info.get("raw_url"))
    names = tuple(name for name in fields if isinstance(name, str))
    place = info.get("matched_text_index")
    fits = isinstance(place, int) and not isinstance(place, bool) and 0 <= place < num_sentences
    return names, place if fits else None


def _add_text(parts: list[Part], text: str, join: str, note: Note) -> None:
    if not text.strip():
        return
    try:
        text = clean_text(text, "text of a page", note)
    except Unusable as problem:
        note(f"{CLIPPED}left out of a page: {problem.reason}")
        return
    if parts and isinstance(parts[-1], str):
        parts[-1] += join + text
    else:
        parts.append(text)


def read_mmc4(path: str, reading: Reading, options: Mmc4Options) -> Iterator[Document]:
    """Yields the pages of a file of MMC4, `docs_no_face_shard_0_v2.jsonl`, also as .zip or .gz.

    Raises:
      DataError: there are no pictures where `options.images` says.
    """
    load = _loader(picture_store(options.images, path))

    def parse(key: str, raw: bytes) -> Iterator[Document]:
        yield page_document(parse_mmc4(raw, reading.note), load, reading, options, key)

    return reading.documents(files.lines(path), parse)


def _loader(store: PictureStore | None) -> Callable[[PictureLink], bytes]:
    def load(link: PictureLink) -> bytes:
        if link.encoded is not None:
            return link.encoded
        for name in link.names if store is not None else ():
            try:
                return store.get(name)
            except Unusable:
                continue
        raise Unusable("picture missing")

    return load


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObelicsOptions(PageFilters):
    """Settings of `read_obelics`."""

    images: str | None = option(None, f"{IMAGES_HELP}; not needed where the parquet holds them")
    images_column: str = option("images", "parquet column of the pictures")
    texts_column: str = option("texts", "parquet column of the texts")


def parse_obelics(images: Any, texts: Any, note: Note) -> list[Part]:
    """Returns the parts of a page of OBELICS: two lists, one of which has None at each place.

    A picture is a URL or a name, bytes, or what Hugging Face's datasets makes of it:
    `{"bytes": ..., "path": ...}`. Texts that follow one another are one text of several lines.

    Raises:
      Unusable: these are not two lists of the same length.
    """
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        raise Unusable("images and texts are not lists of one length")
    parts: list[Part] = []
    for image, text in zip(images, texts, strict=True):
        link = _obelics_picture(image)
        if link is not None:
            parts.append(link)
        elif image is not None:
            note(f"{CLIPPED}left out of a page: picture without a name")
        if isinstance(text, str):
            _add_text(parts, text, "\n", note)
        elif text is not None:
            note(f"{CLIPPED}left out of a page: text that is no string")
    return parts


def _obelics_picture(image: Any) -> PictureLink | None:
    encoded, name = image, None
    if isinstance(image, dict):
        encoded, name = image.get("bytes"), image.get("path")
    elif isinstance(image, str):
        encoded, name = None, image
    if isinstance(encoded, bytes):
        return PictureLink(encoded=encoded)
    return PictureLink((name,)) if isinstance(name, str) else None


def read_obelics(
    path: str, reading: Reading, options: ObelicsOptions = ObelicsOptions()
) -> Iterator[Document]:
    """Yields the pages of a parquet file of OBELICS.

    Raises:
      DataError: a column is missing, or there are no pictures where `options.images` says.
    """
    load = _loader(picture_store(options.images, path) if options.images else None)

    def parse(key: str, row: dict[str, Any]) -> Iterator[Document]:
        images, texts = row[options.images_column], row[options.texts_column]
        yield page_document(parse_obelics(images, texts, reading.note), load, reading, options, key)

    rows = files.parquet_rows(path, (options.images_column, options.texts_column))
    return reading.documents(rows, parse)
