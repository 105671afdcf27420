"""COCO, Karpathy's splits, VQAv2, VizWiz and WebSRC from files like theirs."""

from __future__ import annotations

import pytest

from kosmos2_jax.data.skips import DataError
from kosmos2_jax.evaluation.captions import score_captions
from kosmos2_jax.evaluation.extraction import exact_match, f1
from kosmos2_jax.evaluation.means import means_by_group
from kosmos2_jax.evaluation.vqa import answer_score

from .conftest import lost


def karpathy_image(number, captions, split="test", **more):
    sentences = [{"raw": c, "tokens": c.lower().split(), "sentid": 0} for c in captions]
    return {"imgid": number, "split": split, "sentences": sentences} | more


def test_karpathys_flickr_to_cider_by_hand(write, read):
    images = [
        karpathy_image(0, ["Red!", " red ."], filename="a.jpg"),
        karpathy_image(1, ["Blue"], filename="b.jpg"),
        karpathy_image(2, ["Red"], split="val", filename="c.jpg"),
        karpathy_image(3, ["Red"], filename="missing.jpg"),
        karpathy_image(4, ["Red", " \n"], filename="a.jpg"),
        karpathy_image(5, [], filename="a.jpg"),
    ]
    pictures = {f"flickr30k-images/{name}.jpg": None for name in "abc"}
    folder = write(
        pictures | {"dataset_flickr30k.json": {"images": images, "dataset": "flickr30k"}}
    )
    reading = read("flickr30k_captions", folder)
    assert [(r.id, r.captions) for r in reading.records] == [
        ("0", ("Red!", "red .")),
        ("1", ("Blue",)),
    ]
    assert lost(reading) == {
        "3": "picture 'missing.jpg' is missing",
        "4": "empty 'raw'",
        "5": "no captions",
    }
    scores = score_captions([r.captions for r in reading.records], ["red", "a dog"])
    assert scores.figures()["cider"] == pytest.approx(1.25)  # 2.5 and 0
    assert scores.figures()["rouge_l"] == pytest.approx(0.5)


def test_karpathys_coco_has_folders(write, read):
    image = karpathy_image(
        0, ["A dog"], filepath="val2014", filename="COCO_val2014_000000000042.jpg", cocoid=42
    )
    other = karpathy_image(1, ["A cat"], "restval", filepath="val2014", filename="x", cocoid=43)
    folder = write(
        {
            "val2014/COCO_val2014_000000000042.jpg": None,
            "dataset_coco.json": {"images": [image, other]},
        }
    )
    (record,) = read("coco_captions", folder).records
    assert record.id == "42" and record.image.endswith("val2014/COCO_val2014_000000000042.jpg")


def test_cocos_own_captions(write, read):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "a.jpg"}, {"id": 7}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "A dog\nruns"},
            {"id": 2, "image_id": 7, "caption": "Dog"},
            {"id": 3, "image_id": 9, "caption": "Cat"},
            {"id": 4, "caption": "Cat"},
        ],
    }
    folder = write({"val2017/a.jpg": None, "annotations/captions_val2017.json": content})
    reading = read("coco_val_captions", folder, "val2017")
    assert [r.captions for r in reading.records] == [("A dog runs", "Dog")]
    assert lost(reading) == {
        "annotation 3": "no 'image_id' of type int",
        "9": "has captions but is not among the images",
        "8": "no captions",
        "7": "no 'file_name' of type str",
    }


def people(*answers):
    return [
        {"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers)
    ]


def vqa_question(number, image=42, question="What is it?"):
    return {"question_id": number, "image_id": image, "question": question}


def vqa_annotation(number, answers, image=42, kind="other"):
    return {
        "question_id": number,
        "image_id": image,
        "answer_type": kind,
        "question_type": "what is",
        "multiple_choice_answer": answers[0],
        "answers": people(*answers),
    }


def test_vqa_to_accuracy_by_hand(write, read):
    yes, mixed = ["yes"] * 10, ["a dog"] * 2 + ["cat"] * 8
    questions = [
        vqa_question(420000, question="Is it red?\nReally?"),
        vqa_question(420001),
        vqa_question(430000, image=43),
        vqa_question(420002),
        vqa_question(420003),
        vqa_question(420000),
        {"image_id": 42, "question": "Who?"},
        vqa_question(420004),
    ]
    annotations = [
        vqa_annotation(420000, yes, kind="yes/no"),
        vqa_annotation(420001, mixed),
        vqa_annotation(430000, yes, image=43),
        vqa_annotation(420003, yes, image=99),
        vqa_annotation(420004, yes[:9]),
        vqa_annotation(999999, yes),
        vqa_annotation(420000, yes),
    ]
    folder = write(
        {
            "val2014/COCO_val2014_000000000042.jpg": None,
            "v2_OpenEnded_mscoco_val2014_questions.json": {"questions": questions},
            "v2_mscoco_val2014_annotations.json": {"annotations": annotations},
        }
    )
    reading = read("vqav2", folder)
    assert [(r.id, r.question, r.group) for r in reading.records] == [
        ("420000", "Is it red? Really?", "yes/no"),
        ("420001", "What is it?", "other"),
    ]
    assert lost(reading) == {
        "annotation 6": "its question is 420000, no new one",
        "430000": "picture 'COCO_val2014_000000000043.jpg' is missing",
        "420002": "no annotation",
        "420003": "its annotation is of another picture",
        "420000": "its id is there already",
        "question 6": "no 'question_id' of type int",
        "420004": "9 answers instead of 10",
        "999999": "has an annotation but is not among the questions",
    }
    scores = [
        answer_score(r.answers, answer)
        for r, answer in zip(reading.records, ("Yes.", "dog"), strict=True)
    ]
    # Two of ten said dog: 8 times 2/3 and twice 1/3.
    means = means_by_group(scores, [(r.group, "all") for r in reading.records])
    assert {name: mean for name, (mean, _) in means.items()} == pytest.approx(
        {"yes/no": 1.0, "other": 0.6, "all": 0.8}
    )


def test_vqa_test_answers_are_secret(write, read):
    folder = write(
        {
            "test2015/COCO_test2015_000000000042.jpg": None,
            "v2_OpenEnded_mscoco_test-dev2015_questions.json": {"questions": [vqa_question(1)]},
        }
    )
    (record,) = read("vqav2", folder, "test-dev2015").records
    assert record.answers == () and record.image.endswith("COCO_test2015_000000000042.jpg")


def test_vizwiz(write, read):
    def item(image, answers, **more):
        asked = {"image": image, "question": "Can you tell me what this is?", "answerable": 1}
        return asked | {"answers": people(*answers), "answer_type": "unanswerable"} | more

    unsuitable = ["unsuitable"] * 6 + ["unanswerable"] * 4
    items = [item("a.jpg", unsuitable), item("b.jpg", unsuitable), item("a.jpg", unsuitable), 3]
    folder = write({"val/a.jpg": None, "Annotations/val.json": items})
    reading = read("vizwiz", folder)
    (record,) = reading.records
    assert record.id == "a.jpg" and record.group == "unanswerable"
    assert answer_score(record.answers, "unanswerable") == 1.0
    assert lost(reading) == {
        "b.jpg": "picture 'b.jpg' is missing",
        "a.jpg": "its id is there already",
        "question 3": "no 'image' of type str",
    }
    with pytest.raises(DataError, match="not a JSON list"):
        read("vizwiz", write({"Annotations/val.json": {"questions": []}}))


def test_websrc_to_em_and_f1_by_hand(write, read):
    rows = (
        "question,id,element_id,answer_start,answer\n"
        '"Who wrote ""It"", the book?",bo010000100000,13,1,Stephen King\n'
        "Is it new?,bo010000200001,-1,0,no\n"
        "Which?,bo010000100002,13,1,\n"
    )
    page = (
        "<html><head><title>Shop</title><style>p {}</style><script>x = '<p>no</p>'</script></head>"
        "<body><p>By Stephen&nbsp;King &amp; Co</p></body></html>"
    )
    site = "book/01"
    folder = write(
        {
            "dataset_split.json": {"dev": ["bo01"], "test": []},
            f"{site}/dataset.csv": rows,
            f"{site}/processed_data/0100001.html": page,
            f"{site}/processed_data/0100001.png": None,
            "book/02/dataset.csv": rows,
        }
    )
    reading = read("websrc", folder)
    (record,) = reading.records
    assert record.question == 'Who wrote "It", the book?'
    assert record.context == "Shop By Stephen King & Co"
    assert lost(reading) == {
        "bo010000200001": "picture '0100002.png' is missing",
        "bo010000100002": "empty 'answer'",
    }
    assert exact_match(record.answers, "stephen king") == 1.0
    assert f1(record.answers, "King") == pytest.approx(2 / 3)


def test_files_of_another_kind(write, read):
    questions = "v2_OpenEnded_mscoco_test2015_questions.json"
    for content, message in (
        ("{", "is not JSON"),
        ([], "no list 'questions'"),
        ({"questions": {}}, "no list 'questions'"),
        (b"\xff", "not text in UTF-8"),
        ({"questions": []}, "no example that can be used"),
        ({"questions": [3]}, "the first one: question 0: no 'question_id'"),
    ):
        folder = write({"test2015/x.jpg": None, questions: content})
        with pytest.raises(DataError, match=message):
            read("vqav2", folder, "test2015")
