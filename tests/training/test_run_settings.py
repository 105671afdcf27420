"""Configuration files and the command line of training, with what goes wrong there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kosmos2_jax import train
from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.interop import files
from kosmos2_jax.models.lora import LoraConfig
from kosmos2_jax.training.groups import ParameterGroup
from kosmos2_jax.training.processes import ProcessSettings
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.settings import parse_command_line, to_config_dict


@pytest.fixture
def command_line(monkeypatch):
    """Sets `sys.argv`, which ml_collections reads, and parses it."""

    def parse(*arguments: str):
        argv = ["train", *arguments]
        monkeypatch.setattr("sys.argv", argv)
        return parse_command_line(argv)

    return parse


def test_a_setting_is_replaced_and_typed(command_line):
    command = command_line(
        "--config=configs/quickstart.py",
        "--workdir=somewhere",
        "--config.optimizer.learning_rate=0.5",
        "--config.model.decoder.num_layers=2",
    )
    assert command.run.optimizer.learning_rate == 0.5
    assert command.run.model.decoder.num_layers == 2
    assert command.workdir == Path("somewhere").absolute()


def test_every_axis_of_the_mesh_can_be_set_whatever_the_file_names(command_line):
    run = command_line("--config=configs/quickstart.py", "--workdir=w", "--config.mesh.fsdp=2").run
    assert run.mesh == {"slice": 1, "data": -1, "fsdp": 2, "tensor": 1}


def test_installed_configs_are_found_from_any_folder(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line("--config=configs/quickstart.py", "--workdir=w").run.data.batch_size > 0


def test_a_mixture_of_your_own_is_three_lines(command_line, tmp_path):
    """As the README has them, between the definition and the return."""
    (tmp_path / "mine.py").write_text(
        "def get_config():\n"
        "    from kosmos2_jax.configs import kosmos2_pretrain\n"
        "    config = kosmos2_pretrain.get_config()\n"
        '    config.data.update(mixture="", rates={"captions/cc3m": 3.0, "text": 1.0})\n'
        "    return config\n"
    )
    run = command_line(f"--config={tmp_path / 'mine.py'}", "--workdir=w").run
    assert run.data.rates == {"captions/cc3m": 3.0, "text": 1.0}
    assert run.data.mixture == ""


def test_groups_and_adapters_are_read_from_files_and_the_command_line(command_line, tmp_path):
    """As the README has them."""
    (tmp_path / "mine.py").write_text(
        "def get_config():\n"
        "    from kosmos2_jax.configs import kosmos2_pretrain\n"
        "    config = kosmos2_pretrain.get_config()\n"
        '    config.optimizer.groups = {"vision": {"frozen": True}, "norms": {"match": ".*norm"}}\n'
        "    return config\n"
    )
    run = command_line(
        f"--config={tmp_path / 'mine.py'}",
        "--workdir=w",
        "--config.optimizer.groups.vision.frozen=False",
        "--config.lora.rank=16",
        "--config.lora.targets=decoder/.*/(query|up)",
        "--config.ema_decay=0.9",
    ).run
    expected = {"vision": ParameterGroup(), "norms": ParameterGroup(match=".*norm")}
    assert run.optimizer.groups == expected
    assert (run.lora, run.ema_decay) == (LoraConfig(16, targets="decoder/.*/(query|up)"), 0.9)


def test_the_papers_pretraining_has_its_numbers(command_line):
    """Spec section 4.6; an update has no fewer than 419 thousand tokens, 208 rows at 98.5%."""
    run = command_line("--config=configs/kosmos2_pretrain.py", "--workdir=w").run
    assert run.model.decoder.position == "xpos"
    assert run.data.mixture == "kosmos2_pretrain"
    assert 208 * run.data.length * 0.985 == pytest.approx(419e3, rel=0.005)
    assert 208 <= run.data.batch_size == 256
    optimizer = run.optimizer
    assert (optimizer.total_steps, optimizer.warmup_steps) == (60_000, 375)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (2e-4, 0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.optimizer.learnin_rate=1"], ["learnin_rate", "learning_rate"]),
        (["--config.optimizer.learning_rate=fast"], ["learning_rate", "fast"]),
        (["--config.log_every=0"], ["log_every", "at least 1"]),
        (["--config.ema_decay=1.5"], ["ema_decay", "1.5"]),
        (["--config.optimizer.groups.vision.froze=1"], ["froze"]),
        (["--config.mesh.fdsp=2"], ["mesh.fdsp", "did you mean mesh.fsdp?"]),
        (["--config.mesh.model=2"], ["mesh.model", "known: data, fsdp, slice, tensor"]),
        (["--config.data.streams=0"], ["data.streams", "at least 1"]),
        (["--config.micro_batches=5"], ["batch_size", "multiple of micro_batches 5"]),
        (["--confg.seed=1"], ["confg.seed"]),
        (["stray"], ["stray"]),
    ],
)
def test_bad_settings_are_named(command_line, arguments, words):
    with pytest.raises(ConfigError) as error:
        command_line("--config=configs/quickstart.py", "--workdir=w", *arguments)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_processes_find_each_other_or_are_told(command_line):
    quick = ("--config=configs/quickstart.py", "--workdir=w")
    assert command_line(*quick).processes is None
    assert command_line(*quick, "--distributed").processes == ProcessSettings()
    told = ("--coordinator=one:123", "--num_processes=4", "--process_id=0")
    assert command_line(*quick, *told).processes == ProcessSettings("one:123", 4, 0)
    with pytest.raises(ConfigError, match="--num_processes and --process_id go together"):
        command_line(*quick, *told[:2])


def test_buckets_need_an_extra(command_line, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    files._prepare_buckets.cache_clear()
    with pytest.raises(ConfigError, match=r"'gcsfs', which is missing: pip install .*\[gcs\]"):
        command_line("--config=configs/quickstart.py", "--workdir=gs://bucket/run")


def test_only_disks_and_buckets_are_work_folders(command_line):
    with pytest.raises(ConfigError, match="s3://bucket/run is neither a folder nor gs://"):
        command_line("--config=configs/quickstart.py", "--workdir=s3://bucket/run")


def test_a_missing_file_or_folder_is_named(command_line):
    with pytest.raises(ConfigError, match="quickstart.py"):
        command_line("--config=configs/nothing.py", "--workdir=w")
    with pytest.raises(ConfigError, match="--workdir"):
        command_line("--config=configs/quickstart.py")


def test_the_program_ends_with_one_line_and_status_1(monkeypatch, capsys, tmp_path):
    argv = ["train", "--config=configs/quickstart.py", f"--workdir={tmp_path}", "--config.sed=1"]
    monkeypatch.setattr("sys.argv", argv)
    assert train.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_survives_the_way_through_json_and_config_dict():
    run = RunConfig()
    plain = json.loads(to_config_dict(run).to_json())
    assert Kosmos2Config.from_dict(plain["model"]) == run.model
    with pytest.raises(ConfigError, match="did you mean model.*num_layers|num_layers"):
        Kosmos2Config.from_dict({"decoder": {"num_layer": 2}})
