"""Training on mixtures of prepared documents, packed: whole runs, and the same sums as unpacked."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from kosmos2_jax import train as trainer
from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import Batch, packed_batches
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.errors import ConfigError, TrainingError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.interop.convert import load
from kosmos2_jax.tasks import mixtures
from kosmos2_jax.training import run_data
from kosmos2_jax.training.meter import progress
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import EvaluationConfig, RunConfig
from kosmos2_jax.training.run_step import batch_shapes
from kosmos2_jax.training.task_ids import task_names, with_task_ids

from ..data import prepared
from .test_runs import Killed, curve, kill_at

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE, COUNT = 16, 64
FOLDERS = (
    "text",
    "captions",
    "grit",
    "interleaved",
    "language_instructions",
    "visual_instructions",
)
MODEL = Kosmos2Config(
    vision=VisionConfig(SIZE, 8, 32, 1, 2, 32),
    resampler=ResamplerConfig(num_latents=4, attention_dropout=0.0),
    decoder=DecoderConfig(0, 32, 1, 2, 32, 96, dropout=0.0),
    grid_size=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sources of all kinds and a tokenizer."""
    folder = tmp_path_factory.mktemp("prepared")
    sentences = [f"a {prepared.words(n, 6)} and Question: Answer: It is the ." for n in range(40)]
    train_sentencepiece(sentences, folder / "sentencepiece.bpe.model", 80)
    return prepared.write_all(folder, COUNT, FOLDERS)


def a_run(folder: Path, **changes: Any) -> RunConfig:
    data = DataConfig(
        tasks="mixtures",
        folder=str(folder),
        mixture="kosmos2_pretrain",
        batch_size=8,
        length=72,
        images=4,
        pack=True,
        streams=2,
        shuffle_buffer=8,
    )
    return RunConfig(
        model=MODEL,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, total_steps=4),
        data=dataclasses.replace(data, **changes),
        log_every=1,
        checkpoint_every=2,
    )


def data_lines(folder: Path) -> list[dict[str, float]]:
    """What the log says of the data, update after update."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k.startswith("data/")} for line in lines]


def test_a_packed_mixture_is_trained_on_and_resumed_to_the_bit(folder, tmp_path, monkeypatch):
    straight = trainer.train(a_run(folder), tmp_path / "straight")
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            trainer.train(a_run(folder), tmp_path / "killed")
    resumed = trainer.train(a_run(folder), tmp_path / "killed")
    assert len(curve(tmp_path / "straight")) == 4
    assert curve(tmp_path / "killed") == curve(tmp_path / "straight")
    jax.tree.map(
        np.testing.assert_array_equal, load(resumed.model).params, load(straight.model).params
    )
    lines = data_lines(tmp_path / "straight")
    assert data_lines(tmp_path / "killed") == lines
    last = lines[-1]
    assert last["data/fill"] > 0.8
    for what in ("examples", "tokens"):
        shares = [value for name, value in last.items() if name.startswith(f"data/{what}/")]
        assert sum(shares) == pytest.approx(1)
    assert last["data/examples/grounded"] > 0.3 < last["data/examples/captions"]


@pytest.mark.parametrize("pack", [True, False])
def test_batches_have_the_shapes_that_are_compiled_ahead_of_time(folder, tmp_path, pack):
    run = a_run(folder, pack=pack)
    mixture, _ = run_data.prepare_data(run, tmp_path)
    batches = run_data.open_batches(run, mixture, run.data.batch_size, pack=pack)
    batch = with_task_ids(next(batches), batches.row_tasks(), task_names(mixture))
    batches.close()

    def told(arrays):
        return {name: (array.shape, array.dtype) for name, array in arrays.items()}

    assert told(batch) == told(batch_shapes(run))


def add_benchmark(folder: Path) -> None:
    """RefCOCO's validation set of two expressions, in its own files."""
    name = "COCO_train2014_000000000001.jpg"
    image = {"id": 0, "file_name": name, "width": SIZE, "height": SIZE}
    listed = {
        "images": [image | {"caption": "the a"}, image | {"id": 1, "caption": "and"}],
        "annotations": [{"id": n, "image_id": n, "bbox": [0, 0, 8, 8]} for n in (0, 1)],
    }
    (folder / "train2014").mkdir(parents=True)
    (folder / "mdetr_annotations").mkdir()
    Image.new("RGB", (SIZE, SIZE), "red").save(folder / "train2014" / name)
    (folder / "mdetr_annotations" / "finetune_refcoco_val.json").write_text(json.dumps(listed))


def test_what_a_run_tells_of_itself(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    add_benchmark(data / "benchmarks" / "refcoco")
    for file in (data / "captions").glob("train*"):  # a split that one of the tasks has
        shutil.copy(file, file.with_name(file.name.replace("train", "validation")))
    run = dataclasses.replace(
        a_run(data),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, total_steps=3),
        evaluation=EvaluationConfig(
            ("refcoco_val",), max_new_tokens=4, loss_mixture="kosmos2_pretrain", loss_rows=10
        ),
        profile_steps=(2, 2),
        log_every=3,
    )
    trained = trainer.train(run, tmp_path / "run")
    result = trained.results["refcoco_val"]
    assert [record.expressions for record in result.targets] == [("the a",), ("and",)]
    told, evaluated = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())

    tasks = {name.rpartition("/")[2] for name in told if name.startswith("data/examples/")}
    by_task = {name.rpartition("/")[2] for name in told if name.startswith("train/loss/task/")}
    assert by_task == tasks and "grounded" in tasks
    kinds = [told[f"train/loss{kind}"] for kind in ("/text", "/location", "")]
    assert min(kinds[:2]) < kinds[2] < max(kinds[:2])
    assert 0 <= told["train/accuracy/location"] <= 1
    names = ("updates", "tokens", "examples", "images")
    speeds = [told[f"speed/{name}_per_second"] for name in names]
    assert 0 < speeds[0] < speeds[3]
    assert speeds[0] < speeds[2] < speeds[1]
    assert 0 <= told["speed/waiting_for_data"] < 1
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    assert set(progress(told)) == {"loss", "tokens/s", "wait"}
    assert evaluated["eval/refcoco_val_lost"] == 0.0

    model, names = load(trained.model), ("eval/loss", "eval/loss/task/captions")
    assert [name for name in evaluated if name.startswith("eval/loss/task")] == [names[1]]
    batches = run_data.open_batches(
        trained.run, "kosmos2_pretrain", 8, pack=True, split="validation"
    )
    scores = jax.jit(Kosmos2Model(model.config).score_batch)
    read = [next(batches), next(batches)]  # 16 rows, the first multiple of 8 that has 10
    found = [(-scores(model.params, b).sum(), b["loss_weights"].sum()) for b in read]
    batches.close()
    loss = sum(loss for loss, _ in found) / sum(weight for _, weight in found)
    assert [evaluated[name] for name in names] == pytest.approx([float(loss)] * 2, rel=1e-5)


def test_a_bad_source_stops_the_run(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "MIN_EXAMPLES_TO_STOP", 10)
    documents = [prepared.document("caption", n) for n in range(40)]
    documents[::10] = [prepared.document("caption", 0, images=()) for _ in range(4)]
    prepared.write(tmp_path / "data" / "captions" / "laion", documents)
    run = a_run(
        tmp_path / "data",
        mixture="",
        rates={"captions/laion": 1.0},
        tokenizer=str(folder / "sentencepiece.bpe.model"),
    )
    with pytest.raises(DataError, match="of source 'caption source' had to be skipped"):
        trainer.train(run, tmp_path / "run")
    skipped = data_lines(tmp_path / "run")[-1]["data/skipped/caption source"]
    reason = "caption without exactly one picture"
    assert data_lines(tmp_path / "run")[-1][f"data/reasons/caption source/{reason}"] == skipped > 0
    assert capsys.readouterr().err.count(f"data: caption source: {reason} (") == 1
    with pytest.raises(DataError, match="laoin' holds no prepared source"):
        trainer.train(
            dataclasses.replace(
                run, data=dataclasses.replace(run.data, rates={"captions/laoin": 1.0})
            ),
            tmp_path / "other",
        )


def test_a_run_that_diverges_stops_with_its_batch(folder, tmp_path):
    optimizer = OptimizerConfig(learning_rate=1e30, warmup_steps=1, total_steps=40)
    run = dataclasses.replace(a_run(folder), optimizer=optimizer, max_skipped_updates=3)
    with pytest.raises(TrainingError, match="the last 3 updates, up to update ") as error:
        trainer.train(run, tmp_path)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["train/skipped_updates"] == 3
    assert "train/loss" not in last
    (file,) = tmp_path.glob("nonfinite_batch_*.npz")
    assert str(file) in str(error.value)
    with np.load(file) as batch:
        assert batch["tokens"].shape == (8, 72)
        assert batch["images"].dtype == np.uint8
    with pytest.raises(TrainingError, match=f"up to update {last['step']}"):
        trainer.train(run, tmp_path)  # from its checkpoint: nothing has become worse or better


def test_a_module_of_your_own_prepares_the_data(folder, tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text("def prepare(*run): return run")
    monkeypatch.syspath_prepend(tmp_path)
    run = a_run(folder, tasks="my_data")
    assert run_data.prepare_data(run, tmp_path) == (folder, run.data, run.model, run.seed)
    with pytest.raises(ConfigError, match="neither kosmos2_jax.tasks.mine nor mine"):
        run_data.prepare_data(a_run(folder, tasks="mine"), tmp_path)


def test_packed_and_unpacked_give_the_same_loss_and_gradients(folder):
    """256 and more examples of all sources with their pictures, to 1e-5 (spec section 4.5)."""
    vocabulary = Kosmos2Vocabulary(folder / "sentencepiece.bpe.model", 8)
    run = run_data.with_vocabulary(a_run(folder), vocabulary)
    settings = TaskSettings(vocabulary, run.data.encode_settings(run.model), 0, 8)
    name = mixtures.register("all_kinds", dict.fromkeys(mixtures.KINDS, 1.0), folder, settings)
    model = Kosmos2Model(run.model)
    params = model.init(jax.random.key(1))
    step = jax.jit(jax.value_and_grad(model.loss_fn, has_aux=True))

    def sums(pack: bool) -> tuple[dict[str, tuple[int, int]], list[Any]]:
        lengths = feature_lengths(72, 4)
        batches = packed_batches(
            name, lengths, 16, 0, image_size=SIZE, pack=pack, num_epochs=1, num_streams=2
        )
        found = [_sums(step, params, batch) for batch in batches]
        return batches.tasks(), [np.sum(parts, axis=0) for parts in zip(*found, strict=True)]

    tasks, (loss, weight, *gradients) = sums(pack=True)
    one_tasks, (one_loss, one_weight, *one_gradients) = sums(pack=False)
    assert tasks == one_tasks
    assert set(tasks) == set(mixtures.KINDS)
    assert sum(examples for examples, _ in tasks.values()) >= 256
    assert weight == pytest.approx(one_weight, rel=1e-6)
    assert loss == pytest.approx(one_loss, rel=1e-5)
    # Biases of keys have a gradient of 0 but for rounding, hence a floor.
    floor = 1e-4 * np.sqrt(sum(np.sum(g**2) for g in one_gradients))
    for ours, theirs in zip(gradients, one_gradients, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * max(np.linalg.norm(theirs), floor)


def _sums(step: Any, params: Any, batch: Batch) -> list[Any]:
    (loss, sums), gradients = step(params, batch)
    return [np.float64(x) for x in (loss, sums["weight"])] + [
        np.asarray(g, np.float64) for g in jax.tree.leaves(gradients)
    ]
