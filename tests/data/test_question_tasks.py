"""WebSRC, VizWiz, COCO's captions, RefCOCO+ and RefCOCOg, from files to figures by hand."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.data.benchmarks.records import ReferringRecord
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.grounding import markup
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.tasks import benchmarks, referring

from .task_figures import examples, figures, png, write_files

PAGE = (
    "<html><head><title>Shop</title><style>p {}</style><script>x = '<p>no</p>'</script></head>"
    "<body><p>By Stephen&nbsp;King &amp; Co</p></body></html>"
)
LONG = f"<p>{'very long page ' * 300}</p>"


def websrc() -> dict[str, Any]:
    """Ids are two letters of the domain, site, page and question."""
    rows = [
        f'"Who wrote ""It"", the {n}th book?",bo01000010{n:04d},13,1,Stephen King' for n in range(8)
    ]
    rows += [
        "Is it long?,bo010000200000,-1,0,no",
        "Is it long?,bo010000200001,-1,0,yes",
        "Which?,bo010000100099,13,1,",  # no answer
        "Which?,bo010000300000,13,1,It",  # no picture
    ]
    site = "websrc/book/01"
    return {
        "websrc/dataset_split.json": {"train": ["mo04"], "dev": ["bo01"], "test": []},
        f"{site}/dataset.csv": "\n".join(["question,id,element_id,answer_start,answer", *rows, ""]),
        f"{site}/processed_data/0100001.html": PAGE,
        f"{site}/processed_data/0100001.png": png(),
        f"{site}/processed_data/0100002.html": LONG,
        f"{site}/processed_data/0100002.png": png(1),
        f"{site}/processed_data/0100003.html": PAGE,
        "websrc/movie/04/dataset.csv": "question,id,element_id,answer_start,answer\nx,y,0,0,z\n",
    }


def vizwiz() -> dict[str, Any]:
    def item(number: int, answers: list[str], kind: str) -> dict[str, Any]:
        told = [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
        image = f"VizWiz_val_{number:08d}.jpg"
        return {"image": image, "question": "What is this?", "answers": told, "answer_type": kind,
                "answerable": 1}  # fmt: skip

    items = [item(n, ["unsuitable"] * 6 + ["unanswerable"] * 4, "unanswerable") for n in range(5)]
    items += [item(n, ["a can"] * 2 + ["tin", "cola"] * 4, "other") for n in range(5, 10)]
    # Nine answers; a picture that is not there.
    items += [item(10, ["tin"] * 9, "other"), item(11, ["tin"] * 10, "other")]
    pictures = {f"vizwiz/val/VizWiz_val_{n:08d}.jpg": png(n) for n in range(11)}
    return pictures | {"vizwiz/Annotations/val.json": items}


def coco_captions() -> dict[str, Any]:
    def image(number: int, **more: Any) -> dict[str, Any]:
        name = f"COCO_val2014_{number:012d}.jpg"
        return {
            "filepath": "val2014", "filename": name, "cocoid": number, "imgid": number,
            "split": "test", "sentences": [{"raw": f"Thing{number} is here."}, {"raw": "A thing"}],
        } | more  # fmt: skip

    images = [image(n) for n in range(10)]
    images += [image(20, split="restval"), image(10, sentences=[]), image(11)]
    pictures = {f"coco_captions/val2014/COCO_val2014_{n:012d}.jpg": png(n) for n in range(11)}
    return pictures | {"coco_captions/dataset_coco.json": {"images": images, "dataset": "coco"}}


def refcocog_generation() -> dict[str, Any]:
    refs = [
        {"ref_id": n, "ann_id": n, "image_id": 1, "split": "val", "category_id": 1,
         "sentences": [{"sent": f"cup{n} on table", "raw": "", "tokens": [], "sent_id": n}]}
        for n in range(11)
    ]  # fmt: skip
    refs += [refs[0] | {"ref_id": 11, "sentences": []}, refs[0] | {"ref_id": 12, "split": "train"}]
    boxes = [{"id": n, "image_id": 1, "bbox": [0, 0, 4, 2], "category_id": 1} for n in range(10)]
    name = "COCO_train2014_000000000001.jpg"
    return {
        "refcocog_generation/refcocog/refs(umd).p": pickle.dumps(refs, 0),
        "refcocog_generation/refcocog/instances.json": {
            "images": [{"id": 1, "file_name": name, "width": 8, "height": 4}],
            "annotations": boxes,
        },
        f"refcocog_generation/train2014/{name}": png(),
    }


def comprehension(folder: str, name: str) -> dict[str, Any]:
    """MDETR's JSON: an image for each annotation; the object is the left half."""
    file = "COCO_train2014_000000000001.jpg"
    images = [
        {"id": n, "file_name": file, "width": 8, "height": 4, "caption": f"left cup {n}",
         "original_id": 1, "dataset_name": name}
        for n in range(11)
    ]  # fmt: skip
    boxes = [{"id": n, "image_id": n, "bbox": [0, 0, 4, 4], "iscrowd": 0} for n in range(10)]
    # One without an area, and one that is no annotation at all.
    boxes += [{"id": 10, "image_id": 10, "bbox": [4, 0, 0, 4]}, 7]
    return {
        f"{folder}/mdetr_annotations/finetune_{name}_val.json": {
            "images": images,
            "annotations": boxes,
        },
        f"{folder}/train2014/{file}": png(),
    }


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Kosmos2Vocabulary:
    """The real one; all tasks over the files are registered with it."""
    folder = tmp_path_factory.mktemp("downloads")
    files = websrc() | vizwiz() | coco_captions() | refcocog_generation()
    files |= comprehension("refcoco_plus", "refcoco+") | comprehension("refcocog", "refcocog")
    write_files(folder, files)
    tokenizer = str(assets / "tokenizer" / "sentencepiece.bpe.model")
    model = preset("tiny").replace(grid_size=32, decoder={"max_length": 256})
    return benchmarks.prepare(folder, DataConfig(tokenizer=tokenizer), model, 0)[1]


def prompt(example: dict[str, Any], vocabulary: Kosmos2Vocabulary) -> str:
    """What stands behind the picture and before what is to be said."""
    first = int(np.argmax(example["loss_weights"] > 0))
    return vocabulary.decode(example["targets"][:first]).partition("</image>")[2].strip()


def test_websrc(vocabulary):
    found = examples("websrc_dev")
    assert prompt(found[0], vocabulary) == (
        "Given the context below from web page, extract the answer from the given text like this: "
        "Qusestion: Who is the publisher of this book? Answer: Penguin Books Ltd. Context: Shop By "
        'Stephen King & Co Q: Who wrote "It", the 0th book? A:'
    )
    # The end of a page that is too long is left out, so that 64 tokens are left for the answer.
    long = prompt(found[8], vocabulary)
    assert long.endswith(" Q: Is it long? A:")
    first = int(np.argmax(found[8]["loss_weights"] > 0))
    assert 256 - 64 - 4 <= first <= 256 - 64
    # Eight of twelve are Stephen King: four to the letter, two half; of two others one is right.
    said = ["the stephen king."] * 4 + ["King"] * 2 + ["nobody", ""] + ["no", "maybe"]
    assert figures("websrc_dev", said) == {
        "exact_match": pytest.approx(5 / 12),
        # "King" of two words: precision 1, recall a half.
        "f1": pytest.approx((4 + 2 * 2 / 3 + 1) / 12),
        "lost": 2.0,
    }


def test_vizwiz(vocabulary):
    assert prompt(examples("vizwiz_val")[0], vocabulary) == "Question: What is this? Answer:"
    # Four of ten people said "unanswerable", all of whose subsets of nine have three. Two said
    # "a can": 8 of 10 subsets have both (2/3), 2 of them one (1/3). Two of twelve are lost.
    said = ["Unanswerable."] * 3 + ["?", ""] + ["can", "tin", "Cola!", "beer", "a can"]
    can = 0.8 * 2 / 3 + 0.2 / 3
    assert figures("vizwiz_val", said) == {
        "accuracy": pytest.approx((3 + 2 * can + 2) / 12),
        "accuracy/unanswerable": pytest.approx(3 / 5),
        "accuracy/other": pytest.approx((2 * can + 2) / 5),
        "lost": 2.0,
    }


def test_captions_and_expressions(vocabulary, monkeypatch):
    monkeypatch.setenv("PATH", "")  # without Java, whose METEOR takes long to start
    assert prompt(examples("coco_captions_test")[0], vocabulary) == "An image of"
    # The longest common sequence is all of a true caption in five, nothing in five; the task lost
    # two of twelve.
    said = [f"thing{n} is here" for n in range(5)] + ["nothing"] * 5
    found = figures("coco_captions_test", said)
    assert found["rouge_l"] == pytest.approx(5 / 12) and found["lost"] == 2.0
    assert prompt(examples("refcocog_generation_val")[0], vocabulary).endswith("</object> is")
    said = [f"cup{n} on table" for n in range(5)] + ["dog"] * 5
    found = figures("refcocog_generation_val", said)
    assert found["rouge_l"] == pytest.approx(5 / 12) and found["lost"] == 2.0


@pytest.mark.parametrize("name", ["refcoco_plus_val", "refcocog_val"])
def test_comprehension(name, vocabulary):
    assert prompt(examples(name)[3], vocabulary) == "<grounding><phrase> left cup 3</phrase>"

    def box(x2: float, y2: float) -> str:
        return markup.render_object([(0.0, 0.0, x2, y2)], 32)

    half = box(0.5, 1.0)
    # By the centres of cells: the half 0.91; three quarters 0.62; all 0.48; others less.
    said = [half, half, half, box(0.75, 1.0), box(1.0, 1.0), box(0.5, 0.4)]
    # Nothing; a box of another phrase; words; the first box counts, and it is wrong.
    said += ["", f"<phrase> a cup</phrase>{half}", "left", box(1.0, 0.3) + half]
    assert figures(name, said) == {"accuracy": pytest.approx(4 / 12), "lost": 2.0}


def test_a_true_box_that_reaches_out_of_the_picture_counts_as_a_whole():
    """As in the official script: half of it is outside, so that no more than half can be hit."""
    record = ReferringRecord("1", "x", (8, 4), ("cup",), Box(-4.0, 0.0, 4.0, 4.0))
    all_of_it, less = Box(0.0, 0.0, 4.0, 4.0), Box(0.0, 0.0, 3.9, 4.0)
    assert referring.accuracy([record, record], [all_of_it, less]) == {"accuracy": 0.5}
