"""The dry run of a recovery: the proof that a checkpoint restores, of a run not under way here.

It does what a recovery does first: see where the run stands, choose a checkpoint, make a client
from it. Then its session is finished, because no session can be handed to another process.
Nothing is written to the journal, and nothing of the run is touched at the service.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import anyio
import anyio.to_thread
import tinker

from tinker_recovery.checkpoints import CheckpointRecord, WeightsFacts, check_weights, run_id_of
from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.errors import NoUsableCheckpoint, StatusRefused, UsageError
from tinker_recovery.journal import Journal, Notebook, StoredRun
from tinker_recovery.journal.database import is_there
from tinker_recovery.journal.elsewhere import read_elsewhere
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.reading import read_stored_run
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.discovery import as_trained_since, find_at_service, put_together
from tinker_recovery.recovery.manual import recover_from_checkpoint
from tinker_recovery.recovery.restore import Restore
from tinker_recovery.recovery.resume import RunSnapshot, own_checkpoints, snapshot_of, status_of
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.service.base import ServiceFactory
from tinker_recovery.service.contact import FirstContact
from tinker_recovery.service.listing import find_checkpoint
from tinker_recovery.telemetry import EventSink

_DETAIL = "a dry run: its checkpoint restores"


class NoSuchRun(UsageError):
    """Neither the journal nor the service knows a run of that name."""


@dataclass(frozen=True, slots=True)
class LeftRun:
    """A run as it was found, before the service is asked where it stands.

    Attributes:
        name: Its name; its Tinker run id where it has none.
        found: Its history; None if all that is known is that it exists.
        resumes: Whether the command that trained it resumes it when it is run again.
        strategy: The ``checkpoint_strategy`` it was trained under; None if that is not known.
        holder: The process that trains it, as far as is known here.
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
        step: Optimizer steps in it; None if its metadata does not say.
        run_id: The Tinker run id of the client that was made from it, whose session is finished.
        optimizer: Whether the optimizer's moments were asked for as well.
        base_model: What the client says it was trained on.
        lora_rank: The rank of its adapter.
        resumes: Whether the command that trained the run goes back to it by itself.
        passed_over: What would have come before it, each with the reason against it.
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


class _ReadNotes(Notebook):
    """The journal's notes, read and not written: to reject for good is for a recovery."""

    async def mark_bad(self, path: str, reason: str) -> None:
        """Rejected this time alone, which :class:`CheckpointState` remembers."""


async def find_left(
    reader: StatusReader, name: str, journal: Path | None, lineage: str | None = None
) -> LeftRun:
    """The run of a name, or of a Tinker run id: from the journal, or else from the service.

    Args:
        reader: The service.
        name: A run's name, or a Tinker run id.
        journal: The journal's file; None for the service alone.
        lineage: Which run of that name, if the service has several; None for the only one.

    Raises:
        NoSuchRun: Neither knows it.
        AmbiguousRun: The service has several, and none is chosen.
        ContradictoryCheckpoints: Some of its checkpoints cannot be its own.
        JournalError: The journal cannot be read.
        StatusError: The service cannot be read.
    """
    service = reader.http.endpoint.base_url
    if journal is not None:
        known = await anyio.to_thread.run_sync(
            lambda: read_stored_run(journal, name, service=service)
        )
        if known is not None and known[1].lineage.startswith(lineage or ""):
            view, found = known
            holder = view.holder if view.live else None
            state: str = view.state
            if view.named and state != "abandoned" and holder is None:
                further = await as_trained_since(reader, found, view.name)
                if further is not found:
                    # By a process with another journal.
                    found, state = further, further.state
            resumes = view.named and state not in ("finished", "abandoned")
            strategy = view.policy.get("checkpoint_strategy")
            return LeftRun(view.name, found, resumes, strategy, holder)
    if ":train:" in name:
        return LeftRun(name, await _of_tinker_run(reader, name))
    at_service = await find_at_service(reader, name, known=(), lineage=lineage)
    if at_service is None:
        others = (
            ()
            if journal is None
            else await anyio.to_thread.run_sync(
                lambda: read_elsewhere(journal, name, service=service)
            )
        )
        at = ", ".join(dict.fromkeys(each.service for each in others))
        elsewhere = f"; the run of that name is at {at}" if at else ""
        raise NoSuchRun(
            f"there is no run {name!r} at {service}: not in the journal (see `tinker-recovery "
            f"runs`), and no checkpoint there bears that name{elsewhere}"
        )
    return LeftRun(name, at_service.stored, resumes=at_service.stored.state != "finished")


async def _of_tinker_run(reader: StatusReader, run_id: str) -> StoredRun | None:
    try:
        await reader.run(run_id)
    except StatusRefused as error:
        raise NoSuchRun(f"the service does not know a Tinker run {run_id!r}: {error}") from error
    own = await own_checkpoints(reader, run_id)
    if not own:
        return None
    newest = max(own, key=lambda record: (record.time, record.step))
    parents = {record.parent for record in own if record.parent}
    steps = {record.path: record.step for record in own}
    for parent in parents:
        with contextlib.suppress(NoUsableCheckpoint):  # gone: nothing older is relied on
            steps[parent] = (await find_checkpoint(reader, parent)).step
    return put_together([each for each in own if each.lineage == newest.lineage], steps)


async def prove(
    name: str,
    *,
    journal: Path | None,
    policy: RecoveryPolicy,
    checkpoint: str | None = None,
    lineage: str | None = None,
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
        lineage: (The beginning of) the lineage of the run at the service that is meant.
        service: Returns a fresh ServiceClient.
        clock: Time, for tests.

    Raises:
        UsageError: ``checkpoint`` has another form, or is none of this run's.
        NoSuchRun: Neither the journal nor the service knows the run.
        AmbiguousRun: The service has several runs of that name, and none is chosen.
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
    if journal is not None and not await anyio.to_thread.run_sync(is_there, journal):
        journal = None
    backend = TinkerBackend(service)
    endpoint = await backend.endpoint()
    async with StatusReader.by(policy, endpoint, clock.wall) as reader:
        with FirstContact(endpoint):
            left = await find_left(reader, name, journal, lineage)
        if checkpoint is None and left.holder is not None:
            raise left.holder.held(
                left.name,
                f"run {left.name!r} is being trained by {left.holder}, which recovers it by "
                "itself; to see that one of its checkpoints restores, give it (--checkpoint PATH)",
            )
        policy = policy.model_copy(
            update={
                "checkpoint_strategy": checkpoint or left.strategy or policy.checkpoint_strategy,
                # The batch belongs to the program that trains.
                "canary": None,
                # A person waits for the answer, and can ask again.
                "max_wait_s": 0.0,
            }
        )
        if checkpoint is None:
            run = await where_it_stands(reader, left, policy, clock)
        elif (named := await _for_checkpoint(reader, left, checkpoint)) is not None:
            run = named
        else:
            return await _prove_foreign(left.name, checkpoint, service, policy, clock)
        events = EventSink()
        events.quiet_runs.add(left.name)  # this is no recovery, and the log must not say so
        service_url = reader.http.endpoint.base_url
        async with _ReadNotes(Journal(journal, service=service_url)) as notebook:
            restore = Restore(run, Collaborators(policy, backend, reader, notebook, events, clock))
            restored = await restore.restore()
            try:
                base_model, lora_rank = _seen(restored.connection.training, run.weights)
            finally:
                await backend.close(
                    restored.connection, "success", _DETAIL, deadline_s=policy.close_timeout_s
                )
        # A run without a checkpoint cannot be started over here, so there is one.
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
            passed_over=[f"{path}: {reason}" for path, reason in restore.passed_over.items()],
        )


async def where_it_stands(
    reader: StatusReader, left: LeftRun, policy: RecoveryPolicy, clock: Clock
) -> RunSnapshot:
    """The run, with all that a recovery would choose by."""
    found = left.found
    if found is None or not found.attempts:
        raise NoUsableCheckpoint(
            f"no checkpoint of run {left.name!r} says how many optimizer steps it contains, so "
            "none can be chosen: if there are any, give one (--checkpoint PATH)"
        )
    parent = found.origin.get("from_checkpoint")
    return await snapshot_of(
        left.name, found, parent=parent, reader=reader, policy=policy, clock=clock
    )


async def _for_checkpoint(reader: StatusReader, left: LeftRun, path: str) -> RunSnapshot | None:
    """The run, for this one checkpoint of it; None if a client that was not supervised saved it.

    Raises:
        UsageError: It is none of this run's.
    """
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
    if record is None:
        return None
    status = await status_of(reader, attempts[-1].run_id if attempts else record.run_id)
    known = CheckpointState(left.name)
    return RunSnapshot(left.name, lineage, (), known, weights=status.weights)


async def _prove_foreign(
    name: str, path: str, service: ServiceFactory, policy: RecoveryPolicy, clock: Clock
) -> Proof:
    """A checkpoint without metadata of ours: whether it can be loaded is all there is to see."""
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
