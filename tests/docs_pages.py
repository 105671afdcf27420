"""What the pages of docs/ speak of, made small: files in the folder where their commands run.

A page NAME.md has a function `NAME` here, with "_" for "-", which fills that folder, with the help
of pytest's fixtures by name, and gives the arguments that make its commands small: those to add to
every command that begins with these words.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import gcsfs
import jax
import numpy as np
from PIL import Image

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data.readers import FORMATS
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.interop import convert as conversion
from kosmos2_jax.interop.hugging_face import write_folder
from kosmos2_jax.interop.layout import flatten, nest
from kosmos2_jax.interop.orbax_io import save_folder
from kosmos2_jax.interop.peft import write_adapter
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.models.lora import LORA_A, LORA_B, LoraConfig
from kosmos2_jax.serving.app import make_app
from kosmos2_jax.serving.settings import ServerSettings
from kosmos2_jax.tasks import quickstart

from .programs import ROOT, tool
from .served import running

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


def ground(folder: Path, fixture: Fixture) -> Small:
    """A model in transformers' files, two pictures, lines of questions, and somebody to talk."""
    write_model(folder / "kosmos-2")
    copy_photos(folder / "photos", fixture)
    question = {"id": "1", "image": "photos/two_dogs.jpg", "question": "How many dogs are there?"}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    talk = "What is it?\n/quit\n"
    fixture("monkeypatch").setattr("sys.stdin", io.StringIO(talk))
    return {"kosmos2": ["--max-new-tokens", "4"]}


def convert(folder: Path, fixture: Fixture) -> Small:
    """A model in transformers' files, an adapter of it, and pictures."""
    write_model(folder / "kosmos-2")
    copy_photos(folder / "photos", fixture)
    model = conversion.load(folder / "kosmos-2")
    lora = LoraConfig(rank=2)
    rng = np.random.default_rng(1)
    adapter = {}
    for path, kernel in flatten(model.params).items():
        layer, _, name = path.rpartition("/")
        if name == "kernel" and re.fullmatch(lora.targets, layer):
            inputs, outputs = kernel.shape
            adapter[f"{layer}/{LORA_A}"] = rng.normal(size=(inputs, lora.rank))
            adapter[f"{layer}/{LORA_B}"] = rng.normal(size=(lora.rank, outputs))
    write_adapter(folder / "adapter", nest(adapter), model.config, lora)
    return {}


def serve(folder: Path, fixture: Fixture) -> Small:
    """Pictures, and a server that the environment names."""
    write_model(folder / "kosmos-2")
    copy_photos(folder / "photos", fixture)
    predictor = Predictor.from_pretrained(folder / "kosmos-2")
    app = make_app(predictor.engine, predictor.questions, ServerSettings())
    until_the_test_ends = contextlib.ExitStack()
    fixture("request").addfinalizer(until_the_test_ends.close)
    address = until_the_test_ends.enter_context(running(app, ws="none"))
    fixture("monkeypatch").setenv("OPENAI_BASE_URL", f"{address}/v1")
    fixture("monkeypatch").setenv("OPENAI_API_KEY", "none")
    return {}


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
    """A model in fairseq's files and one of the quickstart's, and benchmarks."""
    write_model(folder / "hugging_face")
    conversion.convert(folder / "hugging_face", folder / "kosmos-2.pt", "fairseq")
    shutil.copytree(folder / "hugging_face", folder / "runs/quickstart/model")
    few = ["--examples", "24"]
    tool("draw_benchmarks").main(["--out", str(folder / "benchmarks"), *few])
    some = "--config.evaluation.tasks=('flickr30k_grounding_test','vqav2_val2014')"
    program = "python -m kosmos2_jax.evaluate"
    settings = f"{program} --config=configs/evaluate.py --workdir=runs"
    return {
        "python tools/draw_benchmarks.py": few,
        program: [
            "--config.evaluation.batch_size=8",
            "--config.evaluation.max_new_tokens=4",
            "--config.evaluation.examples=8",
        ],
        f"{settings}/tables": [some],
        f"{settings}/again": [some],
        f"{settings}/drawn": ["--config.evaluation.tasks=('copa_val_1shot',)"],
    }


def add_a_task(folder: Path, fixture: Fixture) -> Small:
    """A model in transformers' files, pictures of squares to be counted, and the page's module."""
    write_model(folder / "kosmos-2")
    (folder / "data").mkdir()
    for split, count in (("train", 24), ("test", 8)):
        lines = []
        for number in range(count):
            name, squares = f"{split}{number}.png", number % 4
            picture = Image.new("RGB", (64, 64), "white")
            for place in range(squares):
                picture.paste("red", (16 * place, 0, 16 * place + 8, 8))
            picture.save(folder / "data" / name)
            lines.append(json.dumps({"image": name, "thing": "squares", "count": squares}) + "\n")
        (folder / "data" / f"{split}.jsonl").write_text("".join(lines))
    (folder / "counting.py").write_text(fenced("add_a_task", "python")[0])
    fixture("monkeypatch").syspath_prepend(folder)
    asked = ["--config.evaluation.batch_size=8", "--config.evaluation.max_new_tokens=4"]
    return {
        "python -m kosmos2_jax.train": [*small_run(), *asked],
        "python -m kosmos2_jax.evaluate": asked,
    }


def add_a_dataset(folder: Path, fixture: Fixture) -> Small:
    """A model in transformers' files, pictures that somebody saw birds on, the page's files."""
    write_model(folder / "kosmos-2")
    (folder / "photos").mkdir()
    lines = []
    for number in range(16):
        name = f"{number:04d}.jpg"
        Image.new("RGB", (64, 48), (16 * number, 99, 9)).save(folder / "photos" / name)
        seen = {"photo": name, "species": "robin", "doing": "on a branch", "sure": number / 16}
        lines.append(json.dumps(seen) + "\n")
    (folder / "birds.jsonl").write_text("".join(lines))
    module, _, run = fenced("add_a_dataset", "python")
    (folder / "birds.py").write_text(module)
    (folder / "birds_run.py").write_text(run)
    monkeypatch = fixture("monkeypatch")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(FORMATS, "birds", None)  # so that it goes again
    return {"kosmos2 inspect": [*small_run(), "--count", "8"]}


def pretrain(folder: Path, fixture: Fixture) -> Small:
    """Sources of each kind, a bucket with a model in it, and what stands in for other programs."""
    write_model(folder / "kosmos-2")
    (folder / "data").mkdir()
    shutil.copyfile(folder / "words.model", folder / "data/sentencepiece.bpe.model")
    write_sources(folder)
    fixture("bucket")
    gcsfs.GCSFileSystem().mkdir("my-bucket")
    trained = conversion.load(folder / "kosmos-2")
    place = "gs://my-bucket/runs/instruct/model"
    save_folder(place, trained.params, trained.config, trained.vocabulary)
    (folder / "setup.sh").write_text(fenced("pretrain", "bash")[0])
    (folder / "state").write_text("MISSING\n")
    for name, program in (("gcloud", GCLOUD.format(folder)), ("sbatch", ""), ("ssh", "")):
        stand_in(folder / "bin", name, program)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    fixture("monkeypatch").setenv("PATH", path)
    fixture("request").addfinalizer(functools.partial(_try_hard, jax.config.values[_EFFORT]))
    _try_hard(-1.0)
    narrow = [f"--config.{name}={value}" for name, value in NARROW.items()]
    prepared = ["--processes", "1", "--shards", "2", "--direct_running_mode=in_memory"]
    read = [f"--config.data.{s}" for s in ("streams=1", "shuffle_buffer=8", "length=512")]
    return {
        "python tools/prepare_data.py": prepared,
        "kosmos2 inspect": [*read, "--count", "8"],
        "kosmos2 compile": [*narrow, "--topology", "v5e:2x2", "--mesh", "fsdp=4"],
    }


# A TPU that is there when it was asked for, whose workers take what a shell can read.
GCLOUD = """
case "$*" in
  *describe*) cat {0}/state ;;
  *create*) echo ACTIVE > {0}/state ;;
  *delete*) echo MISSING > {0}/state ;;
  *--command=*) command=${{@: -1}}; bash -n -c "${{command#--command=}}" ;;
esac
"""
# All parts of the model, narrow and short, and attention that knows the precision of the tests.
NARROW = {
    "model.attention": "xla",
    "model.decoder.num_layers": 1,
    "model.decoder.hidden_size": 64,
    "model.decoder.num_heads": 1,
    "model.decoder.mlp_dim": 128,
    "model.vision.num_layers": 1,
    "model.vision.hidden_size": 64,
    "model.vision.num_heads": 1,
    "model.vision.mlp_dim": 128,
    "data.batch_size": 4,
    "data.length": 256,
    "data.images": 1,
}


_EFFORT = "jax_exec_time_optimization_effort"


def _try_hard(effort: float) -> None:
    """Says how hard compilers try, from -1 on."""
    jax.config.update(_EFFORT, effort)


def stand_in(folder: Path, name: str, program: str) -> None:
    """A program of bash, to be found instead of a real one."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{program}\n")
    (folder / name).chmod(0o755)


def write_sources(folder: Path) -> None:
    """Text, tars of pictures with captions and with boxes, and pages with pictures."""
    (folder / "pile").mkdir()
    text = json.dumps({"text": "A red ring is left of a blue star."}) + "\n"
    (folder / "pile/00.jsonl").write_text(16 * text)
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(stream, "JPEG")
    chunk = [0, 6, 0.1, 0.1, 0.6, 0.9, 0.99]
    said = {"caption": "a ring on a star", "noun_chunks": [chunk], "ref_exps": [chunk]}
    said |= {"width": 320, "height": 240, "original_width": 320, "original_height": 240}
    for source in ("laion", "coyo", "held_out", "cc12m"):
        (folder / source).mkdir()
        with tarfile.open(folder / source / "00000.tar", "w") as tar:
            for number in range(8):
                for ending, content in (
                    ("jpg", stream.getvalue()),
                    ("json", json.dumps(said).encode()),
                ):
                    info = tarfile.TarInfo(f"{number:09d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (folder / "mmc4").mkdir()
    (folder / "mmc4/1.jpg").write_bytes(stream.getvalue())
    shown = {"image_name": "1.jpg", "matched_text_index": 1}
    page = {"text_list": ["A red ring.", "A blue star."], "image_info": [shown]}
    (folder / "mmc4/docs.jsonl").write_text(16 * (json.dumps(page) + "\n"))


def fenced(page: str, kind: str) -> list[str]:
    """The blocks of a kind on a page."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


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


def write_model(folder: Path, model: Kosmos2Config = MODEL) -> None:
    """A tiny model of random values with a tokenizer of the quickstart's words."""
    file = folder.with_name("words.model")
    train_sentencepiece(quickstart.sentences(), file, 200)
    vocabulary = Kosmos2Vocabulary(file, model.grid_size)
    config = model.replace(decoder={"vocab_size": vocabulary.vocab_size})
    shapes = nn.meta.unbox(jax.eval_shape(lambda: initial_params(config, jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    generation = {"no_repeat_ngram_size": 0}
    write_folder(folder, params, config, vocabulary, generation)


def copy_photos(folder: Path, fixture: Fixture) -> None:
    """Two real pictures."""
    folder.mkdir()
    for name in ("two_dogs.jpg", "snowman.png"):
        shutil.copyfile(fixture("assets") / "images" / name, folder / name)


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
