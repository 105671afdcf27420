"""Runs that are killed, told to stop, or meet numbers that are not finite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kosmos2_jax.errors import TrainingError
from kosmos2_jax.training.nonfinite import SkippedUpdates
from kosmos2_jax.training.signals import StopRequest

ROOT = Path(__file__).resolve().parents[2]
# More in a thorough test: the program's own numbers are 50, 10 and 20.
KILLS, TERMS, DAMAGE = os.environ.get("KOSMOS2_INTERRUPTIONS", "2,1,1").split(",")


@pytest.mark.timeout(4 * 3600)
def test_killed_stopped_and_damaged_a_run_ends_as_in_peace():
    done = subprocess.run(
        [
            *(sys.executable, "tools/interrupt_training.py", "--seed=1"),
            *(f"--kills={KILLS}", f"--terms={TERMS}", f"--damage={DAMAGE}"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["identical"] is True
    assert (figures["kills"], figures["terms"]) == (int(KILLS), int(TERMS))


def test_the_second_signal_ends_the_program_at_once():
    program = (
        "import os, signal, time\n"
        "from kosmos2_jax.training.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(stop.signal.name, flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "SIGINT\n"
    process.terminate()
    assert process.wait() == -signal.SIGTERM


def test_signals_mean_what_they_meant_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
    assert stop.signal is None


def test_only_skipped_updates_in_a_row_stop_a_run(tmp_path):
    def metrics(pattern: str) -> list[dict[str, np.ndarray]]:
        rows = [
            len(pattern[: i + 1]) - len(pattern[: i + 1].rstrip("x")) for i in range(len(pattern))
        ]
        return [{"skipped": np.int32(n > 0), "skipped_in_row": np.int32(n)} for n in rows]

    updates, batch = SkippedUpdates(total=5, limit=4), {"tokens": np.arange(3)}
    updates.read(metrics("x.xxxx.xx"))  # a row that ended by itself
    updates.check(9, batch, tmp_path)
    assert (updates.total, updates.in_row) == (12, 2)
    updates.read(metrics("xxxx")[2:])
    with pytest.raises(TrainingError, match="last 4 updates, up to update 11.*learning_rate"):
        updates.check(11, batch, tmp_path)
    with np.load(tmp_path / "nonfinite_batch_11.npz") as saved:
        np.testing.assert_array_equal(saved["tokens"], np.arange(3))
