"""What a run tells of itself, on numbers made up."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.training.meter import progress, summarise
from kosmos2_jax.training.metric_log import MetricLog
from kosmos2_jax.training.run_config import EvaluationConfig, RunConfig
from kosmos2_jax.training.task_ids import with_task_ids


def update(**changes):
    """Metrics of one update: 4 targets, 1 of them a location token, of two tasks."""
    metrics = {
        "loss": 2.0, "weight": 4.0, "correct": 3.0, "skipped": 0,
        "location/loss": 5.0, "location/weight": 1.0, "location/correct": 0.0,
        "task_loss": np.array([2.0, 6.0]), "task_weight": np.array([1.0, 3.0]),
        "gradient_norm": 1.0, "gradient_norm/vision": 0.5,
    }  # fmt: skip
    return {**metrics, **changes}


def test_means_are_over_all_targets_of_all_updates():
    second = update(loss=1.0, weight=12.0, correct=12.0, gradient_norm=3.0)
    values = summarise([update(), second, update(skipped=1, loss=np.nan)], ["a", "b"])
    assert values["train/loss"] == pytest.approx((8 + 12) / 16)
    assert values["train/accuracy"] == pytest.approx(15 / 16)
    assert values["train/loss/location"] == pytest.approx(5.0)
    assert values["train/loss/text"] == pytest.approx((20 - 10) / 14)
    assert values["train/accuracy/text"] == pytest.approx(15 / 14)
    assert values["train/loss/task/a"] == pytest.approx(2.0)
    assert values["train/loss/task/b"] == pytest.approx(2.0)
    assert values["train/gradient_norm"] == pytest.approx(2.0)
    assert values["train/gradient_norm/vision"] == pytest.approx(0.5)


def test_what_had_no_target_is_not_told():
    none = update(**{"location/weight": 0.0, "location/loss": 0.0})
    values = summarise([{**none, "task_weight": np.array([4.0, 0.0])}], ["a", "b"])
    assert not {"train/loss/location", "train/loss/task/b"} & values.keys()
    assert values["train/loss/text"] == values["train/loss"]
    assert summarise([update(skipped=1)]) == {}
    assert progress({}) == {"loss": "nan"}


def test_each_token_knows_its_task():
    segments = np.array([[1, 1, 2, 0], [1, 2, 2, 3]], np.int32)
    found = with_task_ids({"segment_ids": segments}, [["b", "a"], ["a", "b", "b"]], ["a", "b"])
    weighted = segments > 0
    wanted = np.array([[1, 1, 0, 0], [0, 1, 1, 1]])
    np.testing.assert_array_equal(found["task_ids"][weighted], wanted[weighted])


def test_weights_and_biases_gets_the_metrics_too(tmp_path, monkeypatch):
    """In its own offline mode, where it is installed; else the error says what to do."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(ConfigError, match="pip install wandb"):
            MetricLog(tmp_path, wandb_project="kosmos2")
        return
    log = MetricLog(tmp_path, wandb_project="kosmos2", settings={"seed": 0})
    log.write(1, {"train/loss": 2.0})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 2.0}
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("steps", [(3,), (0, 2), (4, 3)])
def test_updates_to_trace_are_a_first_and_a_last(steps):
    with pytest.raises(ConfigError, match="first and the last update"):
        RunConfig(profile_steps=steps)


def test_loss_is_measured_on_some_rows():
    with pytest.raises(ConfigError, match="loss_rows must be at least 1"):
        EvaluationConfig(loss_rows=0)
