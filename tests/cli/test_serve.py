"""`kosmos2 serve` as a program: it listens, answers, and ends when told to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx2

from kosmos2_jax.cli import main

from ..programs import PATIENCE, ROOT, command_that_serves


def test_serves_until_it_is_stopped(model_folder: Path, picture: Path, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    words = ["--port", "0", "--name", "tiny", "--rows", "2", "--api-key-file", str(keys)]
    with command_that_serves("serve", "--model", str(model_folder), *words) as url:
        headers = {"Authorization": "Bearer secret", "Content-Type": "image/png"}
        reply = httpx2.post(
            f"{url}/v1/ground?phrase=a+star&max_tokens=8",
            content=picture.read_bytes(), headers=headers, timeout=PATIENCE,
        )  # fmt: skip
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == "tiny" and reply.json()["width"] == 80
        assert len(reply.json()["results"][0]["spans"]) == 1


def test_a_file_without_keys(tmp_path: Path, capsys):
    (tmp_path / "keys").write_text("\n")
    words = ["serve", "--model", str(tmp_path), "--api-key-file", str(tmp_path / "keys")]
    assert main(words) == 1
    assert "has no API key" in capsys.readouterr().err


def test_a_crowd_with_hostile_clients(model_folder: Path):
    """As `tools/load_test.py` measures with 200 requests of 32 clients, of a larger model."""
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools/load_test.py"), "--model", str(model_folder)),
            *("--requests", "20", "--clients", "8"),
        ],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["good"], told["right"]) == (18, 18)
    assert (told["hostile"], told["refused"]) == (2, 2)
