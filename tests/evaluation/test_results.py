"""The report of an evaluation: its numbers, and data that cannot write into its page."""

from __future__ import annotations

import html.parser

from PIL import Image

from kosmos2_jax.evaluation.means import Interval
from kosmos2_jax.evaluation.paper_values import paper_value
from kosmos2_jax.evaluation.results import (
    FigureRow,
    Results,
    ShownExample,
    TaskReport,
    markdown,
    reasons,
)
from kosmos2_jax.evaluation.results_page import page_html

HOSTILE = "<script>alert('a')</script> | & \"b\""
RED = Image.new("RGB", (8, 4), "red")
TASK = TaskReport(
    name="flickr30k_grounding_test",
    summary="phrase grounding",
    examples=1200,
    lost={"7": "box has no area"},
    problems={**{str(n): "missing" for n in range(6)}, "9": "broken picture"},
    rows=[
        FigureRow("r1", 80.0, Interval(78.0, 82.0), paper_value("flickr30k_grounding_test", "r1")),
        FigureRow("r5", 75.0, Interval(74.0, 76.0), paper_value("flickr30k_grounding_test", "r5")),
        FigureRow("r1/people", 91.0, Interval(90.0, 92.0)),
    ],
    best=[ShownExample("a", f"<grounding>{HOSTILE}", HOSTILE, "true", 1.0, picture=RED)],
    worst=[ShownExample("b", "<image></image>", "", HOSTILE, 0.0)],
)
RESULTS = Results("models/mine", {"dtype": HOSTILE}, [TASK], {"refcoco_val": "lacks | files"})


class Tags(html.parser.HTMLParser):
    """Counts elements and checks that they are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_data_cannot_write_in_it():
    page = page_html(RESULTS)
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and "script" not in tags.seen
    assert tags.seen.count("article") == 2 and tags.seen.count("img") == 1
    for text in (
        "[78.0, 82.0]",
        '<td class="n same">+1.3</td>',  # the paper's 78.7 is within
        '<td class="n below">-5.1</td>',  # its 80.1 is above
        "share of phrases of whose first five boxes one does",
        "R@1 by group",
        "people",
        "1 example could not be asked",
        "6: missing (0, 1, 2, 3, 4, ...)",
        "✓ right",
        "✗ wrong",
        "(nothing)",
        "Peng et al. 2023",
        "lacks | files",
    ):
        assert text in page, text
    assert "http" not in page.replace("https://", "").replace("http-equiv", "")


def test_markdown_has_the_same_figures():
    text = markdown(RESULTS)
    rows = [line for line in text.splitlines() if line.startswith("| flickr30k")]
    assert rows == [
        "| flickr30k_grounding_test | r1 | 80.0 | [78.0, 82.0] | 78.7 | +1.3 | "
        "Peng et al. 2023, arXiv:2306.14824 |",
        "| flickr30k_grounding_test | r5 | 75.0 | [74.0, 76.0] | 80.1 | -5.1 | "
        "Peng et al. 2023, arXiv:2306.14824 |",
        "| flickr30k_grounding_test | r1/people | 91.0 | [90.0, 92.0] |  |  |  |",
    ]
    assert "phrase grounding; 1,200 examples asked." in text
    assert "- 1: box has no area (7)" in text
    assert "| refcoco_val | lacks \\| files |" in text


def test_reasons_that_differ_in_names_alone_are_one():
    missing = {str(n): f"picture '{n}.jpg' is missing" for n in range(7)}
    assert reasons(missing | {"x": "box (0, 0, -8, 8) has no area"}) == [
        "7: picture ... is missing (0, 1, 2, 3, 4, ...)",
        "1: box (0, 0, -8, 8) has no area (x)",
    ]


def test_published_values_say_where_they_come_from():
    value = paper_value("refcoco_testA", "accuracy")
    assert (value.value, value.source) == (57.42, "Peng et al. 2023, arXiv:2306.14824")
    assert "test-dev" in paper_value("vqav2_val2014", "accuracy").note
    assert paper_value("refcoco_testA", "lost") is None
