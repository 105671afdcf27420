"""Parsing says what is wrong with malformed markup, and where."""

from __future__ import annotations

import pytest

from kosmos2_jax.grounding.markup import parse

DOG = "<phrase> a dog</phrase>"
BOX = "<patch_index_0044><patch_index_0863>"
GROUNDED = f"{DOG}<object>{BOX}</object>"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            f"a<phrase> b</phrase><object>{BOX}",
            "<object> without a closing </object> at character 20.",
        ),
        (f"{DOG}<object>{BOX} and", "<object> without a closing </object> at character 23."),
        (f"{DOG}<object><object>{BOX}</object>", "<object> without a closing </object> at"),
        (f"{DOG} <object>{BOX}</object>", "text between </phrase> and <object> at character 23."),
        (f"{GROUNDED} and<object>{BOX}</object>", "<object> without a phrase before it at"),
        (f"<object>{BOX}</object>", "<object> without a phrase before it at character 0."),
        (f"<phrase> a<phrase> b</phrase><object>{BOX}</object>", "two phrases overlap: <phrase> "),
        (
            f"a</phrase><object>{BOX}</object>",
            "</phrase> without an opening <phrase> at character 1.",
        ),
        (f"{GROUNDED}<phrase> b", "<phrase> without a closing </phrase> at character 76."),
        (f"<phrase></phrase><object>{BOX}</object>", "empty phrase at character 0."),
        (f"<phrase> a <unk></phrase><object>{BOX}</object>", "phrase 'a <unk>' holds '<'"),
        (f"{GROUNDED} and {DOG}.", "phrase 'a dog' without a box at character 81."),
        (f"{DOG}<object></object>", "box of 0 location tokens instead of 2 at character 23."),
        (f"{DOG}<object><patch_index_0001></object>", "box of 1 location tokens instead of 2"),
        (f"{DOG}<object>{BOX}{BOX}</object>", "box of 4 location tokens instead of 2"),
        (
            f"{DOG}<object>{BOX}</delimiter_of_multi_objects/></object>",
            "box of 0 location tokens instead of 2",
        ),
        (
            f"{DOG}<object><patch_index_0000><patch_index_1029></object>",
            "location token 1029 outside the 32x32 grid at character 23.",
        ),
        (
            f"{DOG}<object><patch_index_0863><patch_index_0044></object>",
            "reversed box 863, 44 at character 23.",
        ),
        (
            f"{GROUNDED}<patch_index_0001>",
            "<patch_index_0001> outside of any <object> at character 76.",
        ),
        (f"{GROUNDED}</object>", "</object> outside of any <object>"),
        (
            f"{GROUNDED} 1 < 2 > 0",
            "'< 2 >' taken for a tag and dropped from the text at character 79.",
        ),
    ],
)
def test_problem_is_named_with_its_place(text: str, problem: str) -> None:
    problems = parse(text, 32).problems
    assert any(problem in found for found in problems), problems


def test_places_count_from_the_beginning_of_what_was_parsed() -> None:
    prompt = "<image>the</image><grounding>"
    (problem, _) = parse(f"{prompt}{DOG}<object>{BOX}", 32).problems
    assert f"at character {len(prompt) + len(DOG)}." in problem


def test_grid_matters() -> None:
    text = f"{DOG}<object><patch_index_0000><patch_index_0063></object>"
    assert parse(text, 8).problems == ()
    assert "location token 63 outside the 4x4 grid" in parse(text, 4).problems[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a dog", "no <grounding> tags in the output: ask with grounded=True."),
        ("", "no <grounding> tags in the output: ask with grounded=True."),
        ("<grounding> a dog", "the output has no <object> with location tokens."),
        (f"<grounding>{DOG} is", "the output has no <object> with location tokens."),
        (f"{DOG}<object>", "no <object> in the output is well-formed."),
    ],
)
def test_why_nothing_is_grounded(text: str, why: str) -> None:
    assert parse(text, 32).problems[-1] == f"Nothing is grounded: {why}"


def test_well_formed_text_has_no_problems() -> None:
    assert parse(GROUNDED + " by" + GROUNDED + ".", 32).problems == ()
    assert parse(f"<grounding>{GROUNDED}</s>", 32).problems == ()
