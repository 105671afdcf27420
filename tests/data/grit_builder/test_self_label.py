"""`tools/self_label.py`: boxes that a model draws are judged against the truth."""

from __future__ import annotations

from types import ModuleType

import pytest

from kosmos2_jax.data.documents import Document

from ... import programs


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return programs.tool("self_label")


def labelled(index: int, annotations: list[list[float]]) -> Document:
    content = {"noun_chunks": annotations}
    return Document("grounded", (b"",), content, (64, 64), "labelled", f"pairs.tar:{index:06d}")


def test_a_box_is_right_where_it_is_one_of_its_phrase(tool):
    scenes = [tool.draw(index) for index in range(3)]
    caption = scenes[2][1].caption
    true = [[s.start, s.end, *box, 0.9] for s in caption.spans for box in s.boxes]
    assert tool.judge(labelled(2, true), scenes) == [True] * len(true)
    span = caption.spans[0]
    elsewhere = [span.start, span.end, 0.0, 0.0, 0.01, 0.01, 0.9]
    nothing = [0, 8, *span.boxes[0], 0.9]  # "An image"
    assert tool.judge(labelled(2, [elsewhere, nothing]), scenes) == [False, False]
