"""RefCOCO, RefCOCO+, RefCOCOg and Flickr30k Entities, drawn."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks import flickr30k, refcoco
from kosmos2_jax.data.benchmarks.writing import write
from kosmos2_jax.data.drawn_benchmarks.files import ODD, SIDE, TRAIN, Scenes, write_pictures
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText


def draw_comprehension(folder: Path, scenes: Scenes) -> None:
    """The validation sets as MDETR lists them; one box in fifty has no area."""
    for benchmark, name in (
        ("refcoco", "refcoco"),
        ("refcoco_plus", "refcoco+"),
        ("refcocog", "refcocog"),
    ):
        images, annotations = [], []
        for number, scene in enumerate(scenes.said):
            images.append(_coco_image(number) | {"caption": scene.referring[0].text})
            box = _coco_box(scene.referring[0].box)
            if number % ODD == 3:
                box[2] = 0.0
            annotations.append({"id": 1000 + number, "image_id": number, "bbox": box})
        pictures, listed = refcoco.comprehension_files(name, "val")
        write(folder / benchmark / listed, {"images": images, "annotations": annotations})
        names = [image["file_name"] for image in images]
        write_pictures(folder / benchmark / pictures, names, scenes.pictures)


def draw_generation(folder: Path, scenes: Scenes) -> None:
    """RefCOCOg's objects with their expressions, as the refer toolkit has them."""
    images, annotations, refs = [], [], []
    for number, scene in enumerate(scenes.said):
        images.append(_coco_image(number))
        referring = scene.referring[0]
        annotations.append({"id": number, "image_id": number, "bbox": _coco_box(referring.box)})
        refs.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": number,
                "split": split_of(number),
                "sentences": [{"sent": referring.text}],
            }
        )
    folder = folder / "refcocog_generation"
    pictures, objects, expressions = refcoco.generation_files("refcocog", "val")
    write(folder / objects, {"images": images, "annotations": annotations})
    write(folder / expressions, pickle.dumps(refs, protocol=2))
    write_pictures(folder / pictures, [image["file_name"] for image in images], scenes.pictures)


def split_of(number: int) -> str:
    """Of three in one file, which one an example is in."""
    return "train" if number < TRAIN else "val" if number % 2 else "test"


def draw_phrases(folder: Path, scenes: Scenes) -> None:
    """The test set of Flickr30k Entities, a caption for each picture."""
    folder = folder / "flickr30k_grounding"
    pictures, annotations, sentences, listed = flickr30k.files("test")
    images = []
    for number, scene in enumerate(scenes.said):
        caption = scene.caption
        write(folder / sentences / f"{number}.txt", f"{_marked(caption)}\n")
        write(folder / annotations / f"{number}.xml", _entities_xml(caption))
        images.append(
            {
                "file_name": f"{number}.jpg",
                "width": SIDE,
                "height": SIDE,
                "original_img_id": number,
                "sentence_id": 0,
                "caption": caption.text,
                "tokens_positive_eval": [[[span.start, span.end]] for span in caption.spans],
            }
        )
    write(folder / listed, {"images": images})
    write_pictures(folder / pictures, [image["file_name"] for image in images], scenes.pictures)


def _coco_image(number: int) -> dict[str, Any]:
    name = f"COCO_train2014_{number:012d}.jpg"
    return {"id": number, "file_name": name, "width": SIDE, "height": SIDE}


def _coco_box(box: Box) -> list[float]:
    """Left, top, width and height in pixels."""
    left, top, right, bottom = (SIDE * corner for corner in box)
    return [left, top, right - left, bottom - top]


def _marked(caption: GroundedText) -> str:
    """The caption with its phrases marked as in Flickr30k Entities; number n is phrase n."""
    text, end = "", 0
    for number, span in enumerate(caption.spans, 1):
        text += f"{caption.text[end : span.start]}[/EN#{number}/other {span.text}] "
        end = span.end
    return text + caption.text[end:]


def _entities_xml(caption: GroundedText) -> str:
    objects = ""
    for number, span in enumerate(caption.spans, 1):
        for box in span.boxes:
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            inner = "".join(f"<{name}>{round(SIDE * at)}</{name}>" for name, at in corners)
            objects += f"<object><name>{number}</name><bndbox>{inner}</bndbox></object>"
    size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
    return f"<annotation>{size}{objects}</annotation>"
