"""seqio task over easy-vqa: simple questions about pictures of one shape (its own split)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kosmos2_jax.data import document_files, document_tasks, examples
from kosmos2_jax.data.document_tasks import TaskSettings, truth_of
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.easy_vqa_records import SPLITS, VERSION, easy_vqa_record, question_records
from kosmos2_jax.evaluation import vqa
from kosmos2_jax.grounding import GroundedText, tags

NAME = "quickstart_easy_vqa"
CONTENTS = "quickstart_easy_vqa_contents"


def write_easy_vqa(
    data_dir: Path,
    split: str,
    image_size: int = 64,
    *,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Copies a split into `data_dir/easy_vqa` unless it is there; see `write_documents`.

    A training record has up to four questions about its picture, a test record one.
    """
    per_record = 4 if split == "train" else 1
    settings = {"per_record": per_record, "image_size": image_size}
    return document_files.write_documents(
        Path(data_dir) / "easy_vqa",
        split,
        len(question_records(split, per_record)),
        functools.partial(easy_vqa_record, split=split, **settings),
        {"version": VERSION, **settings},
        progress=progress,
    )


def register(data_dir: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds the tasks over `data_dir/easy_vqa` to seqio, in place of any of the same names."""
    tasks: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        NAME: (_build, {"postprocess_fn": _postprocess, "metric_fns": [vqa_accuracy]}),
        CONTENTS: (_build_contents, {}),
    }
    for name, (build, evaluation) in tasks.items():
        document_tasks.add_task(
            name,
            [str(Path(data_dir) / "easy_vqa")],
            settings,
            ("instruction",),
            document_tasks.encode_built(build),
            splits=SPLITS,
            **evaluation,
        )
    return tuple(tasks)


def _build(document: Document) -> tuple[examples.Example, dict[str, Any]]:
    pairs = [(question, answer) for question, answer in document.content["turns"]]
    question, answer = pairs[0]
    truth = {"question": question, "answer": answer}
    return examples.question_example(document.images, pairs), truth


def _build_contents(document: Document) -> tuple[examples.Example, dict[str, Any]]:
    """What there is to see: the quickest lesson in seeing it."""
    contents = GroundedText.from_dict(document.content["contents"])
    return examples.caption_example(document.images[0], contents), {}


def _postprocess(output: str, example: Mapping[str, Any], is_target: bool) -> list[str] | str:
    if is_target:
        return [truth_of(example)["answer"]]
    # A model that grounds its answer is not wrong for that.
    return tags.ANY_TAG.sub("", output).strip()


def vqa_accuracy(targets: list[list[str]], predictions: list[str]) -> dict[str, float]:
    """Share of answers that are right by the rules of VQAv2."""
    return {"vqa_accuracy": vqa.vqa_accuracy(targets, predictions)}
