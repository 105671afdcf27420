"""From nothing to a model that grounds phrases, measured, drawn and exported: `make quickstart`.

Trains the run of a configuration file, then writes into the work folder: `metrics.json`, curves,
sheets of held-out pictures with predicted and true boxes, a Hugging Face folder that transformers
loads, and `report.md` that shows it all. The last line printed is the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from kosmos2_jax.startup import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from kosmos2_jax.errors import Kosmos2Error  # noqa: E402
from kosmos2_jax.evaluation.report import plot_curves, write_report  # noqa: E402
from kosmos2_jax.evaluation.sheet import picture_sheet  # noqa: E402
from kosmos2_jax.interop.convert import convert, load  # noqa: E402
from kosmos2_jax.models.kosmos2 import Kosmos2  # noqa: E402
from kosmos2_jax.tasks import easy_vqa, scenes  # noqa: E402
from kosmos2_jax.train import train  # noqa: E402
from kosmos2_jax.training.host_memory import keep_memory  # noqa: E402
from kosmos2_jax.training.settings import parse_command_line  # noqa: E402
from kosmos2_jax.training.sheets import sheet_items  # noqa: E402
from kosmos2_jax.training.signals import EXIT_RESTART, Interrupted  # noqa: E402
from kosmos2_jax.training.task_scoring import TaskResult  # noqa: E402

EXPORT_FOLDER = "hugging_face"
_CURVES = (
    "train/loss",
    "eval/rec_accuracy",
    "eval/rec_accuracy_held_out",
    "eval/phrase_grounding_r1",
    "eval/vqa_accuracy",
)


def main() -> int:
    """Runs everything; exit status 1 with one line if something the user can mend is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", default="runs/quickstart", help="where everything goes")
    parser.add_argument("--config", default="configs/quickstart.py", help="the run")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments, overrides = parser.parse_known_args()
    sys.argv = [
        sys.argv[0],
        f"--config={arguments.config}",
        f"--workdir={arguments.workdir}",
        *overrides,
    ]
    try:
        command = parse_command_line(sys.argv)
        keep_memory()
        started = time.perf_counter()
        trained = train(command.run, command.workdir)
        minutes = (time.perf_counter() - started) / 60
        figures = _finish(command.workdir, trained.model, trained.results, minutes)
    except Kosmos2Error as error:
        if arguments.debug:
            raise
        print(f"quickstart: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"quickstart: {stop}", file=sys.stderr)
        return EXIT_RESTART
    print(f"Report: {command.workdir / 'report.md'}", file=sys.stderr)
    print(json.dumps(figures))
    return 0


def _finish(
    workdir: Path, model: Path, results: dict[str, TaskResult], minutes: float
) -> dict[str, float]:
    export = workdir / EXPORT_FOLDER
    convert(model, export, "hf", overwrite=True)
    pictures = [sample.pictures[0] for sample in results[scenes.REC].samples[:8]]
    figures = {name: value for r in results.values() for name, value in r.metrics.items()}
    figures["export_max_abs_logit_diff"] = compare_with_transformers(model, export, pictures)
    figures["training_minutes"] = minutes
    (workdir / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", _CURVES)
    picture_sheet(sheet_items(results[scenes.REC]), 6, workdir / "rec.png")
    picture_sheet(sheet_items(results[scenes.GROUNDING]), 6, workdir / "grounding.png")
    picture_sheet(sheet_items(results[easy_vqa.NAME], 12), 6, workdir / "vqa.png")
    write_report(
        workdir / "report.md",
        "A small Kosmos-2 that grounds phrases",
        figures,
        {
            "Learning": "curves.png",
            "Referring expressions on held-out pictures": "rec.png",
            "Phrases grounded in captions": "grounding.png",
            "Questions of easy-vqa": "vqa.png",
        },
        {"What is here": _GUIDE.format(export=export, model=model)},
    )
    return figures


_GUIDE = """\
`*_held_out` counts objects of combinations of colour and shape that training never showed.

Ask the model about a picture of your own or of the data:

    kosmos2 ground PICTURE "the red star" --model {model} --output boxes.png

The export loads in transformers:

    AutoModelForImageTextToText.from_pretrained("{export}")
"""


def compare_with_transformers(model: Path, export: Path, pictures: list[np.ndarray]) -> float:
    """Largest difference of logits between our model and its export in transformers.

    Each picture goes through both, with the prompt of phrase grounding, preprocessed by the
    exported processor.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    theirs = AutoModelForImageTextToText.from_pretrained(export).eval()
    processor = AutoProcessor.from_pretrained(export)
    checkpoint = load(model)
    ours = Kosmos2(checkpoint.config)
    inputs = processor(
        text=["<grounding><phrase> the red star</phrase>"] * len(pictures),
        images=[Image.fromarray(p) for p in pictures],
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    mask = inputs["image_embeds_position_mask"].numpy()
    tokens = inputs["input_ids"].numpy().astype(np.int32)
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    slots = np.where(mask > 0, np.cumsum(mask, axis=1) - 1, -1).astype(np.int32)
    images = inputs["pixel_values"].numpy().transpose(0, 2, 3, 1)[:, None]
    found = ours.apply(
        {"params": checkpoint.params}, tokens, positions, np.ones_like(tokens), images, slots
    )
    return float(np.abs(np.asarray(found) - expected).max())


if __name__ == "__main__":
    sys.exit(main())
