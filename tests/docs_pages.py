"""What the pages of docs/ speak of, made small: files in the folder where their commands run.

A page NAME.md has a function `NAME` here, with "_" for "-", which fills that folder and gives the
arguments that make its commands small: those to add to every command that begins with these words.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
import numpy as np

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.grounding import Kosmos2Vocabulary
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
Small = dict[str, list[str]]


def finetune(folder: Path) -> Small:
    """A model in transformers' files, and boxes of hearts."""
    write_model(folder / "kosmos-2")
    demo = tool("finetune_demo")
    boxes = demo.write_coco(folder / "boxes", 24, 1)
    demo.write_coco(folder / "unseen", 4, 2)
    demo.write_coco(folder / "old_boxes", 40, 3)
    write_csv(boxes, folder / "boxes.csv")
    model = ["scan_layers=False", "dtype=float32", "remat=none", "decoder.vocab_multiple=1"]
    small = [f"--config.model.{setting}" for setting in model]
    small += [
        "--config.optimizer.total_steps=2",
        "--config.optimizer.warmup_steps=1",
        "--config.data.length=120",
        "--config.data.images=1",
        "--config.data.pack=False",
        "--config.data.streams=2",
        "--config.data.batch_size=8",
        "--config.data.shuffle_buffer=8",
    ]
    evaluated = ["--config.evaluation.batch_size=8", "--config.evaluation.max_new_tokens=4"]
    return {
        "kosmos2 inspect": [*small, "--count", "16"],
        "python -m kosmos2_jax.train": [*small, *evaluated],
        "python -m kosmos2_jax.evaluate": evaluated,
        "python tools/prepare_data.py": ["--processes", "1", "--shards", "2"],
    }


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
