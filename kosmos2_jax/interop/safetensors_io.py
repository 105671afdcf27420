"""Safetensors files read and written tensor by tensor, without torch.

A file is eight bytes of header length, a JSON header of names, dtypes, shapes and offsets, and
the tensors one after the other. The safetensors package checks files; tensors are read and written
here, because the package maps or holds a whole file at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.interop.files import read_json, write_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_SIZE = 5_000_000_000  # bytes; as transformers wrote the released weights
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}

Shape = tuple[int, ...]


class _Place(NamedTuple):
    """Where a tensor lies."""

    file: Path
    offset: int  # bytes from the start of the file
    dtype: str | type
    shape: Shape


class SafetensorsReader:
    """The tensors of a safetensors file, or of a folder with one or an index of several.

    Tensors are read, not mapped, so that memory holds no more than what is kept of them.

    Args:
      path: the file, or a folder with `model.safetensors` or `model.safetensors.index.json`.

      buffers: whether tensors that are no floating-point numbers are passed over; they are an
        error otherwise.

    Raises:
      CheckpointError: no weights, a missing or damaged file, or an index that does not fit.
    """

    def __init__(self, path: Path, *, buffers: bool = False) -> None:
        self._places: dict[str, _Place] = {}
        if path.is_file():
            self._places = _places(path, buffers)
            return
        for name in _file_names(path):
            if not (path / name).is_file():
                raise CheckpointError(f"{path / name} is missing, but the index names it")
            self._places |= _places(path / name, buffers)
        if not buffers:
            self._check_index(path)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name and shape of every tensor."""
        return {name: place.shape for name, place in self._places.items()}

    def _check_index(self, folder: Path) -> None:
        index = folder / INDEX_FILE
        if (folder / SINGLE_FILE).is_file() or not index.is_file():
            return
        promised = set(_weight_map(index))
        if promised != set(self._places):
            odd = sorted(promised ^ set(self._places))
            raise CheckpointError(f"{index} does not fit its files: {', '.join(odd[:20])}")

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32, whatever floating-point type the file has."""
        place = self._places[name]
        count = math.prod(place.shape)
        flat = np.fromfile(place.file, place.dtype, count=count, offset=place.offset)
        return flat.reshape(place.shape).astype(np.float32, copy=False)


def _places(path: Path, buffers: bool) -> dict[str, _Place]:
    try:
        # Checks the header, its offsets and the size of the file.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error})") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if buffers:
        header = {name: entry for name, entry in header.items() if entry["dtype"] in _FLOATS}
    for name, entry in header.items():
        if entry["dtype"] not in _FLOATS:
            raise CheckpointError(
                f"{path}: {name} has dtype {entry['dtype']}; only unquantised floating-point "
                "weights can be read"
            )
    return {
        name: _Place(
            path,
            8 + length + entry["data_offsets"][0],
            _FLOATS[entry["dtype"]],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
    }


def _file_names(folder: Path) -> list[str]:
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return sorted(set(_weight_map(folder / INDEX_FILE).values()))
    torch_files = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if torch_files:
        raise CheckpointError(
            f"{folder} holds {torch_files[0]} but no safetensors; save it again with "
            "transformers' save_pretrained"
        )
    raise CheckpointError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}")


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for name in weight_map.values():
        if name != Path(str(name)).name:
            raise CheckpointError(f"{index} names a file outside its folder, {name!r}")
    return weight_map


def write_safetensors(
    folder: Path,
    shapes: Mapping[str, Shape],
    fetch: Callable[[str], np.ndarray],
    max_shard_size: int = MAX_SHARD_SIZE,
) -> list[Path]:
    """Writes float32 tensors, one in memory at a time.

    Args:
      folder: an existing folder.
      shapes: name and shape of every tensor, in the order to write.
      fetch: gives the float32 tensor of a name.
      max_shard_size: bytes of tensors in one file; a larger tensor gets a file of its own.

    Returns:
      The weight files: `model.safetensors`, or numbered shards beside an index file.
    """
    shards = _plan(shapes, max_shard_size)
    names = [SINGLE_FILE]
    if len(shards) > 1:
        names = [
            f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
        sizes = {name: _num_bytes(shape) for name, shape in shapes.items()}
        weight_map = {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        metadata = {
            "total_parameters": sum(sizes.values()) // 4,
            "total_size": sum(sizes.values()),
        }
        write_json(
            folder / INDEX_FILE,
            {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))},
        )
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, {tensor: shapes[tensor] for tensor in shard}, fetch)
    return [folder / name for name in names]


def _plan(shapes: Mapping[str, Shape], max_shard_size: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = _num_bytes(shape)
        if shards[-1] and used + size > max_shard_size:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _num_bytes(shape: Iterable[int]) -> int:
    return 4 * math.prod(shape)


def _write_file(
    path: Path, shapes: Mapping[str, Shape], fetch: Callable[[str], np.ndarray]
) -> None:
    # transformers asks for this mark of the (out, in) layout.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + _num_bytes(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name, shape in shapes.items():
            tensor = np.ascontiguousarray(fetch(name), dtype="<f4")
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tensor.shape} instead of {shape}")
            file.write(tensor.data)
