"""The restoration of a run that is trained elsewhere: all there is to go by is the service's list.

Its checkpoints need not be ours. What one says of itself is read where it says something; the order
is that in which the service stored them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from tinker import types

from tinker_recovery.checkpoints import Listed, check_listing
from tinker_recovery.checkpoints.record import CheckpointRecord
from tinker_recovery.errors import InvalidMetadata, NoUsableCheckpoint
from tinker_recovery.recovery.restore import Restored, Tools, discard
from tinker_recovery.service import Connection, FromCheckpoint, StatusReader
from tinker_recovery.service.refusals import is_refused
from tinker_recovery.telemetry import names, phase

_SOON_S = 300.0
"""A checkpoint that expires within this time is as good as gone."""


class RestorableWatch(Protocol):
    """A run trained elsewhere, as its restoration sees it."""

    bad: dict[str, str]
    """Checkpoints not to be used again, with what is wrong with each."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def run_ids(self) -> Sequence[str]:
        """Every Tinker run it has been, oldest first."""
        ...

    @property
    def reader(self) -> StatusReader:
        """Where its checkpoints are listed."""
        ...

    @property
    def trusted_until(self) -> float | None:
        """What was stored later may hold the fault's damage; None if that is not known."""
        ...


class WatchedRestore:
    """One try to bring such a run back.

    Args:
        run: Which.
        tools: What it is done with.
    """

    def __init__(self, run: RestorableWatch, tools: Tools) -> None:
        self._run = run
        self._tools = tools

    async def restore(self) -> Restored:
        """A new client, from the newest checkpoint that nothing speaks against.

        Cancelling it leaves no session behind.

        Raises:
            NoUsableCheckpoint: There is none, and nothing else to start from.
            Exception: Whatever else the service answered.
        """
        while True:
            chosen = await self._choose()
            try:
                connection = await self._connect(chosen)
            except Exception as error:
                if not is_refused(error):
                    raise
                reason = self._run.bad[chosen.tinker_path] = (
                    f"the service does not load it: {error}"
                )
                self._tools.events.emit(
                    names.EVENT_CHECKPOINT_BAD,
                    self._run.name,
                    f"{chosen.tinker_path} is not used again: {reason}",
                    {names.CHECKPOINT_PATH: chosen.tinker_path, names.REASON: reason},
                )
                continue
            return Restored(connection, _record(chosen), None, chosen)

    async def progress(self) -> int | None:
        """How far it has come by what is stored: when the newest usable checkpoint was made."""
        try:
            return progress_of(await self._choose())
        except NoUsableCheckpoint:
            return None

    async def discard(self, connection: Connection) -> None:
        """Close a client that is not going to be used; never raises an Exception."""
        await discard(connection, self._tools)

    async def _choose(self) -> types.Checkpoint:
        """The newest usable checkpoint, of the newest run that has one."""
        refused: list[str] = []
        for run_id in reversed(self._run.run_ids):
            with phase(names.SPAN_SELECT, {names.RUN_ID: run_id}) as span, self._tools.waiting:
                listed = await self._run.reader.checkpoints(run_id)
                span.set_attribute(names.CHECKPOINTS_FOUND, len(listed))
            training = [each for each in listed if each.checkpoint_type == "training"]
            for checkpoint in sorted(training, key=lambda each: each.time, reverse=True):
                reason = self._objection(checkpoint, newest=run_id == self._run.run_ids[-1])
                if reason is None:
                    self._tools.events.emit(
                        names.EVENT_CHECKPOINT_SELECTED,
                        self._run.name,
                        f"{checkpoint.tinker_path}, of {checkpoint.time:%Y-%m-%d %H:%M:%S}",
                        {names.CHECKPOINT_PATH: checkpoint.tinker_path},
                    )
                    return checkpoint
                refused.append(f"{checkpoint.tinker_path}: {reason}")
        raise NoUsableCheckpoint(
            f"run {self._run.name!r} is trained elsewhere, so it cannot be started over, and "
            + (
                f"none of its checkpoints can be used: {'; '.join(refused)}"
                if refused
                else "it has no checkpoint"
            )
        )

    def _objection(self, checkpoint: types.Checkpoint, *, newest: bool) -> str | None:
        if checkpoint.tinker_path in self._run.bad:
            return self._run.bad[checkpoint.tinker_path]
        now = self._tools.clock.wall()
        expires = checkpoint.expires_at
        if expires is not None and expires.timestamp() < now + _SOON_S:
            return f"it expires at {expires:%Y-%m-%d %H:%M:%S}"
        until = self._run.trusted_until
        if newest and until is not None and checkpoint.time.timestamp() > until:
            return (
                f"it was stored at {checkpoint.time:%Y-%m-%d %H:%M:%S}, after the run was last "
                f"seen to be well at {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%S}; "
                "recover_from_checkpoint() takes it all the same"
            )
        path = checkpoint.tinker_path
        listed = Listed.read(checkpoint)
        verdict = check_listing(path, {path: listed}, now=datetime.fromtimestamp(now, UTC))
        return None if verdict.ok else verdict.reason

    async def _connect(self, checkpoint: types.Checkpoint) -> Connection:
        tools = self._tools
        origin = FromCheckpoint(checkpoint.tinker_path, optimizer=tools.policy.restore_optimizer)
        with (
            phase(
                names.SPAN_CREATE,
                {
                    names.CHECKPOINT_PATH: checkpoint.tinker_path,
                    names.RESTORE_OPTIMIZER: tools.policy.restore_optimizer,
                },
            ) as span,
            tools.waiting,
        ):
            connection = await tools.backend.connect(
                origin, deadline_s=tools.policy.create_timeout_s
            )
            span.set_attribute(names.RUN_ID, connection.run_id)
        tools.events.emit(
            names.EVENT_CLIENT_CREATED,
            self._run.name,
            f"new client: Tinker run {connection.run_id}",
            {names.RUN_ID: connection.run_id},
        )
        return connection


def progress_of(checkpoint: types.Checkpoint) -> int:
    """A number that grows with each checkpoint of a run, whether it says how far it is or not."""
    return int(checkpoint.time.timestamp() * 1e3)


def _record(checkpoint: types.Checkpoint) -> CheckpointRecord | None:
    try:
        return CheckpointRecord.from_listing(checkpoint)
    except InvalidMetadata:
        return None
