"""The service and the journal, as ``tinker-recovery checkpoints`` uses them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.to_thread

from tinker_recovery.checkpoint_policy import CheckpointPolicy
from tinker_recovery.checkpoints import CheckpointRecord, Listed, run_id_unchecked, segments_of
from tinker_recovery.cli.checkpoints.scope import Scope
from tinker_recovery.cli.common import (
    NO_SUCH_RUN,
    at_others,
    instead_of,
    journal_file,
    refuse,
    refuse_because,
)
from tinker_recovery.errors import (
    ContradictoryCheckpoints,
    JournalError,
    ServiceUnusable,
    StatusError,
    StatusRefused,
    UsageError,
)
from tinker_recovery.journal import STATE_FOLDER, Journal, Notebook, StoredRun, journal_path
from tinker_recovery.journal.database import is_there
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.reading import RunView, read_runs, read_stored_run
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.policy_settings import policy_from_settings
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.discovery import put_together, with_further
from tinker_recovery.recovery.metadata_notes import recall_metadata
from tinker_recovery.recovery.resume import RunSnapshot, segments_from, snapshot_of
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.service.bounded import ReplyLimits
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.contact import FirstContact
from tinker_recovery.service.missing_routes import NO_SUCH_ROUTE

_NEVER = datetime.min.replace(tzinfo=UTC)

MIN_AGE = timedelta(days=1)
"""In lineages that are not in this machine's journal, younger checkpoints are protected."""


@dataclass(frozen=True, slots=True)
class Context:
    """The service and the journal.

    Attributes:
        collaborators: What the commands work with.
        journal: The journal's file.
    """

    collaborators: Collaborators
    journal: Path | None

    async def listed(self, scope: Scope, *, whole_lineages: bool = False) -> list[Listed]:
        """Every training checkpoint in a scope, the newest first.

        Exits if there is no such run or lineage: that none is listed would look like an answer.

        Args:
            scope: Which to list.
            whole_lineages: Add the others of the lineages that those belong to. What is needed of
                a lineage cannot be seen in one of its Tinker runs alone.
        """
        if scope.run is not None:
            # A service that forgets metadata has of the name what the names of saves have.
            self.collaborators.reader.metadata.know_name(scope.run)
        found = [
            Listed.read(each)
            async for each in self.collaborators.reader.every_checkpoint()
            if each.checkpoint_type == "training"
        ]
        chosen = await self._chosen(scope, found)
        if whole_lineages:
            wanted = {each.record.lineage for each in chosen if each.record is not None}
            paths = {each.path for each in chosen}
            chosen = [
                each
                for each in found
                if each.path in paths or (each.record and each.record.lineage in wanted)
            ]
        return sorted(chosen, key=_newest_first, reverse=True)

    async def _chosen(self, scope: Scope, found: Sequence[Listed]) -> Sequence[Listed]:
        if scope.lineage is not None:
            chosen = _of_lineage(scope.lineage, found)
            if not chosen and not any(
                each.startswith(scope.lineage) for each in await self._known_lineages()
            ):
                refuse(f"there is no run of lineage {scope.lineage!r}", NO_SUCH_RUN)
            return chosen
        if scope.run is None:
            return found
        known = await self._read(scope.run)
        if known is not None:
            return _of_lineage(known[1].lineage, found)
        chosen = [
            each
            for each in found
            if run_id_unchecked(each.path) == scope.run
            or (each.record is not None and each.record.run_name == scope.run)
        ]
        if not chosen and not await self._has_tinker_run(scope.run):
            names = [each.record.run_name for each in found if each.record is not None]
            near = await self._instead_of(scope.run, list(filter(None, names)))
            refuse(
                f"there is no run {scope.run!r} at {self._service} in this machine's journal, nor "
                f"a checkpoint of it at that service{near}",
                NO_SUCH_RUN,
            )
        return chosen

    async def samplers(self, scope: Scope) -> dict[str, list[Listed]]:
        """The sampler weights in a scope, the newest first, by the run that they are of.

        A run is named by its name where this machine's journal knows it, else by its Tinker run.
        """
        names = await self.known_run_ids()
        wanted = scope.run
        of: dict[str, list[Listed]] = {}
        async for each in self.collaborators.reader.every_checkpoint():
            run_id = run_id_unchecked(each.tinker_path)
            name, lineage = names.get(run_id, (run_id, ""))
            if each.checkpoint_type != "sampler" or wanted not in (None, run_id, name):
                continue
            if scope.lineage is None or (lineage and lineage.startswith(scope.lineage)):
                of.setdefault(name, []).append(Listed.read(each))
        known = wanted is None or of or await self._read(wanted) is not None
        if not known and not await self._has_tinker_run(str(wanted)):
            near = await self._instead_of(str(wanted))
            refuse(
                f"there is no run {wanted!r} at {self._service} in this machine's journal, nor a "
                f"Tinker run of that id (of sampler weights the service keeps no name){near}",
                NO_SUCH_RUN,
            )
        for found in of.values():
            found.sort(key=lambda each: (each.stored_at or _NEVER, each.path), reverse=True)
        return of

    async def known_run_ids(self) -> dict[str, tuple[str, str]]:
        """The Tinker runs of the runs in the journal, each with the run's name and lineage."""
        known = await self._known_lineages()
        return {
            attempt.run_id: (view.name, view.lineage)
            for view, stored in known.values()
            for attempt in stored.attempts
        }

    async def busy_runs(self, names: Collection[str]) -> dict[str, Holder]:
        """Those of these runs that a process trains just now, on whichever machine; and by which.

        Raises:
            StatusUnavailable: The service did not answer.
        """
        known = await self._known_lineages()
        here = {view.name: view.holder for view, _ in known.values() if view.live and view.holder}
        held = {name: here.get(name) or await self.claimed_by(name) for name in names}
        return {name: holder for name, holder in held.items() if holder is not None}

    async def _has_tinker_run(self, run_id: str) -> bool:
        if ":train:" not in run_id:
            return False
        try:
            await self.collaborators.reader.run(run_id)
        except StatusRefused:
            return False
        return True

    async def _instead_of(self, name: str, at_service: Sequence[str] = ()) -> str:
        """What to say after "there is no run of this name here"."""
        runs = await self._runs()
        here = [each.name for each in runs if each.service == self._service]
        return at_others(runs, name, self._service) or instead_of(name, [*at_service, *here])

    async def _runs(self) -> list[RunView]:
        path = self.journal
        if path is None or not is_there(path):
            return []
        try:
            return await anyio.to_thread.run_sync(lambda: read_runs(path))
        except JournalError:
            return []

    async def _read(self, name: str) -> tuple[RunView, StoredRun] | None:
        path, service = self.journal, self._service
        if path is None or not is_there(path):
            return None
        try:
            left = await anyio.to_thread.run_sync(
                lambda: read_stored_run(path, name, service=service)
            )
        except JournalError:
            return None  # one of an older schema: brought up to date by the next training process
        # The id of a Tinker run finds its run as well.
        return left if left is not None and left[0].name == name else None

    @property
    def _service(self) -> str:
        return self.collaborators.reader.http.endpoint.base_url

    async def lineages(self, listed: Sequence[Listed]) -> list[RunSnapshot]:
        """The lineages that the readable ones among these belong to, each where it stands.

        Args:
            listed: All that the service lists of those lineages.
        """
        of: dict[str, list[CheckpointRecord]] = {}
        for each in listed:
            if each.record is not None:
                of.setdefault(each.record.lineage, []).append(each.record)
        known, now = await self._known_lineages(), self.collaborators.reader.service_date()
        return [
            await self._known(*known[lineage], records, now)
            if lineage in known
            else _unknown(lineage, records, now)
            for lineage, records in of.items()
        ]

    async def _known_lineages(self) -> dict[str, tuple[RunView, StoredRun]]:
        found: dict[str, tuple[RunView, StoredRun]] = {}
        for view in await self._runs():
            if view.service == self._service:
                left = await self._read(view.name)
                if left is not None and left[1].lineage == view.lineage and left[1].attempts:
                    found[view.lineage] = left
        return found

    async def _known(
        self, view: RunView, stored: StoredRun, records: Sequence[CheckpointRecord], now: datetime
    ) -> RunSnapshot:
        """A run of this machine's journal; what a restart would not trust is not relied on.

        What processes with other journals have done of it since counts as well.
        """
        found, protected = stored, dict[str, str]()
        with suppress(ContradictoryCheckpoints):  # what the journal does not know stays then
            steps = {record.path: record.step for record in records}
            found = with_further(stored, put_together(records, steps))
        if found is not stored:
            protected = _young(records, now, "a process that does not write this machine's journal")
        holder = view.holder if view.live else None
        if holder is None and view.named:
            holder = await self.claimed_by(view.name)
        if holder is not None:
            segments, known = segments_from(found.attempts), CheckpointState(view.name)
            return RunSnapshot(view.name, found.lineage, segments, known, holder=holder)
        having = self.collaborators
        snapshot = await snapshot_of(
            view.name,
            found,
            parent=None,
            reader=having.reader,
            policy=having.policy,
            clock=having.clock,
        )
        parents = {
            each.parent: "an attempt began from it" for each in found.attempts[-1:] if each.parent
        }
        return replace(snapshot, protected=protected | parents)

    async def claimed_by(self, name: str) -> Holder | None:
        """The process that claims a run of this name at the service, on whichever machine.

        Raises:
            StatusUnavailable: The service did not answer.
        """
        try:
            claims = await ClaimSessions(self.collaborators.reader.http).active_claims(name)
        except StatusError as error:
            if isinstance(error, StatusRefused) or error.status_code in NO_SUCH_ROUTE:
                return None  # a service that finds no sessions, so it holds no claims either
            raise
        holders = (
            Holder(by.host, by.machine, by.pid, by.born, each.created_s, each.created_s)
            for each in claims
            for by in (each.claimant,)
        )
        return next((each for each in holders if each.lives() is not False), None)


def _of_lineage(lineage: str, found: Sequence[Listed]) -> list[Listed]:
    return [
        each
        for each in found
        if each.record is not None and each.record.lineage.startswith(lineage)
    ]


def _unknown(lineage: str, records: Sequence[CheckpointRecord], now: datetime) -> RunSnapshot:
    """A run trained on another machine, perhaps at this moment.

    It may descend from any of the recent ones, and the listing does not say from which.
    """
    young = _young(records, now, "a run that is not in this machine's journal")
    segments = tuple(segments_of(records))
    return RunSnapshot(lineage, lineage, segments, CheckpointState(lineage), protected=young)


def _young(records: Sequence[CheckpointRecord], now: datetime, by: str) -> dict[str, str]:
    return {
        record.path: f"saved less than a day ago by {by}"
        for record in records
        if record.time > now - MIN_AGE
    }


def _newest_first(each: Listed) -> tuple[datetime, int, str]:
    record = each.record
    if record is None:
        return datetime.min.replace(tzinfo=UTC), -1, each.path
    return record.time, record.step, each.path


@asynccontextmanager
async def open_context(
    journal: Path | None = None,
    *,
    checkpoints: CheckpointPolicy | None = None,
    timeout_s: float = 30.0,
) -> AsyncGenerator[Context]:
    """The service that TINKER_BASE_URL and TINKER_API_KEY name, and the user's journal.

    Exits with status 3 if either cannot be read.

    Args:
        journal: What ``--journal`` says.
        checkpoints: What to keep, for a command that deletes the rest.
        timeout_s: Deadline of one read, in seconds.
    """
    path = journal_path(STATE_FOLDER) if journal is None else journal_file(journal)
    # A person waits for the answer, and can ask again.
    policy = RecoveryPolicy(checkpoints=checkpoints or CheckpointPolicy())
    policy = policy.model_copy(update={"max_wait_s": 0.0})
    limits = ReplyLimits.of(policy_from_settings())
    try:
        if path is not None and journal is not None and not is_there(path):
            refuse(f"there is no journal at {path}: name another with --journal")
        backend = TinkerBackend()
        endpoint = await backend.endpoint()
        async with (
            Notebook(Journal(path, service=endpoint.base_url)) as notebook,
            StatusReader(endpoint, timeout_s=timeout_s, limits=limits) as reader,
        ):
            collaborators = Collaborators(policy, backend, reader, notebook)
            await recall_metadata(collaborators)
            with FirstContact(endpoint):
                yield Context(collaborators, path)
    except ServiceUnusable as error:
        refuse_because(error)
    except UsageError as error:
        refuse(str(error))
    except (StatusError, JournalError) as error:
        refuse_because(error)
