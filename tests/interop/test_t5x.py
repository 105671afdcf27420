"""The adapter for t5x: its interface on plain arrays, and all of it where t5x is.

`T5X_DIR=CHECKOUT pytest tests/interop/test_t5x.py` runs the whole proof, with the extra "t5x".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig, preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.inference.model import Kosmos2Model, prompts_of
from kosmos2_jax.interop import t5x as adapter
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.partitioning import LOGICAL_RULES, batch_sharding, make_mesh
from kosmos2_jax.tasks import quickstart
from kosmos2_jax.training.optimizer import OptimizerConfig, make_optimizer
from kosmos2_jax.training.state import TrainState
from kosmos2_jax.training.step import make_train_step

ROOT = Path(__file__).resolve().parents[2]
needs_t5x = pytest.mark.skipif("T5X_DIR" not in os.environ, reason="T5X_DIR names no checkout")


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_parameter_has_the_names_of_its_axes(scan_layers):
    config = preset("tiny").replace(scan_layers=scan_layers)
    boxed = jax.eval_shape(lambda: initial_params(config, jax.random.key(0)))
    variables = adapter.initial_variables(boxed)
    params = flatten_dict(variables["params"])
    axes = flatten_dict(variables["params_axes"])
    assert {(*path[:-1], f"{path[-1]}_axes") for path in params} == axes.keys()
    rules = dict(adapter.logical_axis_rules())
    for path, leaf in params.items():
        found = axes[*path[:-1], f"{path[-1]}_axes"]
        assert isinstance(found, AxisMetadata)
        assert len(found.names) == leaf.ndim
        assert set(found.names) - {None} <= rules.keys()
    assert axes["decoder", "token_embedding_axes"].names == ("vocab", "embed")


def test_moments_lie_as_their_parameters_do():
    boxed = initial_params(preset("tiny"), jax.random.key(0))
    params, specs = nn.meta.unbox(boxed), nn.get_partition_spec(boxed)
    optimizer = make_optimizer(OptimizerConfig())
    state = jax.eval_shape(optimizer.init, params)
    axes = adapter.state_axes(optimizer, state, specs)
    assert jax.tree.structure(axes, is_leaf=lambda x: x is None) == jax.tree.structure(state)
    moments = [leaf for leaf in jax.tree.leaves(axes) if leaf is not None]
    assert moments == 2 * jax.tree.leaves(specs)


def test_rules_name_t5x_mesh_axes():
    rules = dict(adapter.logical_axis_rules())
    assert rules.keys() == dict(LOGICAL_RULES).keys()
    assert (rules["batch"], rules["vocab"], rules["embed"]) == ("data", "model", None)
    assert dict(adapter.logical_axis_rules(2))["embed"] == "data"
    with pytest.raises(Kosmos2Error, match="1 or 2, not 3"):
        adapter.logical_axis_rules(3)


def test_the_converter_is_made_as_t5x_asks_for_it():
    make = adapter.feature_converters(lambda pack: PackingFeatureConverter(28, pack=pack))
    assert isinstance(make(pack=True, use_custom_packing_ops=False), PackingFeatureConverter)
    with pytest.raises(Kosmos2Error, match="custom packing"):
        make(pack=True, use_custom_packing_ops=True)


def test_the_model_runs_on_a_mesh_with_t5x_axes():
    config = preset("tiny")
    tokens = np.arange(4, 20, dtype=np.int32).reshape(2, 8)
    batch = {
        "tokens": tokens,
        "targets": tokens,
        "loss_weights": np.ones((2, 8), np.float32),
        "segment_ids": np.ones((2, 8), np.int32),
        "positions": np.tile(np.arange(8, dtype=np.int32), (2, 1)),
    }
    model = Kosmos2Model(config)
    params = model.init(jax.random.key(0))
    expected, _ = jax.jit(model.loss_fn)(params, batch)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        found, _ = jax.jit(model.loss_fn)(params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_prompts_are_found_while_jax_traces():
    weights = np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], np.float32)
    batch = {
        "tokens": np.arange(5, 15, dtype=np.int32).reshape(2, 5),
        "segment_ids": np.array([[1] * 5, [1, 1, 0, 0, 0]], np.int32),
        "loss_weights": weights,
        "image_slots": np.full((2, 5), -1, np.int32),
    }
    expected, found = prompts_of(batch), jax.jit(prompts_of)(batch)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    assert found.lengths.tolist() == [3, 2]
    np.testing.assert_array_equal(found.tokens, expected.tokens[:, :5])


@pytest.mark.skipif("T5X_DIR" in os.environ, reason="t5x is there")
def test_without_t5x_it_says_what_is_missing():
    with pytest.raises(Kosmos2Error, match="'t5x' is missing.*PYTHONPATH"):
        adapter.T5xModel(None, PackingFeatureConverter, optax.identity())


CONFIG = Kosmos2Config(
    vision=VisionConfig(64, 16, 32, 1, 2, 32),
    resampler=ResamplerConfig(num_latents=16, attention_dropout=0.0),
    decoder=DecoderConfig(0, 32, 2, 2, 32, 128, dropout=0.0, position="xpos"),
    grid_size=8,
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, total_steps=100)
DATA = DataConfig(train_scenes=64, test_scenes=8, shuffle_buffer=16)
ROWS = 8
# The same in gin. Dropout is off: t5x draws its keys in its own way.
TINY = """
from __gin__ import dynamic_registration

import __main__ as script
from kosmos2_jax import config
from kosmos2_jax.data import data_config
from kosmos2_jax.inference import sampling
from kosmos2_jax.interop import t5x as kosmos2_t5x
from kosmos2_jax.tasks import quickstart
from kosmos2_jax.training import optimizer

TASK_FEATURE_LENGTHS = {'targets': 97, 'loss_weights': 97, 'image_slots': 97, 'images': 1}
IMAGE_SIZE = 64
BATCH_SIZE = 8
kosmos2_t5x.mixture_name.prepare = @quickstart.prepare
data_config.DataConfig:
  mixture = ''
  train_scenes = 64
  test_scenes = 8
  shuffle_buffer = 16
config.Kosmos2Config.grid_size = 8
config.VisionConfig:
  patch_size = 16
  hidden_size = 32
  num_layers = 1
  num_heads = 2
  mlp_dim = 32
config.ResamplerConfig:
  num_latents = 16
  attention_dropout = 0.0
config.DecoderConfig:
  vocab_size = %VOCAB_SIZE
  hidden_size = 32
  num_layers = 2
  num_heads = 2
  mlp_dim = 32
  max_length = 128
  dropout = 0.0
sampling.SamplingConfig.max_new_tokens = 8
optimizer.OptimizerConfig:
  learning_rate = 1e-2
  warmup_steps = 2
  total_steps = 100
"""
EVERY_STEP = "script.train.stats_period = 1\n"


def t5x(folder: Path, program: str, **macros: object) -> str:
    """Runs a program of t5x with our gin files; gives what it says."""
    (folder / "tiny.gin").write_text(TINY + (EVERY_STEP if program == "train" else ""))
    story = {"train": "pretrain"}.get(program, program)
    paths = (ROOT, os.environ["T5X_DIR"], ROOT / "tools" / "t5x_stubs")
    outer = os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"t5x.{program}"),
            *(f"--gin_file=configs/gin/t5x/{name}.gin" for name in ("kosmos2", story)),
            f"--gin_file={folder / 'tiny.gin'}",
            f"--gin.DATA_DIR='{folder / 'data'}'",
            *(f"--gin.{name}={value!r}" for name, value in macros.items()),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*map(str, paths), outer]),
            "XLA_FLAGS": "",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def t5x_curve(folder: Path) -> dict[int, float]:
    """Losses by update, out of TensorBoard's files."""
    import tensorflow as tf

    found = {}
    for file in sorted(folder.glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.tag == "loss":
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def our_curve(config: Kosmos2Config, mixture: str, updates: int) -> list[float]:
    """Our step on the batches that t5x reads, from the parameters that it begins with."""
    import seqio

    dataset = seqio.get_dataset(
        mixture,
        feature_lengths(96),
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        seed=0,
        feature_converter=PackingFeatureConverter(64, pack=True),
        shard_info=seqio.ShardInfo(0, 1),
        trim_output_features=False,
    ).batch(ROWS, drop_remainder=True)
    key, _ = jax.random.split(jax.random.PRNGKey(0))
    params = nn.meta.unbox(jax.jit(lambda: initial_params(config, key))())
    optimizer, mesh = make_optimizer(OPTIMIZER), make_mesh({}, jax.devices()[:1])
    counts = jnp.zeros([2], jnp.int32)  # two buffers: both are given away
    state = TrainState(counts[0], params, optimizer.init(params), counts[1])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = make_train_step(
        Kosmos2Model(config).loss_fn,
        optimizer,
        jax.tree.map(lambda _: everywhere, state),
        batch_sharding(mesh),
        seed=0,
    )
    losses = []
    for batch in dataset.take(updates).as_numpy_iterator():
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


@needs_t5x
@pytest.mark.timeout(3600)
def test_real_t5x_trains_evaluates_infers_and_restores(tmp_path):
    mixture, vocabulary = quickstart.prepare(tmp_path / "data", DATA, CONFIG, 0)
    size = {"VOCAB_SIZE": vocabulary.vocab_size}
    model = tmp_path / "model"
    for last in (20, 24):  # the second goes on from the first one's checkpoint
        t5x(tmp_path, "train", MODEL_DIR=str(model), TRAIN_STEPS=last, EVAL_PERIOD=20, **size)
        assert (model / f"checkpoint_{last}").is_dir()
    curve = t5x_curve(model / "train")
    assert sorted(curve) == list(range(1, 25))
    config = CONFIG.replace(decoder={"vocab_size": vocabulary.vocab_size})
    ours = our_curve(config, mixture, 24)
    assert ours[-1] < ours[0] - 0.5
    np.testing.assert_allclose([curve[step] for step in range(1, 25)], ours, rtol=1e-5)

    asked = {"TASK": "quickstart_scenes_rec", "CHECKPOINT_PATH": str(model / "checkpoint_24")}
    said = t5x(tmp_path, "eval", EVAL_OUTPUT_DIR=str(tmp_path / "eval"), **asked, **size)
    assert "rec_accuracy" in said
    t5x(tmp_path, "infer", INFER_OUTPUT_DIR=str(tmp_path / "infer"), **asked, **size)
    answers = tmp_path / "infer" / "quickstart_scenes_rec-predict.jsonl-00000-of-00001"
    predictions = [json.loads(line)["prediction"] for line in answers.read_text().splitlines()]
    assert len(predictions) == DATA.test_scenes and any(predictions)
