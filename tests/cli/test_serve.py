"""`kosmos2 serve` as a program: it listens, answers, and ends when told to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

from kosmos2_jax.cli import main

PATIENCE = 300  # seconds


def test_serves_until_it_is_stopped(model_folder: Path, picture: Path, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    words = ["--port", "0", "--name", "tiny", "--rows", "2", "--api-key-file", str(keys)]
    command = [sys.executable, "-m", "kosmos2_jax", "serve", "--model", str(model_folder), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = server.stderr.readline()
                assert line, said
                said += line
            headers = {"Authorization": "Bearer secret", "Content-Type": "image/png"}
            reply = httpx2.post(
                f"{found.group()}/v1/ground?phrase=a+star&max_tokens=8",
                content=picture.read_bytes(), headers=headers, timeout=PATIENCE,
            )  # fmt: skip
            assert reply.status_code == 200, reply.text
            assert reply.json()["model"] == "tiny" and reply.json()["width"] == 80
            assert len(reply.json()["results"][0]["spans"]) == 1
            server.send_signal(signal.SIGTERM)
            rest = server.communicate(timeout=PATIENCE)[1]
            assert server.returncode in (0, -signal.SIGTERM) and "Traceback" not in rest
        finally:
            server.kill()


def test_a_file_without_keys(tmp_path: Path, capsys):
    (tmp_path / "keys").write_text("\n")
    words = ["serve", "--model", str(tmp_path), "--api-key-file", str(tmp_path / "keys")]
    assert main(words) == 1
    assert "has no API key" in capsys.readouterr().err


def test_a_crowd_with_hostile_clients():
    """As `tools/load_test.py` measures with 200 requests of 32 clients."""
    tool = Path(__file__).resolve().parents[2] / "tools" / "load_test.py"
    result = subprocess.run(
        [sys.executable, str(tool), "--requests", "20", "--clients", "8"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["good"], told["right"]) == (18, 18)
    assert (told["hostile"], told["refused"]) == (2, 2)
