"""Benchmarks drawn small, in the files of the published ones.

They show a whole evaluation without any download. Pictures, words and questions are those that the
quickstart's model knows; what it does on them says nothing about the benchmarks. One picture in
fifty is broken, one is missing, and one box has no area, as they are in real downloads.
"""

from __future__ import annotations

from pathlib import Path

from kosmos2_jax.data.benchmark_registry import DRAWN_JSON
from kosmos2_jax.data.benchmarks.writing import write
from kosmos2_jax.data.drawn_benchmarks import choices, grounding, language, texts
from kosmos2_jax.data.drawn_benchmarks.files import TRAIN, Scenes
from kosmos2_jax.data.skips import DataError

# Of the scenes the first ones are trained on; two splits share the others.
MIN_EXAMPLES = TRAIN + 4


def draw(folder: Path, count: int) -> None:
    """Writes all benchmarks that there are tasks of, a folder for each, as "FOLDER/refcoco".

    A file beside them says that they are drawn, which reports then tell.

    Args:
      folder: gets them.
      count: examples of each; of sets with pictures to train on in the same file, these included.

    Raises:
      DataError: they are too few to draw demonstrations from.
    """
    if count < MIN_EXAMPLES:
        raise DataError(
            f"{count} examples are too few for demonstrations and questions: draw "
            f"{MIN_EXAMPLES} or more."
        )
    scenes = Scenes.of_test(count)
    for of_scenes in (
        grounding.draw_comprehension,
        grounding.draw_generation,
        grounding.draw_phrases,
        texts.draw_captions,
        texts.draw_websrc,
        choices.draw_seed_bench,
        choices.draw_hateful_memes,
    ):
        of_scenes(folder, scenes)
    for of_their_own in (
        texts.draw_questions,
        texts.draw_vizwiz,
        choices.draw_rendered_sst2,
        choices.draw_raven,
        choices.draw_imagenet,
        choices.draw_birds,
        language.draw_language,
        language.draw_common_sense,
    ):
        of_their_own(folder, count)
    write(folder / DRAWN_JSON, {"examples": count})
