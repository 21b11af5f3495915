"""A run that is not under way here, and the proof that one of its checkpoints restores.

What a recovery does first, done by hand: find out where the run stood, choose a checkpoint, make a
client from it. Then its session is finished, because no session can be handed to another process.
Nothing is written to the journal, and nothing of the run is touched at the service.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import anyio
import anyio.to_thread
import tinker

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Segment,
    WeightsFacts,
    check_weights,
    run_id_of,
)
from tinker_recovery.checkpoints.canary import Answer
from tinker_recovery.checkpoints.deletion import DeletionLedger
from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.errors import NoUsableCheckpoint, StatusRefused, UsageError
from tinker_recovery.journal import Journal, Notes, StoredRun
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.reading import read_stored_run
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.discovery import find_at_service, put_together
from tinker_recovery.recovery.manual import recover_from_checkpoint
from tinker_recovery.recovery.restore import Restore, Tools
from tinker_recovery.recovery.resume import snapshot_of
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.service.base import ServiceFactory
from tinker_recovery.service.listing import find_checkpoint, list_checkpoints
from tinker_recovery.telemetry import EventSink, names

logger = logging.getLogger(names.SCOPE)

_DETAIL = "it was to be seen that its checkpoint restores"


class NoSuchRun(UsageError):
    """Neither the journal nor the service knows a run of that name."""


@dataclass(frozen=True, slots=True)
class Left:
    """A run as it was left.

    Attributes:
        name: Its name; its Tinker run id where it has none.
        found: Its history; None if nobody knows more of it than that it exists.
        resumes: Whether the command that trained it goes on with it when it is run again.
        strategy: The ``checkpoint_strategy`` it was trained under; None if that is not known.
        holder: The process that trains it, as far as can be told from here.
    """

    name: str
    found: StoredRun | None
    resumes: bool = False
    strategy: str | None = None
    holder: Holder | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """A checkpoint that was restored.

    Attributes:
        run: The run's name.
        checkpoint: Its path.
        step: Optimizer steps in it; None if it does not say.
        run_id: The Tinker run id of the client that was made from it, whose session is finished.
        optimizer: Whether the optimizer's moments were asked for as well.
        base_model: What the client says it was trained on.
        lora_rank: The rank of its adapter.
        resumes: Whether the command that trained the run goes back to it by itself.
        passed_over: What would have come before it, and what speaks against each.
    """

    run: str
    checkpoint: str
    step: int | None
    run_id: str
    optimizer: bool
    base_model: str | None
    lora_rank: int | None
    resumes: bool
    passed_over: Sequence[str] = ()


@dataclass(slots=True)
class _Trust:
    """What is known of the run's weights and checkpoints; see :class:`TrustedCheckpoints`."""

    bad: dict[str, str] = field(default_factory=dict)
    being_deleted: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    stored: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def trusted_to(self, segment: Segment) -> float:
        """The last step of a segment whose checkpoints may be gone back to."""
        return self.limits.get(segment.attempt, math.inf)

    def learn_canaries(self, records: Iterable[CheckpointRecord]) -> None:
        """There is no canary by hand: it is for a program to give."""

    def expects(self, checkpoint: CheckpointRecord | None) -> bool:
        """Whether it is known what the canary says; it is not asked."""
        del checkpoint
        return False

    def objection(self, checkpoint: CheckpointRecord | None, answer: Answer) -> str | None:
        """What the canary's answer speaks against; it is not asked."""
        del checkpoint, answer
        return None

    def condemns(self, checkpoint: CheckpointRecord, answer: Answer) -> bool:
        """Whether an answer speaks against the checkpoint as well; it is not asked."""
        del checkpoint, answer
        return False

    def stored_on(self, segment: Segment, limit: float) -> list[str]:
        """Paths of the checkpoints of a segment that the service said it has stored."""
        return [
            path
            for path, (attempt, step) in self.stored.items()
            if attempt == segment.attempt and step <= limit and path not in self.bad
        ]


@dataclass(frozen=True, slots=True)
class _LeftRun:
    """A left run as a restoration sees it; see :class:`Restorable`."""

    name: str
    lineage: str
    segments: Sequence[Segment]
    root: CheckpointRecord | None
    start_step: int
    weights: WeightsFacts
    reader: StatusReader
    trust: _Trust
    origin: None = None

    async def refresh_notes(self) -> None:
        """They were read a moment ago."""

    async def mark_bad(self, path: str, reason: str) -> None:
        """Passed over this time; the verdict that counts for good is a recovery's."""
        self.trust.bad[path] = reason


async def find_left(reader: StatusReader, name: str, journal: Path | None) -> Left:
    """The run of a name, or of a Tinker run id: from the journal, or else from the service.

    Args:
        reader: The service's word.
        name: A run's name, or a Tinker run id.
        journal: The journal's file; None, or one that is not there, for the service alone.

    Raises:
        NoSuchRun: Nobody knows it.
        JournalError: The journal cannot be read.
        StatusError: The service cannot be read.
    """
    service = reader.http.endpoint.base_url
    if journal is not None and await anyio.Path(journal).exists():
        known = await anyio.to_thread.run_sync(
            lambda: read_stored_run(journal, name, service=service)
        )
        if known is not None:
            view, found = known
            holder = view.holder if view.live else None
            resumes = view.named and view.state not in ("finished", "abandoned")
            strategy = view.policy.get("checkpoint_strategy")
            return Left(view.name, found, resumes, strategy, holder)
    if ":train:" in name:
        return Left(name, await _of_tinker_run(reader, name))
    at_service = await find_at_service(reader, name, known=())
    if at_service is None:
        raise NoSuchRun(
            f"there is no run {name!r}: not in the journal (see `tinker-recovery runs --all`), and "
            f"no checkpoint at {service} bears that name"
        )
    return Left(name, at_service[0], resumes=True)


async def _of_tinker_run(reader: StatusReader, run_id: str) -> StoredRun | None:
    try:
        await reader.run(run_id)
    except StatusRefused as error:
        raise NoSuchRun(f"the service does not know a Tinker run {run_id!r}: {error}") from error
    own = [each.record for each in await list_checkpoints(reader, run_id) if each.record]
    if not own:
        return None
    newest = max(own, key=lambda record: (record.time, record.step))
    parents = {record.parent for record in own if record.parent}
    steps = {record.path: record.step for record in own}
    for parent in parents:
        try:
            steps[parent] = (await find_checkpoint(reader, parent)).step
        except NoUsableCheckpoint:
            continue  # gone: nothing older is relied on
    return put_together([each for each in own if each.lineage == newest.lineage], steps)


async def prove(
    name: str,
    *,
    journal: Path | None,
    policy: RecoveryPolicy,
    checkpoint: str | None = None,
    service: ServiceFactory = tinker.ServiceClient,
    clock: Clock = SYSTEM_CLOCK,
) -> Proof:
    """Restore a run's checkpoint into a session of its own, look at it, and finish that.

    Args:
        name: A run's name, or a Tinker run id.
        journal: The journal's file; None, or one that is not there, for the service alone.
        policy: Says whether to restore the optimizer, the deadlines, and the strategy of a run of
            which none is known.
        checkpoint: ``tinker://RUN/weights/NAME`` of that run; None for the one a recovery would
            choose.
        service: Returns a fresh ServiceClient.
        clock: Time, for tests.

    Raises:
        UsageError: ``checkpoint`` has another form, or is none of this run's.
        NoSuchRun: Nobody knows the run.
        RunHeld: A process trains it, and no ``checkpoint`` is given: which one a recovery would
            choose is for that process to say.
        CheckpointError: None can be used, or the one given cannot.
        JournalError: The journal cannot be read.
        StatusError: The service cannot be read.
        DeadlineExceeded: Making the client took too long.
        Exception: Whatever else the service answered.

    Cancelling it leaves no session behind.
    """
    if checkpoint is not None:
        run_id_of(checkpoint)  # refuses what is no checkpoint path
    backend = TinkerBackend(service)
    async with StatusReader(await backend.endpoint(), timeout_s=policy.status_timeout_s) as reader:
        left = await find_left(reader, name, journal)
        if checkpoint is None and left.holder is not None:
            raise left.holder.held(
                left.name,
                f"run {left.name!r} is being trained by {left.holder}, which recovers it by "
                "itself; to see that one of its checkpoints restores, give it (--checkpoint PATH)",
            )
        policy = policy.model_copy(
            update={
                "checkpoint_strategy": checkpoint or left.strategy or policy.checkpoint_strategy,
                # A person waits for the answer, and can ask again.
                "max_wait_s": 0.0,
            }
        )
        events = EventSink()
        events.quiet_runs.add(left.name)  # nobody is to read in the log that this is a recovery
        tools = Tools(backend, policy, events, clock, ServiceTime(clock))
        if checkpoint is not None:
            run, ours = await _looked_at(reader, left, checkpoint)
            if not ours:
                return await _prove_foreign(left.name, checkpoint, service, policy, clock)
        else:
            run = await _as_left(reader, left, policy, clock)
        await _read_notes(run, journal, clock)
        restoration = Restore(run, tools)
        if checkpoint is None and await restoration.progress() is None:
            raise NoUsableCheckpoint(f"run {left.name!r} has saved no checkpoint")
        restored = await restoration.restore()
        try:
            base_model, lora_rank = _seen(restored.connection.training, run.weights)
        finally:
            with anyio.CancelScope(shield=True):
                await backend.close(
                    restored.connection, "success", _DETAIL, deadline_s=policy.close_timeout_s
                )
        # Only a run without checkpoints starts over, and this one has some.
        chosen = cast("CheckpointRecord", restored.checkpoint)
        return Proof(
            left.name,
            chosen.path,
            chosen.step,
            restored.connection.run_id,
            policy.restore_optimizer,
            base_model,
            lora_rank,
            resumes=left.resumes and checkpoint is None,
            passed_over=restoration.passed_over,
        )


async def _as_left(
    reader: StatusReader, left: Left, policy: RecoveryPolicy, clock: Clock
) -> _LeftRun:
    """The run, with all that a recovery would choose by."""
    found = left.found
    if found is None or not found.attempts:
        raise NoUsableCheckpoint(
            f"no checkpoint of run {left.name!r} says how many optimizer steps it contains, so "
            "none can be chosen: if there are any, give one (--checkpoint PATH)"
        )
    snapshot = await snapshot_of(found, reader, policy, clock)
    root = None
    if parent := found.origin.get("from_checkpoint"):
        try:
            root = await find_checkpoint(reader, parent)
        except NoUsableCheckpoint as error:
            logger.warning("what the run was started from cannot be used: %s", error)
    return _LeftRun(
        left.name,
        found.lineage,
        snapshot.segments,
        root,
        found.start_step,
        await _weights(reader, found.attempts[-1].run_id),
        reader,
        _Trust(limits=snapshot.limits, stored=snapshot.stored),
    )


async def _looked_at(reader: StatusReader, left: Left, path: str) -> tuple[_LeftRun, bool]:
    """The run, for one checkpoint of it; and whether that one was saved under supervision."""
    attempts = () if left.found is None else left.found.attempts
    lineage = "" if left.found is None else left.found.lineage
    run_ids = {each.run_id for each in attempts} or {left.name}
    try:
        record = await find_checkpoint(reader, path)
    except NoUsableCheckpoint:
        record = None
    belongs = run_id_of(path) in run_ids or any(each.parent == path for each in attempts)
    if not belongs and (record is None or record.lineage != lineage):
        raise UsageError(
            f"{path} is no checkpoint of run {left.name!r}: see `tinker-recovery checkpoints list`"
        )
    weights = await _weights(reader, attempts[-1].run_id if attempts else run_id_of(path))
    run = _LeftRun(left.name, lineage, (), None, 0, weights, reader, _Trust())
    return run, record is not None


async def _weights(reader: StatusReader, run_id: str) -> WeightsFacts:
    try:
        said = await reader.run(run_id)
    except StatusRefused:
        return WeightsFacts()  # it does not know the run any more
    return WeightsFacts(said.base_model, said.lora_rank)


async def _read_notes(run: _LeftRun, journal: Path | None, clock: Clock) -> None:
    """What was found bad, what is being deleted, and sizes at first sight."""
    if journal is None or not await anyio.Path(journal).exists():
        return
    service = run.reader.http.endpoint.base_url

    def read() -> Notes:
        with Journal(journal, service=service) as notes:
            return notes.notes()

    notes = await anyio.to_thread.run_sync(read)
    ledger = DeletionLedger.from_lines(notes.deletions.values())
    run.trust.bad.update(notes.bad)
    run.trust.sizes.update(notes.sizes)
    run.trust.being_deleted = dict.fromkeys(
        ledger.being_deleted(now_s=clock.wall()), "its deletion was begun"
    )


async def _prove_foreign(
    name: str, path: str, service: ServiceFactory, policy: RecoveryPolicy, clock: Clock
) -> Proof:
    """A checkpoint that says nothing of itself: whether it can be loaded is all there is to see."""
    recovered = await recover_from_checkpoint(
        path,
        service=service,
        restore_optimizer=policy.restore_optimizer,
        create_timeout_s=policy.create_timeout_s,
        status_timeout_s=policy.status_timeout_s,
        clock=clock,
    )
    try:
        base_model, lora_rank = _seen(recovered.client, WeightsFacts())
    finally:
        with anyio.CancelScope(shield=True):
            await recovered.aclose(deadline_s=policy.close_timeout_s)
    return Proof(
        name,
        path,
        recovered.step,
        recovered.run_id,
        policy.restore_optimizer,
        base_model,
        lora_rank,
        resumes=False,
    )


def _seen(client: tinker.TrainingClient, expected: WeightsFacts) -> tuple[str | None, int | None]:
    """What the client says it is; nothing is asked of the service for it.

    Raises:
        NoUsableCheckpoint: It is not what the run is.
    """
    info = client.get_info()
    facts = WeightsFacts(info.model_data.model_name, info.lora_rank)
    verdict = check_weights(facts, expected)
    if not verdict.ok:
        raise NoUsableCheckpoint(f"what was restored is of another kind: {verdict.reason}")
    return facts.base_model, facts.lora_rank
