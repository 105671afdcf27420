"""Checkpoints that are damaged, half-written, or do not fit on the disk; which ones stay."""

from __future__ import annotations

import dataclasses
import logging
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import PackedBatches, packed_batches
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.partitioning import make_mesh
from kosmos2_jax.tasks import mixtures
from kosmos2_jax.training.checkpoints import RunCheckpoints
from kosmos2_jax.training.manifest import MANIFEST, find_damage
from kosmos2_jax.training.optimizer import make_optimizer
from kosmos2_jax.training.state import TrainState, create_state, state_shardings

from ..data import prepared
from .test_packed_runs import SIZE, a_run

STEPS = (2, 4, 6)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A registered mixture of text, and what its tokens are padded with."""
    folder = tmp_path_factory.mktemp("prepared")
    sentences = [f"a {prepared.words(n, 6)} and Question: Answer: It is the ." for n in range(40)]
    train_sentencepiece(sentences, folder / "sentencepiece.bpe.model", 80)
    prepared.write_all(folder, 32, ("text",))
    run = a_run(folder, mixture="", rates={"text": 1.0})
    name, vocabulary = mixtures.prepare(folder, run.data, run.model, 0)
    return name, vocabulary.pad_id


@pytest.fixture
def batches(mixture: tuple[str, int]) -> Iterator[PackedBatches]:
    """The data of a run, at its beginning."""
    name, pad_id = mixture
    opened = packed_batches(
        name, feature_lengths(72, 4), 2, 0, image_size=SIZE, pad_id=pad_id, num_streams=2
    )
    yield opened
    opened.close()


def state_after(step: int, size: int = 1000) -> TrainState:
    return TrainState(jnp.int32(step), {"a": jnp.arange(size) * float(step)}, (), jnp.int32(0))


def abstract(state: TrainState) -> tuple[TrainState, TrainState]:
    """Shapes and shardings, as `restore` wants them."""
    return jax.eval_shape(lambda: state), jax.tree.map(lambda leaf: leaf.sharding, state)


@pytest.fixture
def folder(batches: PackedBatches, tmp_path: Path) -> Path:
    """Whole checkpoints after 2, 4 and 6 updates, of which batch 1, 2 and 3 come next."""
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=3)
    for step in STEPS:
        next(batches)
        checkpoints.save(step, state_after(step), batches)
    checkpoints.close()
    return tmp_path / "checkpoints"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damage_of_any_file_is_found(folder, damage):
    for file in sorted(path for path in (folder / "6").rglob("*") if path.is_file()):
        if file.name in ("_CHECKPOINT_METADATA", "commit_success.txt") and file.parent.name == "6":
            continue  # Orbax restores without them, which the next test shows
        content = file.read_bytes()
        damage(file)
        found = find_damage(folder / "6")
        assert found is not None
        assert file.name in (found.split()[0].rpartition("/")[2], MANIFEST)
        file.write_bytes(content)
    assert find_damage(folder / "6") is None


def test_orbax_files_that_are_not_covered_are_not_needed(folder, batches):
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (folder / "6" / name).write_bytes(b"{")
    checkpoints = RunCheckpoints(folder, keep=3)
    found = checkpoints.restore(6, *abstract(state_after(6)), batches)
    np.testing.assert_array_equal(found.params["a"], state_after(6).params["a"])


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_the_one_before_a_damaged_one_is_used(folder, damage, caplog):
    files = (path for path in (folder / "6").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    damage(largest)
    with caplog.at_level(logging.WARNING):
        checkpoints = RunCheckpoints(folder, keep=3)
    assert f"{folder / '6'} is damaged ({largest.relative_to(folder / '6')} " in caplog.text
    assert checkpoints.latest() == 4
    assert names(folder.with_name("checkpoints.damaged")) == {"6"}
    found = checkpoints.restore(4, *abstract(state_after(4)))
    np.testing.assert_array_equal(found.params["a"], state_after(4).params["a"])


def test_the_data_go_on_where_they_were(folder, batches):
    expected = next(batches)
    next(batches)
    RunCheckpoints(folder, keep=3).restore(6, *abstract(state_after(6)), batches)
    np.testing.assert_array_equal(next(batches)["tokens"], expected["tokens"])


def test_if_none_is_whole_the_run_does_not_begin_from_scratch(folder):
    for step in STEPS:
        (folder / str(step) / MANIFEST).unlink()
    for _ in range(2):  # nor when it is started again
        with pytest.raises(CheckpointError, match=r"is whole \(6: .*; 4: .*; 2: .*remove") as error:
            RunCheckpoints(folder, keep=3)
        assert "\n" not in str(error.value)
    assert names(folder) >= {"2", "4", "6"}


def test_a_half_written_one_is_removed(folder, batches, caplog):
    (folder / "6").rename(folder / "6.orbax-checkpoint-tmp")
    with caplog.at_level(logging.WARNING):
        checkpoints = RunCheckpoints(folder, keep=3)
    assert "6.orbax-checkpoint-tmp was half-written" in caplog.text
    assert checkpoints.latest() == 4
    checkpoints.save(6, state_after(6), batches)
    checkpoints.close()
    assert names(folder) >= {"2", "4", "6"}
    assert "6.orbax-checkpoint-tmp" not in names(folder)
    assert find_damage(folder / "6") is None


def test_one_that_is_damaged_twice_is_kept_twice(folder, batches):
    for _ in range(2):
        truncate(folder / "6" / MANIFEST)
        checkpoints = RunCheckpoints(folder, keep=3)
        checkpoints.save(6, state_after(6), batches)
        checkpoints.close()
    assert names(folder.with_name("checkpoints.damaged")) == {"6", "6-2"}


def test_a_full_disk_is_one_plain_error_and_older_ones_stay(folder, batches):
    """A file may not grow beyond a limit, which the system tells as it tells of a full disk."""
    checkpoints = RunCheckpoints(folder, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="checkpoint 8 could not be saved.*room") as error:
            checkpoints.save(8, state_after(8, size=1_000_000), batches)
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert all(find_damage(folder / str(step)) is None for step in STEPS)
    assert RunCheckpoints(folder, keep=3).latest() == 6


def test_a_closed_bucket_is_one_plain_error_and_older_ones_stay(bucket, close_bucket, batches):
    folder = bucket / "checkpoints"
    checkpoints = RunCheckpoints(folder, keep=2)
    checkpoints.save(2, state_after(2), batches)
    checkpoints.close()
    checkpoints = RunCheckpoints(folder, keep=2)
    close_bucket()
    with pytest.raises(
        CheckpointError, match="checkpoint 4 could not be saved.*Forbidden"
    ) as error:
        checkpoints.save(4, state_after(4), batches)
        checkpoints.close()
    assert "see that the bucket may be written to" in str(error.value)
    assert find_damage(folder / "2") is None
    assert RunCheckpoints(folder, keep=2).latest() == 2


@pytest.mark.parametrize(("mode", "best", "left"), [("max", 2, {"2", "8"}), ("min", 4, {"4", "8"})])
def test_the_best_stays_beside_the_latest(batches, tmp_path, mode, best, left):
    checkpoints = RunCheckpoints(tmp_path, keep=1, best_mode=mode)
    for step, figure in ((2, 0.9), (4, 0.1), (6, float("nan")), (8, 0.5)):
        checkpoints.save(step, state_after(step), batches)
        checkpoints.note(step, figure)
    assert checkpoints.best() == best
    found = checkpoints.restore(best, *abstract(state_after(best)))
    assert int(found.step) == best
    checkpoints.close()
    assert {name for name in names(tmp_path) if name.isdigit()} == left


def test_a_state_is_restored_on_any_mesh(batches, tmp_path):
    """Of a real optimiser: 8 devices, then 2 x 4, 1 and 8 again, each from the one before."""
    run = a_run(tmp_path)
    run = dataclasses.replace(run, model=run.model.replace(decoder={"vocab_size": 120}))
    optimizer = make_optimizer(run.optimizer)
    expected, step = None, 0
    for devices, shape in [
        (8, {"fsdp": 8}),
        (8, {"data": 2, "fsdp": 2, "tensor": 2}),
        (8, {"fsdp": 2, "tensor": 4}),
        (1, {}),
        (8, {"data": 8}),
    ]:
        mesh = make_mesh({"data": -1, **shape}, jax.devices()[:devices])
        shardings = state_shardings(run, optimizer, mesh)
        checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=1)
        if expected is None:
            state = create_state(run, optimizer, shardings)
            expected = jax.device_get(state)
        else:
            shapes = jax.eval_shape(lambda: create_state(run, optimizer, shardings))  # noqa: B023
            state = checkpoints.restore(step, shapes, shardings, batches)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
        step += 1
        checkpoints.save(step, state, batches)
        checkpoints.close()


def test_another_runs_state_is_refused(folder):
    with pytest.raises(CheckpointError, match="does not fit this run.*workdir"):
        RunCheckpoints(folder, keep=3).restore(6, *abstract(state_after(6, size=7)))
