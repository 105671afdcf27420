"""Flickr30k Entities and RefCOCO from files like theirs to figures worked out by hand."""

from __future__ import annotations

import math
import pickle

import pytest

from kosmos2_jax.data.benchmarks.flickr30k import parse_annotations, parse_sentence
from kosmos2_jax.data.skips import DataError, Unusable
from kosmos2_jax.evaluation.box_metrics import first_hits, rec_accuracy, recall_at_k
from kosmos2_jax.evaluation.means import means_by_group
from kosmos2_jax.grounding.boxes import Box

from .conftest import lost

SENTENCES = """\
[/EN#1/people A man] and [/EN#2/people/other a man] hold [/EN#3/other two red balls] .
[/EN#0/notvisual It] is [/EN#9/scene outside] with [/EN#1/people A man] .

[/EN#1/people Someone] waits
"""
ANNOTATIONS = """\
<annotation>
  <filename>12.jpg</filename>
  <size><width>200</width><height>100</height><depth>3</depth></size>
  <object><name>1</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>50</xmax><ymax>100</ymax></bndbox>
  </object>
  <object><name>2</name><name>3</name>
    <bndbox><xmin>100</xmin><ymin>0</ymin><xmax>120</xmax><ymax>20</ymax></bndbox></object>
  <object><name>3</name>
    <bndbox><xmin>180</xmin><ymin>0</ymin><xmax>200</xmax><ymax>20</ymax></bndbox></object>
  <object><name>9</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>
"""
CAPTION = "A man and a man hold two red balls ."


def mdetr_image(spans, sentence=0, caption=CAPTION, image="12", **changes):
    return {
        "file_name": f"{image}.jpg",
        "height": 100,
        "width": 200,
        "original_img_id": int(image),
        "sentence_id": sentence,
        "caption": caption,
        "tokens_positive_eval": spans,
        "tokens_negative": [[0, len(caption)]],
    } | changes


@pytest.fixture
def flickr(write):
    second = "It is outside with A man ."
    images = [
        # Two phrases of one text would ask for the first one's box twice; "balls" is in two pieces,
        # of which the first is asked.
        mdetr_image([[[0, 5]], [[21, 34], [10, 15]], [[10, 15]]]),
        mdetr_image([[[19, 24]], [[6, 13]]], sentence=1, caption=second),
        mdetr_image([[[0, 7]]], sentence=2, caption="Someone waits"),
        mdetr_image([[[0, 5]]], sentence=7),
        mdetr_image([[[0, 5]]], image="13"),
        mdetr_image([[[0, 5]]], width=201, sentence=1),
        mdetr_image("all of it"),
    ]
    return write(
        {
            "flickr30k-images/12.jpg": None,
            "flickr30k_entities/Sentences/12.txt": SENTENCES,
            "flickr30k_entities/Annotations/12.xml": ANNOTATIONS,
            "mdetr_annotations/final_flickr_separateGT_test.json": {"images": images},
        }
    )


def test_flickr_phrases(flickr, read):
    reading = read("flickr30k_grounding", flickr)
    man, balls, other = reading.records[:3]
    assert (man.id, man.phrase, man.phrase_types) == ("12_0_0", "A man", ("people",))
    assert man.image.endswith("flickr30k-images/12.jpg") and man.size == (200, 100)
    assert man.caption[: man.start] == "" and man.boxes == (Box(0, 0, 50, 100),)
    assert balls.phrase == "two red balls"
    assert balls.boxes == (Box(100, 0, 120, 20), Box(180, 0, 200, 20))
    assert (other.phrase, other.phrase_types) == ("a man", ("people", "other"))
    assert [record.id for record in reading.records[3:]] == ["12_1_0", "12_2_0"]
    assert lost(reading) == {
        "12_1_1": "phrase 'outside' has no box in sentence 1",
        "12_7_0": "Sentences has no line 7",
        "13_0_0": lost(reading)["13_0_0"],
        "12_1_0": "the picture is 200x100 in Annotations, not as in MDETR's list",
        "image 6": "no 'tokens_positive_eval' of type list",
    }
    assert "13.txt' cannot be read" in lost(reading)["13_0_0"]


def test_flickr_recall_by_hand(flickr, read):
    records = read("flickr30k_grounding", flickr).records
    hit, far = Box(0, 0, 50, 90), Box(60, 50, 90, 90)
    both = Box(100, 0, 200, 20)
    predictions = [[hit], [both, Box(180, 0, 200, 19)], [far], [far, hit], []]
    targets = [record.boxes for record in records]
    assert recall_at_k(targets, predictions) == {"r1": 0.2, "r5": 0.6, "r10": 0.6}
    # The box around both balls is hit by the first prediction.
    merged = first_hits(targets, predictions, merge_boxes=True)
    assert merged == [0, 0, math.inf, 1, math.inf]
    hits = [float(rank < 1) for rank in first_hits(targets, predictions)]
    by_type = means_by_group(hits, [record.phrase_types for record in records])
    assert by_type == {"other": (0.0, 2), "people": (0.25, 4)}


def test_flickr_marks_that_are_broken():
    assert parse_sentence("[/EN#5/clothing/other hat] on")[1][0].types == ("clothing", "other")
    with pytest.raises(Unusable, match="no entity"):
        parse_sentence("a [sic] thing")
    with pytest.raises(Unusable, match="no end"):
        parse_sentence("[/EN#1/people A man")
    with pytest.raises(Unusable, match="no XML"):
        parse_annotations("<annotation>")
    with pytest.raises(Unusable, match="has no area"):
        parse_annotations(ANNOTATIONS.replace("<xmax>50", "<xmax>-50"))


def coco_image(identity, name="COCO_train2014_000000000001.jpg", **more):
    return {"id": identity, "file_name": name, "width": 640, "height": 480} | more


PICTURES = {
    "train2014/COCO_train2014_000000000001.jpg": None,
    "train2014/COCO_train2014_000000000002.jpg": None,
}


def test_referring_comprehension_by_hand(write, read):
    images = [
        coco_image(0, caption="left man", dataset_name="refcoco"),
        coco_image(1, caption=" the cat\u00a0\u00fc "),
        coco_image(2, "COCO_train2014_000000000009.jpg", caption="gone"),
        coco_image(3, "../COCO_train2014_000000000001.jpg", caption="out"),
    ]
    annotations = [
        {"id": 10, "image_id": 0, "bbox": [10.0, 20.0, 100.0, 50.0]},
        {"id": 11, "image_id": 1, "bbox": [0, 0, 8, 8]},
        {"id": 12, "image_id": 2, "bbox": [0, 0, 8, 8]},
        {"id": 13, "image_id": 0, "bbox": [0, 0, -8, 8]},
        {"id": 14, "image_id": 0, "bbox": [0, 0, float("nan"), 8]},
        {"id": 15, "image_id": 7, "bbox": [0, 0, 8, 8]},
        {"id": 10, "image_id": 0, "bbox": [0, 0, 8, 8]},
        {"id": 16, "image_id": 3, "bbox": [0, 0, 8, 8]},
        {"id": 17, "image_id": 0, "bbox": [0, 0, 8]},
    ]
    content = {"images": images, "annotations": annotations, "categories": []}
    folder = write(PICTURES | {"mdetr_annotations/finetune_refcoco+_testB.json": content})
    reading = read("refcoco_plus", folder, "testB")
    first, second = reading.records
    assert (first.id, first.expressions, first.size) == ("10", ("left man",), (640, 480))
    assert first.box == Box(10, 20, 110, 70)
    assert second.expressions == (" the cat\u00a0\u00fc ",)  # names are compared stripped only
    assert lost(reading) == {
        "12": "picture 'train2014/COCO_train2014_000000000009.jpg' is missing",
        "13": "box (0, 0, -8, 8) has no area",
        "14": "box (0, 0, nan, 8) has no area",
        "15": "its image 7 is not in the file",
        "10": "its id is there already",
        "16": "picture 'train2014/../COCO_train2014_000000000001.jpg' is outside of the folder",
        "17": "box [0, 0, 8] is not four numbers",
    }
    # What is lost is wrong: 1 of 9.
    answers = [Box(10, 20, 110, 60), None] + [None] * len(reading.problems)
    targets = [r.box for r in reading.records] + [Box(0, 0, 1, 1)] * len(reading.problems)
    assert rec_accuracy(targets, answers) == pytest.approx(1 / 9)


def ref(ref_id, ann_id, sentences, split="val", image_id=1):
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "split": split,
        "category_id": 1,
        "file_name": "COCO_train2014_000000000001_10.jpg",
        "sent_ids": [ref_id * 10],
        "sentences": [{"sent": s, "raw": s, "tokens": s.split(), "sent_id": 0} for s in sentences],
    }


@pytest.mark.parametrize("protocol", [0, 2])
def test_referring_generation(write, read, protocol):
    refs = [
        ref(5, 10, ["the man in red", "man on left"]),
        ref(6, 11, ["caf\u00e9"]),
        ref(7, 10, ["not in this split"], split="train"),
        ref(8, 99, ["no such object"]),
        ref(9, 10, []),
    ]
    instances = {
        "images": [coco_image(1)],
        "annotations": [
            {"id": 10, "image_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 11, "image_id": 1, "bbox": [5, 6, 7, 8]},
        ],
    }
    pickled = {"refcocog/refs(umd).p": pickle.dumps(refs, protocol)}
    folder = write(PICTURES | pickled | {"refcocog/instances.json": instances})
    reading = read("refcocog_generation", folder)
    assert [r.expressions for r in reading.records] == [
        ("the man in red", "man on left"),
        ("caf\u00e9",),
    ]
    assert reading.records[0].box == Box(1, 2, 4, 6)
    assert lost(reading) == {
        "8": "its object or image is not in instances.json",
        "9": "no expressions",
    }


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(write, read, tmp_path, protocol):
    target = tmp_path / "written"
    content = pickle.dumps([Harmful(str(target))], protocol)
    folder = write(
        PICTURES
        | {
            "refcocog/refs(umd).p": content,
            "refcocog/instances.json": {"images": [], "annotations": []},
        }
    )
    with pytest.raises(DataError, match=r"not a pickle of plain lists.*names \S+\.open"):
        read("refcocog_generation", folder)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02]q\x00(", b"junk", b"cos\nsystem\n(S'x'\ntR."])
def test_a_broken_pickle(write, read, content):
    empty = {"images": [], "annotations": []}
    folder = write(PICTURES | {"refcocog/refs(umd).p": content, "refcocog/instances.json": empty})
    with pytest.raises(DataError, match="not a pickle of plain lists"):
        read("refcocog_generation", folder)
