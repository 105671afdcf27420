"""`kosmos2 batch`: its inputs, its output, and that nothing is lost or done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.cli import main
from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.inference.batch import BatchFile, Item, find_items

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three, one of them broken, and a file that is none."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.png", "deep/c.PNG"):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / name)
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    return folder


def entries(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_picture_has_a_line(pictures: Path, model_folder: Path, capsys, tmp_path: Path):
    output = tmp_path / "out.jsonl"
    words = ["batch", str(pictures), "--model", str(model_folder), "--output", str(output)]
    assert main([*words, "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == f"{output}: 3 of 3, 1 with an error\n"
    found = entries(output)
    assert [entry["id"] for entry in found] == [
        str(pictures / name) for name in ("a.png", "b.png", "deep/c.PNG")
    ]
    assert "cut short" in found[0]["error"] and "text" not in found[0]
    assert all(entry["text"].startswith("An image of") for entry in found[1:])
    written = output.read_bytes()
    assert main(words) == 0
    assert "all 3 are done already" in capsys.readouterr().out and output.read_bytes() == written
    assert main([*words, "--task", "ground", "--phrase", "a star"]) == 1
    assert "is of the task 'describe', not 'ground'" in capsys.readouterr().err
    # A torn line is done again, and what is whole is left as it is.
    output.write_bytes(written[:-10])
    assert main([*words, "--max-new-tokens", "8"]) == 0
    assert entries(output)[:2] == found[:2]
    assert [(e["id"], e["text"]) for e in entries(output)[2:]] == [
        (found[2]["id"], found[2]["text"])
    ]


def test_lines_have_questions_of_their_own(pictures: Path, model_folder: Path, tmp_path: Path):
    lines = pictures / "lines.jsonl"
    lines.write_text(
        '{"image": "b.png", "box": [0.1, 0.1, 0.9, 0.9], "id": 7}\n\n{"image": "deep/c.PNG"}\n'
        '{"image": "b.png", "box": [0.9, 0.1, 0.1, 0.9], "id": "reversed"}\n'
    )
    output = tmp_path / "out.jsonl"
    words = ["batch", str(lines), "--task", "refer", "--box", "0,0,1,0.5", "--output", str(output)]
    assert main([*words, "--model", str(model_folder), "--max-new-tokens", "4"]) == 0
    found = entries(output)
    assert [entry["id"] for entry in found] == ["7", "deep/c.PNG", "reversed"]
    assert "text" in found[0] and "text" in found[1] and "is reversed" in found[2]["error"]


def test_inputs_that_cannot_be(pictures: Path, tmp_path: Path, capsys):
    assert [item.image.name for item in find_items(f"{pictures}/**/*.[pP]*")] == [
        "a.png", "b.png", "c.PNG"
    ]  # fmt: skip
    lines = tmp_path / "lines.jsonl"
    for text, words in (
        ("", "has no pictures"),
        ('{"image": "a"}\n{"picture": "b"}\n', "Line 2"),
        ("[]\n", "Line 1"),
        ('{"image": "a"}\n{"image": "a"}\n', "make ids unique"),
    ):
        lines.write_text(text)
        with pytest.raises(Kosmos2Error, match=words):
            find_items(str(lines))
    lines.write_text('{"image": "a", "phrase": "a star", "colour": "red"}\n')
    output = ["--output", str(tmp_path / "out.jsonl"), "--model", str(tmp_path)]
    assert main(["batch", str(lines), "--task", "ground", *output]) == 1
    assert "the field 'colour'" in capsys.readouterr().err
    assert main(["batch", str(pictures), "--task", "ask", *output]) == 1
    assert "has no question: add --question" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_belongs_to_one_program_and_one_task(tmp_path: Path):
    file = tmp_path / "out.jsonl"
    with BatchFile(file, "ask") as output:
        output.write(Item("a", Path("a"), {}), {"text": "half of a letter: \ud800"})
        with pytest.raises(Kosmos2Error, match="another program"):
            BatchFile(file, "ask")
    with BatchFile(file, "ask") as output:
        assert output.done == {"a"}
    file.write_text("not of a batch\n")
    with pytest.raises(Kosmos2Error, match="Line 1"):
        BatchFile(file, "ask")
    assert file.read_text() == "not of a batch\n"


def test_kills_lose_nothing():
    """As `tools/interrupt_batch.py` shows of 200 pictures and ten kills."""
    tool = ROOT / "tools" / "interrupt_batch.py"
    result = subprocess.run(
        [sys.executable, str(tool), "--pictures", "60", "--kills", "2"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["right"] and told["lines"] == told["distinct"] == 60 and told["bad"] == 3
