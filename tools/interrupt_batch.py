"""Kills `kosmos2 batch` again and again, tears its last line, and looks at what is in the output.

    python tools/interrupt_batch.py --pictures 200 --kills 10

The model is tiny and random. Every picture must be in the output exactly once, in the order of the
input, and as a run gives it that nobody disturbs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kosmos2_jax.startup import prepare_environment

prepare_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import sentencepiece  # noqa: E402
from PIL import Image  # noqa: E402

from kosmos2_jax.config import preset  # noqa: E402
from kosmos2_jax.grounding import Kosmos2Vocabulary  # noqa: E402
from kosmos2_jax.inference.model import Kosmos2Model  # noqa: E402
from kosmos2_jax.interop import orbax_io  # noqa: E402

_EVERY_BAD = 20  # one picture of so many is cut short
_PATIENCE = 300.0  # seconds for one more line


def main() -> None:
    """Runs the check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_model(folder / "model")
        _make_pictures(folder / "pictures", args.pictures)
        # Each run compiles the same programs.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        started = time.monotonic()
        killed = _kill_often(folder, args.kills, rng)
        _wait(_start(folder, "killed.jsonl"))
        seconds = time.monotonic() - started
        _wait(_start(folder, "alone.jsonl"))
        found, expected = (
            [json.loads(line) for line in (folder / file).read_text().splitlines()]
            for file in ("killed.jsonl", "alone.jsonl")
        )
    names = [entry["id"] for entry in found]
    result = {
        "pictures": args.pictures, "kills": killed, "lines": len(found),
        "distinct": len(set(names)), "bad": sum("error" in entry for entry in found),
        "equal": [_told(entry) for entry in found] == [_told(entry) for entry in expected],
        "seconds": round(seconds, 1),
    }  # fmt: skip
    right = result["lines"] == result["distinct"] == args.pictures and result["equal"]
    print(json.dumps(result | {"right": right and killed == args.kills}))
    sys.exit(0 if right and killed == args.kills else 1)


def _told(entry: dict) -> tuple:
    """What is the same each time to the last bit."""
    return entry["id"], entry.get("text"), entry.get("error")


def _kill_often(folder: Path, kills: int, rng: random.Random) -> int:
    output = folder / "killed.jsonl"
    killed = 0
    for number in range(kills):
        enough = _lines(output) + rng.randint(1, 4)  # few: more come before the signal does
        program = _start(folder, output.name)
        deadline = time.monotonic() + _PATIENCE
        while _lines(output) < enough and program.poll() is None:
            if time.monotonic() > deadline:
                program.kill()
                raise TimeoutError(f"no line in {_PATIENCE:g} seconds")
            time.sleep(0.005)
        program.kill()
        killed += program.wait() == -9
        if number % 2:  # as when the machine fails while it writes
            size = output.stat().st_size
            os.truncate(output, size - rng.randint(1, min(size, 40)))
    return killed


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _start(folder: Path, output: str) -> subprocess.Popen[bytes]:
    words = [
        str(folder / "pictures"), "--model", str(folder / "model"),
        "--output", str(folder / output), "--max-new-tokens", "8",
    ]  # fmt: skip
    command = [sys.executable, "-m", "kosmos2_jax", "batch", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _wait(program: subprocess.Popen[bytes]) -> None:
    if program.wait():
        raise RuntimeError(f"kosmos2 batch ended with status {program.returncode}")


def _make_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"{number:04}.png"
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(file)
        if number % _EVERY_BAD == _EVERY_BAD // 2:
            os.truncate(file, 100)


def _make_model(folder: Path) -> None:
    pieces = folder.with_name("small")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small red star left of the blue square", "An image of it."]),
        model_prefix=str(pieces), vocab_size=60, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    vocabulary = Kosmos2Vocabulary(pieces.with_suffix(".model"), grid_size=8)
    decoder = {"vocab_size": vocabulary.vocab_size, "num_layers": 1}
    config = preset("tiny").replace(grid_size=8, decoder=decoder)
    params = Kosmos2Model(config).init(jax.random.key(0))
    orbax_io.save_folder(folder, params, config, vocabulary)


if __name__ == "__main__":
    main()
