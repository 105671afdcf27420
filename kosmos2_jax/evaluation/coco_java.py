"""COCO's own caption programs: the PTB tokenizer and METEOR 1.5 of the package pycocoevalcap.

Both are Java programs. METEOR has no other implementation: what nltk calls by that name is a
different metric.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.evaluation.ngrams import check_captions

_TOKENIZER_JAR = Path("tokenizer", "stanford-corenlp-3.4.1.jar")
_METEOR_JAR = Path("meteor", "meteor-1.5.jar")
# What COCO's evaluation drops after cutting. The brackets are written in lower case by then, so
# that they stay.
_DROPPED = frozenset(("''", "'", "``", "`", *".?!,:-;", "--", "..."))


class JavaError(Kosmos2Error):
    """Java or the package pycocoevalcap is missing, or a program of it failed."""


def is_available() -> bool:
    """Whether Java and the package pycocoevalcap are here."""
    return shutil.which("java") is not None and _package() is not None


def tokenize(captions: Sequence[str]) -> list[list[str]]:
    """Returns the tokens of captions as COCO's evaluation has them: lower case, no punctuation.

    Raises:
      JavaError: Java or pycocoevalcap is missing, or the program failed.
    """
    # The program also ends lines at characters that str.split knows as white space.
    text = "\n".join(" ".join(caption.split()) for caption in captions)
    program = ("-cp", _jar(_TOKENIZER_JAR), "edu.stanford.nlp.process.PTBTokenizer")
    command = _command(*program, "-preserveLines", "-lowerCase")
    result = subprocess.run(
        command, input=text.encode(errors="replace"), capture_output=True, check=False
    )
    lines = result.stdout.decode().split("\n")[: len(captions)]
    if result.returncode or len(lines) < len(captions):
        reason = " ".join(result.stderr.decode(errors="replace").splitlines()[-1:])
        raise JavaError(
            f"COCO's tokenizer gave {len(lines)} lines for {len(captions)} captions: {reason}."
        )
    return [[token for token in line.split() if token not in _DROPPED] for line in lines]


def meteor(
    references: Sequence[Sequence[Sequence[str]]], predictions: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Returns METEOR 1.5 of all captions together, and of each, 0..1.

    Args:
      references: tokens of the true captions of each picture, at least one.
      predictions: tokens of the caption written for each picture.

    Raises:
      JavaError: Java or pycocoevalcap is missing, or the program failed.
      ValueError: there are no pictures, not as many predictions as references, or a picture has
        no reference.
    """
    check_captions(references, predictions)
    program = ("-Xmx2G", "-jar", _jar(_METEOR_JAR), "-", "-", "-stdio", "-l", "en", "-norm")
    # A line for each question; the answers to SCORE are what EVAL then makes scores of.
    with subprocess.Popen(
        _command(*program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        statistics = [
            _ask(process, " ||| ".join(("SCORE", *map(_line, group), _line(written))))
            for group, written in zip(references, predictions, strict=True)
        ]
        first = _ask(process, " ||| ".join(("EVAL", *statistics)))
        scores = [float(first), *(float(_answer(process)) for _ in predictions)]
    return scores[-1], scores[:-1]


def _ask(process: subprocess.Popen[bytes], question: str) -> str:
    process.stdin.write(f"{question}\n".encode(errors="replace"))
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[bytes]) -> str:
    line = process.stdout.readline().decode().strip()
    if not line or line.startswith("Error"):
        process.kill()
        raise JavaError(f"METEOR failed: {line or 'it ended'}.")
    return line


def _line(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if "|||" not in token)


def _package() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations))) if spec is not None else None


def _jar(name: Path) -> str:
    package = _package()
    if package is None:
        raise JavaError(
            "METEOR and COCO's tokenizer need the package pycocoevalcap: run "
            "`pip install pycocoevalcap`."
        )
    return str(package / name)


def _command(*arguments: str) -> list[str]:
    java = shutil.which("java")
    if java is None:
        raise JavaError("METEOR and COCO's tokenizer need Java: install default-jre-headless.")
    return [java, "-Dfile.encoding=UTF-8", *arguments]
