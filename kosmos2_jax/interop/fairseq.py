"""The official fairseq checkpoint, `kosmos-2.pt` (spec section 2.2), read and written.

A torch file with the weights under "model". torch is imported by these functions only; files
are read with `weights_only`, so that one from a stranger can run no code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError, ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.interop.checkpoint import (
    REFERENCE_GENERATION,
    Checkpoint,
    Source,
    check_exportable,
    check_vocabulary,
)
from kosmos2_jax.interop.files import DICT_TXT, TOKENIZER_MODEL, new_file, new_folder
from kosmos2_jax.interop.layout import LazyParams, check_params, unpadded
from kosmos2_jax.interop.names import FAIRSEQ, check_tensors, same_bits
from kosmos2_jax.interop.tokenizer_files import dict_txt, find_vocabulary, write_sentencepiece
from kosmos2_jax.interop.torch_files import import_torch, load_torch_file

if TYPE_CHECKING:
    import torch

FILE_NAME = "kosmos-2.pt"
_OURS = "kosmos2_jax"  # our own entry of the file: what fairseq keeps on its command line
_CLIP_HEAD_SIZE = 64  # open_clip's head_width, of every ViT but the giant ones
_SOPE_SCALE = "gpt_model.decoder.self_attn_sope.scale"


def read_file(
    path: Path, tokenizer: Path | None = None, config: Kosmos2Config | None = None
) -> Checkpoint:
    """Reads a `.pt` file, or the only one in a folder; tensors stay on disk until asked for.

    The architecture follows from the tensors' shapes; the number of decoder heads from the
    unused xPos buffer; ViT heads have size 64 as in open_clip. A file that `write_file` wrote
    also says all this itself.

    Args:
      path: the file or its folder.
      tokenizer: folder with `sentencepiece.bpe.model` and `dict.txt`; by default the file's own.
      config: the architecture, for a file whose shapes do not tell it.

    Raises:
      CheckpointError: torch is missing, the file is cut short, holds something else than
        weights, or tensors that do not fit together, or there is no tokenizer.
    """
    file = find_file(path)
    state = _load(file)
    tensors = _tensors(state, file)
    known = config or _saved_config(state, file)
    vocab_size = _shape(tensors, FAIRSEQ.embedding, FAIRSEQ.head, file)[0]
    vocabulary = find_vocabulary(file.parent, vocab_size, tokenizer)
    if known is None and vocabulary is None:
        raise CheckpointError(
            f"there is no {TOKENIZER_MODEL} beside {file}; name the folder that has it and "
            f"{DICT_TXT} as the tokenizer"
        )
    config = known or _infer_config(tensors, vocabulary.grid_size, file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_tensors(shapes, config, FAIRSEQ, str(file))
    check_vocabulary(vocabulary, config, str(file))
    ours = state.get(_OURS) or {}
    return Checkpoint(
        config=config,
        params=LazyParams(FAIRSEQ.entries(config), _fetcher(tensors, file)),
        vocabulary=vocabulary,
        generation=dict(ours.get("generation", REFERENCE_GENERATION)),
        source=Source(
            head_copy={FAIRSEQ.head, FAIRSEQ.embedding} <= set(tensors),
            buffers={n: _float32(tensors[n]) for n in FAIRSEQ.buffers if n in tensors},
        ),
    )


def find_file(path: Path) -> Path:
    """`path` itself, or the only `.pt` file in it.

    Raises:
      CheckpointError: there is none or more than one.
    """
    if path.is_file():
        return path
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        raise CheckpointError(f"{path} holds {len(files)} .pt files; name one of them")
    return files[0]


def _load(file: Path) -> Mapping[str, Any]:
    state = load_torch_file(file)
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise CheckpointError(f"{file} is no fairseq checkpoint: it has no weights under 'model'")
    return state


def _tensors(state: Mapping[str, Any], file: Path) -> dict[str, torch.Tensor]:
    tensors = dict(state["model"])
    for name, tensor in tensors.items():
        if not hasattr(tensor, "is_floating_point") or not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {name} is no floating-point tensor")
    return tensors


def _float32(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


def _fetcher(tensors: Mapping[str, torch.Tensor], file: Path) -> Any:
    head, embedding = tensors.get(FAIRSEQ.head), tensors.get(FAIRSEQ.embedding)
    if head is not None and embedding is not None:
        if not same_bits(_float32(head), _float32(embedding)):
            raise CheckpointError(
                f"{file}: {FAIRSEQ.head} and {FAIRSEQ.embedding} differ, but Kosmos-2 ties them; "
                "untied weights cannot be read"
            )

    def fetch(name: str) -> np.ndarray:
        if name == FAIRSEQ.embedding and embedding is None:
            name = FAIRSEQ.head
        return _float32(tensors[name])

    return fetch


def _saved_config(state: Mapping[str, Any], file: Path) -> Kosmos2Config | None:
    ours = state.get(_OURS)
    if ours is None:
        return None
    try:
        return Kosmos2Config.from_dict(ours["config"])
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: its {_OURS} entry is damaged ({error})") from None


def _infer_config(tensors: Mapping[str, torch.Tensor], grid_size: int, file: Path) -> Kosmos2Config:
    """The architecture that tensors of these shapes belong to."""

    def size(name: str, axis: int) -> int:
        return _shape(tensors, name, name, file)[axis]

    width = size("img_model.visual.class_embedding", 0)
    patch = size("img_model.visual.conv1.weight", -1)
    patches = size("img_model.visual.positional_embedding", 0) - 1
    hidden = size("gpt_model.decoder.layer_norm.weight", 0)
    head_size = 2 * size(_SOPE_SCALE, 0)
    if width % _CLIP_HEAD_SIZE or hidden % head_size:
        raise CheckpointError(
            f"{file}: the number of attention heads cannot be told from its shapes "
            f"(ViT {width} wide, decoder {hidden} wide with heads of {head_size}); give its config"
        )
    blocks, layers = "img_model.visual.transformer.resblocks", "gpt_model.decoder.layers"
    settings = {
        "vision": {
            "image_size": round(patches**0.5) * patch,
            "patch_size": patch,
            "hidden_size": width,
            "num_layers": _count_layers(tensors, blocks),
            "num_heads": width // _CLIP_HEAD_SIZE,
            "mlp_dim": size(f"{blocks}.0.mlp.c_fc.bias", 0),
        },
        "resampler": {"num_latents": size("img_connector.latent_query", 0)},
        "decoder": {
            "vocab_size": _shape(tensors, FAIRSEQ.embedding, FAIRSEQ.head, file)[0],
            "hidden_size": hidden,
            "num_layers": _count_layers(tensors, layers),
            "num_heads": hidden // head_size,
            "mlp_dim": size(f"{layers}.0.ffn.fc1.bias", 0),
        },
        "grid_size": grid_size,
    }
    try:
        return Kosmos2Config.from_dict(settings)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _shape(
    tensors: Mapping[str, torch.Tensor], name: str, other: str, file: Path
) -> tuple[int, ...]:
    for candidate in (name, other):
        if candidate in tensors and tensors[candidate].ndim:
            return tuple(tensors[candidate].shape)
    raise CheckpointError(f"{file} has no tensor {name}; it is no Kosmos-2 checkpoint")


def _count_layers(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(m[1]) for m in map(pattern.match, tensors) if m), default=-1)


def write_file(
    path: Path,
    params: Mapping[str, Any],
    config: Kosmos2Config,
    vocabulary: Kosmos2Vocabulary | None,
    generation: Mapping[str, int] = REFERENCE_GENERATION,
    source: Source | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes an official checkpoint with its tokenizer files beside it.

    Args:
      path: a `.pt` file, or a folder to create with `kosmos-2.pt` in it.
      params: our parameter tree, nested or flat, NumPy or JAX arrays, scanned or not.
      config: the architecture.
      vocabulary: None writes no `sentencepiece.bpe.model` and `dict.txt`.
      generation: `no_repeat_ngram_size`.
      source: leftovers of the file the model came from, such as its buffers.
      overwrite: replace a checkpoint at `path`.

    Raises:
      CheckpointError: torch is missing, positions that fairseq lacks, parameters that do not fit
        `config`, or a file that may not be written.
    """
    torch = import_torch("writing")
    check_exportable(config, "the official fairseq code")
    check_vocabulary(vocabulary, config, str(path))
    state = _state(torch, check_params(params, config), config, source or Source())
    state[_OURS] = {"config": unpadded(config).to_dict(), "generation": dict(generation)}
    if path.suffix != ".pt":
        with new_folder(path, overwrite) as partial:
            torch.save(state, partial / FILE_NAME)
            if vocabulary is not None:
                write_sentencepiece(partial, vocabulary)
        return
    with new_file(path, overwrite) as partial:
        if vocabulary is not None:
            _write_beside(path.parent, vocabulary)
        torch.save(state, partial)


def _state(
    torch: ModuleType, flat: Mapping[str, Any], config: Kosmos2Config, source: Source
) -> dict[str, Any]:
    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))

    model = {
        entry.foreign: tensor(entry.to_foreign(np.asarray(flat[entry.ours])))
        for entry in FAIRSEQ.entries(config)
    }
    model[FAIRSEQ.head] = model[FAIRSEQ.embedding]  # one storage in the file
    for name, make in FAIRSEQ.buffers.items():
        model[name] = tensor(source.buffers.get(name, make(config)))
    # The fields that fairseq's loader looks for beside the weights.
    return {
        "args": None,
        "cfg": None,
        "model": model,
        "optimizer_history": [{"num_updates": 0}],
        "extra_state": {"epoch": 0},
    }


def _write_beside(folder: Path, vocabulary: Kosmos2Vocabulary) -> None:
    """Tokenizer files beside a `.pt`; equal ones may be there already, others are not touched."""
    contents = {
        TOKENIZER_MODEL: vocabulary.model_bytes,
        DICT_TXT: dict_txt(vocabulary).encode("utf-8"),
    }
    for name, content in contents.items():
        if (folder / name).is_file() and (folder / name).read_bytes() != content:
            raise CheckpointError(f"{folder / name} is of another tokenizer; choose another folder")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
