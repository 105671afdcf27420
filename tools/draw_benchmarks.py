"""Draws all benchmarks small, in the files of the published ones, to try an evaluation.

    python tools/draw_benchmarks.py --out drawn
    python -m kosmos2_jax.evaluate --config=configs/evaluate.py --workdir=runs/drawn \\
        --config.checkpoint=runs/quickstart/model --config.data.folder=drawn

Pictures, words and questions are of the quickstart's kind. What its model does on them says
nothing about the benchmarks. One picture in fifty is broken, one is missing, and one box has no
area, as they are in real downloads. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

_PROG = "draw_benchmarks.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Draws them; gives the exit status."""
    args = _parse(argv)
    from kosmos2_jax.data.drawn_benchmarks import draw
    from kosmos2_jax.errors import Kosmos2Error

    try:
        draw(args.out, args.examples)
    except Kosmos2Error as error:
        print(f"{_PROG}: error: {error}", file=sys.stderr)
        return 1
    drawn = sorted(path.name for path in args.out.iterdir() if path.is_dir())
    print(json.dumps({"folder": str(args.out), "examples": args.examples, "benchmarks": drawn}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a folder each")
    parser.add_argument("--examples", type=int, default=60, help="of each benchmark")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
