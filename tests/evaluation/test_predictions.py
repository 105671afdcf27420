"""Saved predictions: what goes in comes out, and whatever is wrong with them is told."""

from __future__ import annotations

import json
import math

import pytest

from kosmos2_jax.errors import PredictionError
from kosmos2_jax.evaluation.predictions import (
    Prediction,
    PredictionFile,
    answers_of,
    check_questions,
    read_predictions,
)

WRITTEN = [
    Prediction("1", "a \u2028 <phrase> dog</phrase>"),
    Prediction("2", scores=[[-0.5, -1.0], [-math.inf]]),
    Prediction("3", error="broken picture", question="0a1b"),
]


def test_what_is_written_is_read_again_and_never_twice(tmp_path):
    path = tmp_path / "folder" / "t.jsonl"
    file = PredictionFile(path, "t")
    file.add(WRITTEN[:2])
    file.add([Prediction("1", "another"), WRITTEN[2]])
    with pytest.raises(PredictionError, match="being written by another program"):
        PredictionFile(path, "t")
    file.close()
    assert read_predictions(path, "t") == WRITTEN
    with path.open("ab") as torn:
        torn.write(b'{"task": "t", "id": "4", "outp')
    again = PredictionFile(path, "t")
    assert list(again.found.values()) == WRITTEN
    again.add([Prediction("4", "whole")])
    again.close()
    assert read_predictions(path, "t") == [*WRITTEN, Prediction("4", "whole")]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"task": "t", "id": "1"}',
        '{"task": "t", "output": "a"}',
        '{"task": "t", "id": "1", "output": 3}',
        '{"task": "t", "id": "1", "output": "a", "scores": [[-1.0]]}',
        '{"task": "t", "id": "1", "scores": "yes"}',
        '{"task": "t", "id": "1", "scores": [[null]]}',
        '{"task": "t", "id": "1", "output": "a", "question": 3}',
    ],
)
def test_lines_that_are_no_predictions_are_named(tmp_path, line):
    (tmp_path / "p").write_text(f'{{"task": "t", "id": 7, "output": "a"}}\n\n{line}\n')
    with pytest.raises(PredictionError, match="Line 3 of .* is not an object with"):
        read_predictions(tmp_path / "p", "t")


def test_files_of_something_else_are_refused(tmp_path):
    (tmp_path / "p").write_text(Prediction("1", "a").to_line("refcoco_val"))
    with pytest.raises(PredictionError, match="Line 1 of .* of 'refcoco_val', not of 't'"):
        read_predictions(tmp_path / "p", "t")
    with pytest.raises(PredictionError, match="There are no predictions"):
        read_predictions(tmp_path / "q", "t")
    (tmp_path / "p").write_bytes(b"\xff")
    with pytest.raises(PredictionError, match="UTF-8"):
        read_predictions(tmp_path / "p", "t")


def test_answers_to_other_questions_are_refused():
    found = [
        Prediction("a", "x", question="1"),
        Prediction("b", "y"),
        Prediction("c", question="3"),
    ]
    check_questions({"a": "1", "b": "2"}, found, "t")
    with pytest.raises(PredictionError, match=r"t have 1 ids \(c\) whose questions have changed"):
        check_questions({"a": "1", "b": "2", "c": "4"}, found, "t")


def test_every_example_gets_an_answer_and_every_problem_is_told():
    found = [
        Prediction("d", scores=[[-1.0], [math.nan]]),
        Prediction("b", "  "),
        Prediction("a", "yes"),
        Prediction("f", scores=[[-1.0], [-2.0]]),
        Prediction("e", error="broken picture"),
    ]
    answers = answers_of(list("abcdef"), found, "t")
    assert answers.texts[0] == "yes" and json.loads(answers.texts[5]) == [[-1.0], [-2.0]]
    assert [text.strip() for text in answers.texts[1:5]] == [""] * 4
    assert answers.problems == {
        "b": "empty",
        "c": "missing",
        "d": "scores of no use",
        "e": "broken picture",
    }


def test_ids_that_are_there_twice_or_strange_are_an_error():
    with pytest.raises(PredictionError, match=r"of t have 1 ids \(a\) twice"):
        answers_of(["a", "b"], [Prediction("a", "x"), Prediction("a", "x")], "t")
    strange = [Prediction(name, "x") for name in "abcdef"]
    with pytest.raises(PredictionError, match=r"5 ids \(b, c, d, ...\) that it does not have"):
        answers_of(["a"], strange, "t")
