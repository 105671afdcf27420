"""`Predictor`: what each task gives back, scores, problems, pictures of all kinds, bad input."""

from __future__ import annotations

import io
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import kosmos2_jax
from kosmos2_jax.errors import (
    BoxError,
    CheckpointError,
    ConfigError,
    ImageError,
    Kosmos2Error,
    MarkupError,
)
from kosmos2_jax.grounding import Kosmos2Vocabulary, cells_to_box, prompts
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.inference.reading import Output, box_scores, read_caption
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.interop import fairseq, hugging_face, orbax_io

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
STAR = "<object><patch_index_0009><patch_index_0027></object>"
TWO = (
    "<object><patch_index_0001><patch_index_0018></delimiter_of_multi_objects/>"
    "<patch_index_0033><patch_index_0050></object>"
)
STAR_BOX = cells_to_box(9, 27, 8)


# Tasks ---------------------------------------------------------------------------------------


def test_describe_keeps_its_first_words(scripted):
    answer = f"<phrase> a small red star</phrase>{STAR} left of<phrase> the square</phrase>{TWO}"
    result = scripted(prompts.describe(), answer).describe(PIXELS)
    assert result.text == "An image of a small red star left of the square"
    assert [(s.text, len(s.boxes)) for s in result.spans] == [
        ("a small red star", 1), ("the square", 2)
    ]  # fmt: skip
    assert all(result.text[s.start : s.end] == s.text for s in result.spans)
    assert result.spans[0].boxes == (STAR_BOX,)
    assert result.problems == ()


def test_scores_are_geometric_means_of_two_probabilities(scripted):
    predictor = scripted(prompts.describe(), f"<phrase> a star</phrase>{TWO}")
    span = predictor.describe(PIXELS).spans[0]
    assert len(span.scores) == 2 and all(0.9 < score <= 1 for score in span.scores)
    # A flat head leaves the same boxes with less certainty.
    predictor.params["decoder"]["final_norm"]["scale"] /= 2e1
    flat = predictor.describe(PIXELS).spans[0]
    assert flat.boxes == span.boxes and max(flat.scores) < min(span.scores)


def test_detailed_description_is_without_the_instruction(scripted):
    prompt = prompts.describe(detailed=True)
    result = scripted(prompt, f"the blue square and<phrase> a star</phrase>{STAR}").describe(
        PIXELS, detailed=True
    )
    assert result.text == "the blue square and a star"
    assert result.entities() == [("a star", (20, 26), [tuple(STAR_BOX)])]


def test_describe_says_why_nothing_is_grounded(scripted):
    result = scripted(prompts.describe(), "a red star").describe(PIXELS)
    assert result.text == "An image of a red star" and not result.spans
    assert result.problems == (
        "Nothing is grounded: the output has no <object> with location tokens.",
    )


def test_ground_gives_the_phrase_and_stops_after_its_boxes(scripted):
    answer = f"{TWO} left of<phrase> the blue square</phrase>{STAR}"
    predictor = scripted(prompts.ground("a star"), answer)
    result = predictor.ground(PIXELS, "  a star ")
    assert result.text == "a star" and result.problems == ()
    (span,) = result.spans
    assert (span.text, span.start, span.end, len(span.boxes)) == ("a star", 0, 6, 2)
    assert len(span.scores) == 2
    output = predictor._ask_about(
        PIXELS, prompts.ground("a star"), (predictor.vocabulary.end_object_id,)
    )
    assert len(output.ids) == 7 and output.complete


def test_ground_of_a_phrase_with_unknown_letters(scripted):
    result = scripted(prompts.ground("ein Stern für ☃"), STAR).ground(PIXELS, "ein Stern für ☃")
    assert result.entities() == [("ein Stern für ☃", (0, 15), [tuple(STAR_BOX)])]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (f"left of<phrase> a square</phrase>{STAR}", "the model gave 'a star' no box"),
        ("<object><patch_index_0009></object>", "no <object> in the output is well-formed"),
        ("left of a square", "the output has no <object>"),
    ],
)
def test_ground_without_a_box_says_why(scripted, answer: str, problem: str):
    result = scripted(prompts.ground("a star"), answer).ground(PIXELS, "a star")
    assert result.text == "a star" and not result.spans
    assert sum(p.startswith("Nothing is grounded") for p in result.problems) == 1
    assert problem in result.problems[-1]


def test_refer_gives_the_description_alone(scripted):
    predictor = scripted(prompts.refer((0.1, 0.1, 0.5, 0.5), 8), "a red star")
    result = predictor.refer(PIXELS, (0.1, 0.1, 0.5, 0.5))
    assert (result.text, result.spans, result.problems) == ("a red star", (), ())


def test_ask_gives_the_answer_and_does_not_miss_boxes(scripted):
    question = "what colour is the shape?"
    result = scripted(prompts.ask(question), "blue").ask(PIXELS, question)
    assert (result.text, result.spans, result.problems) == ("blue", (), ())


def test_grounded_answers(scripted):
    question = "what is left of the square?"
    prompt = prompts.ask(question, grounded=True)
    found = scripted(prompt, f"<phrase> a star</phrase>{STAR}").ask(PIXELS, question, grounded=True)
    assert found.entities() == [("a star", (0, 6), [tuple(STAR_BOX)])]
    missed = scripted(prompt, "a star").ask(PIXELS, question, grounded=True)
    assert missed.problems == (
        "Nothing is grounded: the output has no <object> with location tokens.",
    )


def test_a_text_that_is_cut_off_says_so(scripted):
    predictor = scripted(prompts.ask("what?"), "a small red star", max_new_tokens=2)
    result = predictor.ask(PIXELS, "what?")
    assert result.problems == ("The text was cut off after 2 tokens: raise max_new_tokens.",)


def test_a_model_that_has_nothing_to_say(scripted):
    result = scripted(prompts.ask("what?"), "", ngram_variant="hugging_face").ask(PIXELS, "what?")
    assert (result.text, result.problems) == ("", ("The model wrote nothing.",))


# Scores --------------------------------------------------------------------------------------


def test_only_boxes_of_well_formed_objects_have_scores(small_vocabulary: Kosmos2Vocabulary):
    v = small_vocabulary
    ids = v.encode_markup(f"<object><patch_index_0001></object>{STAR}<object><patch_index_0002>")
    log_probs = [-0.1 * i for i in range(len(ids))]
    assert box_scores(v, ids, log_probs) == [(STAR_BOX, pytest.approx(math.exp(-0.45)))]
    two = v.encode_markup(TWO)
    scores = box_scores(v, two, [-1.0, -2.0, -2.0, -9.0, -4.0, -6.0, -9.0])
    assert [score for _, score in scores] == [
        pytest.approx(math.exp(-2)), pytest.approx(math.exp(-5))
    ]  # fmt: skip


def test_a_tag_spelled_in_letters_has_no_score(assets: Path):
    v = Kosmos2Vocabulary(assets / "tokenizer" / "sentencepiece.bpe.model")
    ids = v.encode("x<object><patch_index_0001><patch_index_0099></object>")
    output = Output(tuple(ids), (0.0,) * len(ids), True)
    result = read_caption(v, output, "", grounded=True)
    assert [span.scores for span in result.spans] == [()]


# Pictures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_predictor(small_config, small_vocabulary, random_params) -> Predictor:
    """A model with random values: whatever it writes depends on every pixel."""
    params = random_params(small_config)
    return Predictor(Kosmos2Model(small_config, SamplingConfig(12)), params, small_vocabulary)


def test_every_form_of_a_picture_gives_the_same(random_predictor: Predictor, tmp_path: Path):
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    forms = [PIXELS, image, data, tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO(data)]
    results = [random_predictor.describe(form) for form in forms]
    assert all(result == results[0] for result in results)
    prompt = prompts.describe()
    first, other = (random_predictor._ask_about(p, prompt) for p in (PIXELS, 255 - PIXELS))
    assert first.log_probs != other.log_probs


@pytest.mark.parametrize("kind", ["1x1", "CMYK", "16-bit", "animated", "palette"])
def test_odd_pictures_work(kind: str, random_predictor: Predictor):
    image = Image.fromarray(PIXELS)
    encoded = io.BytesIO()
    if kind == "1x1":
        image.resize((1, 1)).save(encoded, "PNG")
    elif kind == "CMYK":
        image.convert("CMYK").save(encoded, "JPEG")
    elif kind == "16-bit":
        Image.fromarray((np.arange(600).reshape(20, 30) * 100).astype(np.uint16)).save(
            encoded, "PNG"
        )
    elif kind == "animated":
        image.save(encoded, "GIF", save_all=True, append_images=[image.rotate(90)])
    else:
        image.convert("P").save(encoded, "PNG")
    assert random_predictor.describe(encoded.getvalue()).text


@pytest.mark.parametrize("source", [b"", b"no picture", "missing.png", np.zeros((3, 3), np.uint8)])
def test_what_is_no_picture_is_refused(source, random_predictor: Predictor):
    with pytest.raises(ImageError):
        random_predictor.describe(source)


# Checkpoints ---------------------------------------------------------------------------------


def test_all_formats_give_the_same_predictor(random_predictor: Predictor, tmp_path: Path):
    predictor = random_predictor
    arguments = (predictor.params, predictor.config, predictor.vocabulary)
    hugging_face.write_folder(tmp_path / "hf", *arguments)
    orbax_io.save_folder(tmp_path / "ours", *arguments)
    fairseq.write_file(tmp_path / "kosmos-2.pt", *arguments)
    expected = predictor.describe(PIXELS)
    read: list[int] = []
    for path in ("hf", "ours", "kosmos-2.pt"):
        loaded = kosmos2_jax.Predictor.from_pretrained(
            tmp_path / path, max_new_tokens=12, progress=read.append
        )
        assert loaded.model.sampling == SamplingConfig(12)
        assert loaded.describe(PIXELS).text == expected.text
        np.testing.assert_array_equal(
            loaded.params["decoder"]["token_embedding"],
            predictor.params["decoder"]["token_embedding"],
        )
    assert max(read) == 4 * sum(leaf.size for leaf in jax.tree.leaves(predictor.params))


def test_a_checkpoint_without_tokenizer_asks_for_it(random_predictor: Predictor, tmp_path: Path):
    predictor = random_predictor
    folder = tmp_path / "ours"
    orbax_io.save_folder(folder, predictor.params, predictor.config, None)
    with pytest.raises(CheckpointError, match="no tokenizer files"):
        Predictor.from_pretrained(folder)
    loaded = Predictor.from_pretrained(folder, predictor.vocabulary.model_file)
    assert loaded.vocabulary == predictor.vocabulary


def test_no_repeated_ngrams_as_the_checkpoint_says(random_predictor: Predictor, tmp_path: Path):
    predictor = random_predictor
    folder = tmp_path / "ours"
    arguments = (predictor.params, predictor.config, predictor.vocabulary)
    orbax_io.save_folder(folder, *arguments, generation={"no_repeat_ngram_size": 0})
    loaded = Predictor.from_pretrained(folder)
    assert loaded.model.sampling == SamplingConfig(no_repeat_ngram_size=0)


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda p: p.ground(PIXELS, "a <object>dog"), MarkupError, "<object>"),
        (lambda p: p.ground(PIXELS, " "), MarkupError, "empty"),
        (lambda p: p.ask(PIXELS, "is <grounding> a tag?"), MarkupError, "<grounding>"),
        (lambda p: p.ask(PIXELS, ""), MarkupError, "empty"),
        (lambda p: p.ask(PIXELS, "why? " * 100), MarkupError, "shorten"),
        (lambda p: p.refer(PIXELS, (0.5, 0.0, 0.1, 1.0)), BoxError, "reversed"),
        (lambda p: p.refer(PIXELS, (0.0, 0.0, 2.0, 1.0)), BoxError, "outside"),
        (lambda p: p.refer(PIXELS, (0.0, 0.0, math.nan, 1.0)), BoxError, "not a finite number"),
    ],
)
def test_bad_requests_are_refused(ask, error, message: str, random_predictor: Predictor):
    with pytest.raises(error, match=message):
        ask(random_predictor)


def test_a_model_without_locations(small_config, small_vocabulary, random_params):
    vocabulary = Kosmos2Vocabulary(small_vocabulary.model_file, grid_size=0)
    config = small_config.replace(grid_size=0, decoder={"vocab_size": vocabulary.vocab_size})
    params = random_params(config)
    predictor = Predictor(Kosmos2Model(config, SamplingConfig(3)), params, vocabulary)
    assert predictor.describe(PIXELS).text.startswith("An image of")
    assert not predictor.ask(PIXELS, "what?").spans
    for task in (
        lambda: predictor.ground(PIXELS, "a star"),
        lambda: predictor.refer(PIXELS, (0.0, 0.0, 1.0, 1.0)),
        lambda: predictor.ask(PIXELS, "what?", grounded=True),
    ):
        with pytest.raises(ConfigError, match="no location tokens"):
            task()


def test_a_vocabulary_of_another_size_is_refused(random_predictor: Predictor):
    other = Kosmos2Vocabulary(random_predictor.vocabulary.model_file, grid_size=4)
    with pytest.raises(ConfigError, match="tokens, the model"):
        Predictor(random_predictor.model, random_predictor.params, other)


@pytest.mark.parametrize(
    "values", [{"max_new_tokens": 0}, {"no_repeat_ngram_size": -1}, {"ngram_variant": "other"}]
)
def test_generation_settings_are_checked(values: dict):
    with pytest.raises(Kosmos2Error, match=next(iter(values))):
        SamplingConfig(**values)
