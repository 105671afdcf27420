"""The quickstart's model labels pictures itself, and the labels are compared with the truth.

Draws test scenes with their captions, has `kosmos2 grit build`'s stages find the phrases of the
captions and the model find their boxes, and tells how many of the boxes that are left agree with
the truth (IoU of at least 0.5), beside the model's accuracy on referring expressions of the same
pictures. The last line printed is the figures as JSON.

    python tools/self_label.py --model runs/quickstart/model --out runs/self_labelled
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kosmos2_jax.startup import prepare_environment

prepare_environment()

from kosmos2_jax.data import prepare  # noqa: E402
from kosmos2_jax.data.documents import Document, from_tf_example  # noqa: E402
from kosmos2_jax.data.grit_builder.selection import SelectionConfig  # noqa: E402
from kosmos2_jax.data.grit_builder.stage import GritBuildConfig, GritStage  # noqa: E402
from kosmos2_jax.data.scene_records import SceneAnnotation, scene_record  # noqa: E402
from kosmos2_jax.data.scenes import SceneConfig  # noqa: E402
from kosmos2_jax.errors import Kosmos2Error  # noqa: E402
from kosmos2_jax.evaluation import box_metrics  # noqa: E402
from kosmos2_jax.grounding.boxes import Box, iou  # noqa: E402
from kosmos2_jax.inference.grit_detector import Kosmos2Config  # noqa: E402
from kosmos2_jax.inference.predictor import Predictor  # noqa: E402

Scenes = Sequence[tuple[bytes, SceneAnnotation]]


def main() -> int:
    """Runs everything; exit status 1 with one line if something the user can mend is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="runs/quickstart/model", help="checkpoint")
    parser.add_argument("--out", default="runs/self_labelled", help="folder for the new set")
    parser.add_argument("--scenes", type=int, default=300, help="pictures (%(default)s)")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=SelectionConfig.score_threshold,
        help="boxes must score more (%(default)s)",
    )
    arguments = parser.parse_args()
    try:
        figures = compare(
            arguments.model, Path(arguments.out), arguments.scenes, arguments.score_threshold
        )
    except Kosmos2Error as error:
        print(f"self_label: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


def compare(model: str, out: Path, count: int, threshold: float) -> dict[str, float]:
    """Builds the set in `out`; gives how often it is right, and the model."""
    scenes = [draw(index) for index in range(count)]
    build(model, write_pairs(out / "pairs.tar", scenes), out / "labelled", threshold)
    documents = list(read(out / "labelled"))
    verdicts = [right for document in documents for right in judge(document, scenes)]
    return {
        "pictures": count,
        "labelled_pictures": len(documents),
        "boxes": len(verdicts),
        "agreement": sum(verdicts) / max(len(verdicts), 1),
        "rec_accuracy": rec_accuracy(model, scenes),
    }


def draw(index: int) -> tuple[bytes, SceneAnnotation]:
    """A picture of the quickstart's test and what is true of it."""
    record = scene_record(index, "test", seed=0, config=SceneConfig())
    return record.images[0], SceneAnnotation.from_dict(record.content)


def write_pairs(file: Path, scenes: Scenes) -> Path:
    """Writes pictures and captions, without their boxes, as a tar of img2dataset's kind."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for index, (picture, annotation) in enumerate(scenes):
            files = {"png": picture, "txt": annotation.caption.text.encode()}
            for ending, content in files.items():
                info = tarfile.TarInfo(f"{index:06d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file


def build(model: str, pairs: Path, out: Path, threshold: float) -> None:
    """What `kosmos2 grit build captions PAIRS --detector kosmos2 --model MODEL` does."""
    config = GritBuildConfig(selection=SelectionConfig(score_threshold=threshold))
    stage = GritStage(Kosmos2Config(model), config)
    plan = prepare.make_plan("captions", [str(pairs)], str(out), num_shards=1, stage=stage)
    print(prepare.convert_all(plan).skips.report(), file=sys.stderr)


def read(folder: Path) -> Iterator[Document]:
    """The documents of a prepared folder."""
    import tensorflow as tf

    files = sorted(str(file) for file in folder.glob("*.tfrecord"))
    return map(from_tf_example, tf.data.TFRecordDataset(files).as_numpy_iterator())


def judge(document: Document, scenes: Scenes) -> list[bool]:
    """Whether each box is one of its phrase; a phrase that means nothing here has none."""
    caption = scenes[int(document.key.rpartition(":")[2])][1].caption
    verdicts = []
    for start, end, *corners, _ in document.content["noun_chunks"]:
        true = [
            box for span in caption.spans if (span.start, span.end) == (start, end)
            for box in span.boxes
        ]  # fmt: skip
        verdicts.append(any(iou(box, Box(*corners)) >= box_metrics.MIN_IOU for box in true))
    return verdicts


def rec_accuracy(model: str, scenes: Scenes) -> float:
    """Share of first referring expressions whose first box hits, as the quickstart measures it."""
    predictor = Predictor.from_pretrained(model)
    asked = [(picture, annotation.referring[0]) for picture, annotation in scenes]
    said = predictor.answer([predictor.questions.ground(p, r.text) for p, r in asked])
    predictor.close()
    firsts = [
        next(iter(box_metrics.phrase_boxes(answers[0], r.text)), None)
        for answers, (_, r) in zip(said, asked, strict=True)
    ]
    return box_metrics.rec_accuracy([r.box for _, r in asked], firsts)


if __name__ == "__main__":
    sys.exit(main())
