"""What the papers report, by task and figure, to stand beside what is measured (spec section 5).

Values are in the papers' units: hundredths, CIDEr times 100.
"""

from __future__ import annotations

from typing import NamedTuple

_KOSMOS1 = "Huang et al. 2023, arXiv:2302.14045"
_KOSMOS2 = "Peng et al. 2023, arXiv:2306.14824"
_CODE = "github.com/microsoft/unilm, kosmos-2/README.md"
_SLIDES = "slides on Kosmos-2 (SEED-Bench)"


class PaperValue(NamedTuple):
    """A published figure.

    Attributes:
      value: as published.
      source: who published it.
      note: where it was not measured as ours is, or could not be looked up again.
    """

    value: float
    source: str
    note: str = ""


_QUOTED = "second-hand: not checked against the paper"


def paper_value(task: str, figure: str) -> PaperValue | None:
    """Returns what a paper reports for a figure of a task, or None.

    Args:
      task: its name, as "refcoco_testA".
      figure: its name without the task's, as "accuracy" or "r1/people".
    """
    return _VALUES.get(task, {}).get(figure)


def _same(values: dict[str, float], source: str, note: str = "") -> dict[str, PaperValue]:
    return {figure: PaperValue(value, source, note) for figure, value in values.items()}


def _one(
    figure: str, tasks: dict[str, float], source: str, note: str = ""
) -> dict[str, dict[str, PaperValue]]:
    return {task: {figure: PaperValue(value, source, note)} for task, value in tasks.items()}


_TYPES = (
    "animals", "bodyparts", "clothing", "instruments", "other", "people", "scene", "vehicles",
)  # fmt: skip


def _grounding(recalls: tuple[float, ...], by_type: tuple[float, ...]) -> dict[str, PaperValue]:
    figures = dict(zip(("r1", "r5", "r10"), recalls, strict=True))
    types = {f"r1/{name}": value for name, value in zip(_TYPES, by_type, strict=True)}
    return _same(figures, _KOSMOS2) | _same(types, _CODE)


_SPLIT = "the paper does not say which split"
_TEST_DEV = "the paper's is of test-dev"

_VALUES: dict[str, dict[str, PaperValue]] = {
    # Section 5.2.
    "flickr30k_grounding_val": _grounding(
        (77.8, 79.2, 79.3), (90.82, 41.40, 70.88, 76.77, 64.71, 88.96, 80.63, 86.69)
    ),
    "flickr30k_grounding_test": _grounding(
        (78.7, 80.1, 80.1), (91.70, 40.92, 73.55, 76.54, 65.06, 89.52, 82.21, 91.25)
    ),
    # Section 5.3.
    **_one(
        "accuracy",
        {
            "refcoco_val": 52.32,
            "refcoco_testA": 57.42,
            "refcoco_testB": 47.26,
            "refcoco_plus_val": 45.48,
            "refcoco_plus_testA": 50.73,
            "refcoco_plus_testB": 42.24,
            "refcocog_val": 60.57,
            "refcocog_test": 61.65,
        },
        _KOSMOS2,
    ),
    # Section 5.4.
    "refcocog_generation_val": _same({"meteor": 12.2, "cider": 60.3}, _KOSMOS2, _SPLIT),
    "refcocog_generation_val_2shot": _same({"meteor": 13.8, "cider": 62.2}, _KOSMOS2, _SPLIT),
    "refcocog_generation_val_4shot": _same({"meteor": 14.1, "cider": 62.3}, _KOSMOS2, _SPLIT),
    # Section 5.5, without instruction tuning.
    **_one("cider", {"flickr30k_captions_test": 66.7}, _KOSMOS2),
    **_one("accuracy", {"vqav2_val2014": 45.6}, _KOSMOS2, _TEST_DEV),
    # Section 5.6.
    **_one(
        "accuracy",
        {
            "storycloze_test": 72.0,
            "hellaswag_val": 49.4,
            "winograd_test": 69.1,
            "winogrande_val": 55.6,
            "piqa_val": 72.9,
            "boolq_val": 62.0,
            "cb_val": 30.4,
            "copa_val": 67.0,
        },
        _KOSMOS2,
    ),
    # Section 5.7.
    "seed_bench_test": _same(
        {
            "accuracy/scene understanding": 63.36,
            "accuracy/instance identity": 57.07,
            "accuracy/instance location": 43.96,
            "accuracy/spatial relation": 37.90,
            "accuracy/instance interaction": 55.67,
            "accuracy/visual reasoning": 60.72,
        },
        _SLIDES,
    )
    | _same(
        {
            "accuracy": 54.4,
            "accuracy/instance attributes": 58.5,
            "accuracy/instances counting": 41.4,
            "accuracy/text understanding": 25.9,
        },
        _SLIDES,
        _QUOTED,
    ),
    # Section 5.8.
    **_one("cider", {"coco_captions_test": 84.7}, _KOSMOS1, _QUOTED),
    **_one(
        "cider",
        {
            "coco_captions_test_2shot": 99.6,
            "coco_captions_test_4shot": 101.7,
            "coco_captions_test_8shot": 96.7,
            "flickr30k_captions_test_2shot": 70.0,
            "flickr30k_captions_test_4shot": 75.3,
            "flickr30k_captions_test_8shot": 68.0,
        },
        _KOSMOS1,
        _QUOTED,
    ),
    **_one(
        "accuracy",
        {
            "vqav2_val2014_2shot": 51.4,
            "vqav2_val2014_4shot": 51.8,
            "vqav2_val2014_8shot": 51.4,
            "vizwiz_val": 29.2,
            "vizwiz_val_2shot": 31.4,
            "vizwiz_val_4shot": 35.3,
            "vizwiz_val_8shot": 39.0,
        },
        _KOSMOS1,
        f"{_QUOTED}; {_TEST_DEV}",
    ),
    **_one(
        "accuracy",
        {
            "rendered_sst2_test": 67.1,
            "rendered_sst2_rationale_test": 72.9,
            "birds_names_test": 61.7,
            "birds_descriptions_test": 90.0,
        },
        _KOSMOS1,
    ),
    **_one(
        "accuracy",
        {
            "raven_test": 22.0,
            "imagenet_val": 4.0,
            "imagenet_constrained_val": 38.1,
            "relative_size_test": 94.2,
            "memory_color_test": 76.1,
            "color_terms_test": 73.1,
        },
        _KOSMOS1,
        _QUOTED,
    ),
    **_one("roc_auc", {"hateful_memes_dev": 63.9}, _KOSMOS1),
    "websrc_dev": _same({"exact_match": 15.8, "f1": 31.3}, _KOSMOS1, _QUOTED),
}
