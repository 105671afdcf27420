"""The tool: its help, and whole runs of the Beam pipeline with two processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from kosmos2_jax.data import document_files, prepare, prepare_beam
from kosmos2_jax.data.documents import Document, from_tf_example
from kosmos2_jax.data.readers import FORMATS

ROOT = Path(__file__).resolve().parents[3]
TOOL = str(ROOT / "tools" / "prepare_data.py")


def _run(*args: Any, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def _documents(out: Path) -> list[Document]:
    files = sorted(tf.io.gfile.glob(document_files.shard_pattern(out, "train")))
    return [from_tf_example(raw) for raw in tf.data.TFRecordDataset(files).as_numpy_iterator()]


def test_help_shows_a_line_for_each_format_without_heavy_imports() -> None:
    done = _run("--help")
    assert done.returncode == 0
    for format in FORMATS.values():
        assert f"python tools/prepare_data.py {format.example}" in done.stdout
    code = (
        "import sys, runpy\n"
        f"sys.argv = [{TOOL!r}, '--help']\n"
        f"try: runpy.run_path({TOOL!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'jax', 'apache_beam', 'pyarrow', 'seqio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", FORMATS)
def test_examples_in_the_help_are_accepted(name: str) -> None:
    """Up to the inputs, which are not there."""
    example = FORMATS[name].example.replace("'", "").split()
    done = _run(*example) if name != "tfds" else _run(name, "--help")
    assert done.returncode == (0 if name == "tfds" else 1)
    assert name == "tfds" or "check how it is spelt" in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_reasons_are_told_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_beam, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(prepare_beam, "_SECONDS_BETWEEN_LINES", 0.02)
    lines = [json.dumps({"text": f"document {i}"}) for i in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{", "{", ""]))
    plan = prepare.make_plan("jsonl", [str(tmp_path)], str(tmp_path / "out"), num_shards=1)
    told = ""
    with prepare_beam.progress_lines(plan, 0.05):
        prepare.convert_all(plan)
        ends = time.monotonic() + 60
        while "1/1 shards" not in told and time.monotonic() < ends:
            time.sleep(0.01)
            told += capsys.readouterr().err
    assert len(re.findall(r"^out: not JSON \(\d so far\)$", told, re.MULTILINE)) == 1
    assert re.search(r"1/1 shards, 100 documents, 2 skipped, .* \(not JSON: 2\)\n", told)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gritt", "x"], "did you mean grit?"),
        (["zzz", "x"], "use one of jsonl, plain"),
        (["jsonl", "x"], "--out"),
        (["jsonl", "x", "--out", "y", "--shards", "0"], "must be at least 1"),
        (["mmc4", "x", "--out", "y"], "--images"),
    ],
)
def test_usage_errors(args: Sequence[str], message: str) -> None:
    done = _run(*args)
    assert done.returncode == 2 and message in done.stderr


class TestPipeline:
    """Runs that need Apache Beam."""

    @pytest.fixture(autouse=True)
    def _beam(self) -> None:
        pytest.importorskip("apache_beam")

    def test_text_from_one_file_by_two_processes(self, tmp_path: Path) -> None:
        texts = [f"document {i}" for i in range(100)]
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{", ""]))
        args = ("jsonl", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--shards", 4)
        done = _run(*args, "--processes", 2)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout.splitlines()[-1])
        assert (summary["documents"], summary["skipped"], summary["shards"]) == (100, 1, 4)
        assert "100 kept, 1 skipped (0.99%)" in done.stderr and "not JSON" in done.stderr
        found = _documents(tmp_path / "out")
        assert sorted(document.content["text"] for document in found) == sorted(texts)
        again = _run(*args)
        assert again.returncode == 0 and "4 shards, 0 to be written" in again.stderr
        assert json.loads(again.stdout.splitlines()[-1])["documents"] == 100
        other = _run(*args, "--source", "pile")
        assert other.returncode == 1
        assert "made with other source: name another --out" in other.stderr
        bad = _run(*args, "--max-skipped", 0.001)
        assert bad.returncode == 1 and "more than the limit of 0.1%" in bad.stderr
        assert len(_documents(tmp_path / "out")) == 100

    def test_killed_and_resumed(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for number in range(6):
            lines = [json.dumps({"text": f"{number} {i} {'x' * 200}"}) for i in range(4000)]
            (tmp_path / "in" / f"{number}.jsonl").write_text("\n".join(lines))
        args = ["jsonl", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--shards", "6"]
        args += ["--direct_running_mode=in_memory", "--processes", "1"]
        process = subprocess.Popen(
            [sys.executable, TOOL, *args],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        finished = tmp_path / "out" / "progress"
        while not list(finished.glob("train-*-of-00006.json")) and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before = {path: path.stat().st_mtime_ns for path in finished.glob("train-*-of-00006.json")}
        done = _run(*args)
        assert done.returncode == 0, done.stderr
        assert {path: path.stat().st_mtime_ns for path in before} == before
        texts = [document.content["text"] for document in _documents(tmp_path / "out")]
        assert len(texts) == len(set(texts)) == 24_000

    def test_flags_of_beam(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a"}')
        args = ("jsonl", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--shards", 1)
        done = _run(*args, "--image-sise=224")
        assert done.returncode == 1 and "no option '--image-sise', here or in Beam" in done.stderr
        assert not (tmp_path / "out").exists()
        done = _run(
            *args,
            "--runner=DirectRunner",
            "--direct_running_mode=in_memory",
            "--direct_num_workers=1",
        )
        assert done.returncode == 0, done.stderr
