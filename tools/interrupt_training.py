"""Ends a small training run at random moments, again and again, and shows that nothing is lost.

The run is trained once in peace. A second one with the same settings is ended by SIGKILL and
SIGTERM, mostly in the middle of an update or while a checkpoint is written, and started again with
the same command each time. Before some of the starts a file of the newest checkpoint is cut short
or a bit of it is flipped. Checked each time: the exit status, that every checkpoint with a final
name is whole, that none disappeared but what newer ones replace, and that damage is noticed. At the
end the loss and gradient norm of every update and all parameters must be those of the run in
peace, to the bit. The last line printed is JSON; exit status 1 tells that something was lost.

    python tools/interrupt_training.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kosmos2_jax.startup import prepare_environment

os.environ["JAX_PLATFORMS"] = "cpu"
prepare_environment()

import numpy as np  # noqa: E402

from kosmos2_jax.interop.convert import load  # noqa: E402
from kosmos2_jax.training.manifest import MANIFEST, find_damage  # noqa: E402
from kosmos2_jax.training.signals import EXIT_RESTART  # noqa: E402

EVERY = 3  # updates between checkpoints
SETTINGS = {
    "model.vision.image_size": 64,
    "model.vision.patch_size": 16,
    "model.vision.hidden_size": 32,
    "model.vision.num_layers": 1,
    "model.vision.num_heads": 2,
    "model.vision.mlp_dim": 32,
    "model.resampler.num_latents": 16,
    "model.decoder.hidden_size": 32,
    "model.decoder.num_layers": 1,
    "model.decoder.num_heads": 2,
    "model.decoder.mlp_dim": 32,
    "model.decoder.max_length": 128,
    "model.decoder.dropout": 0.1,
    "data.train_scenes": 64,
    "data.test_scenes": 8,
    "data.batch_size": 8,
    "data.length": 96,
    "data.streams": 2,
    "data.shuffle_buffer": 16,
    "evaluation.tasks": "()",
    "evaluation.every": 0,
    "warm_start.steps": 0,
    "micro_batches": 1,
    "log_every": 1,
    "checkpoint_every": EVERY,
    "keep_checkpoints": 3,
}
# Imports TensorFlow and JAX once; every start of the run is a fresh process forked from there.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["kosmos2_jax.train", "kosmos2_jax.tasks.quickstart", "tensorboardX"]
)


class Lost(Exception):
    """Something that interruptions must not do has happened."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs everything; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERMs")
    parser.add_argument("--damage", type=int, default=20, help="checkpoints that are damaged")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(argv)
    ends = [signal.SIGKILL] * arguments.kills + [signal.SIGTERM] * arguments.terms
    if arguments.damage > len(ends):
        parser.error("--damage: there are fewer interruptions than that")
    rng = random.Random(arguments.seed)
    rng.shuffle(ends)
    damaged = set(rng.sample(range(len(ends)), arguments.damage))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # Compiling takes most of the time of a start. Read by the processes that are started.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        peace, war = (Training(Path(folder), name, len(ends)) for name in ("peace", "war"))
        try:
            peace.start()
            peace.must_end_with(0)
            for number, end in enumerate(ends):
                interrupt(war, end, rng)
                if number in damaged:
                    damage_newest(war, rng)
                print(f"{number + 1}/{len(ends)} {end.name}: {war.checkpoints()}", flush=True)
            war.start()
            war.must_end_with(0)
            compare(peace, war)
        except Lost as error:
            print(f"interrupt_training: error: {error}\n{war.said()[-4000:]}", file=sys.stderr)
            return 1
        figures = {
            "kills": arguments.kills,
            "terms": arguments.terms,
            "damaged": war.damaged,
            "updates": war.updates,
            "identical": True,
            "seconds": round(time.perf_counter() - started, 1),
        }
    print(json.dumps(figures))
    return 0


class Training:
    """One work folder and the processes that train in it, one after the other.

    Attributes:
      updates: of the whole run.
      damaged: how many checkpoints were damaged.
    """

    def __init__(self, folder: Path, name: str, interruptions: int) -> None:
        self.workdir = folder / name
        self.metrics = self.workdir / "metrics.jsonl"
        # An interruption comes at most 2 * EVERY updates after the newest checkpoint, mostly fewer,
        # and some more are made until it strikes.
        self.updates = 2 * EVERY * (interruptions + 2)
        self.damaged = 0
        self._said = folder / f"{name}.log"
        self._said.touch()
        settings = {
            **SETTINGS,
            "data.folder": folder / "data",
            "optimizer.total_steps": self.updates,
        }
        self._command = [
            "train",
            "--config=configs/quickstart.py",
            f"--workdir={self.workdir}",
            *(f"--config.{name}={value}" for name, value in settings.items()),
        ]

    def start(self) -> None:
        self._before = self._said.stat().st_size
        self.process = _CONTEXT.Process(target=_train, args=(self._command, str(self._said)))
        self.process.start()

    def must_end_with(self, status: int) -> None:
        self.process.join()
        if self.process.exitcode != status:
            raise Lost(f"the run ended with status {self.process.exitcode}, not {status}")

    def said(self) -> str:
        """What it wrote to the terminal since its last start."""
        return self._said.read_bytes()[self._before :].decode()

    def checkpoints(self) -> list[int]:
        """Those with a final name, oldest first."""
        folder = self.workdir / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def checkpoint(self, step: int) -> Path:
        """Its folder."""
        return self.workdir / "checkpoints" / str(step)


def _train(command: list[str], log: str) -> None:
    """`python -m kosmos2_jax.train` in a process of its own, with what it says in a file."""
    from kosmos2_jax import train

    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = command
    sys.exit(train.main())


def interrupt(run: Training, end: signal.Signals, rng: random.Random) -> None:
    """Starts the run, ends it some updates later, and looks at what it left.

    Raises:
      Lost: something is not as it must be.
    """
    whole = [step for step in run.checkpoints() if find_damage(run.checkpoint(step)) is None]
    broken = sorted(set(run.checkpoints()) - set(whole))
    newest = whole[-1] if whole else 0
    old_file = run.metrics.stat().st_ino if run.metrics.exists() else None
    target = newest + rng.randint(1, 2 * EVERY)
    run.start()
    while run.process.is_alive():
        # Each start begins a new file, which at first holds what was logged up to its checkpoint.
        if run.metrics.exists() and run.metrics.stat().st_ino != old_file:
            if run.metrics.read_bytes().count(b"\n") >= target:
                break
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(run.process.pid, end)
    run.must_end_with(-end if end == signal.SIGKILL else EXIT_RESTART)

    said = run.said()
    if newest and f"going on from update {newest}\n" not in said:
        raise Lost(f"the run did not go on from checkpoint {newest}, the newest whole one")
    for step in broken:
        if f"{run.checkpoint(step)} is damaged" not in said:
            raise Lost(f"nothing was said of checkpoint {step}, which is damaged")
    left = run.checkpoints()
    if newest and (not left or left[-1] < newest):
        raise Lost(f"checkpoint {newest} has disappeared")
    for step in left:
        if damage := find_damage(run.checkpoint(step)):
            raise Lost(f"checkpoint {step} is not whole: {damage}")
    if end == signal.SIGTERM and f"after update {left[-1]}, which is saved" not in said:
        raise Lost("the run did not save when it was asked to stop")


def damage_newest(run: Training, rng: random.Random) -> None:
    """Cuts a file of the newest checkpoint short or flips a bit of it, if there is another."""
    steps = run.checkpoints()
    if len(steps) < 2:
        return
    folder = run.checkpoint(steps[-1])
    names = sorted(json.loads((folder / MANIFEST).read_text())["sha256"])
    file = folder / rng.choice(names)
    content = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    run.damaged += 1


def compare(peace: Training, war: Training) -> None:
    """Both runs must have the same curve and the same parameters.

    Raises:
      Lost: they have not.
    """
    if curve(peace) != curve(war):
        raise Lost("the losses or gradient norms of the two runs differ")
    paths = [run.workdir / "model" for run in (peace, war)]
    params, found = (dict(_leaves(load(path).params)) for path in paths)
    if differing := [
        name for name, value in params.items() if value.tobytes() != found[name].tobytes()
    ]:
        raise Lost(f"parameters of the two runs differ: {', '.join(differing)}")


def curve(run: Training) -> list[tuple[int, float, float]]:
    """(update, loss, gradient norm) of each update."""
    lines = map(json.loads, run.metrics.read_text().splitlines())
    return [(line["step"], line["train/loss"], line["train/gradient_norm"]) for line in lines]


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}/")
        else:
            yield path + name, np.asarray(value)


if __name__ == "__main__":
    sys.exit(main())
