"""The service and the journal, as ``tinker-recovery checkpoints`` uses them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.to_thread

from tinker_recovery.checkpoints import CheckpointRecord, Listed, Segment, WeightsFacts, segments_of
from tinker_recovery.cli.checkpoints.scope import Scope
from tinker_recovery.cli.common import refuse
from tinker_recovery.errors import JournalError, StatusError
from tinker_recovery.journal import STATE_FOLDER, Journal, Notebook, journal_path
from tinker_recovery.journal.reading import RunView, read_run, read_runs
from tinker_recovery.service import StatusReader, TinkerBackend

MIN_AGE = timedelta(days=1)
"""In lineages that are not in this machine's journal, younger checkpoints are protected."""


@dataclass(frozen=True, slots=True)
class Context:
    """The service and the journal.

    Attributes:
        backend: Opens sessions.
        reader: Reads the service's status and listings.
        notebook: Reads and writes pins and checksums in the journal.
        journal: The journal's file.
    """

    backend: TinkerBackend
    reader: StatusReader
    notebook: Notebook
    journal: Path | None

    async def listed(self, scope: Scope) -> list[Listed]:
        """Every training checkpoint in a scope, the newest first."""
        run_ids, lineage = await self._resolve(scope)
        found = [
            Listed.read(each)
            async for each in self.reader.every_checkpoint()
            if each.checkpoint_type == "training"
        ]
        chosen = [
            each
            for each in found
            if (run_ids is None or _run_id(each.path) in run_ids)
            and (
                lineage is None
                or (each.record is not None and each.record.lineage.startswith(lineage))
            )
        ]
        return sorted(chosen, key=_newest_first, reverse=True)

    async def _resolve(self, scope: Scope) -> tuple[set[str] | None, str | None]:
        if scope.run is None or ":train:" in scope.run:
            return None if scope.run is None else {scope.run}, scope.lineage
        known = await self._known(scope.run)
        return (None, next(iter(known))) if known else ({scope.run}, scope.lineage)

    async def lineages(self, listed: Sequence[Listed]) -> list[StoredLineage]:
        """The lineages of these checkpoints, each with its history; without unreadable ones."""
        of: dict[str, list[CheckpointRecord]] = {}
        for each in listed:
            if each.record is not None:
                of.setdefault(each.record.lineage, []).append(each.record)
        known = await self._known()
        return [_stored(lineage, records, known.get(lineage)) for lineage, records in of.items()]

    async def _known(self, name: str | None = None) -> dict[str, RunView]:
        """The runs of this service in the journal, by lineage id; of a name, only its newest."""
        path, service = self.journal, self.reader.http.endpoint.base_url
        if path is None or not path.exists():
            return {}

        def read() -> dict[str, RunView]:
            every = {view.name for view in read_runs(path) if view.service == service}
            chosen = every if name is None else [name]
            views = [read_run(path, each, service=service) for each in chosen]
            return {view.lineage: view for view in views if view is not None}

        try:
            return await anyio.to_thread.run_sync(read)
        except JournalError:
            return {}  # of an older schema, which the next training process migrates


@dataclass(frozen=True, slots=True)
class StoredLineage:
    """A lineage that is not trained by this process; implements ``CollectedRun``.

    Attributes:
        name: The run's name, or the lineage id if this machine knows no name.
        lineage: The lineage id.
        segments: Every Tinker run it has lived in, oldest first.
        protected: Reasons not to delete, by path.
        trained_by: Describes the process that trains it now; None if none is known.
        weights: What is known of its weights: nothing.
        recovering: Always False.
    """

    name: str
    lineage: str
    segments: Sequence[Segment]
    protected: Mapping[str, str]
    trained_by: str | None = None
    weights: WeightsFacts = field(default_factory=WeightsFacts)
    recovering: bool = False

    def is_pending(self, record: CheckpointRecord) -> bool:
        """Always False."""
        del record
        return False

    async def mark_bad(self, path: str, reason: str) -> None:
        """Do nothing: these commands mark no checkpoints."""

    def note_being_deleted(self, paths: Collection[str]) -> None:
        """Do nothing."""

    def note_sizes(self, sizes: Mapping[str, int]) -> None:
        """Do nothing."""


def _stored(
    lineage: str, records: Sequence[CheckpointRecord], known: RunView | None
) -> StoredLineage:
    if known is None or not known.attempts:
        # Perhaps being trained on another machine, where it may have recovered from any of the
        # recent checkpoints.
        recent = datetime.now(UTC) - MIN_AGE
        young = {
            record.path: "saved less than a day ago by a run that is not in this machine's journal"
            for record in records
            if record.time > recent
        }
        return StoredLineage(lineage, lineage, segments_of(records), young)
    segments = [
        Segment(each.run_id, each.attempt, each.start_step, each.parent) for each in known.attempts
    ]
    parents = {
        each.parent: "an attempt began from it" for each in known.attempts[-1:] if each.parent
    }
    trained_by = None
    if known.live and known.holder is not None:
        trained_by = f"process {known.holder.pid} on {known.holder.host}"
    return StoredLineage(known.name, lineage, segments, parents, trained_by)


def _run_id(path: str) -> str:
    return path.removeprefix("tinker://").partition("/")[0]


def _newest_first(each: Listed) -> tuple[datetime, int, str]:
    record = each.record
    if record is None:
        return datetime.min.replace(tzinfo=UTC), -1, each.path
    return record.time, record.step, each.path


@asynccontextmanager
async def open_context(timeout_s: float = 30.0) -> AsyncGenerator[Context]:
    """The service that TINKER_BASE_URL and TINKER_API_KEY name, and the user's journal.

    Exits with status 3 if either cannot be read.
    """
    logging.getLogger("stamina").setLevel(logging.ERROR)
    path = journal_path(STATE_FOLDER)
    try:
        backend = TinkerBackend()
        endpoint = await backend.endpoint()
        async with (
            Notebook(Journal(path, service=endpoint.base_url)) as notebook,
            StatusReader(endpoint, timeout_s=timeout_s) as reader,
        ):
            yield Context(backend, reader, notebook, path)
    except (StatusError, JournalError) as error:
        refuse(str(error))
