"""Teaches the quickstart's model a shape that it has never seen, from a COCO file of boxes.

Draws 300 pictures of hearts between shapes that the model knows, writes them as COCO
JSON, and fine-tunes on them as README.md and docs/finetune.md tell, with LoRA or with all
parameters, old data mixed in. Then it asks for hearts on pictures that no run has seen, and
asks transformers the same of the export. The last line printed is the figures as JSON.

    python tools/finetune_demo.py --quickstart runs/quickstart --workdir runs/finetune_demo
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kosmos2_jax.startup import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from kosmos2_jax.config import build_dataclass  # noqa: E402
from kosmos2_jax.data import sprites  # noqa: E402
from kosmos2_jax.data.scenes import Scene, SceneConfig, combinations, draw_scene  # noqa: E402
from kosmos2_jax.errors import Kosmos2Error  # noqa: E402
from kosmos2_jax.evaluation import box_metrics  # noqa: E402
from kosmos2_jax.evaluation.box_metrics import phrase_boxes  # noqa: E402
from kosmos2_jax.grounding import markup, prompts  # noqa: E402
from kosmos2_jax.grounding.boxes import Box  # noqa: E402
from kosmos2_jax.inference.predictor import Predictor  # noqa: E402
from kosmos2_jax.training.host_memory import keep_memory  # noqa: E402
from kosmos2_jax.training.run_config import RunConfig  # noqa: E402
from kosmos2_jax.training.signals import EXIT_RESTART, Interrupted  # noqa: E402

PICTURES, UNSEEN = 300, 300
LORA, FULL = "lora", "full"
OLD_TEST = "quickstart_scenes_rec"


def main() -> int:
    """Runs everything; exit status 1 with one line if something the user can mend is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quickstart", default="runs/quickstart", help="its work folder")
    parser.add_argument("--workdir", default="runs/finetune_demo", help="where everything goes")
    parser.add_argument("--how", choices=(LORA, FULL), default=LORA, help="what is trained")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="to fine-tune on")
    parser.add_argument("--unseen", type=int, default=UNSEEN, help="to ask about in the end")
    parser.add_argument("--evaluated", type=int, default=0, help="examples of the old test; 0: all")
    arguments = parser.parse_args()
    try:
        figures = demonstrate(arguments)
    except Kosmos2Error as error:
        print(f"finetune_demo: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"finetune_demo: {stop}", file=sys.stderr)
        return EXIT_RESTART
    print(json.dumps(figures))
    return 0


def demonstrate(arguments: argparse.Namespace) -> dict[str, float]:
    """Everything; gives the figures."""
    from kosmos2_jax.train import train

    keep_memory()
    started = time.perf_counter()
    workdir, old = Path(arguments.workdir), Path(arguments.quickstart)
    boxes = write_coco(workdir / "boxes", arguments.pictures, seed=1)
    trained = train(make_run(arguments, boxes, old), workdir / arguments.how)
    minutes = (time.perf_counter() - started) / 60
    figures = _before_and_after(workdir / arguments.how)
    unseen = [draw_new(index, seed=2) for index in range(arguments.unseen)]
    figures["unseen_rec_before"] = rec_accuracy(str(old / "model"), unseen)
    figures["unseen_rec_after"] = rec_accuracy(str(trained.best), unseen)
    figures["unseen_rec_gain"] = figures["unseen_rec_after"] - figures["unseen_rec_before"]
    figures["old_rec_loss"] = figures["before/rec_accuracy"] - figures["after/rec_accuracy"]
    export = workdir / arguments.how / "hugging_face"
    figures["same_answers_in_transformers"] = same_answers(str(trained.best), export, unseen[:40])
    return figures | {"minutes": minutes}


def make_run(arguments: argparse.Namespace, boxes: Path, old: Path) -> RunConfig:
    """`configs/finetune.py` or `finetune_lora.py` for a small model and its old data."""
    name = "finetune_lora" if arguments.how == LORA else "finetune"
    config = importlib.import_module(f"kosmos2_jax.configs.{name}").get_config()
    config.model.update(scan_layers=False, dtype="float32", remat="none")
    config.model.decoder.update(vocab_multiple=1, dropout=0.05)
    config.model.resampler.attention_dropout = 0.05
    config.mesh.update(data=-1, fsdp=1)
    config.init_from.path = str(old / "model")
    config.optimizer.update(total_steps=arguments.updates, warmup_steps=40, learning_rate=2e-4)
    if arguments.how == LORA:
        config.optimizer.learning_rate = 1.5e-3
        config.lora.update(targets=".*", dropout=0.0)  # the eyes too, for what they never saw
    config.data.update(boxes=str(boxes), batch_size=32, length=136, images=1, pack=False)
    config.data.update(streams=1, shuffle_buffer=64, word_weight=0.1)
    drawn = json.loads((old / "run.json").read_text())["data"]
    config.data.update({name: drawn[name] for name in ("train_scenes", "test_scenes", "pieces")})
    config.data.rehearsal.update(share=0.7, tasks="quickstart", folder=str(old / "data"))
    config.evaluation.update(tasks=("own_rec", OLD_TEST), max_new_tokens=16, batch_size=32)
    config.evaluation.update(every=-(-arguments.updates // 6), patience=4)
    config.evaluation.examples = arguments.evaluated
    config.update(micro_batches=4, loss_chunk=0, log_every=-(-arguments.updates // 20))
    return build_dataclass(RunConfig, config.to_dict())


def draw_new(index: int, seed: int) -> Scene:
    """A picture of one new shape among known ones, the same whenever it is drawn."""
    rng = np.random.default_rng((seed, index))
    config = SceneConfig(max_objects=3, small=(22, 24), large=(26, 30))
    new = [(color, shape) for color in sprites.COLORS for shape in sprites.NEW_SHAPES]
    choices = new * 2 + combinations(config, "train")
    while True:
        scene = draw_scene(rng, config, choices=choices)
        if sum(item.shape in sprites.NEW_SHAPES for item in scene.objects) == 1:
            return scene


def write_coco(folder: Path, count: int, seed: int) -> Path:
    """Draws pictures and writes `instances.json` beside them, boxes of new shapes only."""
    folder.mkdir(parents=True, exist_ok=True)
    categories = {shape: number for number, shape in enumerate(sprites.NEW_SHAPES, 1)}
    images, annotations = [], []
    for index in range(count):
        scene = draw_new(index, seed)
        side = len(scene.pixels)
        name = f"{index:05d}.png"
        Image.fromarray(scene.pixels).save(folder / name)
        images.append({"id": index, "file_name": name, "width": side, "height": side})
        for item in scene.objects:
            if item.shape not in categories:
                continue
            x1, y1, x2, y2 = (corner * side for corner in item.box)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": categories[item.shape],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    named = [{"id": number, "name": shape} for shape, number in categories.items()]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named}))
    return file


def questions(scenes: Sequence[Scene]) -> list[tuple[Scene, str, Box]]:
    """The new shape of each picture, as it is asked for, with its box."""
    items = [next(i for i in s.objects if i.shape in sprites.NEW_SHAPES) for s in scenes]
    return [(s, f"a {item.shape}", item.box) for s, item in zip(scenes, items, strict=True)]


def rec_accuracy(model: str, scenes: Sequence[Scene]) -> float:
    """Share of new shapes whose first box hits."""
    predictor, asked = Predictor.from_pretrained(model), questions(scenes)
    said = predictor.answer([predictor.questions.ground(s.pixels, p) for s, p, _ in asked])
    predictor.close()
    firsts = [
        next(iter(phrase_boxes(answers[0], p)), None)
        for answers, (_, p, _) in zip(said, asked, strict=True)
    ]
    return box_metrics.rec_accuracy([box for _, _, box in asked], firsts)


def same_answers(model: str, export: Path, scenes: Sequence[Scene]) -> float:
    """Share of answers that transformers, with the exported folder, gives token by token."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    theirs = AutoModelForImageTextToText.from_pretrained(export).eval()
    processor = AutoProcessor.from_pretrained(export)
    predictor, asked = Predictor.from_pretrained(model), questions(scenes)
    same = 0
    for scene, phrase, _ in asked:
        ours = predictor.ground(scene.pixels, phrase)
        inputs = processor(
            text=prompts.ground(phrase), images=Image.fromarray(scene.pixels), return_tensors="pt"
        )
        with torch.no_grad():
            ids = theirs.generate(**inputs, do_sample=False, max_new_tokens=16)
        text = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0]
        said = markup.parse(
            prompts.ground(phrase) + text.replace("</s>", ""), predictor.config.grid_size
        )
        same += phrase_boxes(said, phrase) == phrase_boxes(ours, phrase)
    predictor.close()
    return same / len(asked)


def _before_and_after(workdir: Path) -> dict[str, float]:
    """Figures of the run's own evaluation, from its log."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if any(n.startswith(("eval/", "best/")) for n in line)]
    found = {}
    for when, line in (("before", measured[0]), ("after", measured[-1])):
        found |= {f"{when}/{n.partition('/')[2]}": v for n, v in line.items() if "/" in n}
    return found


if __name__ == "__main__":
    sys.exit(main())
