"""Every task of candidates and names, from files like theirs to figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.data.choices import CONSTRAINED, RATIONALE
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.tasks import benchmarks

from .choice_files import all_files
from .task_figures import LATENTS, asked, examples, figures, says, write_files


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Kosmos2Vocabulary:
    """The real one; all tasks over the files are registered with it."""
    folder = tmp_path_factory.mktemp("downloads")
    write_files(folder, all_files())
    tokenizer = str(assets / "tokenizer" / "sentencepiece.bpe.model")
    model = preset("tiny").replace(grid_size=32)
    assert model.resampler.num_latents == LATENTS
    return benchmarks.prepare(folder, DataConfig(tokenizer=tokenizer), model, 0)[1]


COLORS = "black blue brown green grey orange pink purple red white yellow".split()

# Of each task the first example's prompts with their candidates, and the number of candidates.
LANGUAGE = {
    "hellaswag_val": [
        (
            "Baking cookies: A man bakes. The man",
            ["eats them.", "flies away.", "sleeps. well.", "sings."],
        )
    ],
    "storycloze_test": [
        ("Tom, a cook, slept. He woke. He ran. He fell.", ["He cried.", "He flew."])
    ],
    "winograd_test": [
        ("Ann told The judge that Ann", ["won."]),
        ("Ann told The judge that the judge", ["won."]),
    ],
    "winogrande_val": [
        ("Sarah beat Maria as Sarah", ["was better."]),
        ("Sarah beat Maria as Maria", ["was better."]),
    ],
    "piqa_val": [("Boil water", ["Use a kettle.", "Use a fridge."])],
    "boolq_val": [
        ("Ice floats. It is light. question: does ice float? answer:", ["no", "yes"]),
    ],
    "copa_val": [("The grass was wet because", ["it rained.", "I slept."])],
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_language(name, vocabulary):
    first = examples(name)[0]
    assert asked(first, vocabulary) == LANGUAGE[name]
    assert not first["images"].size
    candidates = sum(len(answers) for _, answers in LANGUAGE[name])
    # The first candidate is right in five of the ten that can be asked, and two of twelve are
    # lost. The last answer is missing: the second candidate is right there, so nothing changes.
    answers = [*says([0] * 9, candidates), ""]
    assert figures(name, answers) == {
        "accuracy": pytest.approx(5 / 12),
        "accuracy_sum": pytest.approx(5 / 12),
        "lost": 2.0,
    }


def test_commitment_bank(vocabulary):
    assert asked(examples("cb_val")[0], vocabulary) == [
        ("It rains. question: it is wet. true, false, or neither? answer:",
         ["true", "false", "neither"])
    ]  # fmt: skip
    # "neither" is right three times of ten. By the sum it would be "true": four times.
    scores = json.dumps([[-1.0], [-9.0], [-0.6, -0.6]])
    found = figures("cb_val", [scores] * 10)
    assert found["accuracy"] == pytest.approx(3 / 12)
    assert found["accuracy_sum"] == pytest.approx(4 / 12)


def test_sizes_and_colours(vocabulary):
    assert asked(examples("relative_size_test")[3], vocabulary) == [
        ("Is sofa larger than bird?", ["Yes", "No"])
    ]
    # "sofa" is no pair and one pair is there twice: ten of twelve are asked, nine are right.
    assert figures("relative_size_test", says([0] * 9 + [1], 2))["accuracy"] == pytest.approx(0.75)
    prompts = [asked(example, vocabulary)[0][0] for example in examples("memory_color_test")]
    assert prompts[:4:3] == [
        "The color of a sunflower is?",
        "The color of the inside of a pineapple is?",
    ]
    assert asked(examples("color_terms_test")[0], vocabulary) == [("The color of ash is?", COLORS)]
    yellow = says([COLORS.index("yellow")] * 10, 11)
    # Two of twelve are yellow, two are lost (beige; a thing without a name).
    assert figures("memory_color_test", yellow) == {
        "accuracy": pytest.approx(2 / 12),
        "accuracy_sum": pytest.approx(2 / 12),
        "lost": 2.0,
    }
    assert figures("color_terms_test", yellow)["accuracy"] == pytest.approx(1 / 12)


def test_seed_bench_by_dimension(vocabulary):
    first = examples("seed_bench_test")[0]
    assert asked(first, vocabulary) == [
        ("[0] Question: How many towels? Answer:", ["One", "Two towels", "Three", "Four"])
    ]
    # Right are A B C D, A B C D A B. Counting comes first, four questions: of "A A A D" two are
    # right; of scenes, six questions, all but the last.
    found = figures("seed_bench_test", says([0, 0, 0, 3, 0, 1, 2, 3, 0, 0], 4))
    assert found == {
        "accuracy": pytest.approx(7 / 12),
        "accuracy_sum": pytest.approx(7 / 12),
        "accuracy/instances counting": 0.5,
        "accuracy/scene understanding": pytest.approx(5 / 6),
        "lost": 2.0,
    }


def test_rendered_sst2_at_once_and_in_two_steps(vocabulary):
    sentiment = ("[0] Question: what is the sentiment of the opinion? Answer:",
                 ["positive", "negative"])  # fmt: skip
    # Twelve pictures, six of each; nine are said to be positive.
    answers = says([0] * 9 + [1] * 3, 2)
    for name in ("rendered_sst2_test", "rendered_sst2_rationale_test"):
        first = examples(name)[0]
        assert asked(first, vocabulary) == [sentiment]
        assert figures(name, answers)["accuracy"] == 0.75
    # What is written first goes behind <s>, <image>, the slots and </image>.
    assert first[RATIONALE] == 3 + LATENTS
    learnt = int(np.argmax(first["loss_weights"] > 0))
    text = vocabulary.decode(first["targets"][first[RATIONALE] : learnt])
    assert text == "Introduce this picture in detail:"


def test_hateful_memes(vocabulary):
    assert asked(examples("hateful_memes_dev")[0], vocabulary) == [
        ("[0] Question: does this picture contain real hate speech? Answer:", ["yes", "no"])
    ]
    # Every second one is hateful. "yes" is likelier than "no" by so much:
    margins = [0.0, 5.0, 1.0, 4.0, 2.0, 3.0, 3.0, 2.5, 3.5, None]
    answers = [json.dumps([[-1.0], [-0.5, -0.5 - m]]) if m is not None else "" for m in margins]
    # Hateful 5, 4, 3, 2.5 and none; others 0, 1, 2, 3, 3.5: won are 5 + 5 + 3.5 + 3 + 0 of 25
    # pairs. Two of twelve are lost.
    found = figures("hateful_memes_dev", answers)
    assert found == {"roc_auc": pytest.approx(16.5 / 25 * 10 / 12), "lost": 2.0}


def test_raven(vocabulary):
    found = examples("raven_test")
    rows = asked(found[1], vocabulary)
    assert len(rows) == 6 and len(found[1]["images"]) == 10
    assert rows[0] == (
        "Here are four images:[0][1][2][3] The following image is:[4] Is it correct?",
        ["Yes"],
    )
    assert rows[5][0].endswith("The following image is:[9] Is it correct?")
    assert asked(found[2], vocabulary)[0][0].startswith("Here are eight images:[0]")
    # What is shown is the right candidate: of the second matrix the second one, picture 5.
    assert found[1]["image_slots"].max() == 5 * LATENTS + LATENTS - 1
    # Labels are 1 to 6, then 1 to 4; the first is right twice of ten, two of twelve are lost.
    assert figures("raven_test", says([0] * 10, 6)) == {
        "accuracy": pytest.approx(2 / 12),
        "lost": 2.0,
    }


def test_imagenet_free_and_constrained(vocabulary):
    free = examples("imagenet_val")[0]
    first = int(np.argmax(free["loss_weights"] > 0))
    assert vocabulary.decode(free["targets"][:first]).endswith("</image> The photo of the")
    constrained = examples("imagenet_constrained_val")[0]
    names = ["tench", "goldfish", "crane", "crane", "stingray"]
    assert asked(constrained, vocabulary) == [("[0] The photo of the", names)]
    assert constrained[CONSTRAINED] and CONSTRAINED not in free
    # Ten pictures, two of each class; two of twelve are lost.
    said = ["tench", "Carassius auratus", "crane", " crane ", "a stingray", "tench", "", *["?"] * 3]
    for name in ("imagenet_val", "imagenet_constrained_val"):
        assert figures(name, said) == {
            "accuracy": pytest.approx(4 / 12),
            "accuracy_any_name": pytest.approx(5 / 12),
            "lost": 2.0,
        }


def test_birds_with_and_without_descriptions(vocabulary):
    prompts = {}
    for kind in ("descriptions", "names"):
        example = examples(f"birds_{kind}_test")[0]
        first = int(np.argmax(example["loss_weights"] > 0))
        text = vocabulary.decode(example["targets"][:first])
        prompts[kind] = text.partition("</image>")[2]
    question = "Question:what is the name of the woodpecker in the picture? Answer:"
    assert prompts == {
        "descriptions": " Downy woodpecker has white spots. Three toed woodpecker has a yellow "
        f"crown. {question}",
        "names": f" downy woodpecker, three toed woodpecker. {question}",
    }
    downy, three = "downy woodpecker", "Three-toed woodpecker."
    said = [downy, f"a {downy}.", three, three, f"{downy} or {three}", "three toed woodpeckers"]
    # Right: two, and one; "or" and the plural do not count. All of the three gentoos, no royal
    # penguin. Two groups are lost: a picture folder outside, and a class alone.
    said += ["gentoo", "It is a Gentoo", "GENTOO", "royal", "penguin", ""]
    assert figures("birds_descriptions_test", said) == {
        "accuracy": pytest.approx(6 / 14),
        "accuracy/downy woodpecker / three toed woodpecker": 0.5,
        "accuracy/gentoo / royal penguin": 0.5,
        "lost": 2.0,
    }
