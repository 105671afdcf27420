"""Every configuration file: both syntaxes build one run, which is known and fits its model."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import pytest

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.interop.layout import unpadded
from kosmos2_jax.interop.names import num_parameters
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.training.run_config import EvaluationRun, RunConfig
from kosmos2_jax.training.settings import parse_command_line

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden_runs"
TRAINING = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")
TRAINING.remove("evaluate")
# What others include.
SHARED = {"run", "data"}

# Spec sections 0 and 1.9.
PARAMETERS = {"kosmos1": 1_662_375_936, "kosmos2": 1_664_485_376}


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch):
    """Parses a command line; ml_collections reads `sys.argv`."""

    def parse(*arguments: str, program: type = RunConfig) -> Any:
        argv = ["train", *arguments]
        monkeypatch.setattr("sys.argv", argv)
        return parse_command_line(argv, program)

    return parse


def ml_run(parse: Any, name: str, *more: str, program: type = RunConfig) -> Any:
    arguments = (f"--config=configs/{name}.py", "--workdir=w", *more)
    return parse(*arguments, program=program).run


def gin_run(parse: Any, name: str, *more: str, program: type = RunConfig) -> Any:
    folder = "MODEL_DIR" if program is RunConfig else "EVAL_OUTPUT_DIR"
    files = (f"--gin_file=configs/gin/{name}.gin", f"--gin.{folder}='w'")
    command = parse(*files, *more, program=program)
    assert command.workdir == Path("w").absolute()
    return command.run


def test_every_file_has_a_partner_in_the_other_syntax():
    gin = {path.stem for path in (ROOT / "configs" / "gin").glob("*.gin")}
    assert gin - SHARED == {*TRAINING, "evaluate"}


@pytest.mark.parametrize("name", TRAINING)
def test_both_syntaxes_build_the_run_that_is_known(parse, name):
    """A change of a run shows as a change of its file; KOSMOS2_GOLDEN=1 writes them anew."""
    run = ml_run(parse, name)
    assert gin_run(parse, name) == run
    _compare_with_golden(run, name)


def test_both_syntaxes_build_one_evaluation(parse):
    run = ml_run(parse, "evaluate", program=EvaluationRun)
    assert gin_run(parse, "evaluate", program=EvaluationRun) == run
    _compare_with_golden(run, "evaluate")


def test_the_shared_gin_file_alone_builds_the_defaults_and_reaches_every_part(parse):
    assert gin_run(parse, "run") == RunConfig()
    text = (ROOT / "configs" / "gin" / "run.gin").read_text()
    assert [name for name in _parts(RunConfig) if f"@{name}()" not in text] == []


@pytest.mark.parametrize("name", [name for name in TRAINING if name != "quickstart"])
def test_its_model_has_the_papers_size(parse, name):
    model = unpadded(ml_run(parse, name).model)
    found = _initialised_parameters(model)
    assert found == PARAMETERS[name.partition("_")[0] if name.startswith("kosmos1") else "kosmos2"]
    assert found == num_parameters(model)


@functools.lru_cache
def _initialised_parameters(model: Any) -> int:
    shapes = jax.eval_shape(lambda: initial_params(model, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_gin_files_from_any_folder_later_ones_win_and_bindings_win_over_them(
    parse, tmp_path, monkeypatch
):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine.gin").write_text("TRAIN_STEPS = 7\nBATCH_SIZE = 12\n")
    monkeypatch.chdir(tmp_path)
    run = gin_run(
        parse,
        "quickstart",
        "--gin_file=mine.gin",
        "--gin_search_paths=more",
        "--gin.BATCH_SIZE=16",
        "--gin.OptimizerConfig.learning_rate=0.5",
    )
    assert (run.optimizer.total_steps, run.data.batch_size) == (7, 16)
    assert run.optimizer.learning_rate == 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gin.OptimizerConfig.learnin_rate=1"], ["learnin_rate", "mean", ".learning_rate"]),
        (["--gin.OptimiserConfig.beta1=1"], ["OptimiserConfig", "mean OptimizerConfig"]),
        (["--gin.TRAIN_STEP=1"], ["TRAIN_STEP", "mean TRAIN_STEPS"]),
        (["--gin.OptimizerConfig.learning_rate='fast'"], ["learning_rate", "fast"]),
        (["--gin.MODEL_DIR=runs/a"], ["MODEL_DIR=runs/a", "quotes"]),
        (["--gin.RunConfig.log_every=0"], ["log_every", "at least 1"]),
        (["--gin_file=nothing.gin"], ["nothing.gin"]),
        (["--config=configs/quickstart.py"], ["config", "without --config"]),
        (["--workdir=a"], ["workdir", "MODEL_DIR"]),
        (["stray"], ["stray"]),
    ],
)
def test_mistakes_in_gin_are_named_in_one_line(parse, arguments, words):
    with pytest.raises(ConfigError) as error:
        gin_run(parse, "quickstart", *arguments)
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_a_mistake_in_a_gin_file_is_named_with_its_line(parse, tmp_path):
    (tmp_path / "mine.gin").write_text("include 'configs/gin/run.gin'\nDataConfig.lenght = 3\n")
    with pytest.raises(ConfigError, match=r"mine.gin\", line 2: .*DataConfig.lenght; .*length\?"):
        parse(f"--gin_file={tmp_path / 'mine.gin'}", "--gin.MODEL_DIR='w'")


def test_a_work_folder_is_asked_for(parse):
    with pytest.raises(ConfigError, match="give --gin.MODEL_DIR"):
        parse("--gin_file=configs/gin/quickstart.gin")
    with pytest.raises(ConfigError, match="--gin_file is missing"):
        parse("--gin.MODEL_DIR='w'")


def test_a_checkpoint_and_a_first_training_of_the_tower_exclude_each_other(parse):
    with pytest.raises(ConfigError, match="exclude each other"):
        ml_run(parse, "quickstart", "--config.init_from.path=somewhere")


def _parts(cls: type) -> list[str]:
    """Names of the dataclasses within one."""
    inner = [
        type(f.default) for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.default)
    ]
    return [name for part in inner for name in (part.__name__, *_parts(part))]


def _compare_with_golden(run: Any, name: str) -> None:
    found = json.dumps(dataclasses.asdict(run), indent=1) + "\n"
    file = GOLDEN / f"{name}.json"
    if os.environ.get("KOSMOS2_GOLDEN"):
        file.write_text(found)
    assert found == file.read_text()
