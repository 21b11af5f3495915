"""What ``tinker-recovery checkpoints`` works on: the service's checkpoints, lineage by lineage."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.to_thread
import click

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Listed,
    Segment,
    WeightsFacts,
    run_id_unchecked,
    segments_of,
)
from tinker_recovery.cli.checkpoints.scope import Scope
from tinker_recovery.errors import JournalError, StatusError
from tinker_recovery.journal import STATE_FOLDER, Journal, Notebook, journal_path
from tinker_recovery.journal.reading import RunView, read_run, read_runs
from tinker_recovery.service import StatusReader, TinkerBackend

OUT_OF_REACH = 3
"""Exit status: the service, or the journal, could not be read."""

MIN_AGE = timedelta(days=1)
"""Of a lineage this machine knows nothing of, what was saved since then is left alone."""


@dataclass(frozen=True, slots=True)
class Stock:
    """The service as these commands see it.

    Attributes:
        backend: For what needs a session.
        reader: The service's word.
        notebook: The journal's.
        journal: The journal's file.
    """

    backend: TinkerBackend
    reader: StatusReader
    notebook: Notebook
    journal: Path | None

    async def listed(self, scope: Scope) -> list[Listed]:
        """Every training checkpoint meant by a scope, the newest first."""
        run_ids, lineage = await self._resolve(scope)
        found = [
            Listed.read(each)
            async for each in self.reader.every_checkpoint()
            if each.checkpoint_type == "training"
        ]
        chosen = [
            each
            for each in found
            if (run_ids is None or run_id_unchecked(each.path) in run_ids)
            and (
                lineage is None
                or (each.record is not None and each.record.lineage.startswith(lineage))
            )
        ]
        return sorted(chosen, key=_newest_first, reverse=True)

    async def _resolve(self, scope: Scope) -> tuple[set[str] | None, str | None]:
        if scope.run is None or ":train:" in scope.run:
            return None if scope.run is None else {scope.run}, scope.lineage
        known = await self._read(scope.run)
        if known is not None:
            return None, known.lineage
        return {scope.run}, scope.lineage

    async def _read(self, name: str) -> RunView | None:
        path, service = self.journal, self.reader.http.endpoint.base_url
        if path is None or not path.exists():
            return None
        try:
            return await anyio.to_thread.run_sync(lambda: read_run(path, name, service=service))
        except JournalError:
            return None  # one of an older schema: brought up to date by the next training process

    async def lineages(self, listed: Sequence[Listed]) -> list[StoredLineage]:
        """The lineages that the readable ones among these belong to, each with its history."""
        of: dict[str, list[CheckpointRecord]] = {}
        for each in listed:
            if each.record is not None:
                of.setdefault(each.record.lineage, []).append(each.record)
        known = await self._known_lineages()
        return [_stored(lineage, records, known.get(lineage)) for lineage, records in of.items()]

    async def _known_lineages(self) -> dict[str, RunView]:
        path, service = self.journal, self.reader.http.endpoint.base_url
        if path is None or not path.exists():
            return {}
        try:
            views = await anyio.to_thread.run_sync(lambda: read_runs(path))
        except JournalError:
            return {}
        found: dict[str, RunView] = {}
        for view in views:
            if view.service == service:
                whole = await self._read(view.name)
                if whole is not None and whole.lineage == view.lineage:
                    found[view.lineage] = whole
        return found


@dataclass(frozen=True, slots=True)
class StoredLineage:
    """A lineage of which no run is under way in this process.

    Attributes:
        name: Its name, or its id where it has none here.
        lineage: Its id.
        segments: Every Tinker run it has lived in, oldest first.
        protected: Path to reason, of what is left alone.
        trained_by: The process that trains it just now, in words; None if none is known.
        weights: What its weights are.
        recovering: It is not, here.
    """

    name: str
    lineage: str
    segments: Sequence[Segment]
    protected: Mapping[str, str]
    trained_by: str | None = None
    weights: WeightsFacts = field(default_factory=WeightsFacts)
    recovering: bool = False

    def is_pending(self, record: CheckpointRecord) -> bool:
        """No metric is still to come."""
        del record
        return False

    async def mark_bad(self, path: str, reason: str) -> None:
        """Nothing is marked by these commands."""

    def note_being_deleted(self, paths: Collection[str]) -> None:
        """Nobody here relies on any."""

    def note_sizes(self, sizes: Mapping[str, int]) -> None:
        """Nobody here compares them."""


def _stored(
    lineage: str, records: Sequence[CheckpointRecord], known: RunView | None
) -> StoredLineage:
    if known is None or not known.attempts:
        # Trained on another machine, perhaps at this moment: it may have gone back to any of the
        # recent ones, and the listing does not tell.
        recent = datetime.now(UTC) - MIN_AGE
        young = {
            record.path: "saved less than a day ago, by a run this machine knows nothing of"
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


def _newest_first(each: Listed) -> tuple[datetime, int, str]:
    record = each.record
    if record is None:
        return datetime.min.replace(tzinfo=UTC), -1, each.path
    return record.time, record.step, each.path


class _Unread(click.ClickException):
    """The service, or the journal, could not be read."""

    exit_code = OUT_OF_REACH


@asynccontextmanager
async def open_stock(timeout_s: float = 30.0) -> AsyncGenerator[Stock]:
    """The service that TINKER_BASE_URL and TINKER_API_KEY name, and the user's journal.

    Raises:
        click.ClickException: With exit status 3: either cannot be read.
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
            yield Stock(backend, reader, notebook, path)
    except (StatusError, JournalError) as error:
        raise _Unread(str(error)) from error
