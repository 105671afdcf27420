"""The launch scripts: what they would run, and when they start again.

Their programs (gcloud, sbatch, ssh) are stood in for by small ones; all else is real.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SCRIPTS = sorted(TOOLS.glob("launch_*.sh"))
OPTIONS = {
    "launch_hosts.sh": ["--hosts=one,two"],
    "launch_slurm.sh": ["--nodes=2", "--gpus=8"],
    "launch_tpu.sh": ["--name=pod", "--zone=z", "--type=v5litepod-16", "--version=v2"],
}
TRAINING = ["--", "--config=configs/kosmos2_pretrain.py", "--workdir=/shared/my run"]


def launch(script: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{path or ''}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [TOOLS / script, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def commands(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that a script printed, as the shell would cut them into words."""
    quoted = [line.removeprefix("+ ") for line in done.stderr.splitlines() if line[:2] == "+ "]
    words = subprocess.run(
        ["bash", "-c", "".join(f"printf '%s\\0' {line}; printf '\\0'\n" for line in quoted)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [command.split("\0") for command in words.removesuffix("\0\0").split("\0\0")]


def stand_in(folder: Path, name: str, program: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{program}\n")
    (folder / name).chmod(0o755)


def test_they_are_clean():
    assert {script.name for script in SCRIPTS} == OPTIONS.keys()
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", OPTIONS)
def test_a_dry_run_starts_nothing(script, tmp_path):
    for name in ("gcloud", "sbatch", "ssh"):
        stand_in(tmp_path, name, f"touch {tmp_path}/started")
    done = launch(script, *OPTIONS[script], "--dry-run", *TRAINING, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "started").exists()
    training = "-m kosmos2_jax.train --distributed --config=configs/kosmos2_pretrain.py"
    if script == "launch_hosts.sh":
        (one, two) = (shlex.split(command[3]) for command in commands(done))
        assert [command[2] for command in commands(done)] == ["one", "two"]
        assert two[-5:] == [
            *("--coordinator=one:12321", "--num_processes=2", "--process_id=1"),
            *TRAINING[1:],
        ]
        assert "--process_id=0" in one
    elif script == "launch_slurm.sh":
        (submit,) = commands(done)
        assert "--ntasks-per-node=8" in submit
        job = submit[-1].removeprefix("--wrap=")
        assert training in job
        assert subprocess.run(["sh", "-n", "-c", job], check=False).returncode == 0
    else:
        verbs = [command[3:5] for command in commands(done) if command[0] == "gcloud"]
        assert verbs == [
            ["queued-resources", "create"],
            ["tpu-vm", "scp"],
            ["tpu-vm", "ssh"],
            ["tpu-vm", "ssh"],
            ["queued-resources", "delete"],
        ]
        assert training in commands(done)[-2][-1]
        assert "python3 -m venv .venv\n.venv/bin/pip" in commands(done)[-3][-1]


@pytest.mark.parametrize("script", OPTIONS)
def test_what_is_missing_is_named(script):
    options = OPTIONS[script]
    assert launch(script, "--help").stdout.startswith(f"usage: tools/{script} ")
    for arguments, named in [
        ([*options[1:], *TRAINING], options[0].partition("=")[0]),
        (["--bogus", *TRAINING], "--bogus"),
        (options, "after --"),
    ]:
        done = launch(script, *arguments)
        assert done.returncode == 2
        assert named in done.stderr
        assert len(done.stderr.splitlines()) == 1


# Each start takes the next of these statuses.
NEXT = 'status=$(head -n 1 {0}); sed -i 1d {0}; echo "$status" >> {1}'


@pytest.mark.parametrize(
    ("statuses", "starts", "status"),
    [([0], 1, 0), ([75, 75, 1, 0], 4, 0), ([1, 134, 75, 1, 0], 4, 1)],
)
def test_hosts_are_started_again(statuses, starts, status, tmp_path):
    waiting, taken = tmp_path / "waiting", tmp_path / "taken"
    waiting.write_text("".join(f"{n}\n" for n in statuses))
    stand_in(tmp_path, "ssh", 'bash -c "$3"')
    stand_in(tmp_path, "training", NEXT.format(waiting, taken) + "; exit $status")
    options = ["--hosts=one", "--retries=2", f"--python={tmp_path}/training"]
    done = launch("launch_hosts.sh", *options, *TRAINING, path=tmp_path)
    assert done.returncode == status
    assert len(taken.read_text().split()) == starts


def test_the_slurm_job_is_queued_again(tmp_path):
    stand_in(tmp_path, "srun", "exit $SRUN_STATUS")
    stand_in(tmp_path, "scontrol", 'echo "$@"')
    options = [*OPTIONS["launch_slurm.sh"], "--retries=2", "--dry-run"]
    ((*_, wrapped),) = commands(launch("launch_slurm.sh", *options, *TRAINING))
    for status, restarts, again in [(0, 0, 0), (75, 9, 1), (1, 1, 1), (134, 2, 0)]:
        done = subprocess.run(
            ["sh", "-c", wrapped.removeprefix("--wrap=")],
            env={
                "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                "SRUN_STATUS": str(status),
                "SLURM_JOB_ID": "17",
                "SLURM_RESTART_COUNT": str(restarts),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status
        assert done.stdout == "requeue 17\n" * again


GCLOUD = """
case "$*" in
  *describe*) cat {0}/state ;;
  *create*) echo ACTIVE > {0}/state; echo create >> {0}/log ;;
  *delete*) echo MISSING > {0}/state; echo delete >> {0}/log ;;
  *"cat kosmos2_status"*) echo "$(cat {0}/last)" ;;
  *kosmos2_jax.train*)
    {1}
    echo "$status" > {0}/last
    [[ $status != 99 ]] || {{ echo SUSPENDED > {0}/state; exit 1; }}
    [[ $status == 0 ]] ;;
esac
"""


def test_a_preempted_tpu_is_replaced(tmp_path):
    """Starts: told to stop, preempted without a word, failed, finished."""
    (tmp_path / "state").write_text("MISSING")
    (tmp_path / "waiting").write_text("75\n99\n1\n0\n")
    take = NEXT.format(tmp_path / "waiting", tmp_path / "log")
    stand_in(tmp_path, "gcloud", GCLOUD.format(tmp_path, take))
    options = [*OPTIONS["launch_tpu.sh"], "--spot", "--retries=1"]
    done = launch("launch_tpu.sh", *options, *TRAINING, path=tmp_path)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log").read_text().split()
    assert log == ["create", "75", "99", "delete", "create", "1", "0", "delete"]
