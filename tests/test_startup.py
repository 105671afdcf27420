"""What commands say to libraries before these are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kosmos2_jax import startup

VARIABLES = (
    "JAX_PLATFORMS",
    "TF_CPP_MIN_LOG_LEVEL",
    "TPU_ACCELERATOR_TYPE",
    "TPU_SKIP_MDS_QUERY",
    "TPU_WORKER_HOSTNAMES",
)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)


@pytest.mark.skipif(os.path.exists("/dev/accel0"), reason="a TPU")
def test_the_compiler_for_tpus_says_nothing_where_there_is_none(monkeypatch):
    pytest.importorskip("libtpu")
    # Else it gives up, silently, while another process has it.
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

    def said(before: str) -> str:
        code = f"{before}import jax; print(jax.devices()[0].platform)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
        )
        assert done.stdout
        return done.stderr

    assert "TPU_WORKER_HOSTNAMES" in said("")
    prepared = said("from kosmos2_jax.startup import prepare_environment as p; p(); ")
    assert "TPU" not in prepared


def test_what_is_set_stays_and_hosts_with_chips_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "_TPUS", (str(tmp_path / "accel*"),))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    startup.prepare_environment()
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v5litepod-1"

    del os.environ["TPU_ACCELERATOR_TYPE"]
    (tmp_path / "accel0").touch()
    startup.prepare_environment()
    assert "TPU_ACCELERATOR_TYPE" not in os.environ
