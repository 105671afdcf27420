"""Language tasks after one and four demonstrations: what is asked, by hand, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.data.benchmark_registry import BENCHMARK_TASKS
from kosmos2_jax.data.benchmark_tasks import ask_records
from kosmos2_jax.data.benchmarks.records import Record
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.tasks import benchmarks
from kosmos2_jax.tasks.choices import LANGUAGE

from .task_figures import asked, examples, figures, says, write_files

MOST = 128  # tokens that the model reads
SENTENCES = ",".join(f"InputSentence{n}" for n in range(1, 5))
ENDINGS = "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
STORY = f"InputStoryid,{SENTENCES},{ENDINGS}\n"


def copa(number: int, premise: str, label: int) -> dict[str, Any]:
    return {
        "premise": f"{premise} {number}.", "choice1": "It rained.", "choice2": "I slept.",
        "question": "cause", "label": label, "idx": number,
    }  # fmt: skip


def hellaswag(number: int, label: int) -> dict[str, Any]:
    return {
        "ind": number, "activity_label": "Baking", "ctx_a": f"A man bakes {number}.",
        "ctx_b": "he", "endings": ["eats.", "flies.", "sleeps.", "sings."], "label": label,
    }  # fmt: skip


def winograd(names: tuple[str, ...]) -> str:
    schemas = (
        f"<schema><text><txt1>Ann told {name} that</txt1><pron>she</pron><txt2>won.</txt2></text>"
        f"<answers><answer>Ann</answer><answer>{name}</answer></answers>"
        "<correctAnswer>B</correctAnswer></schema>"
        for name in names
    )
    return f"<collection>{''.join(schemas)}</collection>"


def files() -> dict[str, Any]:
    """As many to draw from as are shown, or one of each."""
    gap = {"sentence": "Jo beat Al as _ was better.", "option1": "Jo", "option2": "Al"}
    passage = {"passage": "Ice floats.", "question": "does ice float", "idx": 0, "label": True}
    long = passage | {"passage": "Ice floats. " * MOST, "idx": 1}
    return {
        "copa/COPA/val.jsonl": [copa(n, "It is wet", n) for n in range(2)],
        # The last one cannot be shown.
        "copa/COPA/train.jsonl": [*(copa(n, "So wet", 1) for n in range(4)), copa(4, "<s>", 0)],
        "hellaswag/hellaswag_val.jsonl": [hellaswag(n, n) for n in range(3)],
        "hellaswag/hellaswag_train.jsonl": [hellaswag(9, 2)],
        "winogrande/dev.jsonl": [gap | {"qID": "1", "answer": "1"}],
        "winogrande/train_xl.jsonl": [gap | {"qID": "1", "answer": "2"}],
        "winograd/WSCollection.xml": winograd(("Bea", "Cy", "Di", "Eve", "Flo")),
        "piqa/valid.jsonl": [{"goal": "Boil", "sol1": "Use fire.", "sol2": "Use ice."}],
        "piqa/valid-labels.lst": "0\n",
        "piqa/train.jsonl": [{"goal": "Cool", "sol1": "Use fire.", "sol2": "Use ice."}],
        "piqa/train-labels.lst": "1\n",
        "boolq/BoolQ/val.jsonl": [passage, long],
        "boolq/BoolQ/train.jsonl": [passage | {"label": False}],
        "cb/CB/val.jsonl": [{"premise": "It rains.", "hypothesis": "it is wet", "idx": 0,
                             "label": "entailment"}],
        "cb/CB/train.jsonl": [{"premise": "He ran.", "hypothesis": "he slept", "idx": 0,
                               "label": "neutral"}],
        "storycloze/cloze_test_test__spring2016 - cloze_test_ALL_test.csv": (
            f"{STORY}t,Tom slept.,He woke.,He ran.,He fell.,He cried.,He flew.,1\n"
        ),
        "storycloze/cloze_test_val__spring2016 - cloze_test_ALL_val.csv": (
            f"{STORY}v,Ann ate.,She sat.,She drank.,She paid.,She sank.,She left.,2\n"
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Kosmos2Vocabulary:
    """The real one; all tasks over the files are registered with it."""
    folder = tmp_path_factory.mktemp("downloads")
    write_files(folder, files())
    tokenizer = str(assets / "tokenizer" / "sentencepiece.bpe.model")
    model = preset("tiny").replace(grid_size=32, decoder={"max_length": MOST})
    return benchmarks.prepare(folder, DataConfig(tokenizer=tokenizer), model, 0)[1]


# Prompts of the first example, and what may follow each, after the one there is to draw from.
ONE = {
    "hellaswag_val": [
        ("Baking: A man bakes 9. He sleeps. Baking: A man bakes 0. He",
         ["eats.", "flies.", "sleeps.", "sings."])
    ],
    "winogrande_val": [
        ("Jo beat Al as Al was better. Jo beat Al as Jo", ["was better."]),
        ("Jo beat Al as Al was better. Jo beat Al as Al", ["was better."]),
    ],
    "piqa_val": [("Cool Use ice. Boil", ["Use fire.", "Use ice."])],
    "boolq_val": [
        ("Ice floats. question: does ice float? answer: no Ice floats. question: does ice float? "
         "answer:", ["no", "yes"])
    ],
    "cb_val": [
        ("He ran. question: he slept. true, false, or neither? answer: neither It rains. "
         "question: it is wet. true, false, or neither? answer:", ["true", "false", "neither"])
    ],
    "storycloze_test": [
        ("Ann ate. She sat. She drank. She paid. She left. Tom slept. He woke. He ran. He fell.",
         ["He cried.", "He flew."])
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_one_demonstration(name, vocabulary):
    assert asked(examples(f"{name}_1shot")[0], vocabulary) == ONE[name]


def test_four_demonstrations_of_the_training_split(vocabulary):
    first, second = (asked(example, vocabulary) for example in examples("copa_val_4shot"))
    ((prompt, answers),) = first
    *shown, question = prompt.split(". ")
    assert sorted(shown) == [f"So wet {n} because I slept" for n in range(4)]
    assert question == "It is wet 0 because" and answers == ["it rained.", "I slept."]
    # Drawn for each question anew; always the same ones for it.
    assert second[0][0].split(". ")[:4] != shown
    assert asked(examples("copa_val_4shot")[0], vocabulary) == first
    assert figures("copa_val_4shot", says([0, 0], 2)) == {
        "accuracy": 0.5, "accuracy_sum": 0.5, "lost": 0.0,
    }  # fmt: skip


def test_nothing_is_its_own_demonstration(vocabulary):
    """Winograd's schemas are all there is: of five, the four others are shown."""
    names = ("Bea", "Cy", "Di", "Eve", "Flo")
    for name, example in zip(names, examples("winograd_test_4shot"), strict=True):
        (prompt, _), (other, answers) = asked(example, vocabulary)
        *shown, question = other.split(" won. ")
        others = [n for n in names if n != name]
        assert sorted(shown) == [f"Ann told {n} that {n}" for n in others]
        assert question == f"Ann told {name} that {name}" and answers == ["won."]
        assert prompt.split(" won. ") == [*shown, f"Ann told {name} that Ann"]


def test_what_is_longer_than_the_model_reads_is_lost(vocabulary):
    for name in ("boolq_val", "boolq_val_1shot"):
        (problem,) = BENCHMARK_TASKS[name].asked().problems
        assert problem.id == "1" and f"more than the {MOST} that are read" in problem.reason
        assert figures(name, says([1], 2))["accuracy"] == 0.5


def test_that_nothing_can_be_asked_is_told(vocabulary):
    def too_long(record: Record) -> None:
        raise MarkupError("It is too long.")

    told = "None of the 2 examples of boolq, split val, can be asked; the last one, 1: It is too"
    with pytest.raises(DataError, match=told):
        ask_records("boolq", BENCHMARK_TASKS["boolq_val"].folder, "val", too_long)


def test_too_few_to_draw_from_are_told(vocabulary):
    with pytest.raises(Exception, match="has 1 examples, fewer than the 4"):
        examples("piqa_val_4shot")
    shots = {n for n in BENCHMARK_TASKS if n.partition("_")[0] in LANGUAGE and n.endswith("shot")}
    assert len(shots) == 2 * len(LANGUAGE)
