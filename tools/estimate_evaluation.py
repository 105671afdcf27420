"""Estimates how long each benchmark takes on an accelerator, from its data sheet alone.

    python tools/estimate_evaluation.py --hbm 4.8 --flops 989

Nothing is run. A picture and its prompt are read at `--use` of the peak of the matrix units. A
token is written for all rows of a batch in the time that it takes to read weights and cache at
`--use` of the memory's bandwidth, or to multiply, whichever is longer. Meanwhile the host decodes
`--pictures` a second, about 200 on each core. The last line printed is JSON: minutes by task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import NamedTuple

# Of Kosmos-2 (config.py): parameters of the decoder with its token table, read for every token;
# bytes of the bfloat16 cache of a token; operations to read a picture and its 66 tokens.
_DECODER = 1.341e9
_CACHE_BYTES = 24 * 2 * 2048 * 2
_PICTURE_FLOPS = 0.34e12
_PICTURE_TOKENS = 66


class Load(NamedTuple):
    """What a task is made of.

    Attributes:
      examples: as published.
      text: tokens of a prompt or of all its candidates beside the pictures, about.
      written: tokens of the longest answer of a batch, about; 0 where candidates are scored.
      pictures: of an example.
      beams: of the search.
    """

    examples: int
    text: int
    written: int
    pictures: int = 1
    beams: int = 1


LOADS = {
    "flickr30k_grounding_test": Load(14_481, 15, 24),
    "refcoco_testA": Load(5_657, 8, 24),
    "refcocog_test": Load(9_602, 14, 24),
    "refcocog_generation_val": Load(2_573, 9, 24),
    "refcocog_generation_val_4shot": Load(2_573, 85, 24, 5),
    "flickr30k_captions_test": Load(1_000, 4, 32, beams=5),
    "coco_captions_test": Load(5_000, 4, 32, beams=5),
    "coco_captions_test_8shot": Load(5_000, 140, 32, 9, 5),
    "vqav2_test_dev2015": Load(107_394, 14, 16),
    "vizwiz_val": Load(4_319, 14, 16),
    "seed_bench_test": Load(14_233, 50, 0),
    "imagenet_val": Load(50_000, 5, 16, beams=2),
    "hellaswag_val": Load(10_042, 200, 0, 0),
    "hateful_memes_dev": Load(500, 18, 0),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table and a line of JSON."""
    args = _parse(argv)
    minutes = {name: seconds(load, args) / 60 for name, load in LOADS.items()}
    width = max(map(len, LOADS))
    for name, load in LOADS.items():
        print(f"{name:{width}}  {load.examples:>7,} examples  {minutes[name]:6.1f} minutes")
    print(json.dumps({name: round(value, 2) for name, value in minutes.items()}))


def seconds(load: Load, machine: argparse.Namespace) -> float:
    """How long a task takes.

    Args:
      load: of the task.
      machine: `flops` in TFLOP/s, `hbm` in TB/s, `use` of both, `rows` of a batch, `pictures` a
        second.
    """
    flops, bandwidth = machine.use * machine.flops * 1e12, machine.use * machine.hbm * 1e12
    read = (load.pictures * _PICTURE_FLOPS + 2 * _DECODER * load.text) / flops
    length = load.pictures * _PICTURE_TOKENS + load.text + load.written
    rows = machine.rows * load.beams
    # Weights are float32; `dtype` is that of activations.
    moved = 4 * _DECODER + rows * length * _CACHE_BYTES
    token = max(moved / bandwidth, 2 * _DECODER * rows / flops)
    decoded = load.pictures / machine.pictures
    return load.examples * max(read + load.written * token / machine.rows, decoded)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="estimate_evaluation.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--flops", type=float, default=989.0, help="peak in bfloat16, TFLOP/s")
    parser.add_argument("--hbm", type=float, default=4.8, help="bandwidth of memory, TB/s")
    parser.add_argument("--use", type=float, default=0.4, help="share of both that is reached")
    parser.add_argument("--pictures", type=float, default=1600.0, help="decoded a second")
    parser.add_argument("--rows", type=int, default=64, help="examples of a batch")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
