"""Draws small benchmarks in the files of the published ones, to try an evaluation without them.

    python tools/draw_benchmarks.py --out benchmarks --examples 200
    python -m kosmos2_jax.evaluate --config=configs/evaluate.py --workdir=runs/tried \\
        --config.checkpoint=runs/quickstart/model --config.data.folder=benchmarks

Pictures, captions, expressions and questions are those of the quickstart's test. What its model
does on them says nothing about the benchmarks. One picture in fifty is broken, one is missing, and
one box has no area, as they are in real downloads. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosmos2_jax.data.easy_vqa_records import easy_vqa_record
from kosmos2_jax.data.scene_records import SceneAnnotation, scene_record
from kosmos2_jax.data.scenes import SceneConfig
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText

_SIDE = 64  # pixels
_ODD = 50  # one in so many is broken, and so on
_TRAIN = 20  # examples that demonstrations are drawn from
_ANSWERS = 10  # that VQAv2 has of each question


def main(argv: Sequence[str] | None = None) -> None:
    """Draws them."""
    args = _parse(argv)
    scenes = [scene_record(n, "test", 0, SceneConfig()) for n in range(args.examples)]
    pictures = [scene.images[0] for scene in scenes]
    said = [SceneAnnotation.from_dict(scene.content) for scene in scenes]
    draw_comprehension(args.out / "refcoco", pictures, said)
    draw_generation(args.out / "refcocog_generation", pictures, said)
    draw_grounding(args.out / "flickr30k_grounding", pictures, said)
    draw_captions(args.out / "flickr30k_captions", pictures, said)
    draw_questions(args.out / "vqav2", args.examples)
    print(json.dumps({"folder": str(args.out), "examples": args.examples}))


def draw_comprehension(
    folder: Path, pictures: Sequence[bytes], said: Sequence[SceneAnnotation]
) -> None:
    """RefCOCO's validation set as MDETR lists it."""
    images, annotations = [], []
    for number, scene in enumerate(said):
        images.append(_coco_image(number) | {"caption": scene.referring[0].text})
        box = _coco_box(scene.referring[0].box)
        if number % _ODD == 3:
            box[2] = 0.0
        annotations.append({"id": 1000 + number, "image_id": number, "bbox": box})
    _write(
        folder / "mdetr_annotations/finetune_refcoco_val.json",
        {"images": images, "annotations": annotations},
    )
    _write_pictures(folder / "train2014", [image["file_name"] for image in images], pictures)


def draw_generation(
    folder: Path, pictures: Sequence[bytes], said: Sequence[SceneAnnotation]
) -> None:
    """RefCOCOg's objects with their expressions, as the refer toolkit has them."""
    images, annotations, refs = [], [], []
    for number, scene in enumerate(said):
        images.append(_coco_image(number))
        referring = scene.referring[0]
        annotations.append({"id": number, "image_id": number, "bbox": _coco_box(referring.box)})
        refs.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": number,
                "split": "train" if number < _TRAIN else "val" if number % 2 else "test",
                "sentences": [{"sent": referring.text}],
            }
        )
    _write(folder / "refcocog/instances.json", {"images": images, "annotations": annotations})
    (folder / "refcocog/refs(umd).p").write_bytes(pickle.dumps(refs, protocol=2))
    _write_pictures(folder / "train2014", [image["file_name"] for image in images], pictures)


def draw_grounding(
    folder: Path, pictures: Sequence[bytes], said: Sequence[SceneAnnotation]
) -> None:
    """The test set of Flickr30k Entities, a caption for each picture."""
    entities, images = folder / "flickr30k_entities", []
    for number, scene in enumerate(said):
        caption = scene.caption
        _write(entities / f"Sentences/{number}.txt", f"{_marked(caption)}\n")
        _write(entities / f"Annotations/{number}.xml", _entities_xml(caption))
        images.append(
            {
                "file_name": f"{number}.jpg",
                "width": _SIDE,
                "height": _SIDE,
                "original_img_id": number,
                "sentence_id": 0,
                "caption": caption.text,
                "tokens_positive_eval": [[[span.start, span.end]] for span in caption.spans],
            }
        )
    listed = "mdetr_annotations/final_flickr_separateGT_test.json"
    _write(folder / listed, {"images": images})
    _write_pictures(folder / "flickr30k-images", [image["file_name"] for image in images], pictures)


def draw_captions(folder: Path, pictures: Sequence[bytes], said: Sequence[SceneAnnotation]) -> None:
    """Flickr30k in Karpathy's splits."""
    images = [
        {
            "imgid": number,
            "split": "train" if number < _TRAIN else "val" if number % 2 else "test",
            "filename": f"{number}.jpg",
            "sentences": [{"raw": scene.caption.text}, {"raw": scene.inventory.text}],
        }
        for number, scene in enumerate(said)
    ]
    _write(folder / "dataset_flickr30k.json", {"images": images})
    _write_pictures(folder / "flickr30k-images", [image["filename"] for image in images], pictures)


def draw_questions(folder: Path, count: int) -> None:
    """VQAv2: validation, training, and a test set whose answers are not told."""
    for split, part, images, examples in (
        ("val2014", "test", "val2014", count),
        ("train2014", "train", "train2014", _TRAIN),
        ("test-dev2015", "test", "test2015", count),
    ):
        records = [easy_vqa_record(n, part, 1, _SIDE) for n in range(examples)]
        questions, annotations = [], []
        for number, record in enumerate(records):
            question, answer = record.content["turns"][0]
            known = {"question_id": 10 * number, "image_id": number}
            questions.append(known | {"question": question})
            kind = "yes/no" if answer in ("yes", "no") else "other"
            answers = [{"answer": answer}] * _ANSWERS
            annotations.append(known | {"answer_type": kind, "answers": answers})
        _write(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", {"questions": questions})
        if not split.startswith("test"):
            name = f"v2_mscoco_{split}_annotations.json"
            _write(folder / name, {"annotations": annotations})
        names = [f"COCO_{images}_{number:012d}.jpg" for number in range(examples)]
        _write_pictures(folder / images, names, [record.images[0] for record in records])


def _coco_image(number: int) -> dict[str, Any]:
    name = f"COCO_train2014_{number:012d}.jpg"
    return {"id": number, "file_name": name, "width": _SIDE, "height": _SIDE}


def _coco_box(box: Box) -> list[float]:
    """Left, top, width and height in pixels."""
    left, top, right, bottom = (_SIDE * corner for corner in box)
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
            inner = "".join(f"<{name}>{round(_SIDE * at)}</{name}>" for name, at in corners)
            objects += f"<object><name>{number}</name><bndbox>{inner}</bndbox></object>"
    size = f"<size><width>{_SIDE}</width><height>{_SIDE}</height></size>"
    return f"<annotation>{size}{objects}</annotation>"


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def _write_pictures(folder: Path, names: Sequence[str], pictures: Sequence[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        if number % _ODD == _ODD - 1:
            picture = picture[: len(picture) // 2]
        if number % _ODD != _ODD - 2:
            (folder / name).write_bytes(picture)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="draw_benchmarks.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a folder each")
    parser.add_argument("--examples", type=int, default=200, help="of each benchmark")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
