"""Random and mutated records: nothing crashes, and each record is kept or counted.

They go through the parsers of all readers, through the reader of our own TFRecords, and, as
documents whose content is broken, through the encoder: a million, or `KOSMOS2_FUZZ_RECORDS`.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kosmos2_jax.data.documents import Document, from_tf_example, to_tf_example
from kosmos2_jax.data.encode_document import EncodeSettings, encode_document
from kosmos2_jax.data.grit import GritConfig
from kosmos2_jax.data.readers import (
    box_tables,
    boxes,
    captions,
    coco,
    grit,
    instructions,
    interleaved,
    text,
    voc,
)
from kosmos2_jax.data.readers.base import Note, Reading, parse_json, string
from kosmos2_jax.data.skips import FILTERED, DataError, Skips, Unusable
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

NUM_RECORDS = int(os.environ.get("KOSMOS2_FUZZ_RECORDS", 1_000_000))

GRIT = {
    "caption": "a wire hanger with “paper” cover",
    "noun_chunks": [[0.0, 13.0, 0.01, 0.02, 0.95, 0.96, 0.67], [19, 31, 0.1, 0.3, 0.9, 0.5, 0.7]],
    "ref_exps": [[0, 31, 0.01, 0.02, 0.95, 0.96, 0.67]],
    "original_width": 1024,
}
TABLE = "\t".join(
    [
        "0cc175b9c0f1b6a831c399e269772661",
        str(GRIT["caption"]),
        base64.b64encode(b"no picture").decode(),
        "1024",
        "693",
        str({"phrase": GRIT["noun_chunks"], "expression_v1": GRIT["ref_exps"]}),
    ]
)
PAGE = {
    "text_list": ["One.", "Two.", "Three."],
    "image_info": [{"image_name": f"{i}.jpg", "matched_text_index": i} for i in range(3)],
}
TALK = {
    "image": "1.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "That."},
    ],
}
INSTANCE = {"instruction_with_input": "Do.\nInput: x", "input": "x", "output": "y"}
COCO = {
    "image": {"file_name": "1.jpg", "width": 64, "height": 48, "caption": "a “dog” runs"},
    "annotations": [{"category_id": 1, "bbox": [1, 2, 30, 40.5]}],
}
VOC = b"""<annotation><filename>1.jpg</filename><size><width>64</width><height>48</height></size>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>
</object></annotation>"""
DRAWN = {
    "imagePath": "1.jpg",
    "shapes": [{"label": "dog", "points": [[1, 2], [30, 40]], "shape_type": "circle"}],
    "imageWidth": 64,
    "imageHeight": 48,
}
BOXES = {
    "image": "1.jpg",
    "caption": "a red dog",
    "boxes": [
        {"label": "dog", "box": [1, 2, 30, 40], "score": 0.5},
        {"span": [0, 5], "box": [1, 2, 3, 4]},
    ],
}
PICTURE = io.BytesIO()
Image.new("RGB", (64, 48)).save(PICTURE, "PNG")


SCENE = {
    "caption": "a red star on a blue ring",
    "noun_chunks": [[0, 10, 0.1, 0.1, 0.6, 0.6, 0.9], [14, 25, 0.3, 0.3, 0.9, 0.9, 0.8]],
    "ref_exps": [[0, 25, 0.1, 0.1, 0.6, 0.6, 0.9], [14, 25, 0.3, 0.3, 0.9, 0.9, 0.8]],
}
# Rows so short that what is doubled may be too long for them.
SHORT = EncodeSettings(num_latents=2, max_tokens=40, max_images=2)
GROUNDED = dataclasses.replace(SHORT, grit=GritConfig(grounding_probability=0.8))


def _grit_json(raw: bytes, note: Note) -> Any:
    record = parse_json(raw)
    caption = string(record, "caption")
    return grit.parse_grounding(
        caption, record.get("noun_chunks"), record.get("ref_exps"), False, note
    )


def _grit_table(raw: bytes, note: Note) -> Any:
    return grit.parse_grit_row(raw, grit.GritTsvOptions(min_side=200), note).content


def _page(raw: bytes, note: Note) -> Any:
    parts = interleaved.parse_mmc4(raw, note)
    return [part for part in parts if isinstance(part, str)]


def _obelics(raw: bytes, note: Note) -> Any:
    row = parse_json(raw)
    parts = interleaved.parse_obelics(row.get("image_info"), row.get("text_list"), note)
    return [part for part in parts if isinstance(part, str)]


def _boxed(picture: boxes.LabelledPicture, note: Note) -> Any:
    reading = Reading("boxes", "file", Skips())
    document = boxes.grounded_document(
        "key", picture, PICTURE.getvalue, reading, boxes.BoxOptions()
    )
    for reason, count in reading.skips.reasons("boxes").items():
        for _ in range(count):
            note(reason)
    return document.content


def _coco(raw: bytes, note: Note) -> Any:
    record = parse_json(raw)
    image, annotations = record.get("image"), record.get("annotations")
    if not isinstance(image, dict) or not isinstance(annotations, list):
        raise Unusable("the reader gives no such thing")
    annotations = [annotation for annotation in annotations if isinstance(annotation, dict)]
    return _boxed(coco.parse_coco(image, annotations, {1: "dog"}, [], note), note)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _fields(kind: str, content: dict[str, Any], size: Any = None) -> bytes:
    """What a TFRecord holds of a document beside its pictures."""
    return _dump({"kind": kind, "content": content, "size": size, "source": "s", "key": "k"})


# A good record, and the parser it is for.
PARSERS: dict[str, tuple[bytes, Callable[[bytes, Note], Any]]] = {
    "jsonl": (
        _dump({"text": "Héllo\nworld"}),
        lambda raw, note: text.parse_text(raw, "text", note),
    ),
    "captions": (
        _dump({"caption": "a dog", "url": "http://x/1.jpg"}),
        lambda raw, note: captions.parse_caption(string(parse_json(raw), "caption"), note),
    ),
    "captions-tsv": (b"a dog <X> runs\thttp://x/1.jpg", captions.parse_tsv_row),
    "grit": (_dump(GRIT), _grit_json),
    "grit-tsv": (TABLE.encode(), _grit_table),
    "coco": (_dump(COCO), _coco),
    "voc": (VOC, lambda raw, note: _boxed(voc.parse_voc(raw, note), note)),
    "labelme": (
        _dump(DRAWN),
        lambda raw, note: _boxed(voc.parse_labelme(parse_json(raw), note), note),
    ),
    "boxes-jsonl": (
        _dump(BOXES),
        lambda raw, note: _boxed(
            box_tables.parse_json_boxes(parse_json(raw), boxes.PIXELS, note), note
        ),
    ),
    "mmc4": (_dump(PAGE), _page),
    "obelics": (_dump({"image_info": ["a.jpg", None], "text_list": [None, "b"]}), _obelics),
    "llava": (_dump(TALK), lambda raw, note: instructions.parse_llava(parse_json(raw), note)[1]),
    "unnatural": (
        _dump({"instances": [INSTANCE, INSTANCE]}),
        lambda raw, note: instructions.parse_unnatural(raw, True, note),
    ),
    "flan": (
        _dump({"inputs": "What?", "targets": "That."}),
        lambda raw, note: instructions.parse_flan(raw, instructions.FlanOptions(), note),
    ),
}

# A good document, and how it is encoded.
ENCODERS: dict[str, tuple[bytes, EncodeSettings]] = {
    "text": (_fields("text", {"text": "a red star\nof one line and two"}), SHORT),
    "caption": (_fields("caption", {"caption": "a red star"}), SHORT),
    "grounded": (_fields("grounded", SCENE, [640, 480]), GROUNDED),
    "grounded as squares": (
        _fields("grounded", SCENE, [640, 480]),
        dataclasses.replace(GROUNDED, grit=GritConfig(phrase_mode="phrase", image_mode="square")),
    ),
    "grounded instruction": (
        _fields("grounded", SCENE, [640, 480]),
        dataclasses.replace(GROUNDED, grounded_as="instruction"),
    ),
    "interleaved": (_fields("interleaved", {"parts": [0, "a star", 1, "a ring"]}), SHORT),
    "instruction": (_fields("instruction", {"turns": [["what?", "a star"], ["so", "o"]]}), SHORT),
}
# Among which the records are divided: these, and damaged TFRecords.
NUM_TARGETS = len(PARSERS) + len(ENCODERS) + 1

SPICES = [
    b"\\ud800", b"\\u0000", b"\xff\xfe", b"\x00", b"\t", b"\r", b"null", b"NaN", b"-Infinity",
    b"1e999", b"-1", b"0.5", b"9" * 400, b"[" * 200, b"{}", b'""', b'"', b"<image>", b"<s>",
    b"<patch_index_0001>", "\uff1cs\uff1e".encode(), b"\xe2\x80\xa8", b"True", b"(1,)", b"b''",
]  # fmt: skip


# What may stand in the place of any value of JSON.
ODD = [
    None, True, False, 0, -1, 1, 7, 0.5, 13.0, 1e308, float("nan"), float("inf"), 10**400, "", " ",
    "x", "\ud800", "a\n\tb", "<phrase>", "\uff1cs\uff1e", "human", [], {}, [[]], [0, 1],
    [0, 5, 0.1, 0.1, 0.9, 0.9, 0.9], {"from": "gpt"},
]  # fmt: skip


def _broken(good: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Random bytes; the good record with bytes changed, cut out, doubled or put in; and, where it
    is JSON, with values replaced, left out, doubled or exchanged."""
    rng = random.Random(seed)
    is_json = good[:1] == b"{"
    for number in range(count):
        if number % 8 == 0:
            yield rng.randbytes(rng.randrange(80))
            continue
        if is_json and number % 2:
            value = json.loads(good)
            for _ in range(rng.choice((1, 1, 2, 5))):
                _break_value(value, rng)
            yield json.dumps(value).encode()
            continue
        raw = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            place, kind = rng.randrange(len(raw) + 1), rng.randrange(4)
            if kind == 0:
                raw[place : place + 1] = rng.randbytes(1)
            elif kind == 1:
                del raw[place : place + rng.randrange(1, 20)]
            elif kind == 2:
                raw[place:place] = raw[place : place + rng.randrange(1, 60)]
            else:
                raw[place : place + rng.choice((0, 1, 4))] = rng.choice(SPICES)
        yield bytes(raw)


def _break_value(value: Any, rng: random.Random) -> None:
    """Breaks one value at a random depth, in place."""
    while value:
        place = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        inner = value[place]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            value = inner
            continue
        kind = rng.randrange(4)
        if kind == 0:
            del value[place]
        elif kind == 1 and isinstance(value, list):
            value.insert(place, inner)
        elif kind == 2 and isinstance(value, list):
            other = rng.randrange(len(value))
            value[place], value[other] = value[other], inner
        else:
            value[place] = copy.deepcopy(rng.choice(ODD))  # a later change may be inside it
        return


@pytest.mark.parametrize("name", PARSERS)
def test_records_are_kept_or_counted(name: str) -> None:
    good, parse = PARSERS[name]
    count = NUM_RECORDS // NUM_TARGETS
    reading = Reading(name, "file", Skips())

    def document(key: str, raw: bytes) -> Iterator[Document]:
        content = {"found": parse(raw, reading.note)}
        # What is kept can be stored: valid Unicode, finite numbers, nothing but JSON.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        yield reading.document("text", key, content)

    records = [("0", good), *((str(i), raw) for i, raw in enumerate(_broken(good, count, 7), 1))]
    kept = sum(1 for _ in reading.documents(records, document))
    assert kept == reading.skips.num_kept(name) > count // 100
    filtered = [n for r, n in reading.skips.reasons(name).items() if r.startswith(FILTERED)]
    skipped = reading.skips.num_skipped(name) + sum(filtered)
    # Instances of a line of Unnatural Instructions are counted on their own.
    assert kept + skipped >= len(records) if name == "unnatural" else kept + skipped == len(records)


def _record(fields: bytes, *images: bytes) -> bytes:
    """A TFRecord as `to_tf_example` writes it, around any bytes."""
    lists = {"images": images, "document": [fields]}
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        for name, values in lists.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.mark.parametrize("name", ENCODERS)
def test_documents_are_encoded_or_counted(name: str, vocabulary: Kosmos2Vocabulary) -> None:
    good, settings = ENCODERS[name]
    images = [b"no picture, but nobody looks", b"another"][: 2 if name == "interleaved" else 1]
    count, tally = NUM_RECORDS // NUM_TARGETS, Counter[str]()
    for number, fields in enumerate([good, *_broken(good, count, 11)]):
        raw = _record(fields, *([] if name == "text" else images))
        try:
            document = from_tf_example(raw)
        except DataError as error:
            assert "damaged" in str(error)
            tally["no document"] += 1
            continue
        skips = Skips()
        try:
            examples = encode_document(document, vocabulary, settings, 0, skips, number)
        except DataError as error:
            assert f"unknown kind {document.kind!r}" in str(error)
            tally["of unknown kind"] += 1
            continue
        skipped = skips.num_skipped(document.source) + sum(
            n for r, n in skips.reasons(document.source).items() if r.startswith(FILTERED)
        )
        # Exactly one of the two, and no example comes of what was skipped or of what was not.
        assert skips.num_kept(document.source) + skipped == 1
        assert bool(examples) == bool(skips.num_kept(document.source))
        tally["kept" if examples else "skipped"] += 1
        for example in examples:
            sizes = {len(example[key]) for key in ("targets", "loss_weights", "image_slots")}
            assert sizes == {len(example["targets"])} and example["loss_weights"].any()
            assert len(example["targets"]) <= settings.max_tokens
            assert example["targets"].min() >= 0
            assert example["targets"].max() < vocabulary.vocab_size
    assert tally.total() == count + 1
    assert tally["kept"] > count // 50 and tally["skipped"] > count // 100


def test_damaged_tf_records_say_so_or_are_read(vocabulary: Kosmos2Vocabulary) -> None:
    good = _record(ENCODERS["grounded"][0], b"no picture")
    count, read = NUM_RECORDS // NUM_TARGETS, 0
    for raw in _broken(good, count, 13):
        try:
            document = from_tf_example(raw)
        except DataError as error:
            assert "damaged" in str(error)
            continue
        read += 1
        assert all(isinstance(image, bytes) for image in document.images)
        # What is in a document may be anything, so it must be fit for counts and messages.
        hash((document.kind, document.source, document.key))
    assert count // 100 < read < count


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just("human"),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(["from", "value", "image", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
NUMBERS = st.integers(-3, 40) | st.floats() | st.sampled_from([10**400, 1e308, -0.0, True])


@given(st.lists(st.lists(NUMBERS, min_size=6, max_size=8) | VALUES, max_size=4) | VALUES, st.text())
def test_annotations_of_any_shape(values: Any, caption: str) -> None:
    noted: list[str] = []
    found = grit.parse_annotations(values, caption, noted.append)
    dropped = [reason for reason in noted if "float" not in reason]
    assert len(found) + len(dropped) == (len(values) if isinstance(values, list) else 1)
    for start, end, x1, y1, x2, y2, score in found:
        assert type(start) is type(end) is int and caption[start:end].strip()
        assert x1 < x2 and y1 < y2 and all(isinstance(v, float) for v in (x1, y1, x2, y2, score))


@given(VALUES | st.fixed_dictionaries({"conversations": VALUES, "image": VALUES}))
def test_talks_of_any_shape(record: Any) -> None:
    try:
        name, turns = instructions.parse_llava(record, lambda reason: None)
    except Unusable:
        return
    assert name is None or isinstance(name, str)
    assert turns and all(question and answer for question, answer in turns)


@given(VALUES, VALUES)
def test_pages_of_any_shape(images: Any, texts: Any) -> None:
    try:
        parts = interleaved.parse_obelics(images, texts, lambda reason: None)
    except Unusable:
        return
    assert all(isinstance(part, str | interleaved.PictureLink) for part in parts)


@given(st.text(), st.sampled_from(["text", "caption"]))
def test_clean_text_can_be_stored(raw: str, kind: str) -> None:
    from kosmos2_jax.data.readers.base import clean_line, clean_text
    from kosmos2_jax.grounding.tags import has_tags

    clean = clean_text if kind == "text" else clean_line
    noted: list[str] = []
    try:
        found = clean(raw, "caption", noted.append)
    except Unusable:
        return
    assert not has_tags(found)
    assert kind == "text" or len(found) == len(raw)
    assert bool(noted) or found == raw or "\r" in raw
    document = Document(kind, (), {"text": found}, None, "source", "key")
    assert from_tf_example(to_tf_example(document)) == document
