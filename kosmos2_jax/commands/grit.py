"""`kosmos2 grit build`, GRIT of your own, and `kosmos2 grit statistics` of any GRIT.

Captions of pictures are parsed, a detector finds their noun chunks, and what it is sure of is
written as TFRecords that training reads, with a parquet file of the published schema beside each.
It is the same Apache Beam pipeline as that of tools/prepare_data.py, and goes on where it was
stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from kosmos2_jax.commands.terminal import PROG, Parser
from kosmos2_jax.errors import ConfigError

if TYPE_CHECKING:
    from kosmos2_jax.data.grit_builder.detectors import DetectorConfig
    from kosmos2_jax.data.grit_builder.stage import GritBuildConfig
    from kosmos2_jax.data.prepare import Plan

# Formats whose documents are pairs.
_PAIRS = ("captions", "captions-tsv")

# Where the configuration of each detector is, and what it is.
DETECTORS = {
    "boxes": ("data.grit_builder.detectors:PrecomputedConfig", "boxes from a file of JSON lines"),
    "transformers": (
        "data.grit_builder.transformers_detector:TransformersConfig",
        "Grounding DINO or OWLv2, a folder as on Hugging Face",
    ),
    "onnx": (
        "data.grit_builder.onnx_detector:OnnxConfig",
        "a closed vocabulary, its detector.json; WordNet tells classes of phrases",
    ),
    "kosmos2": ("inference.grit_detector:Kosmos2Config", "a Kosmos-2 labels its own data"),
}


def add_arguments(parser: Parser) -> None:
    """The options of the command; those that are not known here are Beam's."""
    from kosmos2_jax.data.grit_builder import schema
    from kosmos2_jax.data.prepare_arguments import add_format
    from kosmos2_jax.data.readers import FORMATS

    parser.passes_on = True
    parser.description, parser.formatter_class = __doc__, _STYLE["formatter_class"]
    commands = parser.add_subparsers(dest="grit", metavar="COMMAND", required=True)
    build = commands.add_parser(
        "build", help="ground captions", epilog=_EXAMPLE, description=_DETECTOR_LIST, **_STYLE
    )
    build.set_defaults(step=_build)
    formats = build.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name in _PAIRS:
        sub = formats.add_parser(name, help=FORMATS[name].summary, epilog=_EXAMPLE, **_STYLE)
        add_format(sub, name, FORMATS[name])
        _add_grounding(sub)
        if name == "captions":
            sub.set_defaults(keep=",".join(schema.METADATA))
    counts = commands.add_parser("statistics", help="count images, boxes and expressions")
    counts.set_defaults(step=_statistics)
    counts.add_argument("inputs", nargs="+", metavar="FILE", help="parquet files, globs or folders")


def run(args: argparse.Namespace) -> int | None:
    """Builds or counts; gives the exit status of a build.

    Raises:
      Kosmos2Error: a file cannot be counted.
    """
    return args.step(args)


def _statistics(args: argparse.Namespace) -> None:
    from kosmos2_jax.data.grit_builder import schema
    from kosmos2_jax.data.readers import find_files

    if args.others:
        raise ConfigError(f"kosmos2 grit statistics has no option {args.others[0]}.")
    print(schema.statistics(find_files(args.inputs, (".parquet",))).table())


def _build(args: argparse.Namespace) -> int:
    from kosmos2_jax.data import prepare_beam
    from kosmos2_jax.data.grit import GritConfig
    from kosmos2_jax.data.grit_builder.stage import GritStage
    from kosmos2_jax.data.prepare_arguments import plan_of

    def plan() -> Plan:
        return plan_of(args, GritStage(_detector(args), _config(args)))

    if args.score_threshold < GritConfig.score_threshold:
        prepare_beam.say(
            f"training leaves boxes that score less than {GritConfig.score_threshold} out: train "
            f"with --config.data.score_threshold={args.score_threshold}"
        )
    return prepare_beam.main(PROG, plan, args.processes, args.max_skipped, args.others, _summary)


def _summary(plan: Plan) -> dict[str, Any]:
    """Statistics of the whole set, told as a table and as part of the JSON."""
    from kosmos2_jax.data import prepare_beam
    from kosmos2_jax.data.grit_builder import schema

    files = [str(shard.with_suffix(".parquet")) for shard in plan.shards]
    found = schema.statistics(files)
    prepare_beam.say(found.table())
    return dataclasses.asdict(found)


def _detector(args: argparse.Namespace) -> DetectorConfig:
    place, _ = DETECTORS[args.detector]
    module, _, name = place.partition(":")
    config = getattr(importlib.import_module(f"kosmos2_jax.{module}"), name)
    names = [field.name for field in dataclasses.fields(config)]
    return config(**{name: getattr(args, name) for name in names})


def _config(args: argparse.Namespace) -> GritBuildConfig:
    from kosmos2_jax.data.grit_builder.selection import SelectionConfig
    from kosmos2_jax.data.grit_builder.stage import GritBuildConfig
    from kosmos2_jax.data.prepare_arguments import picture_rules

    selection = SelectionConfig(args.score_threshold, args.nms_iou, args.keep_contained)
    return GritBuildConfig(
        args.parser, selection, args.batch_size, args.max_characters, picture_rules(args)
    )


def _add_grounding(parser: argparse.ArgumentParser) -> None:
    from kosmos2_jax.data.grit_builder.selection import SelectionConfig
    from kosmos2_jax.data.grit_builder.stage import GritBuildConfig

    config, chosen = GritBuildConfig(), SelectionConfig()
    group = parser.add_argument_group("grounding")
    group.add_argument(
        "--detector", choices=DETECTORS, required=True, help="what finds the boxes of phrases"
    )
    group.add_argument("--model", required=True, metavar="PATH", help="file or folder of it")
    group.add_argument(
        "--parser", default=config.parser, metavar="NAME", help="spaCy's model (%(default)s)"
    )
    numbers = (
        ("--score-threshold", chosen.score_threshold, "boxes must score more"),
        ("--nms-iou", chosen.nms_iou, "of boxes that overlap more, the best stays"),
        ("--batch-size", config.batch_size, "pictures that the detector sees at a time"),
        ("--max-characters", config.max_characters, "longer captions are left out"),
    )
    for flag, default, meaning in numbers:
        group.add_argument(
            flag, type=type(default), default=default, help=f"{meaning} (%(default)s)"
        )
    group.add_argument(
        "--keep-contained", action="store_true",
        help="keep expressions within others, as the released files do",
    )  # fmt: skip


_STYLE: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
_EXAMPLE = (
    "For example:\n\n  kosmos2 grit build captions laion/*.tar --out data/grit/mine "
    "--detector transformers \\\n      --model grounding-dino-base --image-mode short"
)
_DETECTOR_LIST = "Detectors:\n" + "\n".join(
    f"  {name:<16}{meaning}" for name, (_, meaning) in DETECTORS.items()
)
