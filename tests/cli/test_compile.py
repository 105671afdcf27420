"""`kosmos2 compile`: the real TPU compiler on the pretraining configuration, and plain errors."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from kosmos2_jax.cli import main

pytest.importorskip("libtpu")

CONFIG = "--config=configs/kosmos2_pretrain.py"
# Every part of the step, narrow: compilation takes as long as there are kinds of kernels and no
# longer for more layers, and half as long where the compiler does not try hard.
REDUCED = (
    CONFIG,
    "--config.model.decoder.num_layers=2",
    "--config.model.decoder.hidden_size=256",
    "--config.model.decoder.num_heads=4",
    "--config.model.decoder.mlp_dim=1024",
    "--config.model.vision.num_layers=2",
    "--config.model.vision.hidden_size=128",
    "--config.model.vision.num_heads=2",
    "--config.model.vision.mlp_dim=512",
    "--config.data.images=2",
    "--config.data.batch_size=16",
)
QUICKLY = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}


def compiled(*words: str, **settings: str) -> dict[str, Any]:
    """What `kosmos2 compile … --json` prints."""
    # The settings of this suite's own process are no user's; the kernels know no "highest".
    ours = ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_COMPILATION_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in ours} | settings
    done = subprocess.run(
        [sys.executable, "-m", "kosmos2_jax", "compile", *words, "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def check(found: dict[str, Any], mesh: dict[str, int], kinds: set[str]) -> None:
    """The step fits, its attention is the kernel, and what travels is what the mesh needs.

    Parameters are gathered along fsdp, their gradients go back to their owners in rings or in one
    go, and along tensor parts of products are summed up. Where a chip has little of each
    parameter, on large slices, the compiler makes sums over all chips of gathers and scatters.
    """
    assert found["fits"] and 0.1 < found["peak_gib"] < found["hbm_gib"]
    assert found["attention"] == "splash"
    assert {axis: size for axis, size in found["mesh"].items() if size > 1} == mesh
    sent = found["collectives"]
    groups = {kind: set(traffic["groups"]) for kind, traffic in sent.items()}
    fsdp, tensor, chips = mesh["fsdp"], mesh.get("tensor", 1), math.prod(mesh.values())
    # Rows of the token table, of which every chip has a part of each, go to the chips of the rows.
    assert set(groups) == {*kinds, "all-reduce", "all-to-all"}
    assert groups["all-to-all"] == {fsdp}
    assert {chips, tensor} - {1} <= groups["all-reduce"]
    assert groups.pop("collective-permute", {2}) == {2}
    if tensor > 1:  # then rows of the token table are gathered in groups of the compiler's choice
        assert fsdp in groups.pop("all-gather")
    assert set().union(*groups.values()) <= {fsdp, tensor, chips}
    assert all(traffic["sent"] > 0 and not traffic["at_least"] for traffic in sent.values())
    assert 0 < found["mfu"][0] <= found["mfu"][1] <= 1


GATHERS, SCATTERS, RINGS = "all-gather", "reduce-scatter", "collective-permute"


@pytest.mark.timeout(1800)
def test_compiles_with_products_cut_along_tensor():
    mesh = {"fsdp": 8, "tensor": 2}
    found = compiled(*REDUCED, "--topology", "v6e:4x4", "--mesh", "fsdp=8,tensor=2", **QUICKLY)
    check(found, mesh, {GATHERS, SCATTERS, RINGS})


# The settings that README.md names; those marked take minutes.
SLOW = pytest.mark.skipif("KOSMOS2_FULL_COMPILE" not in os.environ, reason="takes some minutes")
FULL = [
    pytest.param("v5e:4x4", 4, {"fsdp": 16}, {GATHERS, RINGS}, id="v5e-16"),
    pytest.param("v6e:4x4", 2, {"fsdp": 16}, {GATHERS, RINGS}, id="v6e-16"),
    pytest.param("v5e:16x16", 1, {"fsdp": 256}, {GATHERS}, id="v5e-256", marks=SLOW),
    pytest.param("v5p:4x4x4", 1, {"fsdp": 64}, set(), id="v5p-64", marks=SLOW),
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("topology", "parts", "mesh", "kinds"), FULL)
def test_pretraining_compiles_at_full_size(topology, parts, mesh, kinds):
    settings = f"--config.micro_batches={parts}"
    check(compiled(CONFIG, settings, "--topology", topology, **QUICKLY), mesh, kinds)


def test_what_does_not_fit_is_said_without_a_program(capsys):
    """Logits of 64 rows a chip at once are too much for 16 GiB."""
    rows = ("--config.data.batch_size=1024", "--config.loss_chunk=0", "--config.data.images=1")
    # Splash attention knows no "highest" precision, which this process has.
    settings = (*REDUCED, *rows, "--config.model.attention=xla")
    assert main(["compile", *settings, "--topology", "v5e:4x4"]) == 0
    first, verdict, mend = capsys.readouterr().out.splitlines()
    assert first.startswith("16 x v5e, fsdp 16; 1024 rows of 2048 tokens")
    needed = re.fullmatch(r"DOES NOT FIT: ([\d.]+) GiB of 16.00 GiB a chip \(\d+%\)", verdict)
    assert 16 < float(needed[1]) < 256
    assert "gave up" in mend and "micro_batches" in mend


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
