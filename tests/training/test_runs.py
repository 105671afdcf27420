"""Whole small runs: repeatable, resumable to the bit, and plain about what is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time

import jax
import numpy as np
import pytest

from kosmos2_jax import train as trainer
from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.errors import CheckpointError, ConfigError, TrainingError
from kosmos2_jax.evaluate import evaluate
from kosmos2_jax.evaluation.predictions import read_predictions
from kosmos2_jax.interop.convert import load
from kosmos2_jax.training.metric_log import MetricLog
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import (
    DataConfig,
    EvaluationConfig,
    EvaluationRun,
    RunConfig,
    WarmStartConfig,
)
from kosmos2_jax.training.run_data import prepare_data

RUN = RunConfig(
    model=Kosmos2Config(
        vision=VisionConfig(64, 16, 32, 1, 2, 32),
        resampler=ResamplerConfig(num_latents=16),
        decoder=DecoderConfig(0, 32, 1, 2, 32, 128),
        grid_size=8,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, total_steps=6),
    data=DataConfig(
        train_scenes=64, test_scenes=8, batch_size=8, length=96, streams=2, shuffle_buffer=16
    ),
    evaluation=EvaluationConfig(
        ("quickstart_scenes_rec",),
        every=4,
        quick_examples=4,
        examples=8,
        batch_size=8,
        max_new_tokens=4,
        best_metric="rec_accuracy",
    ),
    mesh={"data": 2, "fsdp": 4},
    warm_start=WarmStartConfig(steps=2),
    log_every=1,
    checkpoint_every=2,
    no_repeat_ngram_size=0,
)


class Killed(BaseException):
    """Stands for a signal that no handler sees."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder whose data all runs of this module share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """A finished run: (what it returned, its folder)."""
    folder = tmp_path_factory.mktemp("straight")
    return trainer.train(with_data(data), folder), folder


def with_data(folder, **changes):
    return dataclasses.replace(
        RUN, data=dataclasses.replace(RUN.data, folder=str(folder)), **changes
    )


def curve(folder):
    """(update, loss, gradient norm) of each line of the training metrics."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        (line["step"], line["train/loss"], line["train/gradient_norm"])
        for line in lines
        if "train/loss" in line
    ]


def kill_at(monkeypatch, step):
    """Ends the process, as it were, just before the given update is made."""
    make_run_step = trainer.make_run_step

    def make(*args):
        made, calls = make_run_step(*args), iter(range(1, step + 1))

        def update(state, batch):
            if next(calls) == step:
                raise Killed
            return made.update(state, batch)

        return dataclasses.replace(made, update=update)

    monkeypatch.setattr(trainer, "make_run_step", make)


def wait_for(file, seconds=60.0):
    """Returns when `file` is there."""
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} is not written"
        time.sleep(0.1)


def test_a_run_leaves_curve_settings_model_and_figures(uninterrupted):
    trained, folder = uninterrupted
    assert [step for step, _, _ in curve(folder)] == [1, 2, 3, 4, 5, 6]
    assert json.loads((folder / "run.json").read_text())["optimizer"]["total_steps"] == 6
    assert load(trained.model).config == trained.run.model
    assert 0 <= trained.results["quickstart_scenes_rec"].metrics["rec_accuracy"] <= 1
    assert load(folder / "best").config == trained.run.model


def test_killed_and_resumed_gives_the_same_curve_and_bits(
    uninterrupted, data, tmp_path, monkeypatch
):
    trained, folder = uninterrupted
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            trainer.train(with_data(data), tmp_path)
    resumed = trainer.train(with_data(data), tmp_path)
    assert curve(tmp_path) == curve(folder)
    jax.tree.map(
        np.testing.assert_array_equal, load(resumed.model).params, load(trained.model).params
    )


def test_in_a_bucket_a_run_is_killed_resumed_and_evaluated_as_on_a_disk(
    uninterrupted, data, bucket, tmp_path, monkeypatch, caplog
):
    trained, folder = uninterrupted
    workdir = bucket / "runs" / "mine"
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            trainer.train(with_data(data), workdir)
    # A kill ends the threads that write, too; here they go on.
    wait_for(workdir / "checkpoints/4/commit_success.txt")
    # The newest checkpoint is cut short, and a still newer one was not written to its end.
    manifest = json.loads((workdir / "checkpoints/4/manifest.json").read_text())["sha256"]
    largest = max(manifest, key=lambda name: manifest[name][0])
    (workdir / "checkpoints/4" / largest).write_bytes(b"half")
    (workdir / "checkpoints/5/state/array").write_bytes(b"half")

    resumed = trainer.train(with_data(data), str(workdir))
    assert "checkpoints/5 was half-written" in caplog.text
    assert f"checkpoints/4 is damaged ({largest} has 4 bytes" in caplog.text
    assert (workdir / "checkpoints.damaged/4" / largest).read_bytes() == b"half"
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert "6" in names and "5" not in names
    assert curve(workdir) == curve(folder)
    assert json.loads((workdir / "run.json").read_text())["optimizer"]["total_steps"] == 6
    assert len((workdir / "environment.jsonl").read_text().splitlines()) == 2
    assert len(list((workdir / "tensorboard").iterdir())) == 2
    found = load(resumed.model)
    jax.tree.map(np.testing.assert_array_equal, found.params, load(trained.model).params)

    evaluation = dataclasses.replace(RUN.evaluation, every=0, best_metric="")
    run = EvaluationRun(str(workdir / "best"), data=with_data(data).data, evaluation=evaluation)
    evaluate(run, bucket / "evaluation")
    (task,) = evaluation.tasks
    saved = bucket / "evaluation/predictions" / f"{task}.jsonl"
    assert len(saved.read_text().splitlines()) == 8
    assert (bucket / "evaluation/report.html").stat().length > 1000
    for sheets in (workdir / "sheets/0000004", bucket / "evaluation/sheets"):
        assert (sheets / f"{task}.png").stat().length > 1000


def test_a_bucket_that_is_missing_or_closed_is_one_plain_error(data, bucket, close_bucket):
    with pytest.raises(TrainingError, match="gs://none/run cannot be written.*such a bucket"):
        trainer.train(with_data(data), "gs://none/run")
    log = MetricLog(bucket / "run")
    close_bucket()
    with pytest.raises(TrainingError, match="gs://bucket/run cannot be .*objects.create access"):
        evaluate(EvaluationRun("model", evaluation=RUN.evaluation), bucket / "run")
    log.write(1, {"train/loss": 1.0})
    with pytest.raises(TrainingError, match="gs://bucket/run/metrics.jsonl cannot be written"):
        log.flush()


def test_data_and_models_not_ours_are_not_read_from_a_bucket(bucket):
    (bucket / "hf" / "config.json").write_text('{"model_type": "kosmos-2"}')
    with pytest.raises(CheckpointError, match="gs://bucket/hf is hugging_face, and only folders"):
        load(bucket / "hf")
    with pytest.raises(ConfigError, match="gs://bucket/data, and they are read from disks only"):
        prepare_data(with_data("gs://bucket/data"), bucket / "mine")


def test_the_finished_model_evaluated_again_has_the_same_figures(uninterrupted, data, tmp_path):
    trained, folder = uninterrupted
    evaluation = dataclasses.replace(RUN.evaluation, every=0, best_metric="")
    run = EvaluationRun(str(trained.model), data=with_data(data).data, evaluation=evaluation)
    results = evaluate(run, tmp_path)
    (task,) = results
    figures = trained.results[task].metrics
    assert results[task].metrics == pytest.approx(figures, abs=1e-6)
    assert json.loads((tmp_path / "metrics.json").read_text()) == results[task].metrics
    predictions = read_predictions(tmp_path / "predictions" / f"{task}.jsonl", task)
    assert [prediction.output for prediction in predictions] == trained.results[task].outputs
    for sheet in (tmp_path / "sheets", folder / "sheets/0000004", folder / "sheets/0000006"):
        assert (sheet / f"{task}.png").stat().st_size > 1000
    (line,) = (folder / "environment.jsonl").read_text().splitlines()
    environment = json.loads(line)
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["devices"] == 8 and environment["command"]


def test_what_is_to_be_evaluated_must_be_named(tmp_path):
    with pytest.raises(ConfigError, match="checkpoint is empty"):
        evaluate(EvaluationRun(), tmp_path)


def test_other_settings_in_the_same_folder_are_refused(uninterrupted, data):
    _, folder = uninterrupted
    with pytest.raises(ConfigError, match="seed"):
        trainer.train(with_data(data, seed=1), folder)


def test_a_vocabulary_size_that_is_not_the_tokenizers_is_refused(data, tmp_path):
    model = RUN.model.replace(decoder={"vocab_size": 99})
    with pytest.raises(ConfigError, match="99"):
        trainer.train(with_data(data, model=model), tmp_path)


def test_a_metric_that_no_task_measures_is_named(uninterrupted, data, tmp_path):
    _, folder = uninterrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run.json").unlink()
    evaluation = dataclasses.replace(RUN.evaluation, best_metric="rec_acuracy")
    with pytest.raises(ConfigError, match="rec_acuracy.*rec_accuracy"):
        trainer.train(with_data(data, evaluation=evaluation), tmp_path)
