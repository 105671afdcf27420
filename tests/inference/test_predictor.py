"""`Predictor`: what each task gives back, scores, problems, pictures of all kinds, bad input."""

from __future__ import annotations

import functools
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
from kosmos2_jax.grounding import GroundedText, Kosmos2Vocabulary, Span, cells_to_box, prompts
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.inference.questions import Turn
from kosmos2_jax.inference.reading import box_scores, read_caption
from kosmos2_jax.inference.requests import Output
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
    decoder = predictor.params["decoder"]
    norm = {**decoder["final_norm"], "scale": decoder["final_norm"]["scale"] / 2e1}
    params = {**predictor.params, "decoder": {**decoder, "final_norm": norm}}
    flat = Predictor(predictor.model, params, predictor.vocabulary).describe(PIXELS).spans[0]
    assert flat.boxes == span.boxes and max(flat.scores) < min(span.scores)
    assert flat.phrase_score < span.phrase_score <= 1
    for box, near in zip(flat.scores, flat.marginal_scores, strict=True):
        assert box < near <= 1


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
    question = predictor.questions.ground(PIXELS, "a star")
    (output,) = predictor.stream(question).result()
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


def test_lists_streams_and_several_outputs(random_predictor: Predictor):
    predictor = random_predictor
    pictures = [PIXELS, 255 - PIXELS, PIXELS[:10]]
    assert predictor.describe(pictures) == [predictor.describe(picture) for picture in pictures]
    sampling = SamplingConfig(12, temperature=2.0, num_outputs=3, grammar=True)
    question = predictor.questions.ask(PIXELS, "what?", grounded=True, sampling=sampling)
    (answers,) = predictor.answer([question])
    assert len(set(answers)) == 3
    handle = predictor.stream(question)
    pieces = "".join(piece.markup for piece in handle if piece.output == 1)
    assert question.read(handle.result()[1]) == answers[1]
    assert pieces == handle.result()[1].markup
    found = predictor.ground(PIXELS, "a star", SamplingConfig(12, grammar=True))
    assert found.spans[0].boxes  # the grammar leaves no other way


def test_tags_in_a_question_are_text(random_predictor: Predictor):
    v, question = random_predictor.vocabulary, "is <object> a tag?"
    asked = random_predictor.questions.ask(None, question).request.prompt
    assert asked.ids.tolist() == [0, *v.encode(f"Question: {question} Answer:")]
    assert v.object_id not in asked.ids and not asked.images
    assert random_predictor.ask(PIXELS, question).text
    plain = random_predictor.questions.ask(None, "what is it?", grounded=True).request.prompt
    assert plain.ids.tolist() == [0, *v.encode_markup(prompts.ask("what is it?", grounded=True))]


def test_boxes_are_carried_through_a_conversation(random_predictor: Predictor):
    v = random_predictor.vocabulary
    answer = GroundedText("a star", (Span("star", 2, 6, (STAR_BOX,)),))
    again = GroundedText(" what is the star?", (Span("the star", 9, 17, (STAR_BOX,)),))
    turns = [Turn("what is it?", answer, (PIXELS,)), Turn(again, images=(PIXELS,))]
    prompt = random_predictor.questions.chat(turns, grounded=True).request.prompt
    tokens = [v.tokens[token] for token in prompt.ids]
    assert tokens.count("<object>") == tokens.count("</object>") == 2 == len(prompt.images)
    assert tokens.count("<grounding>") == 1
    said = v.decode(prompt.ids[np.flatnonzero(prompt.ids == v.grounding_id)[0] :])
    assert said.startswith("<grounding> Question: what is it? Answer: a<phrase> star</phrase>")
    assert f"what is<phrase> the star</phrase>{STAR}? Answer:" in said
    with pytest.raises(MarkupError, match="every question but the last"):
        random_predictor.questions.chat([Turn("what?"), Turn("why?")])


def test_raw_prompts_hold_demonstrations(random_predictor: Predictor):
    v, path = random_predictor.vocabulary, PIXELS
    question = random_predictor.questions.raw(
        [path, "a red star", path, f"It<phrase> star</phrase>{STAR} is", path, "<grounding>a"]
    )
    ids = question.request.prompt.ids.tolist()
    assert ids.count(v.begin_image_id) == 3 and ids.count(v.object_id) == 1
    assert question.read(random_predictor.stream(question).result()[0]).text is not None


def test_given_vectors_stand_for_tokens_and_pictures(random_predictor: Predictor):
    """A token's row of the table, and a picture's soft tokens, give what they themselves give."""
    predictor = random_predictor
    v, table = predictor.vocabulary, predictor.params["decoder"]["token_embedding"]
    pixels = predictor.questions.prompt([PIXELS]).images[0]
    soft = jax.jit(functools.partial(predictor.model.module.apply, method="encode_images"))(
        {"params": predictor.params}, pixels[None, None]
    )
    ids = v.encode("a red star")
    asked = [
        [PIXELS, "is", "a red star"],
        [PIXELS, "is", np.asarray(table)[ids]],
        ["<image>", np.asarray(soft[0]), "</image>is", np.asarray(table)[ids]],
    ]
    sampling = SamplingConfig(8, no_repeat_ngram_size=0)
    found = predictor.engine.generate(
        [predictor.questions.raw(segments, sampling).request for segments in asked]
    )
    for (output,) in found[1:]:
        assert output.ids == found[0][0].ids
        np.testing.assert_allclose(output.log_probs, found[0][0].log_probs, atol=1e-4)
    with pytest.raises(MarkupError, match="the model takes"):
        predictor.stream(predictor.questions.raw(["a", np.zeros((2, 3), np.float32)]))


def test_scores_and_choices(random_predictor: Predictor):
    prompt = [PIXELS, "Question: what colour? Answer:"]
    answers = ["blue", "red star", "blue square"]
    scores = random_predictor.score(prompt, answers)
    assert [len(own) for own in scores] == [
        len(random_predictor.vocabulary.encode(answer)) for answer in answers
    ]
    assert random_predictor.choose(prompt, answers) in answers
    found = random_predictor.top_boxes(PIXELS, " a star ", 5)
    (span,) = found.spans
    assert found.text == span.text == "a star" and len(span.boxes) == 5
    assert list(span.scores) == sorted(span.scores, reverse=True)


# Scores --------------------------------------------------------------------------------------


def _output(ids: list[int], log_probs: list[float]) -> Output:
    return Output(tuple(ids), tuple(log_probs), tuple(x / 2 for x in log_probs), "end", "")


def test_only_boxes_of_well_formed_objects_have_scores(small_vocabulary: Kosmos2Vocabulary):
    v = small_vocabulary
    ids = v.encode_markup(f"<object><patch_index_0001></object>{STAR}<object><patch_index_0002>")
    output = _output(ids, [-0.1 * i for i in range(len(ids))])
    (found,) = box_scores(v, output)
    assert found.box == STAR_BOX and found.phrase_score is None
    assert found.score == pytest.approx(math.exp(-0.45))
    assert found.marginal_score == pytest.approx(math.exp(-0.225))
    two = _output(v.encode_markup(TWO), [-1.0, -2.0, -2.0, -9.0, -4.0, -6.0, -9.0])
    scores = [entry.score for entry in box_scores(v, two)]
    assert scores == [pytest.approx(math.exp(-2)), pytest.approx(math.exp(-5))]


def test_a_phrase_has_the_mean_probability_of_its_words(small_vocabulary: Kosmos2Vocabulary):
    v = small_vocabulary
    ids = v.encode_markup(f"a<phrase> red star</phrase>{STAR}")
    first, last = ids.index(v.phrase_id) + 1, ids.index(v.end_phrase_id)
    log_probs = [-9.0] * len(ids)
    log_probs[first:last] = [-0.5] * (last - first - 1) + [-0.1]
    expected = math.exp(-(0.5 * (last - first - 1) + 0.1) / (last - first))
    (found,) = box_scores(v, _output(ids, log_probs))
    assert found.phrase_score == pytest.approx(expected)


def test_a_tag_spelled_in_letters_has_no_score(assets: Path):
    v = Kosmos2Vocabulary(assets / "tokenizer" / "sentencepiece.bpe.model")
    ids = v.encode("x<object><patch_index_0001><patch_index_0099></object>")
    result = read_caption(v, _output(ids, [0.0] * len(ids)), "", grounded=True)
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
    questions = [random_predictor.questions.describe(p) for p in (PIXELS, 255 - PIXELS)]
    first, other = (random_predictor.stream(q).result()[0] for q in questions)
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
