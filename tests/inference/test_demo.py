"""The demo in a real headless Chromium, against what the predictor itself says."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from kosmos2_jax.errors import ImageError, Kosmos2Error, MarkupError
from kosmos2_jax.grounding import Box, GroundedText, Span
from kosmos2_jax.grounding.links import read_links
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.inference.questions import Turn
from kosmos2_jax.inference.results import with_subject
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.serving.demo.desk import Desk, Visit
from kosmos2_jax.serving.demo.examples import draw_examples, read_examples
from kosmos2_jax.serving.demo.page import make_app
from kosmos2_jax.serving.demo.view import entry, picture
from kosmos2_jax.vision.preprocessing import load_image

from ..served import running

PATIENCE = 120_000  # milliseconds, for machines that are busy with other things
STAR = "<object><patch_index_0009><patch_index_0027></object>"
SQUARE = "<object><patch_index_0036><patch_index_0063></object>"
CAPTION = f"<phrase> a small red star</phrase>{STAR} of<phrase> the blue square</phrase>{SQUARE}"
EXAMPLES = draw_examples(64, 2)
PHOTO = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def png(pixels: np.ndarray = PHOTO) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def predictor(scripted) -> Iterator[Predictor]:
    predictor = scripted("<grounding>An image of", CAPTION, max_new_tokens=48)
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def strict(predictor: Predictor) -> SamplingConfig:
    """The settings of the page when nothing was changed."""
    return dataclasses.replace(predictor.model.sampling, grammar=True)


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    app = make_app(predictor, "tiny <b>", EXAMPLES)
    with running(app, timeout_graceful_shutdown=1) as url:
        yield url


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Page]:
    """The page, of which every request goes to this machine."""
    found = [shutil.which(name) for name in ("chromium", "google-chrome")]
    found.append(str(Path(sys.prefix) / "chromium" / "chromium"))
    program = next(path for path in found if path)
    if not os.path.exists(program):
        message = f"no Chromium: run `python tools/get_chromium.py {sys.prefix}/chromium`"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        asked, faults = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
    outside = [there for there in asked if not there.startswith((url, "data:"))]
    assert not outside and not faults


def choose(page: Page, encoded: bytes = png()) -> None:
    file = {"name": "photo.png", "mimeType": "image/png", "buffer": encoded}
    page.set_input_files(".k2-file", file)


def press(page: Page, tab: str, button: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    page.get_by_role("button", name=button, exact=True).click()


def texts(page: Page) -> Locator:
    return page.locator(".k2-text")


def draw(page: Page, x1: float, y1: float, x2: float, y2: float) -> None:
    page.locator(".k2-area").scroll_into_view_if_needed()
    area = page.locator(".k2-area").bounding_box()
    at = [(area["x"] + x * area["width"], area["y"] + y * area["height"])
          for x, y in ((x1, y1), (x2, y2))]  # fmt: skip
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=3)
    page.mouse.up()


# In the browser, one visit from top to bottom ---------------------------------------------------


def test_what_is_no_picture_is_told_and_the_page_goes_on(page: Page):
    expect(page.locator("#title")).to_contain_text("Model: tiny <b>")
    press(page, "Describe", "Describe")
    expect(page.locator(".toast-body").last).to_contain_text("choose one first")
    choose(page, b"no picture")
    expect(page.locator(".toast-body").last).to_contain_text("no picture")
    page.locator(".k2-examples button").nth(1).click()
    expect(page.locator(".k2-size")).to_contain_text("64 × 64")
    choose(page)
    expect(page.locator(".k2-size")).to_contain_text("80 × 60")


def test_a_description_whose_phrases_light_their_boxes(
    page: Page, predictor: Predictor, strict: SamplingConfig
):
    press(page, "Describe", "Describe")
    told = predictor.describe(png(), sampling=strict)
    assert [span.text for span in told.spans] == ["a small red star", "the blue square"]
    expect(texts(page)).to_have_text([told.text])
    expect(page.locator(".k2-table tbody tr")).to_have_count(2)
    score = f"{told.spans[0].scores[0]:.0%}"
    expect(page.locator(".k2-table tbody tr").first).to_contain_text(score)
    boxes = page.locator(".k2-found .k2-box")
    expect(boxes).to_have_count(2)
    page.get_by_role("button", name="a small red star").click()
    lit = page.locator(".k2-found .k2-lit")
    expect(lit).to_have_count(1)
    area, found = page.locator(".k2-area").bounding_box(), lit.bounding_box()
    place = [
        (found["x"] - area["x"]) / area["width"], (found["y"] - area["y"]) / area["height"],
        (found["x"] - area["x"] + found["width"]) / area["width"],
        (found["y"] - area["y"] + found["height"]) / area["height"],
    ]  # fmt: skip
    np.testing.assert_allclose(place, told.spans[0].boxes[0], atol=0.01)
    expect(page.locator(".k2-found .k2-dim")).to_have_count(1)
    x1, y1, x2, y2 = told.spans[1].boxes[0]  # a click on the other box lights its phrase
    draw(page, (x1 + x2) / 2, (y1 + y2) / 2, (x1 + x2) / 2, (y1 + y2) / 2)
    lit = page.locator(".k2-phrase.k2-lit")
    expect(lit).to_have_text("the blue square")


def test_a_box_is_drawn_and_asked_about(page: Page, predictor: Predictor, strict: SamplingConfig):
    draw(page, 0.75, 0.8, 0.25, 0.2)  # from any corner
    field = page.locator("#box").get_by_role("textbox")
    expect(field).to_have_value(re.compile(r"0\.2\d*, 0\.\d+, 0\.7\d*, 0\.\d+"))
    field.fill("0.25, 0.25, 0.75, 0.75")
    box = Box(0.25, 0.25, 0.75, 0.75)
    drawn = page.locator(".k2-drawn")
    assert "25%" in drawn.get_attribute("style")
    press(page, "Box", "What is in the box?")
    told = with_subject(predictor.refer(png(), box, strict), box)
    expect(texts(page)).to_have_text([told.text])
    page.get_by_role("tab", name="Ask", exact=True).click()
    page.get_by_label("Question").fill("what colour is [the shape]?")
    press(page, "Ask", "Ask")
    asked = read_links("what colour is [the shape]?", box)
    told = predictor.ask(png(), asked, True, strict)
    expect(texts(page)).to_have_text([asked.text, told.text])
    page.locator(".k2-mine").click()
    expect(page.locator(".k2-found .k2-box")).to_have_count(1)


def test_the_likeliest_boxes_of_a_phrase(page: Page, predictor: Predictor, strict):
    page.get_by_role("tab", name="Find", exact=True).click()
    page.get_by_label("What to find").fill("the star")
    press(page, "Find", "Find")
    expect(texts(page)).to_have_text(["the star"])
    page.get_by_role("spinbutton", name="Boxes").fill("3")
    expect(page.get_by_role("slider", name="Boxes")).to_have_value("3")  # the page took it in
    press(page, "Find", "Find")
    told = predictor.top_boxes(png(), "the star", 3)
    rows = page.locator(".k2-table tbody tr")
    expect(rows).to_have_count(3)
    for number, box in enumerate(told.spans[0].boxes):
        corners = " ".join(f"{value:.2f}" for value in np.round(box, 4))
        expect(rows.nth(number).locator(".k2-corners")).to_have_text(corners)
    rows.nth(1).get_by_role("button", name="use").click()
    value = page.locator("#box").get_by_role("textbox").input_value()
    np.testing.assert_allclose(
        [float(part) for part in value.split(",")], told.spans[0].boxes[1], atol=5e-4
    )


def test_a_conversation(page: Page, predictor: Predictor, strict: SamplingConfig):
    page.locator("#box").get_by_role("textbox").fill("")
    turns: list[Turn] = []
    for line in ("what is it?", "and where?"):
        page.get_by_role("tab", name="Chat", exact=True).click()
        page.get_by_label("Say").fill(line)
        press(page, "Chat", "Say")
        turns.append(Turn(read_links(line), images=() if turns else (png(),)))
        question = predictor.questions.chat(turns, True, strict)
        answer = predictor.answer([question])[0][0]
        spans = tuple(span for span in answer.spans if span.start < span.end)
        said = dataclasses.replace(answer, spans=spans)
        turns[-1] = dataclasses.replace(turns[-1], answer=said)
        expect(texts(page)).to_have_text(
            [text for turn in turns for text in (turn.question.text, turn.answer.text)]
        )
    press(page, "Chat", "Start afresh")
    expect(texts(page)).to_have_count(0)


def test_several_outputs(page: Page, predictor: Predictor, strict: SamplingConfig):
    page.get_by_role("button", name="How to write").click()
    for label, value in (("Outputs", "3"), ("Temperature", "1"), ("Seed", "5")):
        page.get_by_label(label).and_(page.get_by_role("spinbutton")).fill(value)
    # The sliders follow when the page has taken the numbers in.
    for label, value in (("Outputs", "3"), ("Temperature", "1")):
        expect(page.get_by_label(label).and_(page.get_by_role("slider"))).to_have_value(value)
    press(page, "Describe", "Describe")
    sampling = dataclasses.replace(strict, num_outputs=3, temperature=1.0, seed=5)
    asked = predictor.questions.describe(png(), sampling=sampling)
    told = [output.text for output in predictor.answer([asked])[0]]
    expect(texts(page)).to_have_text(told)
    page.locator(".k2-entry").nth(2).click()
    expect(page.locator(".k2-active .k2-who")).to_have_text("Kosmos-2, 3 of 3")


# Without a browser ------------------------------------------------------------------------------


def test_what_cannot_be_asked(predictor: Predictor, strict: SamplingConfig):
    desk, visit = Desk(predictor), Visit("one", png(), "", strict)
    with pytest.raises(ImageError, match="choose one first"):
        next(desk.describe(dataclasses.replace(visit, picture=None), False))
    with pytest.raises(MarkupError, match="draw one"):
        next(desk.refer(visit))
    with pytest.raises(MarkupError, match="draw one"):
        next(desk.ask(visit, "what is [it]?", True))
    with pytest.raises(MarkupError, match="is empty"):
        next(desk.find(visit, " ", 1))
    unused = next(desk.ask(dataclasses.replace(visit, box="0,0,1,1"), "what is it?", False))
    assert "put [brackets]" in unused[0]["problems"][0]


def test_a_newer_question_ends_the_one_before(predictor: Predictor, strict: SamplingConfig):
    desk = Desk(predictor)
    long = dataclasses.replace(strict, max_new_tokens=200, grammar=False)
    first = desk.describe(Visit("one", png(), "", long), True)
    assert next(first)[0]["busy"]
    second = list(desk.describe(Visit("one", png(), "", strict), False))
    assert not second[-1][0]["busy"]
    assert all(views[0]["busy"] for views in first)  # no whole answer comes late
    third = desk.describe(Visit("one", png(), "", long), True)
    next(third)
    desk.stop("one")
    *_, last = third
    assert "it was cancelled" in last[0]["problems"][-1]


def test_views_of_boxes_that_a_model_may_write():
    spans = (
        Span("a", 0, 1, (Box(0.9, 0.1, 0.2, 1.5), Box(float("nan"), 0, 1, 1)), (0.5, 0.25), (0.6,)),
        Span("<patch_index_0001><patch_index_0002>", 1, 1, (Box(0, 0, 1, 1),)),
    )
    shown = entry(GroundedText("a b", spans, ("A problem.",)), "you")
    assert shown["runs"] == [["a", 0], [" b", None]] and shown["problems"] == ["A problem."]
    reversed_box, no_number = shown["spans"][0]["boxes"]
    assert reversed_box["drawn"] == [0.2, 0.1, 0.9, 1.0] and reversed_box["score"] == 0.5
    assert no_number["drawn"] is None and no_number["marginal"] is None
    assert shown["spans"][1]["text"] == ""
    large = picture(Image.new("RGB", (3000, 1000)))
    assert (large["width"], large["height"]) == (3000, 1000)
    assert large["src"].startswith("data:image/jpeg;base64,")


def test_examples(tmp_path: Path):
    assert load_image(EXAMPLES[0]).size == (64, 64) and EXAMPLES[0] != EXAMPLES[1]
    with pytest.raises(Kosmos2Error, match="has no pictures"):
        read_examples(tmp_path)
    (tmp_path / "b.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("no picture")
    assert read_examples(tmp_path) == [png()]
    with pytest.raises(Kosmos2Error, match="no folder"):
        read_examples(tmp_path / "nowhere")
