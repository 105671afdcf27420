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
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "kosmos2_jax", "compile", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1800,
        check=False,
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("topology", "mesh", "rows", "chips", "kinds"),
    [
        ("v5e:4x4", "fsdp=-1", 16, 16, {"all-gather", "reduce-scatter", "all-reduce"}),
        ("v6e:2x4", "data=2,fsdp=2,tensor=2", 8, 8, {"all-gather", "all-reduce"}),
    ],
)
def test_compiles_fits_and_tells(topology, mesh, rows, chips, kinds):
    done = kosmos2(
        *REDUCED, f"--config.data.batch_size={rows}", "--topology", topology, "--mesh", mesh,
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and 0.1 < found["peak_gib"] < found["hbm_gib"]
    assert found["attention"] == "splash"
    assert kinds <= set(found["collectives"])
    assert math.prod(found["mesh"].values()) == chips
    if mesh == "fsdp=-1":
        # Nothing but what fsdp needs: no product is cut into a ring, all groups are whole.
        assert "collective-permute" not in found["collectives"]
        assert all(c["groups"] == [chips] for c in found["collectives"].values())
    assert 0 < found["mfu"][0] <= found["mfu"][1] <= 1


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
