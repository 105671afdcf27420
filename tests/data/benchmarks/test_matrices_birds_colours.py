"""Raven's matrices, birds, sizes and colours: what of a download cannot be asked, and why."""

from __future__ import annotations

import pytest

from kosmos2_jax.data.benchmarks.records import ChoiceRecord, Option
from kosmos2_jax.data.skips import DataError

from .conftest import lost


def matrix(number, given=4, candidates=6):
    names = [f"query-{n}" for n in range(1, given + 1)]
    names += [f"answer-{n}" for n in range(1, candidates + 1)]
    return {f"obo/exp-{number}/{name}.png": None for name in names}


def test_raven(write, read):
    files = matrix(1) | matrix(2, given=8) | matrix(3, candidates=5) | matrix(4) | matrix(5, 0)
    files |= matrix(6) | matrix(9) | {"obo/readme.txt": "no matrix"}
    del files["obo/exp-6/query-2.png"]
    labels = "1\t\n6\nx\n7\n1\n1\n\n"
    reading = read("raven", write(files | {"labels.tsv": labels}))
    first, second = reading.records
    assert (first.id, first.answer, second.answer) == ("exp-1", 0, 5)
    assert [path.rpartition("/")[2] for path in first.images] == [
        f"query-{n}.png" for n in range(1, 5)
    ]
    assert len(second.images) == 8 and len(second.candidates) == 6
    assert lost(reading) == {
        "exp-3": "5 candidates instead of 6",
        "exp-4": "label is '7', not one of 1, 2, 3, 4, 5, 6",
        "exp-5": "0 pictures are given",
        "exp-6": "pictures query-N.png are not numbered from 1 without gaps",
        "exp-9": "has no label",
    }
    with pytest.raises(DataError, match="the first one: exp-1: label is 'A'"):
        read("raven", write({"labels.tsv": "A\n"}))


def test_birds(write, read):
    def item(name, images, **more):
        return {"name": name, "images": images, "description": f"{name} is\nbrown."} | more

    groups = [
        {"category": "owl", "classes": [item("barn owl", "barn"), item("eagle owl", "eagle")]},
        {"category": "owl", "classes": [item("barn owl", "barn"), item("barn owl", "eagle")]},
        {"category": "owl", "classes": [item("barn owl", "barn"), item("snowy owl", "snowy")]},
        {"category": "", "classes": []},
        {"category": "owl", "classes": [item("x", "/etc"), item("barn owl", "barn")]},
        7,
    ]
    pictures = ("barn/1.JPG", "barn/2.png", "barn/notes.txt", "eagle/1.jpeg")
    folder = write({"birds.json": {"groups": groups}} | dict.fromkeys(pictures))
    reading = read("birds", folder)
    assert [(r.id, r.names[r.answer]) for r in reading.records] == [
        ("barn/1.JPG", "barn owl"),
        ("barn/2.png", "barn owl"),
        ("eagle/1.jpeg", "eagle owl"),
    ]
    assert reading.records[0].descriptions == ("barn owl is brown.", "eagle owl is brown.")
    assert lost(reading) == {
        "group 1": "not two classes or more, each of another name",
        "group 2": "there are no pictures in 'snowy'",
        "group 3": "empty 'category'",
        "group 4": "pictures '/etc' are outside of the folder",
        "group 5": "no 'category' of type str",
    }


def test_sizes_and_colours(write, read):
    folder = write(
        {
            "sizePairsFull.txt": "sofa cat\n\nsofa\nsofa cat\nhot dog cat\n",
            "memory_color_data.csv": "Index,Descriptor,Item,Color\n1,a ,rose,Red\n2,,sand,beige\n",
            "color-concrete-objects.csv": "object,color\nash,grey\nash,grey\n,red\n",
        }
    )
    sizes = read("relative_size", folder)
    prompt = "Is sofa larger than cat?"
    assert sizes.records == (
        ChoiceRecord("sofa cat", (Option(prompt, "Yes"), Option(prompt, "No")), 0),
    )
    assert lost(sizes) == {
        "line 2": "not two words",
        "sofa": "not two words",
        "sofa cat": "its id is there already",
        "hot dog cat": "not two words",
    }
    (rose,) = read("memory_color", folder).records
    assert rose.options[rose.answer] == Option("The color of a rose is?", "red")
    assert lost(read("memory_color", folder)) == {"2": "colour 'beige' is not one of the eleven"}
    assert lost(read("color_terms", folder)) == {
        "ash": "its id is there already",
        "line 4": "empty 'object'",
    }
    with pytest.raises(DataError, match="no column 'Item'"):
        read("memory_color", write({"memory_color_data.csv": "Index,Descriptor\n"}))
