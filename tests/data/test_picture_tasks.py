"""Flickr30k, RefCOCO and VQAv2, a dozen tricky examples each, from files to figures by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.grounding import markup
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.tasks import benchmarks

from .task_figures import examples, figures, png, write_files

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
# From the last cell to the first one, as a model may well write it.
REVERSED = "<patch_index_1023><patch_index_0000>"


def said(*boxes: tuple[float, float, float, float]) -> str:
    return markup.render_object(boxes, 32)


def annotation(*boxes: tuple[str, str]) -> str:
    """Flickr30k Entities' XML: entities and their corners; entity 9 is a scene without a box."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    places = (
        f"<object><name>{entity}</name><bndbox>"
        + "".join(f"<{side}>{n}</{side}>" for side, n in zip(sides, corners.split(), strict=True))
        + "</bndbox></object>"
        for entity, corners in boxes
    )
    return (
        "<annotation><size><width>8</width><height>4</height><depth>3</depth></size>"
        f"{''.join(places)}<object><name>9</name><scene>1</scene><nobndbox>1</nobndbox></object>"
        "</annotation>"
    )


def phrase_grounding() -> dict[str, Any]:
    """Thirteen phrases, five of which are lost."""
    sentences = (
        "[/EN#1/people A man] and [/EN#2/people two women] in [/EN#3/clothing/other red hats] at "
        "[/EN#9/scene the beach] .\n"
        "[/EN#1/people A man] near [/EN#1/people/other a man] sees [/EN#2/people them] .\n"
        "[/EN#3/clothing red hats] on [/EN#2/people two women] .\n"
    )
    first = "A man and two women in red hats at the beach ."

    def item(picture: int, sentence: int, caption: str, *phrases: str) -> dict[str, Any]:
        starts = [caption.index(phrase) for phrase in phrases]
        spans = [[[n, n + len(phrase)]] for n, phrase in zip(starts, phrases, strict=True)]
        return {
            "file_name": f"{picture}.jpg", "width": 8, "height": 4, "original_img_id": picture,
            "sentence_id": sentence, "caption": caption, "tokens_positive_eval": spans,
            "dataset_name": "flickr",
        }  # fmt: skip

    images = [
        item(7, 0, first, "A man", "two women", "red hats", "the beach"),
        item(7, 1, "A man near a man sees them .", "A man", "a man", "them"),
        item(7, 2, "red hats on two women .", "red hats", "two women"),
        item(7, 0, first, "A man"),  # its id is there already
        *(item(number, 0, first, "A man") for number in (8, 9, 10)),
    ]
    good = annotation(("1", "0 0 4 4"), ("2", "0 0 2 4"), ("2", "6 0 8 4"), ("3", "4 0 8 2"))
    # A reversed box, one with NaN, and a picture that is missing.
    annotations = {
        7: good, 8: annotation(("1", "4 0 2 4")), 9: annotation(("1", "nan 0 4 4")), 10: good,
    }  # fmt: skip
    place = "flickr30k_grounding"
    files: dict[str, Any] = {f"{place}/flickr30k-images/{n}.jpg": png(n) for n in (7, 8, 9)}
    for number, text in annotations.items():
        files[f"{place}/flickr30k_entities/Annotations/{number}.xml"] = text
        files[f"{place}/flickr30k_entities/Sentences/{number}.txt"] = sentences
    mdetr = f"{place}/mdetr_annotations/final_flickr_separateGT_test.json"
    return files | {mdetr: {"images": images}}


def comprehension() -> dict[str, Any]:
    """MDETR's JSON: the object is the left half; of twelve four are lost."""
    images = [
        {"id": n, "file_name": f"COCO_train2014_{1 + n // 10:012d}.jpg", "width": 8, "height": 4,
         "caption": f"the man's cup, no. {n}", "original_id": 1, "dataset_name": "refcoco"}
        for n in range(11)
    ]  # fmt: skip
    # Reversed, NaN, a picture that is missing, an id that is there already.
    boxes = [[0, 0, 4, 4]] * 8 + [[4, 0, -2, 4], [math.nan, 0, 4, 4], [0, 0, 4, 4]]
    objects = [{"id": n, "image_id": n, "bbox": box, "iscrowd": 0} for n, box in enumerate(boxes)]
    content = {"images": images, "annotations": [*objects, objects[0]]}
    return {
        "refcoco/train2014/COCO_train2014_000000000001.jpg": png(),
        "refcoco/mdetr_annotations/finetune_refcoco_val.json": content,
    }


# Kind and what ten people answered to each question of VQAv2.
PEOPLE = (
    ("yes/no", ["yes"] * 10),
    ("yes/no", ["yes"] * 2 + ["no"] * 8),
    ("yes/no", ["no"] * 10),
    ("number", ["2"] * 10),
    ("number", ["ten"] + ["12"] * 9),
    ("number", ["1,000"] * 10),
    ("other", ["the red hat"] * 3 + ["red hat"] + ["hat"] * 6),
    ("other", ["don't know"] * 3 + ["sky"] * 7),
    ("other", ["left"] * 10),
    ("other", ["left"] * 9),  # one is missing
    ("other", ["left"] * 10),  # its picture is missing
)


def questions() -> dict[str, Any]:
    """Twelve questions, three of which are lost: the last one's id is there already."""
    asked = [
        {"question_id": n, "image_id": 1 + n // 10, "question": f"Is it {n}, or what?"}
        for n in range(len(PEOPLE))
    ]
    told = [
        {"question_id": n, "image_id": 1 + n // 10, "answer_type": kind, "question_type": "is it",
         "multiple_choice_answer": answers[-1],
         "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": number}
                     for number, answer in enumerate(answers, 1)]}
        for n, (kind, answers) in enumerate(PEOPLE)
    ]  # fmt: skip
    return {
        "vqav2/val2014/COCO_val2014_000000000001.jpg": png(),
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": {"questions": [*asked, asked[0]]},
        "vqav2/v2_mscoco_val2014_annotations.json": {"annotations": told},
    }


def captions() -> dict[str, Any]:
    """Twelve pictures of the split, three of which are lost, and one of another split."""

    def image(number: int, **more: Any) -> dict[str, Any]:
        raw = (f"Thing{number}, the man's hat!", "A thing.")
        return {
            "imgid": number, "split": "test", "filename": f"{number}.jpg",
            "sentences": [{"raw": text, "imgid": number} for text in raw],
        } | more  # fmt: skip

    images = [image(n) for n in range(9)]
    # An id that is there already, nobody's caption, a picture that is missing.
    images += [image(0), image(9, sentences=[]), image(10), image(11, split="val")]
    pictures = {f"flickr30k_captions/flickr30k-images/{n}.jpg": png(n) for n in range(10)}
    return pictures | {"flickr30k_captions/dataset_flickr30k.json": {"images": images}}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Kosmos2Vocabulary:
    """The real one; all tasks over the files are registered with it."""
    folder = tmp_path_factory.mktemp("downloads")
    write_files(folder, phrase_grounding() | comprehension() | questions() | captions())
    tokenizer = str(assets / "tokenizer" / "sentencepiece.bpe.model")
    model = preset("tiny").replace(grid_size=32)
    return benchmarks.prepare(folder, DataConfig(tokenizer=tokenizer), model, 0)[1]


def prompts(name: str, vocabulary: Kosmos2Vocabulary) -> list[str]:
    """What stands behind each picture and before what is to be said."""
    found = []
    for example in examples(name):
        first = int(np.argmax(example["loss_weights"] > 0))
        text = vocabulary.decode(example["targets"][:first])
        found.append(text.partition("</image>")[2].strip())
    return found


def test_phrase_grounding(vocabulary):
    answers = [
        said(LEFT),  # hit by the first box
        said((0.75, 0.0, 1.0, 1.0)),  # one of two true boxes, but not the box around both
        # A reversed box is a guess that misses; then a hit.
        said((0.5, 0.0, 1.0, 0.5)).replace("<object>", f"<object>{REVERSED}{markup.DELIMITER}"),
        "",
        said(*[RIGHT] * 10, LEFT),  # hit by the eleventh
        said((0.0, 0.0, 0.25, 1.0)),  # one of two true boxes again
        said(*[LEFT] * 6, (0.5, 0.0, 1.0, 0.5)),  # hit by the seventh
        said((0.0, 0.0, 1.0, 1.0)),  # the box around both; of each it is four times the area
    ]
    # The first hits are 1, 1, 2, -, 11, 1, 7, - of any box and 1, -, 2, -, 11, -, 7, 1 of the box
    # around all. People are in 1, 2, 4, 5, 6 and 8, clothing in 3 and 7, other in 3 and 5.
    by_hand = {
        "r1": 3 / 13, "r5": 4 / 13, "r10": 5 / 13, "upper_bound": 6 / 13,
        "merged_r1": 2 / 13, "merged_r5": 3 / 13, "merged_r10": 4 / 13,
        "merged_upper_bound": 5 / 13,
        "r1/people": 3 / 6, "r5/people": 3 / 6, "r10/people": 3 / 6,
        "r1/clothing": 0, "r5/clothing": 1 / 2, "r10/clothing": 1,
        "r1/other": 0, "r5/other": 1 / 2, "r10/other": 1 / 2,
        "lost": 5,
    }  # fmt: skip
    assert figures("flickr30k_grounding_test", answers) == pytest.approx(by_hand)


def test_comprehension(vocabulary):
    assert prompts("refcoco_val", vocabulary) == [
        f"<grounding><phrase> the man's cup, no. {n}</phrase>" for n in range(8)
    ]
    answers = [said(LEFT), said((0.0, 0.0, 0.75, 1.0)), said((0.0, 0.0, 0.5, 0.6))]
    # By the centres of cells: 0.91, 0.62 and 0.55 of the union. Others miss: all of the picture
    # (0.48), a reversed box, none, a box of another phrase, a second box.
    answers += [said((0.0, 0.0, 1.0, 1.0)), f"<object>{REVERSED}</object>", ""]
    answers += [f"<phrase> a cup</phrase>{said(LEFT)}", said(RIGHT, LEFT)]
    assert figures("refcoco_val", answers) == {"accuracy": pytest.approx(3 / 12), "lost": 4.0}


def test_questions(vocabulary):
    assert prompts("vqav2_val2014", vocabulary) == [
        f"Question: Is it {n}, or what? Answer:" for n in range(9)
    ]
    answers = [
        "Yes.",  # 1
        # Two said so: both are among the other nine in 8 of 10 cases (2/3), one in 2 (1/3).
        "<grounding> yes",  # (8 * 2/3 + 2 * 1/3) / 10 = 0.6
        "",  # 0
        "Two",  # 1: number words are digits
        "the ten.",  # one said so, and is among the others in 9 of 10 cases: 0.9 / 3 = 0.3
        "1000",  # 1: commas are left out
        "A red hat!",  # 1: articles and marks are left out, so that four said so
        "dont know",  # the apostrophe is put back; three said so: (7 * 1 + 3 * 2/3) / 10 = 0.9
        "NaN",  # 0
    ]
    assert figures("vqav2_val2014", answers) == {
        "accuracy": pytest.approx(5.8 / 12),
        "accuracy/yes/no": pytest.approx(1.6 / 3),
        "accuracy/number": pytest.approx(2.3 / 3),
        "accuracy/other": pytest.approx(1.9 / 3),
        "lost": 3.0,
    }


def test_captions(vocabulary, monkeypatch):
    monkeypatch.setenv("PATH", "")  # without Java, whose METEOR takes long to start
    assert prompts("flickr30k_captions_test", vocabulary) == ["An image of"] * 9
    # True are "thing0 the man 's hat" and "a thing", punctuation left out.
    answers = ["THING0 -- the man's hat ...", "", "...", "a thing", "the hat", "NaN"]
    answers += ["thing6, a thing", "dog", "dog"]
    found = figures("flickr30k_captions_test", answers)
    assert found["lost"] == 3.0
    # ROUGE-L, 2.44 P R / (R + 1.44 P): 1 for the first and the fourth; for "the hat" P = 1 and
    # R = 2/5; for the seventh P = 2/3 and R = 1 of "a thing"; 0 for all others.
    rouge_l = [1, 1, 2.44 * 0.4 / (0.4 + 1.44), 2.44 * (2 / 3) / (1 + 1.44 * 2 / 3)]
    assert found["rouge_l"] == pytest.approx(sum(rouge_l) / 12)
    # BLEU-1: of 5 + 2 + 2 + 1 + 3 + 1 + 1 = 15 words 5 + 2 + 2 + 3 = 12 are right; the true
    # captions closest in length have 5 + 8 * 2 = 21 words. Three of twelve are lost.
    assert found["bleu1"] == pytest.approx(math.exp(1 - 21 / 15) * 12 / 15 * 9 / 12)
    # CIDEr-D: all but n-grams with "thing0" and the like are in each picture and weigh nothing. Of
    # two true captions the first equals the first answer: 10 / 2. The seventh shares "thing6" with
    # it, n = 1 of 4, and has 2 bigrams to its 4: 10 / 2 / 4 times the penalty.
    penalty = math.exp(-((2 - 4) ** 2) / (2 * 6**2))
    assert found["cider"] == pytest.approx((5 + 1.25 * penalty) / 12)
