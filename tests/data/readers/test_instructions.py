"""Instructions: every turn and picture of LLaVA-Instruct, Unnatural Instructions and FLAN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos2_jax.data.readers import instructions
from kosmos2_jax.data.skips import DataError, Unusable


def _talk(*said: str, **fields: Any) -> dict[str, Any]:
    speakers = ("human", "gpt")
    turns = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(said)]
    return {**fields, "conversations": turns}


TALKS = [
    _talk(
        "What are the colors of the bus in the image?\n<image>",
        "The bus in the image is white and red.",
        "What feature can be seen on the back of the bus?",
        "The back of the bus features an advertisement.\nIt is large.",
        id="000000033471",
        image="000000033471.jpg",
    ),
    _talk("<image>\nDescribe it.", "A “dog”.", id="000000052846", image="sub/000000052846.jpg"),
    _talk("Who wrote Hamlet?", "Shakespeare.", id="text_only"),
]
TURNS = [
    [
        ["What are the colors of the bus in the image?", "The bus in the image is white and red."],
        [
            "What feature can be seen on the back of the bus?",
            "The back of the bus features an advertisement.\nIt is large.",
        ],
    ],
    [["Describe it.", "A “dog”."]],
    [["Who wrote Hamlet?", "Shakespeare."]],
]


@pytest.fixture
def images(tmp_path: Path, picture: Callable) -> Path:
    folder = tmp_path / "train2017"
    (folder / "sub").mkdir(parents=True)
    (folder / "000000033471.jpg").write_bytes(picture(1))
    (folder / "sub" / "000000052846.jpg").write_bytes(picture(2))
    return folder


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_llava(
    ending: str, tmp_path: Path, images: Path, picture: Callable, read: Callable
) -> None:
    path = tmp_path / f"llava_instruct_150k.{ending}"
    lines = "".join(json.dumps(talk) + "\n" for talk in TALKS)
    path.write_text(json.dumps(TALKS, indent=2) if ending == "json" else lines)
    documents, skips = read("llava", path, images=str(images))
    assert [document.content for document in documents] == [{"turns": turns} for turns in TURNS]
    assert [document.images for document in documents] == [(picture(1),), (picture(2),), ()]
    assert {(document.kind, document.size) for document in documents} == {("instruction", None)}
    assert skips.reasons("test") == {}


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"", b" 3"])
def test_llava_files_that_are_no_list(
    content: bytes, tmp_path: Path, images: Path, read: Callable
) -> None:
    path = tmp_path / "llava.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="llava.json' is not"):
        read("llava", path, images=str(images))


def test_llava_files_that_are_cut_short(tmp_path: Path, images: Path, read: Callable) -> None:
    path = tmp_path / "llava.json"
    whole = json.dumps(TALKS, indent=1)
    for end in range(1, len(whole), 7):
        path.write_text(whole[:end])
        documents, skips = read("llava", path, store=False, images=str(images))
        assert len(documents) < len(TALKS) or end > len(whole) - 5
        assert skips.reasons("test") == {"file cut short or broken": 1}
    path.write_text("[" * 100_000)
    assert read("llava", path, images=str(images))[1].num_skipped("test") == 1
    path.write_text(" [ ] ")
    assert read("llava", path, images=str(images))[1].reasons("test") == {}


ELSEWHERE = "picture not before the first question"


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (_talk("<image>\n<image>\nCompare.", "Equal.", image="x"), ELSEWHERE),
        (_talk("Hello.", "Hi.", "<image> this?", "That.", image="x"), ELSEWHERE),
        (_talk("<image>\nWhat?", "That."), "picture missing"),
        (_talk("What?", "That.", image=["a", "b"]), "image is not a name"),
        (_talk("<image>", "That.", image="x"), "empty question"),
        (_talk("What?", " "), "empty answer"),
        (_talk(), "empty conversation"),
        (_talk("What?"), "empty conversation"),
        ({"conversations": [{"from": "gpt", "value": "Hi."}]}, "speakers do not alternate"),
        ({"conversations": [{"from": "human", "value": 3}]}, "no string 'value'"),
        ({"conversations": [3]}, "speakers do not alternate"),
        ({"conversations": "x"}, "no list 'conversations'"),
        ([], "no list 'conversations'"),
    ],
)  # fmt: skip
def test_bad_talks(talk: Any, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        instructions.parse_llava(talk, lambda reason: None)
    assert caught.value.reason == reason


def test_a_last_question_without_answer_is_left_out() -> None:
    noted: list[str] = []
    talk = _talk("What?", "That.", "And <s>?")
    assert instructions.parse_llava(talk, noted.append) == (None, [["What?", "That."]])
    assert noted == ["clipped: question without an answer"]


def _instance(number: int, **more: str) -> dict[str, str]:
    return {
        "instruction_with_input": f"Classify the review.\nInput: review {number}",
        "input": f"review {number}",
        **more,
        "output": f"label {number}",
    }


def test_unnatural_instructions(tmp_path: Path, read: Callable) -> None:
    core = [
        {
            "instruction": "Classify the review.",
            "instances": [_instance(0, constraints="None."), _instance(1, constraints="None.")],
        },
        {"instruction": "Say it.", "instances": [_instance(2, constraints="None.")]},
    ]
    path = tmp_path / "core_data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in core))
    documents, skips = read("unnatural", path)
    expected = [[[f"Classify the review.\nInput: review {i}", f"label {i}"]] for i in range(3)]
    assert [document.content["turns"] for document in documents] == expected
    assert [document.key for document in documents] == [
        f"core_data.jsonl:{k}" for k in ("0.0", "0.1", "1.0")
    ]
    full = {**core[1], "reformulations": [_instance(7, instruction="Other words.")]}
    path.write_text(json.dumps(full))
    assert len(read("unnatural", path)[0]) == 1
    documents, _ = read("unnatural", path, reformulations=True)
    assert documents[1].content["turns"][0][1] == "label 7"


def test_through_the_pipeline(
    tmp_path: Path, images: Path, picture: Callable, prepare_with_beam: Callable
) -> None:
    (tmp_path / "llava.json").write_text(json.dumps(TALKS))
    (tmp_path / "core.jsonl").write_text(
        json.dumps({"instances": [_instance(i) for i in range(3)]})
    )
    (tmp_path / "flan.jsonl").write_text(json.dumps({"inputs": "a", "targets": "b"}))
    documents = prepare_with_beam("llava", tmp_path / "llava.json", "--images", images)
    documents.sort(key=lambda document: document.key)
    assert [document.content["turns"] for document in documents] == TURNS
    assert [document.images for document in documents] == [(picture(1),), (picture(2),), ()]
    assert len(prepare_with_beam("unnatural", tmp_path / "core.jsonl")) == 3
    (document,) = prepare_with_beam("flan", tmp_path / "flan.jsonl")
    assert document.content == {"turns": [["a", "b"]]}


def test_bad_unnatural_instructions(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "core_data.jsonl"
    bad = [3, {"output": "x"}, {**_instance(1), "output": ""}]
    path.write_text(json.dumps({"instances": [_instance(0), *bad]}) + "\n{}\n[]\n")
    documents, skips = read("unnatural", path)
    assert len(documents) == 1
    assert skips.reasons("test") == {
        "empty answer": 1,
        "instance is not a JSON object": 1,
        "no list 'instances'": 1,
        "no string 'instruction_with_input'": 1,
        "not a JSON object": 1,
    }


def test_flan(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "flan.jsonl"
    rows = [
        {"inputs": " What is 1+1?\n", "targets": "2", "task": "math"},
        {"inputs": "x", "targets": ""},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, skips = read("flan", path)
    assert [document.content for document in documents] == [{"turns": [["What is 1+1?", "2"]]}]
    assert skips.reasons("test") == {"empty answer": 1}
    path.write_text(json.dumps({"question": "a", "answer": "b"}))
    documents, _ = read("flan", path, inputs_field="question", targets_field="answer")
    assert documents[0].content["turns"] == [["a", "b"]]
