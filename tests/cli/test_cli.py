"""The command line, in this process: results, files, and one clear line for every bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from kosmos2_jax import __version__
from kosmos2_jax.cli import main
from kosmos2_jax.grounding import GroundedText
from kosmos2_jax.inference.predictor import Predictor


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in words])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    return status, out, err


def fails(capsys: pytest.CaptureFixture[str], status: int, *words: object) -> str:
    """The one line of a command that must fail so."""
    found, out, err = run(capsys, *words)
    assert found == status and out == ""
    assert err.startswith("kosmos2: error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


# What works ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["describe"],
        ["describe", "--detailed"],
        ["ground", "a red star"],
        ["refer", "--box", "0.1,0.2,0.5,0.9"],
        ["refer", "--box", "8,12,40,54"],
        ["ask", "what is it?"],
        ["ask", "what is it?", "--grounded"],
    ],
    ids=" ".join,
)
def test_tasks(words: list[str], capsys, picture: Path, model_folder: Path, tmp_path: Path):
    command = [words[0], picture, *words[1:], "--model", model_folder, "--max-new-tokens", 8]
    drawn = tmp_path / "drawn.png"
    status, out, err = run(capsys, *command, "--output", drawn)
    assert status == 0 and out.endswith("\n")
    assert all(line.startswith("kosmos2: note: ") for line in err.splitlines())
    assert Image.open(drawn).width >= 80
    status, out, err = run(capsys, *command, "--json")
    assert status == 0 and err == ""
    result = GroundedText.from_dict(json.loads(out))
    if words[0] == "ground":
        assert result.text == "a red star"


def test_pixels_and_fractions_are_the_same_box(capsys, picture: Path, model_folder: Path):
    common = ["--model", model_folder, "--max-new-tokens", 8, "--json"]
    fractions = run(capsys, "refer", picture, "--box", "0.1,0.2,0.5,0.9", *common)
    pixels = run(capsys, "refer", picture, "--box", "8,12,40,54", *common)
    assert fractions == pixels and fractions[0] == 0


def test_convert(capsys, model_folder: Path, tmp_path: Path):
    status, out, _ = run(capsys, "convert", model_folder, tmp_path / "hf", "--to", "hf")
    assert status == 0 and "hugging_face from orbax" in out
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    again = fails(capsys, 1, "convert", model_folder, tmp_path / "hf", "--to", "hf")
    assert "exists" in again
    status, _, _ = run(
        capsys, "convert", model_folder, tmp_path / "hf", "--to", "hf", "--overwrite"
    )
    assert status == 0


def test_converting_without_a_tokenizer_says_so(capsys, model_folder: Path, tmp_path: Path):
    import shutil

    source = tmp_path / "bare"
    shutil.copytree(model_folder, source)
    shutil.rmtree(source / "tokenizer")
    status, _, err = run(capsys, "convert", source, tmp_path / "hf", "--to", "hf")
    assert status == 0 and "no tokenizer" in err


def test_version_and_help(capsys):
    assert run(capsys, "--version") == (0, f"kosmos2 {__version__}\n", "")
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(name in out for name in ("describe", "ground", "refer", "ask", "convert"))
    status, out, _ = run(capsys, "refer", "--help")
    assert status == 0
    assert "fractions" in out and "pixels if any number is greater than 1" in " ".join(out.split())


# Bad input -----------------------------------------------------------------------------------


def _bad_picture(kind: str, folder: Path, good: Path) -> Path:
    path = folder / f"{kind}.png"
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:2000])
    elif kind == "100 megapixels":
        Image.new("1", (10_000, 10_000)).save(path)
    elif kind == "text":
        path.write_text("no picture")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [("truncated", "cut short"), ("100 megapixels", "too large"), ("text", "not a picture"),
     ("missing", "does not exist")],
)  # fmt: skip
def test_bad_pictures(kind: str, message: str, capsys, picture, model_folder, tmp_path: Path):
    bad, drawn = _bad_picture(kind, tmp_path, picture), tmp_path / "drawn.png"
    line = fails(capsys, 1, "describe", bad, "--model", model_folder, "--output", drawn)
    assert message in line and not drawn.exists()


@pytest.mark.parametrize(
    ("box", "status", "message"),
    [
        ("0.5,0.1,0.2,0.9", 1, "reversed"),
        ("0.5,0.1,0.5,0.9", 1, "no area"),
        ("-0.1,0,0.5,0.9", 1, "outside"),
        ("10,10,90,50", 1, "has 80x60"),
        ("-3,10,20,50", 1, "outside"),
        ("nan,0,0.5,0.9", 1, "not a finite number"),
        ("nan,0,50,50", 1, "outside"),
        ("0.1,0.2,0.3", 2, "not four numbers"),
        ("a,b,c,d", 2, "not four numbers"),
    ],
)
def test_bad_boxes(box: str, status: int, message: str, capsys, picture, model_folder):
    line = fails(capsys, status, "refer", picture, "--box", box, "--model", model_folder)
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ground", "a <phrase>dog</phrase>"], "must not hold the tag <phrase>"),
        (["ground", " "], "empty"),
        (["ask", " "], "empty"),
    ],
)
def test_bad_texts(words: list[str], message: str, capsys, picture, model_folder):
    assert message in fails(capsys, 1, words[0], picture, words[1], "--model", model_folder)


def test_tags_in_a_question_are_text(capsys, picture, model_folder):
    question = "where is <patch_index_0044>?"
    command = ["ask", picture, question, "--model", model_folder, "--max-new-tokens", 6]
    status, out, _ = run(capsys, *command)
    told = Predictor.from_pretrained(model_folder, max_new_tokens=6).ask(picture, question)
    assert status == 0 and out.rstrip("\n") == told.text


def _bad_checkpoint(kind: str, folder: Path, good: Path) -> Path:
    import shutil

    path = folder / "checkpoint"
    if kind == "missing":
        return path
    if kind == "cut short":
        shutil.copytree(good, path)
        largest = max((path / "params").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        return path
    path.mkdir()
    if kind == "another model":
        (path / "config.json").write_text('{"model_type": "llama"}')
    elif kind == "unknown setting":
        values = json.loads((good / "kosmos2.json").read_text())
        values["config"]["decoder"]["num_layer"] = 3
        (path / "kosmos2.json").write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [("missing", "does not exist"), ("empty", "empty folder"), ("cut short", "cut short"),
     ("another model", "llama"), ("unknown setting", "did you mean decoder.num_layers")],
)  # fmt: skip
def test_bad_checkpoints(kind: str, message: str, capsys, picture, model_folder, tmp_path: Path):
    bad = _bad_checkpoint(kind, tmp_path, model_folder)
    assert message in fails(capsys, 1, "describe", picture, "--model", bad)
    destination = tmp_path / "copy"
    assert message in fails(capsys, 1, "convert", bad, destination, "--to", "hf")
    assert not destination.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["describe", "a.png", "--modle", "m"], "unknown option --modle; did you mean --model?"),
        (["describe", "a.png", "--model=m", "--jsn"], "unknown option --jsn; did you mean --json?"),
        (["describe", "a.png", "--out", "b.png"], "unknown option --out"),
        (["--verson"], "unknown option --verson; did you mean --version?"),
        (["descibe", "a.png"], "unknown command 'descibe'; did you mean describe?"),
        (["describe", "a.png"], "required: --model"),
        (["describe", "a.png", "b.png", "--model", "m"], "unrecognized arguments: b.png"),
        (["convert", "a", "b", "--to", "onnx"], "'onnx'"),
        (["ask", "a.png", "why?", "--model", "m", "--max-new-tokens", "0"], "positive"),
        ([], "COMMAND"),
    ],
)
def test_usage_errors(words: list[str], message: str, capsys):
    assert message in fails(capsys, 2, *words)


def test_nothing_is_overwritten(capsys, picture: Path, model_folder: Path, tmp_path: Path):
    command = ["describe", picture, "--model", model_folder, "--max-new-tokens", 8, "--output"]
    before = picture.read_bytes()
    assert "add --overwrite" in fails(capsys, 1, *command, picture)
    assert picture.read_bytes() == before
    assert run(capsys, *command, picture, "--overwrite")[0] == 0
    assert picture.read_bytes() != before
    assert "is a folder" in fails(capsys, 1, *command, tmp_path)
    assert "no known ending" in fails(capsys, 1, *command, tmp_path / "drawn.xyz")
    assert "does not exist" in fails(capsys, 1, *command, tmp_path / "no" / "drawn.png")


def test_debug_shows_where(capsys, tmp_path: Path):
    for words in (["--debug", "describe"], ["describe", "--debug"]):
        with pytest.raises(ValueError, match="does not exist"):
            main([*words, str(tmp_path / "a.png"), "--model", str(tmp_path)])


def test_a_missing_package_is_named(capsys, picture, model_folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    line = fails(capsys, 1, "describe", picture, "--model", model_folder)
    assert "the Python package 'orbax' is missing" in line
