"""Language tasks, SEED-Bench, Rendered SST-2, HatefulMemes and ImageNet from files like theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.records import ChoiceRecord, Option
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.evaluation.candidates import best_candidate, choice_accuracy
from kosmos2_jax.evaluation.means import means_by_group
from kosmos2_jax.evaluation.roc import roc_auc

from .conftest import lost

ROOT = Path(__file__).resolve().parents[3]


def answers(record: ChoiceRecord) -> list[str]:
    return [option.answer for option in record.options]


def test_hellaswag(write, read):
    item = {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "split": "val",
        "endings": ["is [step] happy.", "starts [title] over", "flies.", "sings."],
        "label": 3,
    }
    lines = [
        item,
        item | {"ind": 25, "ctx_b": "", "label": "0"},
        item | {"ind": 26, "label": ""},
        item | {"ind": 27, "endings": ["one"]},
        item,
        "{",
    ]
    reading = read("hellaswag", write({"hellaswag_val.jsonl": lines}))
    first, second = reading.records
    assert first.options[0].prompt == "Roof shingle removal: A man is sitting on a roof. He"
    assert answers(first) == ["is happy.", "starts. over", "flies.", "sings."]
    assert (first.id, first.answer, second.answer) == ("24", 3, 0)
    assert second.options[0].prompt == "Roof shingle removal: A man is sitting on a roof."
    assert lost(reading) == {
        "line 3": "label is '', not one of 0, 1, 2, 3",
        "line 4": "not four endings",
        "line 5": "its id is there already",
        "line 6": "not JSON",
    }


def test_piqa_has_its_labels_beside_it(write, read):
    questions = [
        {"goal": "Boil water", "sol1": "Use a kettle.", "sol2": "Use a fridge."},
        {"goal": "Cut", "sol1": "", "sol2": "Use scissors."},
        {"goal": "Dry", "sol1": "Use rain.", "sol2": "Use a towel."},
    ]
    files = {"valid.jsonl": questions, "valid-labels.lst": "0\n1\n1\n"}
    reading = read("piqa", write(files))
    assert reading.records[0] == ChoiceRecord(
        "line 1", (Option("Boil water", "Use a kettle."), Option("Boil water", "Use a fridge.")), 0
    )
    assert [record.answer for record in reading.records] == [0, 1]
    assert lost(reading) == {"line 2": "empty 'sol1'"}
    with pytest.raises(DataError, match="3 questions but .* 2 labels"):
        read("piqa", write({"valid-labels.lst": "0\n1\n"}))


def test_superglue(write, read):
    files = {
        "BoolQ/val.jsonl": [
            {"passage": "Ice floats.", "question": "does ice float", "idx": 0, "label": True},
            {"passage": "Ice floats.", "question": "does ice sink", "idx": 1, "label": False},
            {"passage": "Ice floats.", "question": "secret", "idx": 2},
        ],
        "CB/val.jsonl": [
            {"premise": "It rains.", "hypothesis": "it is wet", "label": "entailment", "idx": 0},
            {"premise": "It rains.", "hypothesis": "dogs bark", "label": "neutral", "idx": 1},
            {"premise": "It rains.", "hypothesis": "dogs bark", "label": "maybe", "idx": 2},
        ],
        "COPA/val.jsonl": [
            {
                "premise": "The grass is wet.",
                "choice1": "It rained.",
                "choice2": "I'd slept.",
                "question": "cause",
                "label": 0,
                "idx": 0,
            },
            {
                "premise": "It rained.",
                "choice1": "The sun rose.",
                "choice2": "The grass got wet.",
                "question": "effect",
                "label": 1,
                "idx": 1,
            },
            {
                "premise": "x",
                "choice1": "a",
                "choice2": "b",
                "question": "why",
                "label": 0,
                "idx": 2,
            },
        ],
    }
    folder = write(files)
    boolq = read("boolq", folder)
    assert boolq.records[0].options[1] == Option(
        "Ice floats.\nquestion: does ice float?\nanswer:", "yes"
    )
    assert [r.answer for r in boolq.records] == [1, 0]
    assert lost(boolq) == {"line 3": "no 'label' of type bool"}
    cb = read("cb", folder)
    assert answers(cb.records[0]) == ["true", "false", "neither"]
    assert [r.answer for r in cb.records] == [0, 2]
    assert cb.records[0].options[0].prompt == (
        "It rains.\nquestion: it is wet. true, false, or neither?\nanswer:"
    )
    assert "label is 'maybe'" in lost(cb)["line 3"]
    copa = read("copa", folder)
    assert copa.records[0].options == (
        Option("The grass is wet because", "it rained."),
        Option("The grass is wet because", "I'd slept."),
    )
    assert copa.records[1].options[1] == Option("It rained so", "the grass got wet.")
    assert lost(copa) == {"line 3": "question is 'why', not cause or effect"}


WINOGRAD = """<?xml version="1.0" encoding="UTF-8"?>
<collection>
  <schema>
    <text><txt1>The city councilmen refused the demonstrators a permit because</txt1>
      <pron>they</pron> <txt2>feared
      violence.</txt2></text>
    <answers><answer>The city councilmen</answer><answer>The demonstrators</answer></answers>
    <correctAnswer>A</correctAnswer>
  </schema>
  <schema>
    <text><txt1>Ann asked Mary what time the library closes, as</txt1>
      <pron>her</pron><txt2>watch broke.</txt2></text>
    <answers><answer>Ann</answer><answer>Mary</answer></answers>
    <correctAnswer> B. </correctAnswer>
  </schema>
  <schema><text><txt1>Half a schema</txt1></text></schema>
</collection>
"""


def test_winograd_scores_what_follows(write, read):
    reading = read("winograd", write({"WSCollection.xml": WINOGRAD}))
    first, second = reading.records
    assert first.options[0] == Option(
        "The city councilmen refused the demonstrators a permit because the city councilmen",
        "feared violence.",
    )
    assert (first.answer, second.answer) == (0, 1)
    assert second.options[1].prompt.endswith("closes, as Mary's")
    assert list(lost(reading)) == ["schema 2"]
    with pytest.raises(DataError, match="is not XML"):
        read("winograd", write({"WSCollection.xml": "<collection>"}))


def test_winogrande(write, read):
    item = {"qID": "3D-1", "sentence": "Sarah beat Maria as _ was better.", "answer": "1"}
    names = {"option1": "Sarah", "option2": "Maria"}
    lines = [
        item | names,
        item | names | {"qID": "3D-2", "answer": "2"},
        item | names | {"qID": "3D-3", "answer": ""},
        item | names | {"qID": "3D-4", "sentence": "No gap."},
        item | {"qID": "3D-5"},
    ]
    reading = read("winogrande", write({"dev.jsonl": lines}))
    first, second = reading.records
    assert first.options == (
        Option("Sarah beat Maria as Sarah", "was better."),
        Option("Sarah beat Maria as Maria", "was better."),
    )
    assert (first.answer, second.answer) == (0, 1)
    assert list(lost(reading)) == ["line 3", "line 4", "line 5"]


def test_storycloze_to_accuracy_by_hand(write, read):
    header = (
        "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
        "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    )
    rows = (
        'a1,"Tom, a cook, slept.",He woke.,He ran.,He fell.,He cried.,He flew.,1\n'
        "a2,One.,Two.,Three.,Four.,Six.,Five.,2\n"
        "a2,One.,Two.,Three.,Four.,Six.,Five.,2\n"
        "a3,One.,Two.,Three.,Four.,Six.,Five.,\n"
    )
    name = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
    reading = read("storycloze", write({name: header + rows}))
    first, second = reading.records
    assert first.options[0] == Option("Tom, a cook, slept. He woke. He ran. He fell.", "He cried.")
    assert lost(reading) == {
        "a2": "its id is there already",
        "a3": "AnswerRightEnding is '', not one of 1, 2",
    }
    chosen = [best_candidate([[-1.0, -1.0], [-1.5]]), best_candidate([[-1.0], [-2.0]])]
    assert choice_accuracy([first.answer, second.answer], chosen) == 0.5
    with pytest.raises(DataError, match="no column 'InputStoryid'"):
        read("storycloze", write({name: "a,b\n1,2\n"}))


def seed_question(**changes):
    return {
        "answer": "C",
        "choice_a": "One",
        "choice_b": " Two\n",
        "choice_c": "Three",
        "choice_d": "Four",
        "data_id": "1454426_2591111986",
        "data_type": "image",
        "question": "How many\ntowels?",
        "question_id": "101669",
        "question_type_id": 5,
    } | changes


def test_seed_bench_by_dimension(write, read):
    content = {
        "questions": [
            seed_question(),
            seed_question(data_type="video", question_type_id=10),
            seed_question(question_type_id=1, answer="A"),
            seed_question(answer="E"),
            seed_question(data_id="other"),
            seed_question(choice_d=""),
        ],
        "question_type": {"Scene Understanding": 1},
    }
    folder = write({"SEED-Bench-image/1454426_2591111986": None, "SEED-Bench.json": content})
    reading = read("seed_bench", folder)
    first, second = reading.records
    assert first.options[1] == Option("Question: How many towels? Answer:", "Two")
    assert (first.id, first.answer, first.group) == ("0", 2, "instances counting")
    assert (second.id, second.answer, second.group) == ("2", 0, "scene understanding")
    assert lost(reading) == {
        "3": "answer is 'E', not one of A, B, C, D",
        "4": "picture 'other' is missing",
        "5": "empty 'choice_d'",
    }
    right = [float(r.answer == 2) for r in reading.records]
    means = means_by_group(right, [(r.group,) for r in reading.records])
    assert means == {"instances counting": (1.0, 1), "scene understanding": (0.0, 1)}


def test_hateful_memes_to_auc_by_hand(write, read):
    def line(number, label, **more):
        return {"id": number, "img": f"img/0{number}.png", "label": label, "text": "hi"} | more

    lines = [line(1, 1), line(2, 0), line(3, 0), line(4, 1), line(5, 2), line(1, 0), line(6, 0)]
    folder = write({f"img/0{n}.png": None for n in range(1, 6)} | {"dev.jsonl": lines})
    reading = read("hateful_memes", folder)
    assert [r.answer for r in reading.records] == [0, 1, 1, 0]
    assert answers(reading.records[0]) == ["yes", "no"]
    assert lost(reading) == {
        "line 5": "label is 2, not one of 0, 1",
        "line 6": "its id is there already",
        "line 7": "picture 'img/06.png' is missing",
    }
    # Of four pairs three are in order.
    labels = [r.answer == 0 for r in reading.records]
    assert roc_auc(labels, [2.0, -1.0, 0.5, 0.0]) == 0.75


def test_rendered_sst2(write, read):
    names = ("test/positive/0001.png", "test/negative/0001.png", "test/negative/notes.txt")
    reading = read("rendered_sst2", write(dict.fromkeys(names)))
    assert [(r.id, r.answer) for r in reading.records] == [(names[0], 0), (names[1], 1)]
    assert reading.records[0].options[1] == Option(
        "Question: what is the sentiment of the opinion? Answer:", "negative"
    )


def test_imagenet(write, read):
    files = {
        "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": None,
        "LOC_synset_mapping.txt": "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
        "LOC_val_solution.csv": (
            "ImageId,PredictionString\n"
            "ILSVRC2012_val_00000001,n01440764 111 108 422 300 n01440764 1 2 3 4 \n"
            "ILSVRC2012_val_00000002,n01443537 1 2 3 4 \n"
            "ILSVRC2012_val_00000003,n00000001 1 2 3 4 \n"
            "ILSVRC2012_val_00000004\n"
        ),
    }
    reading = read("imagenet", write(files))
    (record,) = reading.records
    assert record.names == ("tench", "Tinca tinca")
    assert list(lost(reading)) == [f"ILSVRC2012_val_0000000{n}" for n in (2, 3, 4)]
    with pytest.raises(DataError, match="Line 2 of .* no new class with names: 'goldfish'"):
        read("imagenet", write({"LOC_synset_mapping.txt": "n01440764 tench\ngoldfish\n"}))


def prepare(*arguments):
    command = [sys.executable, "tools/prepare_eval.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_prepare_says_what_is_missing_and_what_is_lost(write, tmp_path):
    missing = prepare("piqa", "--from", tmp_path)
    assert missing.returncode == 1
    assert "missing  valid.jsonl" in missing.stdout
    assert "They come from https://yonatanbisk.com/piqa" in missing.stdout
    assert json.loads(missing.stdout.splitlines()[-1])["missing"] == [
        "valid.jsonl",
        "valid-labels.lst",
    ]
    good = {"goal": "Boil water", "sol1": "Use a kettle.", "sol2": "Use a fridge."}
    write({"valid.jsonl": [good] + [{}] * 12, "valid-labels.lst": "0\n" * 13})
    done = prepare("piqa", "--from", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lost: line 2: no 'sol1' of type str\n" in done.stdout
    assert "and 2 more" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "task": "piqa",
        "split": "val",
        "examples": 1,
        "lost": 12,
    }
    wrong = prepare("piqa", "--from", tmp_path, "--split", "test")
    assert wrong.returncode == 1
    assert wrong.stderr == (
        "prepare_eval.py: error: There is no split 'test': use one of val, train.\n"
    )


def test_every_benchmark_says_where_it_comes_from():
    for benchmark in BENCHMARKS.values():
        assert "https://" in benchmark.source and benchmark.summary
        assert all(benchmark.files(split) for split in benchmark.splits)
