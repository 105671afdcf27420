"""On any mesh of eight devices a run is the run of one, and its arrays lie as they should."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kosmos2_jax.config import preset
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.partitioning import (
    batch_sharding,
    check_mesh,
    logical_spec,
    make_mesh,
)
from kosmos2_jax.training.optimizer import OptimizerConfig, make_optimizer
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.state import create_state, state_shardings
from kosmos2_jax.training.step import make_train_step

ROWS, LENGTH, IMAGES, STEPS = 32, 20, 2, 20
# Of the losses of an update on a mesh to those on one device.
TOLERANCE = 1e-5

MODEL = preset("tiny").replace(
    scan_layers=True,
    vision={"hidden_size": 32, "num_layers": 1, "num_heads": 8, "mlp_dim": 64},
    resampler={"attention_dropout": 0.0},
    decoder={
        "vocab_size": 117,
        "vocab_multiple": 8,
        "num_layers": 2,
        "num_heads": 8,
        "dropout": 0.0,
        "position": "xpos",
    },
)
RUN = RunConfig(
    model=MODEL,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=4, total_steps=STEPS + 1),
    loss_chunk=8,
)


@functools.cache
def batch(seed):
    """Rows of two examples, a picture in each, and padding behind them; numbers differ by row."""
    rng = np.random.default_rng(seed)
    latents, side = MODEL.resampler.num_latents, MODEL.vision.image_size
    tokens = rng.integers(4, MODEL.decoder.vocab_size, (ROWS, LENGTH), np.int32)
    second = rng.integers(latents + 1, LENGTH - latents - 2, (ROWS, 1))
    end = rng.integers(second + latents + 2, LENGTH + 1)
    place = np.arange(LENGTH)
    in_second = place >= second
    segments = np.where(place < end, 1 + in_second, 0)
    positions = np.where(in_second, place - second, place)
    picture = (positions < latents) & (segments > 0)
    slots = np.where(picture, positions + latents * in_second, -1)
    weights = np.where((segments > 0) & ~picture, rng.uniform(0.1, 1.0, tokens.shape), 0)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "loss_weights": weights.astype(np.float32),
        "positions": positions.astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "image_slots": slots.astype(np.int32),
        "images": rng.integers(0, 256, (ROWS, IMAGES, side, side, 3), np.uint8),
    }


def train(shape, micro_batches=1):
    """Losses of the updates on a mesh, and the state after them."""
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape.values())])
    check_mesh(mesh, MODEL, ROWS, micro_batches)
    optimizer = make_optimizer(RUN.optimizer)
    with jax.set_mesh(mesh):
        shardings = state_shardings(RUN, optimizer, mesh)
        state = create_state(RUN, optimizer, shardings)
        loss_fn = Kosmos2Model(MODEL, loss_chunk=RUN.loss_chunk).loss_fn
        rows = batch_sharding(mesh)
        step = make_train_step(loss_fn, optimizer, shardings, rows, RUN.seed, micro_batches)
        losses = []
        for update in range(STEPS):
            state, metrics = step(state, jax.device_put(batch(update % 4), rows))
            losses.append(metrics["loss"])
    return np.array(jax.device_get(losses)), state


@pytest.fixture(scope="module")
def one_device():
    losses, _ = train({"data": 1})
    assert losses[-1] < losses[0]
    return losses


def parts_of(array):
    """How many pieces each dimension lies in, by the shards that are really there."""
    shards = {tuple((s.start, s.stop) for s in shard.index) for shard in array.addressable_shards}
    return tuple(len(set(starts)) for starts in zip(*shards, strict=True))


def check_places(state, fsdp, tensor):
    """Some arrays of each kind, as the table says."""
    decoder, vision = state.params["decoder"], state.params["vision"]
    attention, mlp = decoder["layers"]["attention"], decoder["layers"]["mlp"]
    expected = [
        (decoder["token_embedding"], (tensor, fsdp)),
        (attention["query"]["kernel"], (1, fsdp, tensor)),
        (attention["query"]["bias"], (1, tensor)),
        (attention["out"]["kernel"], (1, tensor, fsdp)),
        (mlp["up"]["kernel"], (1, fsdp, tensor)),
        (mlp["down"]["kernel"], (1, tensor, fsdp)),
        (mlp["norm"]["scale"], (1, tensor)),
        (decoder["final_norm"]["scale"], (fsdp,)),
        (vision["layers"]["attention"]["value"]["kernel"], (1, fsdp, tensor)),
        (vision["patch_embedding"]["kernel"], (1, 1, 1, fsdp)),
        (state.params["resampler"]["projection"]["kernel"], (1, fsdp)),
        (state.params["resampler"]["latents"], (1, fsdp)),
    ]
    for array, parts in expected:
        assert parts_of(array) == parts, (array.shape, array.sharding)
    # The moments lie as their parameters do.
    shapes = {leaf.shape: parts_of(leaf) for leaf, _ in expected}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape in shapes]
    assert len(moments) >= 2 * len(expected)
    table = decoder["token_embedding"]
    assert [parts_of(m) for m in moments if m.shape == table.shape] == 2 * [(tensor, fsdp)]


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_the_curve_is_that_of_one_device(one_device, fsdp, tensor, micro_batches):
    losses, state = train({"fsdp": fsdp, "tensor": tensor}, micro_batches)
    np.testing.assert_allclose(losses, one_device, rtol=TOLERANCE)
    check_places(state, fsdp, tensor)


def test_slices_and_copies_give_the_same_curve(one_device):
    losses, state = train({"slice": 2, "data": 2, "fsdp": 2})
    np.testing.assert_allclose(losses, one_device, rtol=TOLERANCE)
    check_places(state, fsdp=2, tensor=1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"fdsp": 8}, "'fdsp'; did you mean fsdp"),
        ({"data": 3}, "3 places for 8 devices"),
        ({"data": -1, "fsdp": -1}, "data and fsdp"),
        ({"data": 0}, "mesh.data is 0"),
    ],
)
def test_meshes_that_cannot_be_are_told(shape, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(shape)


@pytest.mark.parametrize(
    ("heads", "rows", "micro_batches", "message"),
    [
        (2, 16, 1, "vision.num_heads is 2, which mesh.tensor=4"),
        (8, 15, 1, "data.batch_size is 15.*multiple of 2"),
        (8, 6, 2, "data.batch_size is 6.*2 micro-batches.*multiple of 4"),
    ],
)
def test_heads_and_rows_that_do_not_divide_are_told(heads, rows, micro_batches, message):
    model = MODEL.replace(vision={"num_heads": heads})
    with pytest.raises(ConfigError, match=message):
        check_mesh(make_mesh({"fsdp": 2, "tensor": 4}), model, rows, micro_batches)


def test_a_parameter_that_does_not_divide_is_named_with_a_mend():
    run = RunConfig(model=MODEL.replace(decoder={"vocab_multiple": 1}))
    optimizer = make_optimizer(run.optimizer)
    with pytest.raises(ConfigError, match="decoder/token_embedding.*117.*'tensor'.*vocab_multiple"):
        state_shardings(run, optimizer, make_mesh({"tensor": 8}))


def test_a_mesh_axis_for_two_dimensions_of_one_array_is_a_collision():
    rules = (("rows", "fsdp"), ("columns", ("data", "fsdp")))
    with pytest.raises(ConfigError, match="table.*twice.*'fsdp'.*'rows' and 'columns'"):
        logical_spec(("rows", None, "columns"), "the table", rules)
    with pytest.raises(ConfigError, match="'width'.*lacks"):
        logical_spec(("width",))
    assert logical_spec(("batch", None, "mlp")) == PartitionSpec(
        ("slice", "data", "fsdp"), None, "tensor"
    )
