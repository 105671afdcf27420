"""Tasks over prepared documents and mixtures of them, read as training reads them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqio

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data import prepare
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.encode_document import EncodeSettings
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.grit import GritConfig
from kosmos2_jax.data.packed_pipeline import Batch, PackedBatches, packed_batches
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.tasks import captions, grit, instructions, interleaved, mixtures, text

from . import prepared

LATENTS, SIZE, COUNT = 4, 16, 48
FOLDERS = (
    "text",
    "captions",
    "grit",
    "interleaved",
    "language_instructions",
    "visual_instructions",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write_all(tmp_path_factory.mktemp("prepared"), COUNT, FOLDERS)


@pytest.fixture(scope="module")
def settings(vocabulary: Kosmos2Vocabulary) -> TaskSettings:
    encode = EncodeSettings(num_latents=LATENTS, grit=GritConfig(image_size=SIZE))
    return TaskSettings(vocabulary, encode, seed=3, shuffle_buffer=8)


def read(name: str, length: int = 72, images: int = 4, **changes: Any) -> PackedBatches:
    options = {"pack": False, "num_streams": 2, "num_epochs": 1, "image_mode": "square"}
    lengths = feature_lengths(length, images)
    return packed_batches(name, lengths, 4, 0, image_size=SIZE, **(options | changes))


def said(batches: PackedBatches, vocabulary: Kosmos2Vocabulary) -> list[tuple[str, str]]:
    """What each example of one-a-row batches says, and the part that is learnt."""
    found = []
    for batch in batches:
        for targets, weights, segments in zip(
            batch["targets"], batch["loss_weights"], batch["segment_ids"], strict=True
        ):
            ids = targets[segments > 0]
            if len(ids):
                learnt = ids[weights[segments > 0] > 0]
                found.append((vocabulary.decode(ids.tolist()), vocabulary.decode(learnt.tolist())))
    return found


def test_captions_of_both_kinds_are_read_without_boxes(
    folder: Path, settings: TaskSettings, vocabulary: Kosmos2Vocabulary
) -> None:
    captions.register("t_captions", [str(folder / "captions"), str(folder / "grit")], settings)
    learnt = Counter(learnt.strip() for _, learnt in said(read("t_captions"), vocabulary))
    numbers = range(COUNT)
    expected = [prepared.document("caption", n).content["caption"] for n in numbers]
    expected += [prepared.document("grounded", n).content["caption"] for n in numbers]
    assert learnt == Counter(expected)


def test_grit_shows_boxes_by_chance_and_otherwise_in_every_pass(
    folder: Path, settings: TaskSettings, vocabulary: Kosmos2Vocabulary
) -> None:
    grit.register("t_grit", [str(folder / "grit")], settings)
    grit.register("t_grounded", [str(folder / "grit")], settings, grounding_probability=1.0)
    grounded = [learnt for _, learnt in said(read("t_grounded"), vocabulary)]
    assert len(grounded) == COUNT
    assert all(one.startswith("<grounding><phrase> a") for one in grounded)
    both = [learnt for _, learnt in said(read("t_grit", num_epochs=8), vocabulary)]
    assert len(both) == 8 * COUNT
    share = sum(one.startswith("<grounding>") for one in both) / len(both)
    assert 0.4 < share < 0.6


def test_instructions_are_asked_and_only_answers_learnt(
    folder: Path, settings: TaskSettings, vocabulary: Kosmos2Vocabulary
) -> None:
    instructions.register("t_visual", [str(folder / "visual_instructions")], settings)
    found = said(read("t_visual"), vocabulary)
    turns = [prepared.document("instruction", n).content["turns"][0] for n in range(1, 96, 2)]
    assert Counter(learnt.strip() for _, learnt in found) == Counter(answer for _, answer in turns)
    assert all("Question:" in whole and "</image>" in whole for whole, _ in found)
    instructions.register_grounded("t_derived", [str(folder / "grit")], settings)
    derived = said(read("t_derived", num_epochs=6), vocabulary)
    asked = sum(learnt.startswith("<object>") for _, learnt in derived) / len(derived)
    assert 0.35 < asked < 0.65
    # Another pass asks for another phrase, or in another way.
    assert len(set(derived)) > 60  # out of a dozen captions


def test_pages_keep_their_pictures_in_place(folder: Path, settings: TaskSettings) -> None:
    interleaved.register("t_pages", [str(folder / "interleaved")], settings)
    pages = 0
    for batch in read("t_pages"):
        for row, images in enumerate(batch["images"]):
            if batch["segment_ids"][row].any():
                pages += 1
                assert batch["image_slots"][row].max() == 2 * LATENTS - 1
                np.testing.assert_array_equal(images[0], images[1])
                assert images[0].any() and not images[2:].any()
    assert pages == COUNT


def test_text_runs_across_documents_or_not(
    folder: Path, settings: TaskSettings, vocabulary: Kosmos2Vocabulary
) -> None:
    where = [str(folder / "text")]
    text.register("t_text", where, settings)
    text.register("t_alone", where, settings, across_documents=False)
    alone = [whole for whole, _ in said(read("t_alone"), vocabulary)]
    assert len(alone) == COUNT
    assert all(one.count("</line>") == 2 for one in alone)
    lines = ends = rows = 0
    for batch in read("t_text"):
        rows += (batch["segment_ids"].max(axis=1) > 0).sum()
        lines += (batch["targets"] == vocabulary.end_of_line_id).sum()
        ends += (batch["targets"] == vocabulary.eos_id).sum()
    assert (lines, ends) == (2 * COUNT, COUNT)
    assert rows < COUNT / 2


def _by_pass(batches: PackedBatches, vocabulary: Kosmos2Vocabulary) -> dict[str, list[bool]]:
    """By words of a caption, whether it had boxes, pass after pass."""
    found: dict[str, list[bool]] = {}
    for batch in batches:
        for images, targets, weights in zip(
            batch["images"], batch["targets"], batch["loss_weights"], strict=True
        ):
            if weights.any():
                learnt = vocabulary.decode(targets[weights > 0].tolist())
                number = f"{images[0, 0, 0, :2]}"
                found.setdefault(number, []).append(learnt.startswith("<grounding>"))
    return found


def test_chance_follows_from_document_and_pass_alone(
    folder: Path, settings: TaskSettings, vocabulary: Kosmos2Vocabulary
) -> None:
    """On any number of streams and shards, and in whatever order."""
    unshuffled = dataclasses.replace(settings, shuffle_buffer=1)
    grit.register("t_chance", [str(folder / "grit")], unshuffled)

    def passes(**changes: Any) -> dict[str, list[bool]]:
        return _by_pass(read("t_chance", num_epochs=4, **changes), vocabulary)

    whole = passes(num_streams=1)
    assert len(whole) == COUNT
    assert len({tuple(draws) for draws in whole.values()}) > 8
    assert passes(num_streams=6) == whole  # more streams than files
    parts = [passes(num_streams=4, shard_id=k, num_shards=2) for k in range(2)]
    assert parts[0] | parts[1] == whole
    other = dataclasses.replace(unshuffled, seed=4)
    grit.register("t_chance", [str(folder / "grit")], other)
    assert passes(num_streams=1) != whole


def test_a_mixture_resumes_to_the_bit(folder: Path, settings: TaskSettings) -> None:
    mixtures.register("t_mixture", dict.fromkeys(mixtures.KINDS, 1.0), folder, settings)

    def open_batches() -> PackedBatches:
        return read("t_mixture", pack=True, num_epochs=None)

    batches = open_batches()
    states, seen = [], []
    for _ in range(30):
        states.append(batches.get_state())
        seen.append(next(batches))
    for place in (1, 7, 18):
        again = open_batches()
        again.set_state(states[place])
        _assert_equal(list(itertools.islice(again, 30 - place)), seen[place:])
        assert again.tasks() == batches.tasks()
        assert again.skips().to_dict() == batches.skips().to_dict()


def _assert_equal(first: list[Batch], second: list[Batch]) -> None:
    for a, b in zip(first, second, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("name", mixtures.MIXTURES)
def test_the_papers_mixtures_have_their_proportions(
    name: str, folder: Path, settings: TaskSettings
) -> None:
    rates = mixtures.MIXTURES[name]
    mixtures.register(name, rates, folder, settings)
    batches = read(name, pack=True, num_epochs=None)
    while sum(examples for examples, _ in batches.tasks().values()) < 1500:
        next(batches)
    examples = {task: count for task, (count, _) in batches.tasks().items()}
    total = sum(examples.values())
    for task, rate in rates.items():
        share = rate / sum(rates.values())
        # Four standard deviations of a draw of so many, and what is still in open rows.
        tolerance = 4 * np.sqrt(share * (1 - share) / total) + 0.01
        assert examples.get(task, 0) / total == pytest.approx(share, abs=tolerance)
    tokens = sum(tokens for _, tokens in batches.tasks().values())
    assert tokens > 0.8 * 72 * total / 6
    batches.skips().check()


def test_what_is_skipped_is_counted_once_on_any_number_of_shards(
    tmp_path: Path, settings: TaskSettings
) -> None:
    documents = [prepared.document("caption", n) for n in range(40)]
    documents[3] = prepared.document("caption", 3, content={"caption": "  "})
    documents[4] = prepared.document("caption", 4, images=())
    documents[9] = prepared.document("caption", 9, content={"caption": 7})
    documents[5] = prepared.document("caption", 5, images=(b"no picture",))
    where = prepared.write(tmp_path / "captions", documents)
    captions.register("t_bad", [where], settings)
    for shards in (1, 2, 4):
        kept, reasons = 0, Counter[str]()
        for shard in range(shards):
            batches = read("t_bad", pack=True, shard_id=shard, num_shards=shards)
            assert list(batches)
            skips = batches.skips()
            kept += skips.num_kept("caption source")
            reasons.update(skips.reasons("caption source"))
            reasons.update(skips.reasons("t_bad"))
        assert kept == 37
        assert reasons == {
            "caption is empty": 1,
            "caption without exactly one picture": 1,
            "caption is missing or no text": 1,
            "broken picture": 1,
        }
    # Over and over again, to a limit and a number from which on it counts.
    batches = read("t_bad", pack=True, num_epochs=None)
    for _ in range(20):
        next(batches)
    batches.skips().check(limit=0.1)
    batches.skips().check(limit=0.05, least=10_000)
    with pytest.raises(DataError, match=r"\d\.\d% of source 'caption source' had to be skipped"):
        batches.skips().check(limit=0.05)


def test_what_prepare_wrote_is_read_in_full(
    tmp_path: Path, settings: TaskSettings, vocabulary: Kosmos2Vocabulary
) -> None:
    texts = [prepared.words(n, 2 + n % 4) for n in range(50)]
    lines = [json.dumps({"text": one}) for one in texts]
    (tmp_path / "pile.jsonl").write_text("\n".join(lines) + "\n")
    out = tmp_path / "data" / "text" / "pile"
    plan = prepare.make_plan("jsonl", [str(tmp_path / "pile.jsonl")], str(out), num_shards=4)
    prepare.start(plan)
    prepare.convert(plan, 0)
    mixtures.register("t_prepared", {"text/pile": 1.0}, tmp_path / "data", settings)
    with pytest.raises(DataError, match="no finished split 'train'.*run it to its end"):
        next(read("t_prepared"))
    prepare.convert_all(plan)
    mixtures.register("t_prepared", {"text": 1.0}, tmp_path / "data", settings)
    ids: Counter[tuple[int, ...]] = Counter()
    for batch in read("t_prepared"):
        for targets, segments in zip(batch["targets"], batch["segment_ids"], strict=True):
            row = targets[segments > 0]
            ends = np.flatnonzero(row == vocabulary.eos_id) + 1
            ids.update(tuple(part.tolist()) for part in np.split(row, ends) if len(part))
    assert ids == Counter((*vocabulary.encode(one), vocabulary.eos_id) for one in texts)


def test_a_source_without_use_ends_the_run(tmp_path: Path, settings: TaskSettings) -> None:
    bad = (prepared.document("caption", n, images=()) for n in range(12))
    captions.register("t_useless", [prepared.write(tmp_path / "bad", bad)], settings)
    with pytest.raises(DataError, match="None of .* documents of task 't_useless'.*exactly one"):
        next(read("t_useless", num_epochs=None))
    empty = prepared.write(tmp_path / "empty", ())
    captions.register("t_empty", [empty], settings)
    with pytest.raises(DataError, match=f"finds no documents in {empty}: .*fewer data.streams"):
        next(read("t_empty", num_epochs=None))


def test_sources_that_are_not_there_are_named(tmp_path: Path, settings: TaskSettings) -> None:
    def fails(words: str) -> None:
        captions.register("t_missing", [str(tmp_path / "laoin")], settings)
        with pytest.raises(DataError, match=words):
            next(read("t_missing"))

    fails("laoin' holds no finished split 'train'")
    prepared.write(tmp_path / "laoin", [prepared.document("text", 1)], files=3)
    (tmp_path / "laoin" / prepared.shard_name(1, 3)).unlink()
    fails("holds 2 files of split 'train', where their names say 3")
    prepared.write(tmp_path / "other", [prepared.document("text", n) for n in range(9)])
    (tmp_path / "laoin").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "laoin")
    fails("kind caption or grounded, but source 'text source' is of kind 'text'")
    (tmp_path / "laoin" / "train.json").unlink()
    fails("no finished split")


def _model() -> Kosmos2Config:
    return Kosmos2Config(
        vision=VisionConfig(SIZE, 8, 32, 1, 2, 32),
        resampler=ResamplerConfig(num_latents=LATENTS),
        decoder=DecoderConfig(0, 32, 1, 2, 32, 128),
        grid_size=8,
    )


def test_preparing_a_run_registers_its_mixture(folder: Path, vocabulary: Kosmos2Vocabulary) -> None:
    tokenizer = str(vocabulary.model_file)
    data = DataConfig(tasks="mixtures", mixture="kosmos2_pretrain", tokenizer=tokenizer)
    name, found = mixtures.prepare(folder, data, _model(), 0)
    assert name == "kosmos2_pretrain"
    assert found.vocab_size == vocabulary.vocab_size
    own = dataclasses.replace(data, mixture="", rates={"captions": 3, "text": 1})
    name, _ = mixtures.prepare(folder, own, _model(), 0)
    mixture = seqio.MixtureRegistry.get(name)
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {
        "captions": 3.0,
        "text": 1.0,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixture": "kosmos3"}, "no mixture 'kosmos3': .*kosmos2_pretrain"),
        ({"mixture": ""}, "either data.mixture"),
        ({"rates": {"text": 1.0}}, "either data.mixture"),
        ({"mixture": "", "rates": {"captoins": 1.0}}, "'captoins'; did you mean 'captions'"),
        ({"mixture": "", "rates": {"text": 0.0}}, "rate of 0.0 for 'text'"),
        ({"mixture": "", "rates": {"text/pile": 1.0}}, "text/pile' holds no prepared source"),
    ],
)
def test_mixtures_that_cannot_be_are_one_clear_error(
    changes: dict[str, Any], words: str, folder: Path
) -> None:
    data = dataclasses.replace(DataConfig(mixture="kosmos2_pretrain"), **changes)
    with pytest.raises((ConfigError, DataError), match=words) as error:
        mixtures.prepare(folder, data, _model(), 0)
    assert "\n" not in str(error.value)
