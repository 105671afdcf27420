"""`kosmos2 grit build`: 2,000 pairs, killed five times, and what goes wrong."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import tensorflow as tf
from PIL import Image

from kosmos2_jax.cli import main
from kosmos2_jax.data import document_files
from kosmos2_jax.data.documents import from_tf_example

pytest.importorskip("spacy")
pytest.importorskip("apache_beam")

COUNT, TARS = 2000, 4
# All captions have a noun chunk; every fifth picture has no box.
CAPTION = "a dog in a field of flowers"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of pairs, and boxes.jsonl."""
    folder = tmp_path_factory.mktemp("pairs")
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 99, 200)).save(stream, "JPEG")
    lines = []
    for number in range(TARS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for index in range(COUNT // TARS):
                key = f"{number:05d}{index:04d}"
                metadata = {"caption": CAPTION, "url": f"http://x/{key}.jpg", "key": key}
                files = {"jpg": stream.getvalue(), "json": json.dumps(metadata).encode()}
                for ending, content in files.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                box = {"phrase": "a dog", "box": [0.1, 0.1, 0.6, 0.9], "score": 0.9}
                boxes = [box] if index % 5 else []
                lines.append(json.dumps({"key": f"{number:05d}.tar:{key}", "boxes": boxes}))
    (folder / "boxes.jsonl").write_text("\n".join(lines))
    return folder


def command(pairs: Path, out: Path, *more: object) -> list[str]:
    words = [
        "grit", "build", "captions", pairs / "*.tar", "--out", out, "--detector", "boxes",
        "--model", pairs / "boxes.jsonl", "--shards", 16, "--processes", 1,
        "--direct_running_mode=in_memory", *more,
    ]  # fmt: skip
    return list(map(str, words))


def test_killed_five_times_and_resumed(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = out / "progress"
    for kill in range(5):
        before = len(list(finished.glob("train-*-of-00016.json")))
        process = subprocess.Popen(
            [sys.executable, "-m", "kosmos2_jax", *command(pairs, out)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while len(list(finished.glob("train-*-of-00016.json"))) == before:
            assert process.poll() is None, f"it ended before kill {kill}"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 5 <= len(list(finished.glob("train-*-of-00016.json"))) < 16
    done = subprocess.run(
        [sys.executable, "-m", "kosmos2_jax", *command(pairs, out)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = COUNT * 4 // 5
    files = sorted(tf.io.gfile.glob(document_files.shard_pattern(out, "train")))
    keys = [from_tf_example(raw).key for raw in tf.data.TFRecordDataset(files).as_numpy_iterator()]
    assert len(keys) == len(set(keys)) == kept
    assert not list(out.glob("*.writing-*"))
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["documents"], summary["skipped"], summary["shards"]) == (kept, 0, 16)
    assert (summary["images"], summary["boxes"], summary["spans"]) == (kept, kept, kept)
    assert summary["words"] == 7.0
    assert f"{COUNT:,} kept, 0 skipped" in done.stderr  # pairs
    assert "filtered: no box" in done.stderr and "90,614,680" in done.stderr


def test_other_settings_and_errors(pairs: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "one.txt").write_text("")

    def run(*more: object) -> tuple[int, str]:
        status = main(command(pairs, tmp_path / "out", *more))
        return status, capsys.readouterr().err

    assert run("--detector", "boxes", "--model", tmp_path / "none.jsonl")[0] == 1
    status, said = run("--score-threshold", 0.8)
    assert status == 1 and "made with other stage: name another --out" in said
    status, said = run("--score-threshold", 8)
    assert status == 1 and "score_threshold must be at least 0 and at most 1" in said
    status, said = run("--part", 8)
    assert status == 1 and "no option '--part', here or in Beam" in said
    with pytest.raises(SystemExit):
        main(["grit", "build", "captions", "x", "--out", "y", "--detector", "glip"])
    assert "invalid choice: 'glip'" in capsys.readouterr().err
    assert main(["grit", "statistics", str(tmp_path / "none.parquet")]) == 1
    assert "check how it is spelt" in capsys.readouterr().err


def test_help_is_quick_and_shows_the_way() -> None:
    words = [sys.executable, "-m", "kosmos2_jax", "grit", "build", "captions", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "--score-threshold" in done.stdout
    # Time of the processor, whatever else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
