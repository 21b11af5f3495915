"""Checkpoints as the service lists them: of one Tinker run, or one by its path."""

from __future__ import annotations

from tinker_recovery.checkpoints import CheckpointRecord, Listed, run_id_of, run_id_unchecked
from tinker_recovery.errors import NoUsableCheckpoint
from tinker_recovery.service.status import StatusReader


async def list_checkpoints(reader: StatusReader, run_id: str) -> list[Listed]:
    """The training checkpoints of one Tinker run, those with unreadable metadata included."""
    return [
        Listed.read(listed)
        for listed in await reader.checkpoints(run_id)
        if listed.checkpoint_type == "training"
    ]


async def is_as_listed(reader: StatusReader, listed: Listed) -> bool:
    """Whether no other save has taken a checkpoint's place since it was listed.

    To be asked once it was loaded, which may have read that other: perhaps a save of a process that
    is dead by now, as the service still executes what it had submitted.

    Raises:
        StatusError: The listing cannot be read.
    """
    if not listed.rewritable:
        return True
    now = await list_checkpoints(reader, run_id_unchecked(listed.path))
    return any(each.path == listed.path and each.has_content_of(listed) for each in now)


async def find_checkpoint(reader: StatusReader, path: str) -> CheckpointRecord:
    """One checkpoint by its path.

    Raises:
        InvalidMetadata: Its metadata cannot be read.
        NoUsableCheckpoint: It is not listed, or its metadata has no step.
        StatusError: The listing cannot be read.
    """
    for listed in await reader.checkpoints(run_id_of(path)):
        if listed.tinker_path == path:
            record = CheckpointRecord.from_listing(listed)
            if record is None:
                raise NoUsableCheckpoint(
                    f"checkpoint {path} does not say how many optimizer steps it contains: it was "
                    "not saved by a supervised client, so the loop cannot be rewound to it"
                )
            return record
    raise NoUsableCheckpoint(f"checkpoint {path} is not listed by the service")
