"""Runs with LoRA and an average of parameters: what is trained, stored, resumed and exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from kosmos2_jax import train as trainer
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.interop.convert import load
from kosmos2_jax.interop.layout import flatten, unstack_layers
from kosmos2_jax.interop.peft import add_adapter
from kosmos2_jax.models.lora import LoraConfig, is_adapter
from kosmos2_jax.training.groups import ParameterGroup
from kosmos2_jax.training.run_config import RunConfig, WarmStartConfig
from kosmos2_jax.training.state import boxed_params

from ..data import prepared
from .test_packed_runs import a_run
from .test_runs import Killed, kill_at

STEPS, EMA = 4, 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Text alone, stacked layers, micro-batches, eight devices."""
    folder = tmp_path_factory.mktemp("prepared")
    sentences = [f"a {prepared.words(n, 6)} and Question: Answer: It is the ." for n in range(40)]
    train_sentencepiece(sentences, folder / "sentencepiece.bpe.model", 80)
    prepared.write_all(folder, 64, ("text",))
    run = a_run(folder, mixture="", rates={"text": 1.0})
    return dataclasses.replace(
        run,
        model=run.model.replace(scan_layers=True, decoder={"num_layers": 2}),
        optimizer=dataclasses.replace(
            run.optimizer, groups={"decoder": ParameterGroup(learning_rate_factor=10.0)}
        ),
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        micro_batches=2,
        lora=LoraConfig(rank=2, alpha=4.0, dropout=0.1),
        ema_decay=EMA,
    )


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory: pytest.TempPathFactory) -> tuple[trainer.Trained, Path]:
    """What the run returned, and its folder."""
    folder = tmp_path_factory.mktemp("straight")
    return trainer.train(run, folder), folder


def stored(folder: Path, step: int) -> dict:
    """A checkpoint's arrays as they are on the disk."""
    return ocp.StandardCheckpointer().restore(folder / "checkpoints" / str(step) / "state")


def unstacked(params, run: RunConfig) -> dict[str, np.ndarray]:
    return flatten_dict(unstack_layers(params, run.model), sep="/")


def test_adapters_alone_are_trained_and_have_state(finished):
    trained, folder = finished
    run, after = trained.run, stored(folder, STEPS)
    fresh = flatten_dict(jax.jit(lambda: boxed_params(run))(), sep="/")
    for path, value in flatten_dict(after["params"], sep="/").items():
        same = np.array_equal(value, fresh[path].unbox())
        assert same != is_adapter(path), path
    size = sum(leaf.size for p, leaf in flatten_dict(after["params"]).items() if is_adapter(p[-1]))
    assert size == 2 * 2 * 2 * (2 * 32)  # two layers, query and value, A and B, rank by width
    moments = [leaf for leaf in jax.tree.leaves(after["opt_state"]) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * size
    assert sum(leaf.size for leaf in jax.tree.leaves(after["ema"])) == size


def test_the_model_is_the_base_with_the_averaged_adapter(finished):
    trained, folder = finished
    run, after = trained.run, stored(folder, STEPS)
    model = load(trained.model)
    base = {p: v for p, v in unstacked(after["params"], run).items() if not is_adapter(p)}
    merged = flatten(add_adapter(base, run.model, folder / "model_adapter"))
    average = unstacked(after["ema"], run)
    for path, value in flatten(model.params).items():
        np.testing.assert_allclose(value, merged[path], rtol=1e-6, atol=1e-7)
        module, _, name = path.rpartition("/")
        if name == "kernel" and f"{module}/lora_a" in average:
            product = average[f"{module}/lora_a"] @ average[f"{module}/lora_b"]
            np.testing.assert_allclose(value, base[path] + 2.0 * product, rtol=1e-6, atol=1e-7)
            assert np.abs(product).max() > 1e-5
        else:
            np.testing.assert_array_equal(value, base[path])


def test_metrics_tell_of_groups(finished):
    _, folder = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["train/gradient_norm/decoder"] == pytest.approx(line["train/gradient_norm"])
        rate = line["train/learning_rate"]
        assert line["train/learning_rate/decoder"] == pytest.approx(10 * rate)
        assert "train/gradient_norm/base" not in line


def test_killed_and_resumed_gives_the_same_bits(finished, run, tmp_path, monkeypatch):
    _, folder = finished
    with monkeypatch.context() as patch:
        kill_at(patch, STEPS)
        with pytest.raises(Killed):
            trainer.train(run, tmp_path)
    trainer.train(run, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, stored(tmp_path, STEPS), stored(folder, STEPS))


def test_a_warm_start_from_nothing_is_refused():
    with pytest.raises(ConfigError, match="lora.rank.*warm_start.steps"):
        RunConfig(lora=LoraConfig(rank=2), warm_start=WarmStartConfig(steps=1))
