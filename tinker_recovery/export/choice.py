"""Which checkpoint of a run is exported, and what is known of it: for a run not under way here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio.to_thread

from tinker_recovery.checkpoints import CheckpointRecord, run_id_of
from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.errors import (
    ExportRefused,
    InvalidMetadata,
    NoUsableCheckpoint,
    StatusRefused,
)
from tinker_recovery.export.manifest import CheckpointFacts
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.journal.database import is_there
from tinker_recovery.journal.reading import read_run
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.dry_run import find_left, where_it_stands
from tinker_recovery.recovery.selection import CheckpointSelection, ServiceTime
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.service.listing import find_checkpoint
from tinker_recovery.telemetry import EventSink


async def choose(
    target: str,
    *,
    backend: TinkerBackend,
    reader: StatusReader,
    journal: Path | None,
    strategy: str,
) -> CheckpointFacts:
    """The checkpoint that is meant, with what is known of it.

    Args:
        target: A checkpoint's path, a run's name, or a Tinker run id.
        backend: Of the service.
        reader: Of the same.
        journal: The journal's file; None for the service alone.
        strategy: Which checkpoint of a run: ``latest``, ``best`` or ``step:N``, as
            ``checkpoint_strategy`` has it.

    Raises:
        UsageError: The path has another form, or nobody knows the run.
        NoUsableCheckpoint: It has none that can be trusted.
        ExportRefused: The run is being trained by a process, which alone knows what is sound.
        StatusError: The service could not be read.
        JournalError: The journal could not be read.
    """
    if target.startswith("tinker://"):
        return await describe(reader, target)
    left = await find_left(reader, target, journal)
    if left.holder is not None:
        raise ExportRefused(
            f"run {left.name!r} is being trained by {left.holder}: give the path of one of its "
            "checkpoints (see `tinker-recovery checkpoints list`), or have it published by the "
            "run itself with push_to_hub= of its policy"
        )
    policy = RecoveryPolicy(checkpoint_strategy=strategy).model_copy(update={"max_wait_s": 0.0})
    run = await where_it_stands(reader, left, policy, SYSTEM_CLOCK)
    async with Notebook(Journal(journal, service=reader.http.endpoint.base_url)) as notebook:
        events = EventSink()
        events.quiet_runs.add(left.name)
        having = Collaborators(policy, backend, reader, notebook, events)
        await run.checkpoints.refresh(having)
        selection = CheckpointSelection(run, having, ServiceTime(SYSTEM_CLOCK))
        chosen = await selection.choose(announce=False)
    if chosen is None:
        raise NoUsableCheckpoint(f"run {left.name!r} has no checkpoint")
    facts = await describe(reader, chosen.path, chosen.record)
    recoveries = await anyio.to_thread.run_sync(_recoveries, journal, left.name, reader)
    return replace(facts, run=left.name, recoveries=recoveries)


async def describe(
    reader: StatusReader, path: str, record: CheckpointRecord | None = None
) -> CheckpointFacts:
    """What is known of a checkpoint at the service.

    Raises:
        UsageError: The path has another form.
        NoUsableCheckpoint: There is no such checkpoint.
        StatusError: The service could not be read.
    """
    run_id = run_id_of(path)
    try:
        record = record or await find_checkpoint(reader, path)
    except (NoUsableCheckpoint, InvalidMetadata):
        # One that a supervised client did not save can be exported, too.
        listed = await reader.checkpoints(run_id)
        if not any(each.tinker_path == path for each in listed):
            raise
    except StatusRefused as error:
        raise NoUsableCheckpoint(f"the service has no checkpoint {path}: {error}") from error
    base_model = (await reader.run(run_id)).base_model
    if record is None:
        return CheckpointFacts(path=path, run=run_id, base_model=base_model)
    return CheckpointFacts(
        path=path,
        run=record.run_name or run_id,
        lineage=record.lineage,
        step=record.step,
        base_model=base_model,
        metrics=dict(record.metrics),
    )


def _recoveries(journal: Path | None, name: str, reader: StatusReader) -> int | None:
    if journal is None or not is_there(journal):
        return None
    view = read_run(journal, name, service=reader.http.endpoint.base_url)
    return None if view is None else sum(each.outcome == "recovered" for each in view.incidents)
