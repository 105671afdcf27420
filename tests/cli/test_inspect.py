"""`kosmos2 inspect` on small data that are read as in training, and what goes wrong there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kosmos2_jax.cli import main
from kosmos2_jax.data import prepare
from kosmos2_jax.data.readers import FORMATS
from kosmos2_jax.data.text_model import train_sentencepiece

from ..data import prepared

SMALL = (
    "--config.data.length=72",
    "--config.data.images=4",
    "--config.data.streams=1",
    "--config.data.shuffle_buffer=8",
    "--config.model.grid_size=8",
    "--config.model.vision.image_size=16",
    "--config.model.vision.patch_size=8",
    "--config.model.resampler.num_latents=4",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sources of all kinds of the papers' mixture, one document of GRIT bad."""
    folder = tmp_path_factory.mktemp("prepared")
    sentences = [f"a {prepared.words(n, 6)} and Question: Answer: It is the ." for n in range(40)]
    train_sentencepiece(sentences, folder / "sentencepiece.bpe.model", 80)
    prepared.write_all(folder, 64, ("text", "captions", "interleaved"))
    documents = [prepared.document("grounded", n) for n in range(64)]
    documents[0] = prepared.document("grounded", 0, images=())
    prepared.write(folder / "grit", documents)
    return folder


def inspect(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    capsys.readouterr()
    try:
        status = main(["inspect", *map(str, words)])
    except SystemExit as ended:
        status = ended.code
    return status, *capsys.readouterr()


def test_packed_rows_of_prepared_sources(folder: Path, capsys, tmp_path: Path):
    page = tmp_path / "sheet.html"
    words = ("--config=configs/kosmos2_pretrain.py", *SMALL, f"--config.data.folder={folder}")
    status, out, err = inspect(capsys, *words, "--output", page, "--n", 3, "--count", 24)
    assert (status, out, err) == (0, f"{page}: open it in a browser\n", "")
    html = page.read_text()
    assert [f'id="r{n}"' in html for n in (1, 3, 4)] == [True, True, False]
    assert "Statistics of 24 rows" in html and 'id="r1e2"' in html
    # The shares that the mixture asks for: 93, 1117, 1117 and 47 of 2,374.
    for task, share in (("text", "3.9"), ("captions", "47.1"), ("grounded", "47.1")):
        assert re.search(rf"</span>{task}</th><td>{share}%</td>", html)
    assert "caption without exactly one picture: 1" in html
    assert html.count('src="data:image/webp') > 3
    again = inspect(capsys, *words, "--output", page)
    assert again[0] == 1 and "add --overwrite" in again[2]
    few = ("--n", 1, "--count", 1, "--overwrite")
    assert inspect(capsys, *words, "--output", page, *few)[0] == 0
    assert "Statistics of 1 row<" in page.read_text()
    # The same rows, whatever the number of rows read at a time.
    first = [re.search(r'id="r1">.*?</section>', text)[0] for text in (html, page.read_text())]
    assert first[0] == first[1]


def test_the_quickstart_makes_its_data_where_it_is_told(capsys, tmp_path: Path):
    page, workdir = tmp_path / "sheet.html", tmp_path / "run"
    settings = ("--config.data.train_scenes=64", "--config.data.test_scenes=8")
    words = ("--config", "configs/quickstart.py", *settings, "--workdir", workdir)
    status, _, err = inspect(capsys, *words, "--output", page, "--n", 2, "--count", 16)
    assert (status, err) == (0, "")
    assert (workdir / "data" / "scenes").is_dir()
    html = page.read_text()
    assert "one example a row" in html and "quickstart_scenes_referring" in html
    assert "loss weight 0.1<" in html and "loss weight 1<" in html


def test_without_a_place_the_quickstart_draws_what_the_page_needs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--config=configs/quickstart.py", "--config.data.train_scenes=70", "--n=1")
    assert inspect(capsys, *words, "--count=8", "--output=sheet.html")[0] == 0
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.html"]


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [
        (2, ["--output", "a.html"], "required: --config"),
        (2, ["--config=c.py"], "required: --output"),
        (2, ["--config=c.py", "--output=a.html", "--n=0"], "not a positive whole number"),
        (2, ["--config=c.py", "--output=a.html", "--count=few"], "not a positive whole number"),
        (2, ["--config=c.py", "--output=a.html", "--config.data.length"], "lacks a value"),
        (2, ["--config=c.py", "--output=a.html", "--rows=2"], "unknown option --rows"),
        (1, ["--config=none.py", "--output=a.html"], "no configuration file none.py"),
        (
            1,
            ["--config=configs/quickstart.py", "--output=a.html", "--config.data.lenght=9"],
            "unknown setting data.lenght; did you mean data.length?",
        ),
        (
            1,
            [
                "--config=configs/kosmos2_pretrain.py",
                "--output=a.html",
                "--config.data.folder=none",
            ],
            "holds no prepared source",
        ),
        (1, ["--config=configs/quickstart.py", "--output=none/a.html"], "does not exist"),
        (1, ["--config=configs/quickstart.py", "--output=."], "is a folder"),
    ],
)
def test_bad_arguments(status, words, message, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, out, err = inspect(capsys, *words)
    assert (found, out) == (status, "") and not Path("a.html").exists()
    assert err.startswith("kosmos2: error: ") and err.count("\n") == 1 and message in err


def test_settings_are_of_inspect_alone(capsys):
    with pytest.raises(SystemExit):
        main(["describe", "a.png", "--model=m", "--config.data.length=3"])
    assert "unknown option --config.data.length" in capsys.readouterr().err


def test_without_what_training_needs_it_says_so(tmp_path: Path):
    code = (
        "import sys; sys.modules['seqio'] = None; from kosmos2_jax.cli import main;"
        f"sys.exit(main(['inspect', '--config=c.py', '--output={tmp_path / 'a.html'}']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "'seqio' is missing: run `pip install 'kosmos2-jax[train]'`" in result.stderr


def test_imported_boxes(folder: Path, capsys, tmp_path: Path):
    boxes = [{"label": "blue star", "box": [0.1, 0.1, 0.6, 0.6]}]
    lines = [json.dumps({"image": f"{n}.png", "boxes": boxes}) for n in range(8)]
    (tmp_path / "boxes.jsonl").write_text("\n".join([*lines, json.dumps({"image": "lost.png"})]))
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(prepared.picture(number))
    options = FORMATS["boxes-jsonl"].options(units="fractions")
    out = str(tmp_path / "data" / "grit" / "mine")
    prepare.convert_all(
        prepare.make_plan(
            "boxes-jsonl", [str(tmp_path / "boxes.jsonl")], out, options=options, num_shards=1
        ),
        max_skipped=0.2,
    )
    page = tmp_path / "sheet.html"
    status, _, err = inspect(
        capsys, "--config=configs/finetune.py", *SMALL, f"--config.data.folder={tmp_path / 'data'}",
        f"--config.data.tokenizer={folder / 'sentencepiece.bpe.model'}", "--output", page,
        "--config.init_from.architecture=False", "--n", 2, "--count", 4,
    )  # fmt: skip
    assert (status, err) == (0, "")
    html = page.read_text()
    shown = re.sub("<[^>]*>", "", html)
    assert "&lt;phrase&gt; a blue star&lt;/phrase&gt;&lt;object&gt;00000036&lt;/object&gt;" in shown
    assert html.count('src="data:image/webp') >= 2
