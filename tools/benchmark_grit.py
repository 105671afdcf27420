"""Measures `kosmos2 grit build`: the same pairs with one process and with several.

    python tools/benchmark_grit.py --pairs 20000 --processes 2

Pictures are noise of 320x240, captions one of some sentences, boxes from a file: what is measured
is all but the detector. The start of processes, some seconds whatever they do afterwards, is
measured by a build of a pair for each shard, and told apart. Files must be the same with any number
of processes. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from kosmos2_jax.cli import main as kosmos2

CAPTIONS = (
    "a dog in a field of flowers",
    "two children with a red ball on the beach",
    "a small white boat beside a wooden house with a blue door",
    "the old man in a black coat next to a bicycle",
)
_TARS = 8
_SHARDS = 16
_PICTURES = 32


def main() -> None:
    """Makes pairs, builds them with one process and with several, prints how they compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20_000, help="how many (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=2, help="to compare with one (%(default)s)"
    )
    args = parser.parse_args()
    counts = sorted({1, args.processes})
    with tempfile.TemporaryDirectory() as folder:
        few, all_pairs = Path(folder) / "few", Path(folder) / "all"
        make_pairs(few, _SHARDS)
        make_pairs(all_pairs, args.pairs)
        starts = {n: build(few, n) for n in counts}
        seconds = {n: build(all_pairs, n) for n in counts}
        made = [records(all_pairs, n) for n in counts]
    speed = {n: (args.pairs - _SHARDS) / (seconds[n] - starts[n]) for n in counts}
    figures = {
        "pairs": args.pairs,
        "processes": counts,
        "seconds": [round(seconds[n], 1) for n in counts],
        "seconds_of_start": [round(starts[n], 1) for n in counts],
        "pairs_per_second": [round(speed[n]) for n in counts],
        "times_as_fast": round(speed[counts[-1]] / speed[1], 2),
        "times_as_fast_with_start": round(seconds[1] / seconds[counts[-1]], 2),
        "same_records": made[0] == made[-1],
    }
    print(json.dumps(figures))


def make_pairs(folder: Path, count: int) -> None:
    """Writes tars of img2dataset and a file of boxes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = [_picture(rng) for _ in range(_PICTURES)]
    with open(folder / "boxes.jsonl", "w") as boxes:
        for number in range(_TARS):
            with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
                for index in range(number, count, _TARS):
                    key, caption = f"{index:09d}", CAPTIONS[index % len(CAPTIONS)]
                    metadata = json.dumps({"caption": caption, "url": f"http://x/{key}"})
                    _add(tar, f"{key}.jpg", pictures[index % _PICTURES])
                    _add(tar, f"{key}.json", metadata.encode())
                    found = [{"phrase": "a dog", "box": [0.1, 0.1, 0.6, 0.9], "score": 0.9}]
                    print(
                        json.dumps({"key": f"{number:05d}.tar:{key}", "boxes": found}), file=boxes
                    )


def _picture(rng: np.random.Generator) -> bytes:
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    stream = io.BytesIO()
    coarse.resize((320, 240), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def build(folder: Path, processes: int) -> float:
    """Builds all pairs; gives the seconds it took."""
    words = [
        "grit", "build", "captions", str(folder / "*.tar"),
        "--out", str(folder / f"out{processes}"),
        "--detector", "boxes", "--model", str(folder / "boxes.jsonl"), "--shards", str(_SHARDS),
        "--image-mode", "short", "--processes", str(processes),
    ]  # fmt: skip
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        status = kosmos2(words)
    if status:
        sys.exit(status)
    return time.monotonic() - began


def records(folder: Path, processes: int) -> dict[str, bytes]:
    """What was built: digests by the names of the files."""
    files = sorted((folder / f"out{processes}").glob("*.tfrecord"))
    return {file.name: hashlib.sha256(file.read_bytes()).digest() for file in files}


if __name__ == "__main__":
    main()
