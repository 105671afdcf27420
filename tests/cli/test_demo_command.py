"""`kosmos2 demo` as a program: it serves the page, and ends when told to."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

from kosmos2_jax.cli import main

PATIENCE = 300  # seconds


def test_serves_the_page_until_it_is_stopped(model_folder: Path, picture: Path):
    words = ["--port", "0", "--name", "mine", "--examples", str(picture.parent)]
    command = [sys.executable, "-m", "kosmos2_jax", "demo", "--model", str(model_folder), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = server.stderr.readline()
                assert line, said
                said += line
            reply = httpx2.get(found.group(), timeout=PATIENCE)
            assert reply.status_code == 200 and "mine · kosmos2" in reply.text
            assert "data:image/png;base64," in reply.text  # the example
            server.send_signal(signal.SIGTERM)
            rest = server.communicate(timeout=PATIENCE)[1]
            assert server.returncode in (0, -signal.SIGTERM) and "Traceback" not in rest
        finally:
            server.kill()


def test_examples_are_looked_for_before_the_model_is_read(tmp_path: Path, capsys):
    words = ["demo", "--model", str(tmp_path), "--examples", str(tmp_path / "none")]
    assert main(words) == 1
    assert "There is no folder" in capsys.readouterr().err
