"""The place in the data as an item of an Orbax checkpoint: a file for each shard of the data."""

from __future__ import annotations

import dataclasses

import orbax.checkpoint as ocp
from etils import epath

from kosmos2_jax.errors import CheckpointError


class DataPlaces(ocp.CheckpointHandler):
    """Reads and writes `shard-NUMBER-of-COUNT.zip`.

    Each is written by the process that reads the shard. No process ever holds those of all, but
    to go on with another number of shards.
    """

    def save(self, directory: epath.Path, args: SavePlace) -> None:
        """Writes a state of `PackedBatches`; the checkpoint waits for those of all processes."""
        if args.is_keeper:
            (directory / _name(*args.shard)).write_bytes(args.state)

    def restore(self, directory: epath.Path, args: RestorePlaces) -> list[bytes]:
        """The state of the shard, or those of all shards if there were others.

        Raises:
          CheckpointError: some are missing.
        """
        own = directory / _name(*args.shard)
        if own.exists():
            return [own.read_bytes()]
        files = sorted(directory.glob("shard-*-of-*.zip"))
        if not files or len(files) != int(files[0].stem.rpartition("-")[2]):
            raise CheckpointError(f"{directory} lacks places in the data; remove the checkpoint")
        return [file.read_bytes() for file in files]


def _name(number: int, count: int) -> str:
    return f"shard-{number:05d}-of-{count:05d}.zip"


@ocp.args.register_with_handler(DataPlaces, for_save=True)
@dataclasses.dataclass
class SavePlace(ocp.args.CheckpointArgs):
    """What `DataPlaces.save` takes.

    Attributes:
      shard: its number and how many there are.
      state: of its batches.
      is_keeper: whether this process writes it.
    """

    shard: tuple[int, int]
    state: bytes
    is_keeper: bool = True


@ocp.args.register_with_handler(DataPlaces, for_restore=True)
@dataclasses.dataclass
class RestorePlaces(ocp.args.CheckpointArgs):
    """What `DataPlaces.restore` takes.

    Attributes:
      shard: the number of the shard that goes on, and how many there are now.
    """

    shard: tuple[int, int]
