"""`kosmos2 chat`: lines in, answers out; mistakes do not end it."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

from kosmos2_jax.cli import main
from kosmos2_jax.grounding.links import read_links
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.inference.questions import Turn


def test_a_conversation(model_folder: Path, picture: Path, capsys, monkeypatch):
    lines = [
        "What is it?", "", "/image nowhere.png", "/dance", "/help",
        "And [the star](0.1,0.2,0.5,0.9)?", "[it](0.5,0,0.1,1)?", "/clear", "And now?", "/quit",
    ]  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    words = ["chat", str(picture), "--model", str(model_folder), "--max-new-tokens", "6"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    predictor = Predictor.from_pretrained(model_folder, max_new_tokens=6)
    sampling = dataclasses.replace(predictor.model.sampling, grammar=True)
    first = Turn("What is it?", images=(picture,))
    second = Turn(read_links(lines[5]))
    answers = []
    for turns in ([first], [first, second], [Turn("And now?")]):
        if len(turns) == 2:
            spans = tuple(span for span in answers[0].spans if span.start < span.end)
            said = dataclasses.replace(answers[0], spans=spans)
            turns[0] = Turn(first.question, said, first.images)
        question = predictor.questions.chat(turns, True, sampling)
        answers.append(predictor.answer([question])[0][0])
    place = 0
    for answer in answers:  # in this order
        place = out.index(answer.text, place) + len(answer.text)
    assert "/clear" in out  # by /help
    for fault in ("'nowhere.png' does not exist", "no /dance", "is reversed"):
        assert fault in err
