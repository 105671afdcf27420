"""`kosmos2 demo` as a program: it serves the page, and ends when told to."""

from __future__ import annotations

from pathlib import Path

import httpx2

from kosmos2_jax.cli import main

from ..programs import PATIENCE, command_that_serves


def test_serves_the_page_until_it_is_stopped(model_folder: Path, picture: Path):
    words = ["--port", "0", "--name", "mine", "--examples", str(picture.parent)]
    with command_that_serves("demo", "--model", str(model_folder), *words) as url:
        reply = httpx2.get(url, timeout=PATIENCE)
        assert reply.status_code == 200 and "mine · kosmos2" in reply.text
        assert "data:image/png;base64," in reply.text  # the example


def test_examples_are_looked_for_before_the_model_is_read(tmp_path: Path, capsys):
    words = ["demo", "--model", str(tmp_path), "--examples", str(tmp_path / "none")]
    assert main(words) == 1
    assert "There is no folder" in capsys.readouterr().err
