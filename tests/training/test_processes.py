"""Several processes that train one model as one would, in good days and in bad ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.interop.convert import load
from kosmos2_jax.training.signals import EXIT_RESTART

from ..data import prepared

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 14
# No dropout: its masks go by the place of a row in the batch, which the number of processes
# changes. Text and pictures; two streams, so that each process has one.
CONFIG = """
import dataclasses

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import EvaluationConfig, RunConfig
from kosmos2_jax.training.settings import to_config_dict


def get_config(folder):
    return to_config_dict(RunConfig(
        model=Kosmos2Config(
            vision=VisionConfig(16, 8, 32, 1, 2, 32),
            resampler=ResamplerConfig(num_latents=4, attention_dropout=0.0),
            decoder=DecoderConfig(0, 32, 1, 2, 32, 96, dropout=0.0),
            grid_size=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, total_steps=UPDATES),
        data=DataConfig(
            tasks="told", folder=folder, rates={"text": 1.0, "captions": 1.0}, batch_size=16,
            length=72, images=4, pack=True, streams=2, shuffle_buffer=8,
        ),
        # Two batches, the second of them of two examples, which one process reads alone.
        evaluation=EvaluationConfig(
            ("told",), every=3, quick_examples=10, examples=10, batch_size=6, max_new_tokens=4,
            loss_mixture="captions", loss_split="test", loss_rows=16,
        ),
        mesh={"data": 2, "fsdp": -1},
        log_every=1,
        checkpoint_every=3,
    ))
""".replace("UPDATES", str(UPDATES))
# The captions as a task that is measured, too.
TOLD = """
import seqio

from kosmos2_jax.tasks import mixtures


def letters(targets, predictions):
    return {"letters": sum(map(len, predictions)), "examples": len(predictions)}


def prepare(folder, data, model, seed):
    prepared = mixtures.prepare(folder, data, model, seed)
    task = seqio.TaskRegistry.get("captions")
    seqio.TaskRegistry.add(
        "told",
        source=task.source,
        preprocessors=task.preprocessors,
        output_features=task.output_features,
        postprocess_fn=lambda text, example=None, is_target=False: text,
        metric_fns=[letters],
    )
    return prepared
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, the run's configuration, `run.py`, and its tasks, `told.py`."""
    folder = tmp_path_factory.mktemp("prepared")
    sentences = [f"a {prepared.words(n, 6)} and Question: Answer: It is the ." for n in range(40)]
    train_sentencepiece(sentences, folder / "sentencepiece.bpe.model", 80)
    (folder / "run.py").write_text(CONFIG)
    (folder / "told.py").write_text(TOLD)
    prepared.write_all(folder, 64, ("text", "captions"))
    for file in (folder / "captions").rglob("train*"):
        shutil.copy(file, file.with_name(file.name.replace("train", "test")))
    return folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def devices_flag(count: int) -> str:
    return f"--xla_force_host_platform_device_count={count}"


def start(
    folder: Path, workdir: Path, processes: int, devices: int
) -> list[subprocess.Popen[bytes]]:
    """Starts so many processes of so many devices each; `process-N.log` gets what they say."""
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "kosmos2_jax.train", f"--workdir={workdir}"]
    command += [f"--config={folder / 'run.py'}:{folder}"]
    if processes > 1:
        command += [f"--coordinator=localhost:{free_port()}", f"--num_processes={processes}"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "XLA_FLAGS": devices_flag(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    started = []
    for number in range(processes):
        own = [f"--process_id={number}"] if processes > 1 else []
        with (workdir / f"process-{number}.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    [*command, *own], cwd=ROOT, env=environment, stdout=log, stderr=log
                )
            )
    return started


def wait_for_update(workdir: Path, update: int, started: list[subprocess.Popen[bytes]]) -> None:
    while len(curve(workdir)) < update:
        assert all(process.poll() is None for process in started), said(workdir)
        time.sleep(0.01)


def said(workdir: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(workdir.glob("process-*.log")))


def curve(workdir: Path) -> list[tuple[int, float, float]]:
    """(update, loss, gradient norm) of each update."""
    rows = [row for row in lines(workdir) if "train/loss" in row]
    return [(row["step"], row["train/loss"], row["train/gradient_norm"]) for row in rows]


def evaluated(workdir: Path, step: int) -> dict[str, float]:
    """Figures of the evaluation after an update."""
    (row,) = (row for row in lines(workdir) if row["step"] == step and "eval/loss" in row)
    return row


def lines(workdir: Path) -> list[dict[str, float]]:
    file = workdir / "metrics.jsonl"
    texts = file.read_text().splitlines() if file.exists() else []
    return [json.loads(text) for text in texts if text.endswith("}")]


def checkpoints(workdir: Path) -> list[int]:
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.timeout(900)
def test_two_processes_train_as_one_and_one_goes_on_alone(folder, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    (process,) = start(folder, alone, 1, devices=8)
    assert process.wait() == 0, said(alone)
    assert len(curve(alone)) == UPDATES

    # A signal to one of them: both save after the same update and can be started again.
    both = start(folder, together, 2, devices=4)
    wait_for_update(together, 3, both)
    both[1].send_signal(signal.SIGTERM)
    assert [process.wait() for process in both] == [EXIT_RESTART] * 2, said(together)
    stopped = checkpoints(together)[-1]
    assert 3 < stopped < UPDATES - 2
    assert said(together).count(f"stopped by SIGTERM after update {stopped}, which is saved") == 2
    places = (together / "checkpoints" / str(stopped) / "data").glob("shard-*-of-00002.zip")
    assert len(list(places)) == 2

    # One of them dies.
    both = start(folder, together, 2, devices=4)
    wait_for_update(together, stopped + 2, both)
    both[1].kill()
    dead = time.monotonic()
    assert both[0].wait(timeout=60) != 0
    assert time.monotonic() - dead < 60
    assert f"going on from update {stopped}\n" in said(together)

    # Half as many devices, and one process, which takes over the data of both.
    (process,) = start(folder, together, 1, devices=4)
    assert process.wait() == 0, said(together)
    found, expected = np.array(curve(together)), np.array(curve(alone))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Two processes answered the first of these, each its share of the examples.
    for step in (3, UPDATES):
        ours, theirs = evaluated(together, step), evaluated(alone, step)
        assert ours["eval/examples"] == 10
        assert ours == pytest.approx(theirs, rel=1e-5)
    sheets = [workdir / "sheets" / "0000003" / "told.png" for workdir in (together, alone)]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    for ours, theirs in zip(*(leaves(workdir) for workdir in (together, alone)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def leaves(workdir: Path) -> list[np.ndarray]:
    import jax

    return jax.tree.leaves(load(workdir / "model").params)


MESSAGES = """
import signal, sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kosmos2_jax.errors import ConfigError, Kosmos2Error
from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.training import processes

coordinator, number = sys.argv[1], int(sys.argv[2])
processes.start_processes(processes.ProcessSettings(coordinator, 2, number))
assert jax.device_count() == 8

assert processes.gather({"n": number}) == [{"n": 0}, {"n": 1}]
done = []
assert processes.first_then_others(lambda: done.append(number) or len(done)) == 1

def fail():
    assert number == 0
    raise ConfigError("no such thing")

try:
    processes.first_does(fail)
except Kosmos2Error as error:
    assert str(error) == "no such thing"
else:
    raise AssertionError

# What fails for one of them fails for all; what is another kind of error is its own.
assert processes.agreed(lambda: number, ConfigError) == number
for failing in (0, 1):
    def read():
        if number == failing:
            raise ConfigError(f"{number} cannot read")
    try:
        processes.agreed(read, ConfigError)
    except ConfigError as error:
        assert str(error) == f"{failing} cannot read"
    else:
        raise AssertionError

# Where a row lies on devices of both, both read all rows.
for shape, part in [
    ({"data": 8}, (number, 2, True)),
    ({"data": 2, "fsdp": 4}, (number, 2, True)),
    ({"fsdp": 2, "tensor": 4}, (number, 2, True)),
    ({"tensor": 8}, (0, 1, number == 0)),
]:
    sharding = batch_sharding(make_mesh(shape))
    found = processes.data_shard(sharding, 16)
    assert (found.number, found.count, found.is_keeper) == part, (shape, found)
    rows = np.arange(16).reshape(found.count, -1)[found.number]
    batch = processes.global_batch({"rows": rows}, sharding)
    np.testing.assert_array_equal(processes.host_values(batch)["rows"], np.arange(16))
try:
    processes.data_shard(batch_sharding(make_mesh({"data": 8})), 12)
except ConfigError as error:
    assert "data.batch_size 12 is not a multiple" in str(error)
else:
    raise AssertionError

# What process 1 hears at its third update, both obey after the same one.
mesh = make_mesh({"data": 2, "fsdp": 4})
with jax.set_mesh(mesh):  # as in training
    agree = processes.StopAgreement(mesh)
    heard = [agree(signal.SIGTERM if number == 1 and step >= 3 else None) for step in range(1, 8)]
assert heard == [None] * 4 + [signal.SIGTERM] * 3, heard
print("all is well", flush=True)

def main():
    # Process 1 waits for an answer of process 0, which is gone.
    return len(processes.gather("still there?")) if number else 3

processes.run_program(main)
"""


def test_processes_agree_on_everything_and_none_waits_for_one_that_failed():
    command = [sys.executable, "-c", MESSAGES, f"localhost:{free_port()}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": devices_flag(4)}
    both = [
        subprocess.Popen(
            [*command, str(number)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    first = both[0].communicate(timeout=300)[0]
    failed = time.monotonic()
    second = both[1].communicate(timeout=300)[0]
    assert time.monotonic() - failed < 60
    assert both[0].returncode == 3, first
    assert both[1].returncode not in (0, 3), second
    assert "all is well" in first and "all is well" in second
