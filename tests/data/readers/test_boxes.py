"""One truth of pictures and boxes, written in six formats, comes back the same from each."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kosmos2_jax.data import prepare
from kosmos2_jax.data.readers import FORMATS
from kosmos2_jax.data.skips import CLIPPED, FILTERED, DataError

# Name, size, and boxes: label, and corners in pixels. Everything can be had in every format.
TRUTH: list[tuple[str, tuple[int, int], list[tuple[str, tuple[int, int, int, int]]]]] = [
    ("one.jpg", (100, 50), [("dog", (10, 5, 60, 45)), ("fire_hydrant", (70, 0, 100, 50))]),
    ("two.jpg", (80, 80), [("dog", (0, 0, 40, 40)), ("dog", (40, 40, 80, 80))]),
    ("none.jpg", (64, 64), []),
]
LABELS = ["dog", "fire_hydrant"]
CAPTIONS = ["An image of a dog and a fire hydrant.", "An image of two dogs."]
WITHOUT_BOXES = f"{FILTERED}picture without boxes"


@pytest.fixture
def pictures(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, (name, size, _) in enumerate(TRUTH):
        (folder / name).write_bytes(picture(seed, size))
    return folder


def coco(folder: Path, pictures: Path, **changes: Any) -> Path:
    images, annotations = [], []
    for number, (name, (width, height), boxes) in enumerate(TRUTH):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for label, (x1, y1, x2, y2) in boxes:
            annotations.append(
                {
                    "id": len(annotations), "image_id": number, "iscrowd": 0,
                    "category_id": 10 + LABELS.index(label), "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )  # fmt: skip
    categories = [{"id": 10 + i, "name": name} for i, name in enumerate(LABELS)]
    data = {"images": images, "annotations": annotations, "categories": categories, **changes}
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


def yolo(folder: Path, pictures: Path) -> Path:
    root = folder / "yolo"
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    for name, (width, height), boxes in TRUTH:
        (root / "images" / "train" / name).write_bytes((pictures / name).read_bytes())
        lines = []
        for label, (x1, y1, x2, y2) in boxes:
            values = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            values += ((x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join(map(repr, [LABELS.index(label), *values])))
        if boxes:
            (root / "labels" / "train" / name).with_suffix(".txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("train: ../images/train\nnames:\n  0: dog\n  1: fire_hydrant\n")
    return root / "data.yaml"


VOC = """<annotation><filename>{name}</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
VOC_OBJECT = """<object><name>{}</name><difficult>0</difficult><bndbox>
<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def voc(folder: Path, pictures: Path) -> Path:
    root = folder / "voc"
    (root / "Annotations").mkdir(parents=True)
    pictures.rename(root / "JPEGImages")
    for name, (width, height), boxes in TRUTH:
        objects = "".join(
            VOC_OBJECT.format(label, x1 + 1, y1 + 1, x2, y2) for label, (x1, y1, x2, y2) in boxes
        )
        xml = VOC.format(name=name, width=width, height=height, objects=objects)
        (root / "Annotations" / name).with_suffix(".xml").write_text(xml)
    return root


def labelme(folder: Path, pictures: Path) -> Path:
    for number, (name, (width, height), boxes) in enumerate(TRUTH):
        shapes = []
        for label, (x1, y1, x2, y2) in boxes:
            points = [[x1, y1], [x2, y2]] if number else [[x1, y2], [x2, y1], [x1, y1]]
            kind = "rectangle" if number else "polygon"
            shapes.append({"label": label, "points": points, "shape_type": kind})
        encoded = base64.b64encode((pictures / name).read_bytes()).decode() if number else None
        record = {
            "version": "5.4.1", "flags": {}, "shapes": shapes, "imageData": encoded,
            "imagePath": name, "imageHeight": height, "imageWidth": width,
        }  # fmt: skip
        (pictures / name).with_suffix(".json").write_text(json.dumps(record))
    (pictures / TRUTH[1][0]).unlink()  # it is in its JSON
    return pictures


def boxes_csv(folder: Path, pictures: Path) -> Path:
    # As TensorFlow's object detection API has it.
    path = folder / "boxes.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        table = csv.writer(stream)
        table.writerow("filename width height class xmin ymin xmax ymax".split())
        for name, size, boxes in TRUTH:
            for label, corners in boxes:
                table.writerow([name, *size, label, *corners])
            if not boxes:
                table.writerow([name, *size, "", "", "", "", ""])
    return path


def boxes_jsonl(folder: Path, pictures: Path) -> Path:
    path = folder / "boxes.jsonl"
    with path.open("w") as stream:
        for name, _, boxes in TRUTH:
            items = [{"label": label, "box": corners} for label, corners in boxes]
            print(json.dumps({"image": name, "boxes": items}), file=stream)
    return path


WRITERS: dict[str, Callable[[Path, Path], Path]] = {
    "coco": coco, "yolo": yolo, "voc": voc, "labelme": labelme,
    "boxes-csv": boxes_csv, "boxes-jsonl": boxes_jsonl,
}  # fmt: skip
BESIDE = {"coco", "boxes-csv", "boxes-jsonl"}  # whose pictures must be named


@pytest.mark.parametrize("format", WRITERS)
def test_the_truth_comes_back(format: str, tmp_path: Path, pictures: Path, read: Callable) -> None:
    encoded = [(pictures / name).read_bytes() for name, _, _ in TRUTH]
    path = WRITERS[format](tmp_path, pictures)
    options = {"images": str(pictures)} if format in BESIDE else {}
    documents, skips = read(format, path, **options)
    found = {document.content["caption"]: document for document in documents}
    assert sorted(found) == sorted(CAPTIONS)
    for caption, image, (_, (width, height), boxes) in zip(CAPTIONS, encoded, TRUTH, strict=False):
        document = found[caption]
        assert (document.kind, document.size) == ("grounded", (width, height))
        assert document.images == (image,)
        annotations = document.content["ref_exps"]
        assert annotations == document.content["noun_chunks"]
        phrases = [caption[a[0] : a[1]] for a in annotations]
        assert phrases == (["a dog", "a fire hydrant"], ["two dogs"] * 2)[image == encoded[1]]
        for annotation, (_, (x1, y1, x2, y2)) in zip(annotations, boxes, strict=True):
            corners = [x1 / width, y1 / height, x2 / width, y2 / height]
            assert annotation[2:] == pytest.approx([*corners, 1.0], abs=1e-9)
    assert skips.reasons("test") == {WITHOUT_BOXES: 1}


def _coco(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_coco_records_that_are_bad(tmp_path: Path, pictures: Path, read: Callable) -> None:
    good = _coco(coco(tmp_path, pictures))
    images = [
        *good["images"],
        {"id": 4, "file_name": "lost.jpg", "width": 9, "height": 9},
        {"id": 5, "file_name": "one.jpg", "width": 100, "height": 50},
        {"id": 0, "file_name": "other.jpg", "width": 9, "height": 9},
        {"id": 6, "file_name": "two.jpg/../two.jpg", "width": 80, "height": 160},
        {"id": 7, "file_name": "./two.jpg", "width": 80, "height": 80},
        {"id": 8, "file_name": "./one.jpg", "width": 100, "height": 50},
    ]
    annotations = [
        *good["annotations"],
        {"image_id": 0, "category_id": 10, "bbox": [10, 5, 50, 40]},  # again
        {"image_id": 0, "category_id": 10, "bbox": [10, 5, 0, 40]},
        {"image_id": 0, "category_id": 10, "bbox": [10, 5, 40]},
        {"image_id": 0, "category_id": 10, "bbox": [0, 0, 99, 49], "iscrowd": 1},
        {"image_id": 4, "category_id": 10, "bbox": [1, 1, 5, 5]},
        {"image_id": 6, "category_id": 10, "bbox": [1, 1, 5, 5]},
        {"image_id": 7, "category_id": 12, "bbox": [1, 1, 5, 5]},
        {"image_id": 8, "category_id": 10, "bbox": [0.1, 0.1, 0.5, 0.5]},
        {"image_id": 99, "category_id": 10, "bbox": [1, 1, 5, 5]},
    ]
    path = coco(tmp_path, pictures, images=images, annotations=annotations)
    documents, skips = read("coco", path, images=str(pictures))
    assert len(documents) == 2
    assert skips.reasons("test") == {
        WITHOUT_BOXES: 1,
        f"{CLIPPED}dropped: box given twice": 1,
        f"{CLIPPED}dropped: box is reversed or without area": 1,
        f"{CLIPPED}dropped: box is not four numbers": 1,
        f"{FILTERED}box of a crowd": 1,
        "picture missing": 1,
        "picture named twice": 1,
        "two images of one id": 1,
        "picture of another shape than its boxes were drawn on": 1,
        "category_id that 'categories' lacks": 1,
        "boxes in fractions where pixels were said": 1,
        "image_id that 'images' lacks": 1,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": 1}, "no list 'categories'"),
        ({"categories": [{"id": 1}]}, "a category without a name"),
        ({"categories": [{"id": 1, "name": n} for n in "ab"]}, "two categories of id 1, 'a' and"),
    ],
)
def test_coco_files_that_are_bad(
    changes: dict[str, Any], message: str, tmp_path: Path, pictures: Path, read: Callable
) -> None:
    with pytest.raises(DataError, match=message):
        read("coco", coco(tmp_path, pictures, **changes), images=str(pictures))
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(DataError, match="not JSON, or cut short"):
        read("coco", tmp_path / "cut.json")


def test_captions_that_name_the_labels(tmp_path: Path, pictures: Path, read: Callable) -> None:
    texts = ["A puppy.", "Some dog sniffs at the fire hydrant.", "Nothing to see."]
    said = [{"image_id": 0, "caption": text} for text in texts[:2]]
    (tmp_path / "captions.json").write_text(
        json.dumps({"annotations": [*said, {"image_id": 1, "caption": texts[2]}]})
    )
    path = coco(tmp_path, pictures)
    options = {"images": str(pictures), "captions": str(tmp_path / "captions.json")}
    documents, skips = read("coco", path, **options)
    assert [d.content["caption"] for d in documents] == [texts[1], CAPTIONS[1]]
    spans = [texts[1][a[0] : a[1]] for a in documents[0].content["ref_exps"]]
    assert spans == ["Some dog", "the fire hydrant"]
    composed = f"{CLIPPED}caption names no label, so one is composed of them"
    assert skips.reasons("test")[composed] == 1


def test_json_lines_with_captions_scores_and_spans(
    tmp_path: Path, pictures: Path, read: Callable
) -> None:
    caption = "a brown puppy on a road"
    boxes = [
        {"span": [0, 13], "box": [0.1, 0.1, 0.5, 0.5], "score": 0.7},
        {"label": "road", "box": [0, 0.5, 1, 1]},
        {"label": "cat", "box": [0, 0.5, 1, 1]},
        {"label": "___", "box": [0, 0.5, 1, 1]},
        {"span": [0, 99], "box": [0, 0.5, 1, 1]},
        {"label": "road", "box": "x"},
    ]
    lines = [
        {"image": "one.jpg", "caption": caption, "boxes": boxes, "split": "train"},
        {"image": "two.jpg", "boxes": boxes[1:2], "split": "test"},
        {"image": "none.jpg", "boxes": [{"label": "x", "box": [3, 4, 9, 9]}], "split": "train"},
        {"image": "none.jpg"},
        {"boxes": []},
    ]
    path = tmp_path / "b.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    options = {"images": str(pictures), "units": "fractions", "subset": "train"}
    documents, skips = read("boxes-jsonl", path, **options)
    assert [d.content for d in documents] == [
        {
            "caption": caption,
            "noun_chunks": [[0, 13, 0.1, 0.1, 0.5, 0.5, 0.7], [17, 23, 0.0, 0.5, 1.0, 1.0, 1.0]],
            "ref_exps": [[0, 13, 0.1, 0.1, 0.5, 0.5, 0.7], [17, 23, 0.0, 0.5, 1.0, 1.0, 1.0]],
        }
    ]
    assert skips.reasons("test") == {
        "boxes in pixels where fractions were said": 1,
        f"{FILTERED}in another split": 1,
        f"{CLIPPED}dropped: label is not in the caption": 1,
        f"{CLIPPED}dropped: empty label": 1,
        f"{CLIPPED}dropped: span is outside the caption": 1,
        f"{CLIPPED}dropped: box is not four numbers": 1,
        "picture named twice": 1,
        "no string 'image'": 1,
    }


def test_tables(tmp_path: Path, pictures: Path, read: Callable) -> None:
    path = tmp_path / "b.csv"
    rows = [
        "Image,Label,x1,y1,x2,y2,caption,split",
        r"C:\photos\one.jpg,dog,10,5,60,45,A dog.,train",
        "two.jpg,dog,1,1,9,9,,val",
        "two.jpg,dog,1,1",
        "two.jpg,dog,1,1,x,9,,val",
    ]
    path.write_text("\n".join(rows))
    documents, skips = read("boxes-csv", path, images=str(pictures))
    assert [d.content["caption"] for d in documents] == ["A dog.", "An image of a dog."]
    assert documents[0].content["ref_exps"] == [[0, 5, 0.1, 0.1, 0.6, 0.9, 1.0]]
    assert skips.reasons("test") == {
        "row has not as many columns as the first": 1,
        f"{CLIPPED}dropped: box is not four numbers": 1,
    }
    documents, _ = read("boxes-csv", path, images=str(pictures), subset="val")
    assert len(documents) == 1
    path.write_text("a.jpg,1,1,9,9,dog\n")
    with pytest.raises(DataError, match="no column 'image', only a.jpg, 1, .*must name the"):
        read("boxes-csv", path, images=str(pictures))
    with pytest.raises(DataError, match="'metres' is neither pixels nor fractions"):
        read("boxes-csv", path, units="metres")


def test_yolo_labels(tmp_path: Path, picture: Callable[..., bytes], read: Callable) -> None:
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    labels = {
        "polygon": "0 0.1 0.1 0.5 0.1 0.5 0.6\n",
        "score": "1 0.5 0.5 0.2 0.4 0.9\n0 0.5 0.5 0.2\n",
        "pixels": "0 50 50 20 20\n",
        "class": "7 0.5 0.5 0.2 0.2\n",
        "words": "dog 0.5 0.5 0.2 0.2\n",
        "empty": "",
    }
    for name, text in labels.items():
        (root / "images" / f"{name}.jpg").write_bytes(picture(0))
        (root / "labels" / f"{name}.txt").write_text(text)
    (root / "images" / "score.png").write_bytes(picture(0, format="PNG"))
    (root / "images" / "broken.jpg").write_bytes(b"no picture")
    (root / "labels" / "broken.txt").write_text(labels["polygon"])
    (root / "labels" / "classes.txt").write_text("dog\nhot-dog stand\n")
    with pytest.raises(DataError, match="neither data.yaml nor classes.txt"):
        FORMATS["yolo"].find([str(root / "images")], FORMATS["yolo"].options())
    (path,) = FORMATS["yolo"].find([str(root)], FORMATS["yolo"].options())
    documents, skips = read("yolo", Path(path))
    assert [d.content["caption"][12:] for d in documents] == ["a dog.", "a hot-dog stand."]
    boxes = [d.content["ref_exps"][0][2:] for d in documents]
    assert boxes[0] == [0.1, 0.1, 0.5, 0.6, 1.0]
    assert boxes[1] == pytest.approx([0.4, 0.3, 0.6, 0.7, 0.9], abs=1e-9)
    assert skips.reasons("test") == {
        WITHOUT_BOXES: 1,
        f"{CLIPPED}dropped: box is not four numbers": 1,
        "boxes in pixels where fractions were said": 1,
        "number of a class that has no name": 1,
        "line does not begin with the number of a class": 1,
        "picture named twice, or two with one file of labels": 1,
        "broken picture": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "not YAML"),
        ("train: x", "no 'names'"),
        ("names: [dog]\nval: images", "no 'train': give --subset one of names, val"),
        ("names: [dog]\ntrain: images", "'images', which is not there"),
    ],
)
def test_yolo_files_that_are_bad(text: str, message: str, tmp_path: Path, read: Callable) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read("yolo", tmp_path / "data.yaml")


def test_voc_sets_and_bad_files(tmp_path: Path, pictures: Path, read: Callable) -> None:
    root = voc(tmp_path, pictures)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("two -1\nlost 1\n")
    (root / "Annotations" / "cut.xml").write_text("<annotation><filename>")
    (root / "Annotations" / "nameless.xml").write_text("<annotation/>")
    documents, skips = read("voc", root, image_set="train")
    assert [d.content["caption"] for d in documents] == [CAPTIONS[1]]
    assert skips.reasons("test") == {"annotations missing": 1}
    _, skips = read("voc", root)
    assert skips.reasons("test") == {WITHOUT_BOXES: 1, "not XML": 1, "no <filename>": 1}
    with pytest.raises(DataError, match="mend --image-set"):
        read("voc", root, image_set="none")
    with pytest.raises(DataError, match="has no .json files"):
        read("labelme", root)
    with pytest.raises(DataError, match="is a file: name the folder"):
        FORMATS["voc"].find([str(root / "Annotations" / "cut.xml")], None)


def test_labelme_shapes(tmp_path: Path, picture: Callable[..., bytes], read: Callable) -> None:
    shapes = [
        {"label": "ball", "points": [[50, 40], [60, 40]], "shape_type": "circle"},
        {"label": "dot", "points": [[5, 5]], "shape_type": "point"},
        {"label": "line", "points": [[5, 5], [9, 5]], "shape_type": "line"},
        {"label": None, "points": [[5, 5], [9, 9]]},
        {"label": "x"},
    ]
    record = {"shapes": shapes, "imagePath": "..\\drawn\\a.jpg", "imageData": None}
    (tmp_path / "a.json").write_text(json.dumps(record))
    (tmp_path / "b.json").write_text(json.dumps({**record, "imageData": "%"}))
    (tmp_path / "c.json").write_text("[]")
    (tmp_path / "a.jpg").write_bytes(picture(0, (100, 80)))
    (document,), skips = read("labelme", tmp_path)
    (annotation,) = document.content["ref_exps"]
    assert annotation == pytest.approx([12, 18, 0.4, 0.375, 0.6, 0.625, 1.0])
    assert skips.reasons("test") == {
        f"{CLIPPED}dropped: shape is a point": 2,
        f"{CLIPPED}dropped: shape has no points": 2,
        f"{CLIPPED}dropped: no string 'label'": 2,
        f"{CLIPPED}dropped: box is reversed or without area": 1,
        "picture not base64": 1,
        "not a JSON object": 1,
    }


def test_parts_share_no_picture_and_miss_none(
    tmp_path: Path, picture: Callable[..., bytes], read: Callable
) -> None:
    encoded = picture(0)
    names = [f"{i}.jpg" for i in range(60)]
    for name in names:
        (tmp_path / name).write_bytes(encoded)
    boxes = [{"label": "dog", "box": [0, 0, 9, 9]}]
    lines = [json.dumps({"image": name, "boxes": boxes}) for name in names]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    keys = []
    for part in ("0:0.8", "0.8:1"):
        documents, skips = read("boxes-jsonl", tmp_path / "all.jsonl", store=False, part=part)
        assert skips.reasons("test") == {f"{FILTERED}in another part": 60 - len(documents)}
        keys.append({document.key for document in documents})
    assert len(keys[0]) + len(keys[1]) == len(keys[0] | keys[1]) == 60
    assert 5 <= len(keys[1]) <= 20
    for part in ("0.5", "0.5:0.5", "0:1.1", "a:b", "1.0.0:2"):
        with pytest.raises(DataError, match="is not FROM:TO"):
            read("boxes-jsonl", tmp_path / "all.jsonl", part=part)


def test_a_set_that_is_mostly_bad_stops_with_one_sentence(tmp_path: Path, pictures: Path) -> None:
    path = boxes_jsonl(tmp_path, pictures)
    options = FORMATS["boxes-jsonl"].options(images=str(pictures), units="fractions")
    plan = prepare.make_plan(
        "boxes-jsonl", [str(path)], str(tmp_path / "out"), options=options, num_shards=1
    )
    with pytest.raises(DataError) as error:
        prepare.convert_all(plan)
    assert "boxes in pixels where fractions were said: 2" in str(error.value)


def test_through_the_pipeline(
    tmp_path: Path, pictures: Path, prepare_with_beam: Callable, read: Callable
) -> None:
    path = coco(tmp_path, pictures)
    args = ("--images", pictures, "--image-mode", "square", "--image-size", 32)
    documents = prepare_with_beam("coco", path, *args)
    assert sorted(d.content["caption"] for d in documents) == sorted(CAPTIONS)
    assert {Image.open(io.BytesIO(d.images[0])).size for d in documents} == {(32, 32)}
