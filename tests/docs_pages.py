"""What the pages of docs/ speak of, made small: files in the folder where their commands run.

A page NAME.md has a function `NAME` here, with "_" for "-", which fills that folder, with the help
of pytest's fixtures by name, and gives the arguments that make its commands small: those to add to
every command that begins with these words.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop.convert import convert
from kosmos2_jax.interop.hugging_face import write_folder
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.tasks import quickstart

ROOT = Path(__file__).resolve().parents[1]
MODEL = Kosmos2Config(
    vision=VisionConfig(64, 16, 32, 1, 2, 32),
    resampler=ResamplerConfig(num_latents=16),
    decoder=DecoderConfig(0, 32, 1, 2, 32, 160),
    grid_size=8,
)
CAPTIONS = {
    "two_dogs.jpg": "two puppies in a field of flowers",
    "man_ball.png": "a baseball player with a brown glove catches a ball",
}
Small = dict[str, list[str]]
Fixture = Callable[[str], Any]


def finetune(folder: Path, fixture: Fixture) -> Small:
    """A model in transformers' files, and boxes of hearts."""
    write_model(folder / "kosmos-2")
    demo = tool("finetune_demo")
    boxes = demo.write_coco(folder / "boxes", 24, 1)
    demo.write_coco(folder / "unseen", 4, 2)
    demo.write_coco(folder / "old_boxes", 40, 3)
    write_csv(boxes, folder / "boxes.csv")
    small = small_run()
    evaluated = ["--config.evaluation.batch_size=8", "--config.evaluation.max_new_tokens=4"]
    return {
        "kosmos2 inspect": [*small, "--count", "16"],
        "python -m kosmos2_jax.train": [*small, *evaluated],
        "python -m kosmos2_jax.evaluate": evaluated,
        "python tools/prepare_data.py": ["--processes", "1", "--shards", "2"],
    }


def build_grit(folder: Path, fixture: Fixture) -> Small:
    """Real pictures with captions, and a model in transformers' files."""
    write_model(folder / "kosmos-2")
    (folder / "photos").mkdir()
    lines = []
    for name, caption in CAPTIONS.items():
        shutil.copyfile(fixture("assets") / "images" / name, folder / "photos" / name)
        lines.append(f"{caption}\t{name}\n")
    (folder / "photos/captions.tsv").write_text("".join(lines))
    built = ["--processes", "1", "--shards", "1", "--direct_running_mode=in_memory"]
    return {
        "kosmos2 grit build": built,
        "kosmos2 inspect": small_run(),
        "python -m kosmos2_jax.train": small_run(),
    }


def evaluate(folder: Path, fixture: Fixture) -> Small:
    """A model in fairseq's files, and benchmarks."""
    write_model(folder / "hugging_face")
    convert(folder / "hugging_face", folder / "kosmos-2.pt", "fairseq")
    tool("draw_benchmarks").main(["--out", str(folder / "benchmarks"), "--examples", "24"])
    return {
        "python -m kosmos2_jax.evaluate": [
            "--config.evaluation.batch_size=8",
            "--config.evaluation.max_new_tokens=4",
            "--config.evaluation.examples=8",
            "--config.evaluation.tasks=('flickr30k_grounding_test','vqav2_val2014')",
        ]
    }


def small_run() -> list[str]:
    """Settings of a run of two updates."""
    model = ["scan_layers=False", "dtype=float32", "remat=none", "decoder.vocab_multiple=1"]
    return [f"--config.model.{setting}" for setting in model] + [
        "--config.optimizer.total_steps=2",
        "--config.optimizer.warmup_steps=1",
        "--config.data.length=120",
        "--config.data.images=1",
        "--config.data.pack=False",
        "--config.data.streams=1",
        "--config.data.batch_size=8",
        "--config.data.shuffle_buffer=8",
    ]


def write_model(folder: Path) -> None:
    """A tiny model of random values with a tokenizer of the quickstart's words."""
    file = folder.with_name("words.model")
    train_sentencepiece(quickstart.sentences(), file, 200)
    vocabulary = Kosmos2Vocabulary(file, MODEL.grid_size)
    config = MODEL.replace(decoder={"vocab_size": vocabulary.vocab_size})
    shapes = nn.meta.unbox(jax.eval_shape(lambda: initial_params(config, jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    generation = {"no_repeat_ngram_size": 0}
    write_folder(folder, params, config, vocabulary, generation)


def write_csv(boxes: Path, file: Path) -> None:
    """The same boxes as a table."""
    data = json.loads(boxes.read_text())
    names = {category["id"]: category["name"] for category in data["categories"]}
    pictures = {image["id"]: image["file_name"] for image in data["images"]}
    rows = ["image,label,x1,y1,x2,y2"]
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        place = f"{x},{y},{x + width},{y + height}"
        rows.append(
            f"{pictures[annotation['image_id']]},{names[annotation['category_id']]},{place}"
        )
    file.write_text("\n".join(rows) + "\n")


def tool(name: str) -> ModuleType:
    """A program of tools/, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
