"""Files for the servers of benchmarks that keep their answers (EvalAI)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from kosmos2_jax.data.benchmark_registry import BENCHMARK_TASKS, BenchmarkTask
from kosmos2_jax.training.task_scoring import TaskResult


def _vqa_entry(identity: str, answer: str) -> dict[str, Any]:
    """See https://visualqa.org/evaluation.html, "Results Format"."""
    return {"question_id": int(identity), "answer": answer}


def _vizwiz_entry(identity: str, answer: str) -> dict[str, Any]:
    """See https://vizwiz.org/tasks-and-datasets/vqa/, "Evaluation Servers"."""
    return {"image": identity, "answer": answer}


_ENTRIES = {
    ("vqav2", "test-dev2015"): _vqa_entry,
    ("vqav2", "test2015"): _vqa_entry,
    ("vizwiz", "test"): _vizwiz_entry,
}


def write_submissions(results: Mapping[str, TaskResult], folder: epath.Path) -> None:
    """Writes `TASK.json` for each task whose answers a server keeps; see `submission`."""
    for name, result in results.items():
        task = BENCHMARK_TASKS.get(name)
        if task is not None and (task.benchmark, task.split) in _ENTRIES:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps(submission(task, result)))


def submission(task: BenchmarkTask, result: TaskResult) -> list[dict[str, Any]]:
    """An answer for every question, as the server takes it.

    Servers refuse a file that lacks a question: one that could not be asked gets an empty answer.
    """
    entry = _ENTRIES[task.benchmark, task.split]
    entries = [entry(i, text) for i, text in zip(result.ids, result.predictions, strict=True)]
    asked = set(result.ids)
    # A problem whose id is only a place in the file has no question to answer.
    lost = (problem.id for problem in task.asked().problems if " " not in problem.id)
    return entries + [entry(i, "") for i in dict.fromkeys(lost) if i not in asked]
