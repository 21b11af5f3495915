"""What the service lists: the checkpoints of one Tinker run, and one checkpoint by its path."""

from __future__ import annotations

from tinker_recovery.checkpoints import CheckpointRecord, Listed, run_id_of
from tinker_recovery.errors import NoUsableCheckpoint
from tinker_recovery.service.status import StatusReader


async def list_checkpoints(reader: StatusReader, run_id: str) -> list[Listed]:
    """The training checkpoints of one Tinker run, read as far as they can be."""
    return [
        Listed.read(listed)
        for listed in await reader.checkpoints(run_id)
        if listed.checkpoint_type == "training"
    ]


async def find_checkpoint(reader: StatusReader, path: str) -> CheckpointRecord:
    """One checkpoint by its path.

    Raises:
        InvalidMetadata: What it says of itself cannot be read.
        NoUsableCheckpoint: It is not listed, or does not say how many steps it contains.
        StatusError: The listing could not be read.
    """
    for listed in await reader.checkpoints(run_id_of(path)):
        if listed.tinker_path == path:
            record = CheckpointRecord.from_listing(listed)
            if record is None:
                raise NoUsableCheckpoint(
                    f"checkpoint {path} does not say how many optimizer steps it contains: it was "
                    "not saved through a supervised client, so the loop cannot be rewound to it"
                )
            return record
    raise NoUsableCheckpoint(f"checkpoint {path} is not listed by the service")
