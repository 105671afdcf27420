"""What every test shares: a CPU of eight devices, checked shapes, assets, a reference model.

The environment is set before JAX is imported anywhere. The shapes and dtypes in the signatures
of `kosmos2_jax.models` are checked at run time, in tests only.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ["HF_HUB_OFFLINE"] = "1"
_DEVICES = "--xla_force_host_platform_device_count=8"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
# What one test compiles, the others, and the programs that tests start, only read.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers of pytest-xdist share their parent's
    _compiled = tempfile.mkdtemp(prefix="kosmos2-compiled-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jaxtyping.install_import_hook("kosmos2_jax.models", "beartype.beartype")

from kosmos2_jax.config import Kosmos2Config, preset  # noqa: E402

_TESTS = Path(__file__).resolve().parent
# The files that take longest, which begin first, so that no worker is left alone with one of them
# at the end. pytest-xdist would begin with those of the most tests: see the Makefile.
_LONG = (
    "test_docs.py",
    "training/test_processes.py",
    "training/test_packed_runs.py",
    "training/test_runs.py",
    "cli/test_compile.py",
    "training/test_evaluations.py",
    "training/test_finetune.py",
    "training/test_checkpoints.py",
    "data/grit_builder/test_build.py",
    "models/test_lora.py",
    "inference/test_predictor.py",
    "inference/test_engine.py",
    "inference/test_beam_search.py",
    "training/test_interruptions.py",
    "interop/test_t5x.py",
    "cli/test_serve.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; else the order stays."""
    ranks = {_TESTS / name: rank for rank, name in enumerate(_LONG)}
    assert all(file.is_file() for file in ranks), "tests/conftest.py names a file that is gone"
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the real tokenizer (`tokenizer/`) and test pictures (`images/`)."""
    default = Path(__file__).resolve().parents[1].parent / "shared"
    folder = Path(os.environ.get("KOSMOS2_ASSETS", default))
    if not (folder / "tokenizer").is_dir():
        message = f"no tokenizer in {folder}; set KOSMOS2_ASSETS to the folder that has it"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Programs are compiled with little effort, for tests of what is around them.

    Not for those that compare what a program computes with somebody else's numbers.
    """
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@dataclasses.dataclass(frozen=True)
class Reference:
    """transformers' Kosmos-2 and our parameters of equal value. Neither is to be changed."""

    config: Kosmos2Config
    model: Any  # Kosmos2ForConditionalGeneration
    params: dict[str, Any]


@pytest.fixture(scope="session")
def make_reference() -> Callable[..., Reference]:
    """`(config, seed=0, attention="eager")` to a `Reference` with every tensor random."""
    pytest.importorskip("transformers")
    return functools.lru_cache(maxsize=16)(_make_reference)


@pytest.fixture(scope="session")
def tiny_reference(make_reference: Callable[..., Reference]) -> Reference:
    """The tiny preset."""
    return make_reference(preset("tiny"))


def _make_reference(config: Kosmos2Config, seed: int = 0, attention: str = "eager") -> Reference:
    import torch
    import transformers

    from kosmos2_jax.interop import hf_config
    from kosmos2_jax.interop.layout import nest
    from kosmos2_jax.interop.names import HUGGING_FACE

    values = hf_config.config_json(config)
    model = transformers.AutoModelForImageTextToText.from_config(
        transformers.Kosmos2Config(
            text_config=values["text_config"],
            vision_config=values["vision_config"],
            latent_query_num=values["latent_query_num"],
        ),
        attn_implementation=attention,
    )
    for part in (model, model.text_model, model.vision_model):
        assert part.config._attn_implementation == attention
    rng = np.random.default_rng(seed)
    parameters = dict(model.named_parameters())
    flat = {}
    for entry in HUGGING_FACE.entries(config):
        flat[entry.ours] = _random_values(rng, entry.ours, entry.shape)
        with torch.no_grad():
            tensor = parameters.pop(entry.foreign)
            tensor.copy_(torch.from_numpy(entry.to_foreign(flat[entry.ours])))
    assert not parameters, f"not randomised: {sorted(parameters)}"
    return Reference(config, model.eval(), nest(flat))


def _random_values(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a size at which attention is neither uniform nor one-hot and no unit saturates."""
    values = rng.normal(size=shape)
    if path.endswith("/scale"):
        values = 1.0 + 0.3 * values
    elif path.endswith("/bias"):
        values = 0.3 * values
    elif path.endswith("/kernel"):
        # The resampler reads vectors of length 1, so that its projection needs larger weights.
        fan_in = 1 if "projection" in path else int(np.prod(shape[:-1]))
        gain = 1.5 if path.endswith(("query/kernel", "key/kernel")) else 1.0
        values *= gain / np.sqrt(fan_in)
    elif path.endswith("token_embedding"):
        values *= 2.0 / np.sqrt(shape[-1])
    return values.astype(np.float32)
