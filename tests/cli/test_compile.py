"""`kosmos2 compile`: the real TPU compiler on the pretraining configuration, and plain errors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

from kosmos2_jax.cli import main

pytest.importorskip("libtpu")

# Full width, two layers a tower; a row a chip.
REDUCED = (
    "--config=configs/kosmos2_pretrain.py",
    "--config.model.decoder.num_layers=2",
    "--config.model.vision.num_layers=2",
    "--config.micro_batches=1",
)


def kosmos2(*words: str) -> subprocess.CompletedProcess:
    # The settings of this suite's own process are no user's; the kernels know no "highest".
    ours = ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run(
        [sys.executable, "-m", "kosmos2_jax", "compile", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1800,
        check=False,
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("topology", "chips"), [("v5e:4x4", 16)])
def test_compiles_fits_and_tells(topology, chips):
    rows = f"--config.data.batch_size={chips}"
    done = kosmos2(*REDUCED, rows, "--topology", topology, "--mesh", "fsdp=-1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and 0.1 < found["peak_gib"] < found["hbm_gib"]
    assert found["attention"] == "splash"
    assert math.prod(found["mesh"].values()) == chips
    # What fsdp needs: parameters gathered from all chips, sums over all chips, and gradients that
    # go to their owners, which the compiler does in rings while it computes them.
    sent = found["collectives"]
    assert {"all-gather", "all-reduce"} <= set(sent)
    rings = sent.pop("collective-permute", {"groups": [2]})
    assert rings["groups"] == [2]
    assert all(traffic["groups"] == [chips] for traffic in sent.values())
    assert 0 < found["mfu"][0] <= found["mfu"][1] <= 1


def test_what_does_not_fit_is_said_without_a_program():
    """At full size, 16 rows with their pictures at once are too much for a chip of 16 GiB."""
    config = "--config=configs/kosmos2_pretrain.py"
    done = kosmos2(config, "--topology", "v5e:4x4", "--mesh", "fsdp=-1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["fits"] and 16 < found["peak_gib"] < 32
    assert found["memory"] is None and found["flops"]["total"] > 7e15


def fails(capsys, *words: str) -> str:
    assert main(["compile", *words]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("kosmos2: error: ")]
    assert out == "" and len(lines) == 1
    return lines[0]


def test_an_unknown_topology_is_told_with_near_ones(capsys):
    error = fails(capsys, *REDUCED, "--topology", "v5e:44")
    assert "'v5e:44'" in error and "v5e:4x4" in error


def test_rows_that_the_chips_do_not_divide_are_told(capsys):
    error = fails(capsys, *REDUCED, "--config.data.batch_size=15", "--topology", "v5e:4x4")
    assert "data.batch_size is 15" in error


def test_a_missing_compiler_is_told(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert "kosmos2-jax[compile]" in fails(capsys, *REDUCED, "--topology", "v5e:4x4")


def test_a_vocabulary_of_the_tokenizers_size_must_be_given(capsys):
    error = fails(capsys, *REDUCED, "--config.model.decoder.vocab_size=0", "--topology", "v5e:4x4")
    assert "vocab_size=65037" in error
