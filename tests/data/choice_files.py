"""A dozen examples of each benchmark of choices, in files as they are published.

Of each dozen the last two or so cannot be asked. Where nothing else is said, the right answers
alternate, beginning with the first candidate.
"""

from __future__ import annotations

from typing import Any

from .task_figures import png

GOOD = range(10)


def hellaswag() -> dict[str, Any]:
    def line(number: int, **more: Any) -> dict[str, Any]:
        return {
            "ind": number,
            "activity_label": "Baking cookies",
            "ctx_a": "A man bakes.",
            "ctx_b": "the man",
            "ctx": "A man bakes. the man",
            "split": "val",
            "split_type": "indomain",
            "label": number % 2,
            "endings": ["eats [step] them.", "flies away.", "sleeps [title] well.", "sings."],
            "source_id": "activitynet~v_1",
        } | more

    bad = [line(10, label=""), line(11, endings=["only one."])]
    return {"hellaswag/hellaswag_val.jsonl": [line(n) for n in GOOD] + bad}


def storycloze() -> dict[str, Any]:
    header = (
        "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
        "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    )
    row = '{},"Tom, a cook, slept.",He woke.,He ran.,He fell.,{},He flew.,{}\n'
    rows = [row.format(f"s{n}", "He cried.", n % 2 + 1) for n in GOOD]
    # An ending is missing; an id is there twice.
    rows += [row.format("s10", "", 1), row.format("s0", "He cried.", 1)]
    name = "storycloze/cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
    return {name: header + "".join(rows)}


def winograd() -> dict[str, Any]:
    schema = (
        "<schema><text><txt1>Ann told {other} that</txt1>\n<pron>she</pron> <txt2>won.</txt2>"
        "</text><quote><pron>she</pron></quote><answers><answer>Ann</answer>\n"
        "<answer>{other}</answer></answers><correctAnswer>{right}</correctAnswer></schema>"
    )
    schemas = [schema.format(other="The judge", right="A" if n % 2 == 0 else " B. ") for n in GOOD]
    schemas += [schema.format(other="", right="A"), schema.format(other="Bea", right="C")]
    return {"winograd/WSCollection.xml": f"<collection>{''.join(schemas)}</collection>"}


def winogrande() -> dict[str, Any]:
    def line(number: int, **more: Any) -> dict[str, Any]:
        return {
            "qID": f"3D{number}-1",
            "sentence": "Sarah beat Maria as _ was better.",
            "option1": "Sarah",
            "option2": "Maria",
            "answer": str(number % 2 + 1),
        } | more

    bad = [line(10, answer=""), line(11, sentence="There is no gap.")]
    return {"winogrande/dev.jsonl": [line(n) for n in GOOD] + bad}


def piqa() -> dict[str, Any]:
    line = {"goal": "Boil water", "sol1": "Use a kettle.", "sol2": "Use a fridge."}
    lines = [*(dict(line) for _ in GOOD), line | {"sol1": " "}, line]
    labels = [str(n % 2) for n in GOOD] + ["0", "x"]
    return {"piqa/valid.jsonl": lines, "piqa/valid-labels.lst": "\n".join(labels) + "\n"}


def boolq() -> dict[str, Any]:
    def line(number: int, **more: Any) -> dict[str, Any]:
        line = {"question": "does ice float", "passage": "Ice floats. It\nis light.", "idx": number}
        return line | {"label": number % 2 == 1} | more

    bad = [line(10, label="true"), line(11, passage="Ice <s> floats.")]
    return {"boolq/BoolQ/val.jsonl": [line(n) for n in GOOD] + bad}


def cb() -> dict[str, Any]:
    labels = ("entailment", "contradiction", "neutral")

    def line(number: int, label: str) -> dict[str, Any]:
        line = {"premise": "It rains.", "hypothesis": "it is wet.", "idx": number}
        return line | {"label": label}

    lines = [line(n, labels[n % 3]) for n in GOOD] + [line(10, "maybe"), line(3, "neutral")]
    return {"cb/CB/val.jsonl": lines}


def copa() -> dict[str, Any]:
    def line(number: int, **more: Any) -> dict[str, Any]:
        return {
            "premise": "The grass was wet.",
            "choice1": "It rained.",
            "choice2": "I slept.",
            "question": "cause" if number < 5 else "effect",
            "label": number % 2,
            "idx": number,
        } | more

    bad = [line(10, question="why"), line(11, label=2)]
    return {"copa/COPA/val.jsonl": [line(n) for n in GOOD] + bad}


def relative_size() -> dict[str, Any]:
    things = ("cat", "apple", "eye", "bird", "knife", "hat", "shoe", "hen", "dog", "door")
    pairs = [f"sofa {thing}" for thing in things] + ["sofa", "sofa cat"]
    return {"relative_size/sizePairsFull.txt": "\n".join(pairs) + "\n"}


def memory_color() -> dict[str, Any]:
    rows = [
        "1,a ,sunflower,yellow",
        "2,the ,ocean,blue",
        "3,,grass,green",
        "4,the inside of a,pineapple,yellow",
        "5,,bone,white",
        "6,a,raven,black",
        "7,an,elephant,grey",
        "8,,lavender,purple",
        "9,a,flamingo,pink",
        "10,an,orange,orange",
        "11,,sand,beige",
        "12,,,red",
    ]
    return {
        "memory_color/memory_color_data.csv": "\n".join(["Index,Descriptor,Item,Color", *rows, ""])
    }


def color_terms() -> dict[str, Any]:
    rows = "ash,grey banana,yellow beaver,brown blood,red coal,black cotton,white".split()
    rows += "sea,blue pig,pink grass,green carrot,orange ash,grey moss,lime".split()
    return {"color_terms/color-concrete-objects.csv": "\n".join(["object,color", *rows, ""])}


def seed_bench() -> dict[str, Any]:
    def question(number: int, **more: Any) -> dict[str, Any]:
        return {
            "answer": "ABCD"[number % 4],
            "choice_a": "One",
            "choice_b": " Two towels\n",
            "choice_c": "Three",
            "choice_d": "Four",
            "data_id": "1454426_2591111986",
            "data_type": "image",
            "question": "How many\ntowels?",
            "question_id": str(101669 + number),
            "question_type_id": 5 if number < 4 else 1,
        } | more

    # A film stands among them; its place counts in the ids.
    questions = [question(n) for n in range(4)]
    questions += [question(4, data_type="video", question_type_id=10)]
    questions += [question(n) for n in range(4, 10)]
    questions += [question(10, answer="E"), question(11, data_id="missing")]
    return {
        "seed_bench/SEED-Bench.json": {"questions": questions, "question_type": {}},
        "seed_bench/SEED-Bench-image/1454426_2591111986": png(),
    }


def rendered_sst2() -> dict[str, Any]:
    files = {
        f"rendered_sst2/test/{kind}/{number:04d}.png": png(number)
        for kind in ("positive", "negative")
        for number in range(6)
    }
    return files | {"rendered_sst2/test/negative/README.txt": "no picture"}


def hateful_memes() -> dict[str, Any]:
    def line(number: int, label: Any) -> dict[str, Any]:
        return {
            "id": 8291 + number,
            "img": f"img/{number % 10:05d}.png",
            "label": label,
            "text": "hi",
        }

    lines = [line(n, n % 2) for n in GOOD] + [line(10, None), line(3, 1)]
    pictures = {f"hateful_memes/img/{number:05d}.png": png(number) for number in GOOD}
    return pictures | {"hateful_memes/dev.jsonl": lines}


def raven() -> dict[str, Any]:
    """Two by two, two in a row, and three by three; the last two lack a candidate and a label."""
    counts = (3, 4, 8) * 4
    labels = [str(number % 6 + 1) for number in range(11)]
    files: dict[str, Any] = {"raven/labels.tsv": "\n".join(labels) + "\n"}
    for number, count in enumerate(counts, 1):
        for kind, many, shade in (("query", count, 0), ("answer", 5 if number == 11 else 6, 100)):
            for place in range(1, many + 1):
                name = f"raven/obo/exp-{number}/{kind}-{place}.png"
                files[name] = png(shade + place)
    return files


def imagenet() -> dict[str, Any]:
    names = (
        "n01440764 tench, Tinca tinca\n"
        "n01443537 goldfish, Carassius auratus\n"
        "n02012849 crane\n"
        "n03126707 crane\n"
        "n01498041 stingray\n"
    )
    synsets = [line.partition(" ")[0] for line in names.splitlines()]
    rows = [
        f"ILSVRC2012_val_{number:08d},{synsets[number % 5]} 1 2 3 4 {synsets[number % 5]} 5 6 7 8 "
        for number in GOOD
    ]
    rows += [
        "ILSVRC2012_val_00000010,n99999999 1 2 3 4 ",
        "ILSVRC2012_val_00000011,n01440764 1 2 3",
    ]
    folder = "imagenet/ILSVRC/Data/CLS-LOC/val"
    pictures = {f"{folder}/ILSVRC2012_val_{n:08d}.JPEG": png(n) for n in range(11)}
    return pictures | {
        "imagenet/LOC_synset_mapping.txt": names,
        "imagenet/LOC_val_solution.csv": "\n".join(["ImageId,PredictionString", *rows, ""]),
    }


def birds() -> dict[str, Any]:
    def item(name: str, description: str, images: str = "") -> dict[str, str]:
        return {"name": name, "description": description, "images": images or name.split()[0]}

    woodpeckers = [
        item("downy woodpecker", "Downy woodpecker has white spots."),
        item("three toed woodpecker", "Three toed woodpecker has a yellow crown."),
    ]
    penguins = [item("gentoo", "A gentoo is black."), item("royal penguin", "Royal is yellow.")]
    groups = [
        {"category": "woodpecker", "classes": woodpeckers},
        {"category": "penguin", "classes": penguins},
        {"category": "sparrow", "classes": [item("fox sparrow", "It is red.", "../other")]},
        {"category": "owl", "classes": [item("downy", "One only.", "downy")]},
    ]
    pictures = {
        f"birds/{folder}/{number}.jpg": png(number)
        for folder in ("downy", "three", "gentoo", "royal")
        for number in range(3)
    }
    return pictures | {"birds/birds.json": {"groups": groups}, "birds/downy/notes.txt": "none"}


def all_files() -> dict[str, Any]:
    makers = (hellaswag, storycloze, winograd, winogrande, piqa, boolq, cb, copa, relative_size)
    more = (memory_color, color_terms, seed_bench, rendered_sst2, hateful_memes, raven, imagenet)
    return {k: v for make in (*makers, *more, birds) for k, v in make().items()}
