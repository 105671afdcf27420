"""Records what other people's programs say, for tests that run without them.

    python tests/evaluation/record_golden.py --lmms_eval DIR

needs Java, pycocoevalcap, and a folder into which the wheel of lmms-eval (0.7.3) was unpacked.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from captions_of_ours import ODD, captions  # noqa: E402
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
_WORDS = (
    "a an the yes no none two ten eleven red Red. t-shirt dog's 1,000 3.5 isnt dont couldnt've "
    "yall black/white (left) hes U.S.A. what? [x] 5% it's @home one's im v.2 \"so\" they're wont "
    "- , . ; !stop stop! a,b a.b a;b a_b o'clock 10:30 \n \t somebodyd cats'"
).split(" ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lmms_eval", type=Path, required=True)
    folder = parser.parse_args().lmms_eval / "lmms_eval" / "tasks"
    _write("ptb_tokens.jsonl", _tokens([*ODD, *captions(1500 - len(ODD), seed=0)]))
    rng = random.Random(0)
    processor = _load(folder / "_task_utils" / "vqa_eval_metric.py").EvalAIAnswerProcessor()
    answers = [" ".join(rng.choices(_WORDS, k=rng.randint(1, 5))) for _ in range(2000)]
    _write("vqa_answers.jsonl", [[answer, processor(answer)] for answer in answers])
    # Its module asks for Hugging Face's datasets, for a name in an annotation.
    sys.modules["datasets"] = types.SimpleNamespace(Dataset=None)
    rec = _load(folder / "refcoco" / "utils_rec.py")
    pairs = [(_box(rng), _box(rng)) for _ in range(2000)]
    pairs = [(true, _near(rng, true) if rng.random() < 0.7 else other) for true, other in pairs]
    _write(
        "rec_boxes.jsonl",
        [[*pair, rec.compute_iou(*pair), rec.compute_accuracy(*pair, 0.5)] for pair in pairs],
    )


def _tokens(texts: list[str]) -> list[list[str]]:
    given = {number: [{"caption": text}] for number, text in enumerate(texts)}
    cut = PTBTokenizer().tokenize(given)
    return [[text, cut[number][0]] for number, text in enumerate(texts)]


def _box(rng: random.Random) -> list[float]:
    lefts, tops = (sorted(round(rng.uniform(0, 640), 2) for _ in range(2)) for _ in range(2))
    return [lefts[0], tops[0], lefts[1] + 1, tops[1] + 1]


def _near(rng: random.Random, box: list[float]) -> list[float]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return [
        round(left + width * rng.uniform(-0.3, 0.3), 2),
        round(top + height * rng.uniform(-0.3, 0.3), 2),
        round(right + width * rng.uniform(-0.3, 0.3), 2),
        round(bottom + height * rng.uniform(-0.3, 0.3), 2),
    ]


def _load(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(name: str, rows: list[list]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (GOLDEN / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
