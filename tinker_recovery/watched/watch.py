"""Watches: runs that are trained elsewhere, watched by their status alone.

Nothing of such a run goes through here: only status polling can detect a fault; failed calls and
stalls cannot. A watch is a few slots and no task, so thousands are cheap; what a recovery needs is
made when the first fault is found.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterator
from dataclasses import replace

import anyio
import tinker
from tinker import types

from tinker_recovery.checkpoints import WeightsFacts, run_id_unchecked
from tinker_recovery.errors import UsageError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.policy import Callback
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.recovery.recoverable import HandOver, Recovery
from tinker_recovery.recovery.restore import Restore, Restored
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import Asked, Connection, Patience, RunStatus
from tinker_recovery.service.base import CloseStatus
from tinker_recovery.telemetry import RunTelemetry, names
from tinker_recovery.watched.restore import NewestStored, progress_of

_CLOSING_AT_ONCE = 32

REPLACED: tuple[CloseStatus, str] = ("errored", "replaced by a recovery")


class Watch:
    """One run trained elsewhere: what :meth:`Supervisor.watch` returns.

    Watching continues with the run that a recovery has made, until :meth:`cancel` or the end of
    the Supervisor.
    """

    __slots__ = ("_polled",)

    def __init__(self, polled: PolledWatch) -> None:
        self._polled = polled

    def __repr__(self) -> str:
        return f"<Watch {self.name!r}, {self.state}>"

    @property
    def name(self) -> str:
        """The Tinker run id that was asked to be watched."""
        return self._polled.name

    @property
    def run_id(self) -> str:
        """The Tinker run id it is now: another after each recovery."""
        return self._polled.run_id

    @property
    def state(self) -> str:
        """``watching``, ``recovering``, ``failed`` (given up, or recovery is off) or ``over``."""
        if not self._polled.active:
            return "over"
        run = self._polled.run
        if run is None or run.incident is None:
            return "watching"
        return "recovering" if run.error is None else "failed"

    @property
    def recoveries(self) -> int:
        """How often it was recovered."""
        return 0 if self._polled.run is None else self._polled.run.recoveries

    @property
    def client(self) -> tinker.TrainingClient | None:
        """The client that the last recovery handed over, if it is still open."""
        held = None if self._polled.run is None else self._polled.run.connection
        return None if held is None else held.training

    @property
    def error(self) -> BaseException | None:
        """What it was given up with, if it was."""
        return None if self._polled.run is None else self._polled.run.error

    def cancel(self) -> None:
        """Watch it no longer; a recovery under way is called off. Its client stays open."""
        self._polled.forget()

    async def aclose(self) -> None:
        """:meth:`cancel`, and finish the session of the client handed over, if there is one."""
        self.cancel()
        if self._polled.run is not None:
            await self._polled.run.close("success", "")


class PolledWatch:
    """A watched run as the Monitor sees it."""

    __slots__ = ("_watches", "last_good", "name", "on_recovery", "run")

    def __init__(self, watches: Watches, name: str, on_recovery: Callback) -> None:
        self.name = name
        """The Tinker run id that was asked to be watched."""
        self.on_recovery = on_recovery
        """The user's callback, which gets the new client."""
        self.last_good: float | None = None
        """When the status was asked for that was the last good one, by the service's clock in
        seconds since the epoch."""
        self.run: WatchedRun | None = None
        """What its recoveries need, from the first fault on."""
        self._watches = watches

    @property
    def active(self) -> bool:
        """Whether it is still watched."""
        return self._watches.get(self.name) is self

    @property
    def run_id(self) -> str:
        """The Tinker run id it is now."""
        return self.name if self.run is None else self.run.run_ids[-1]

    @property
    def watched_run_id(self) -> str | None:
        """The Tinker run to ask about; None during a recovery and after it was given up."""
        run = self.run  # None for nearly all of ten thousand, which are asked at each poll
        if run is None:
            return self.name
        return None if run.incident is not None else run.run_ids[-1]

    @property
    def silent_s(self) -> float | None:
        """What it has open is known elsewhere alone."""
        return None

    def note_status(self, status: RunStatus, asked: Asked) -> None:
        """The service's answer about the run."""
        if status.run_id != (self.name if self.run is None else self.watched_run_id):
            return
        if status.corrupted:
            self._report(Kind.CORRUPTED)
        else:
            self.last_good = asked.service_s

    def note_session_failed(self, run_id: str, message: str) -> None:
        """The service has failed the session of the run."""
        del message
        if run_id == self.watched_run_id:
            self._report(Kind.SESSION_FAILED)

    def check_silence(self) -> None:
        """Its requests do not go through here."""

    def forget(self) -> None:
        """Watch it no longer."""
        self._watches.forget(self)

    def _report(self, kind: Kind) -> None:
        if self.run is None:
            self.run = self._watches.open(self)
        number, rule = len(self.run.run_ids), RULES[kind]
        self.run.report_fault(Fault(self.name, number, self.run_id, rule, DetectedBy.POLL, step=0))


class WatchedRun:
    """A watched run that had a fault: its recoveries, as the Executor sees them."""

    def __init__(self, watch: PolledWatch, watches: Watches) -> None:
        self._watch = watch
        self._watches = watches
        policy, clock = watches.collaborators.policy, watches.collaborators.clock
        self.name = watch.name
        self.run_ids = [watch.name]
        """Every Tinker run it has been, oldest first."""
        self.budget = AttemptBudget(policy.max_attempts)
        self.telemetry = RunTelemetry(self.name, secrets.token_hex(8), clock.monotonic)
        self.checkpoints = CheckpointState(self.name)
        """What is known of its checkpoints."""
        self.segments, self.root, self.origin, self.start_step = (), None, None, 0
        self.weights = WeightsFacts()
        self.incident: Fault | None = None
        self.error: BaseException | None = None
        self.recoveries = 0
        self.connection: Connection | None = None
        """The client handed over last."""
        self._ready: tuple[Connection, types.Checkpoint] | None = None
        self._left_at: dict[str, float | None] = {}
        """When each Tinker run it has left was last seen to be well."""

    def trusted_until(self, run_id: str) -> float | None:
        """What one of its Tinker runs stored later may hold the fault's damage; None: not known."""
        return self._left_at.get(run_id, self._watch.last_good)

    def report_fault(self, fault: Fault) -> None:
        """A fault was found: open an incident, and queue it."""
        self.incident = fault
        self._watches.queue.put(fault)

    def awaits(self, fault: Fault) -> bool:
        """Whether this fault still has to be dealt with."""
        return self.incident is fault and self._watch.active

    def restoration(
        self, waiting: ServiceTime, *, ahead: bool = False, patience: Patience | None = None
    ) -> Restore:
        """One try to bring its state back."""
        collaborators = self._watches.collaborators
        order = NewestStored(self, collaborators.reader, waiting)
        return Restore(
            self, collaborators, waiting=waiting, ahead=ahead, order=order, patience=patience
        )

    def hold_ready(self, restored: Restored) -> HandOver:
        """Hold the new client ready."""
        if restored.listed is None:
            raise UsageError("a run trained elsewhere is restored from a checkpoint")
        if self._ready is not None:
            self._close_later(self._ready[0])
        self._ready = restored.connection, restored.listed
        if self.trusted_until(run_id_unchecked(restored.listed.tinker_path)) is None:
            self._say_never_seen_sound(restored.listed)
        return HandOver(
            callback=self._watch.on_recovery,
            arguments=(self.run_ids[-1], restored.connection.training, restored.listed),
            step=None if restored.checkpoint is None else restored.checkpoint.step,
            progress=progress_of(restored.listed),
        )

    def _say_never_seen_sound(self, chosen: types.Checkpoint) -> None:
        # Nothing tells when the fault began, so no checkpoint is known to be from before it.
        self._watches.collaborators.events.emit(
            names.EVENT_WEIGHTS_UNKNOWN,
            self.name,
            f"never seen to be sound while it was watched, so {chosen.tinker_path}, its newest "
            "checkpoint that loads, may have been stored after the fault began: look at what it "
            "gives before you train on, or use recover_from_checkpoint() with an older one",
            {names.CHECKPOINT_PATH: chosen.tinker_path},
        )

    def step_to_skip(self) -> int | None:
        """Its steps are not ours to skip."""
        return None

    def hand_over(self, recovery: Recovery) -> None:
        """Watch the new run from now on, and close the client of the one before."""
        del recovery
        if self._ready is None:
            raise UsageError("hold_ready() comes before hand_over()")
        old, (self.connection, _) = self.connection, self._ready
        self._ready = None
        self._left_at[self.run_ids[-1]] = self._watch.last_good
        self.run_ids.append(self.connection.run_id)
        self.incident = None
        self.checkpoints.note_recovered()
        self.recoveries += 1
        if old is not None:
            self._close_later(old)

    def give_up(self, error: BaseException) -> None:
        """It is not watched any more."""
        self.error = error
        self._watches.collaborators.outlets.run_ended(self.name, error)

    async def close(self, status: CloseStatus, detail: str) -> None:
        """Finish the sessions it holds; never raises an Exception."""
        held = [self.connection, None if self._ready is None else self._ready[0]]
        self.connection = self._ready = None
        for connection in held:
            if connection is not None:
                await self._watches.close(connection, status, detail)

    def _close_later(self, connection: Connection) -> None:
        self._watches.collaborators.spawn(
            functools.partial(self._watches.close, connection, *REPLACED)
        )


class Watches:
    """Every watch of a Supervisor."""

    def __init__(self, collaborators: Collaborators, queue: FaultQueue) -> None:
        # A canary and a strategy are for runs whose steps and weights are known here.
        policy = collaborators.policy.model_copy(
            update={"canary": None, "checkpoint_strategy": "latest"}
        )
        self.collaborators = replace(collaborators, policy=policy)
        self.queue = queue
        self._watches: dict[str, PolledWatch] = {}
        self._opened: dict[str, WatchedRun] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def polled(self) -> Iterator[PolledWatch]:
        """Every watch, for the Monitor."""
        return iter(self._watches.values())

    def add(self, run_id: str, on_recovery: Callback) -> Watch:
        """Watch one more.

        Raises:
            UsageError: An argument is of the wrong kind, or the run is watched already.
        """
        if type(run_id) is not str or not run_id.strip() or "/" in run_id:
            raise UsageError(
                f"run_id={run_id!r} is not allowed: the id of a Tinker run, as in "
                "training_client.model_id"
            )
        if not callable(on_recovery):
            raise UsageError(
                f"on_recovery={on_recovery!r} is not allowed: a function that is called with the "
                "old run id, the new client and the checkpoint it was made from"
            )
        if run_id in self._watches:
            raise UsageError(f"run_id={run_id!r} is watched already: cancel() the first watch")
        polled = self._watches[run_id] = PolledWatch(self, run_id, on_recovery)
        return Watch(polled)

    def get(self, run_id: str) -> PolledWatch | None:
        """The watch of a run, by the id that was asked for."""
        return self._watches.get(run_id)

    def forget(self, watch: PolledWatch) -> None:
        """Watch this one no longer."""
        if self._watches.get(watch.name) is watch:
            del self._watches[watch.name]

    def open(self, watch: PolledWatch) -> WatchedRun:
        """What a watched run needs from its first fault on."""
        run = WatchedRun(watch, self)
        before = self._opened.get(watch.name)
        if before is not None:  # of a watch that was cancelled; its client lives on until the end
            self._opened[f"{watch.name}#{id(before)}"] = before
        self._opened[watch.name] = run
        return run

    def find(self, name: str) -> WatchedRun | None:
        """A watched run that had a fault, while it is watched."""
        return self._opened.get(name) if name in self._watches else None

    async def close(self, connection: Connection, status: CloseStatus, detail: str) -> None:
        """Finish a session; never raises an Exception."""
        await self.collaborators.backend.close(
            connection,
            status,
            detail,
            deadline_s=self.collaborators.policy.close_timeout_s,
        )

    async def aclose(self) -> None:
        """Watch nothing any more, and finish the sessions of all clients handed over."""
        self._watches.clear()
        limiter = anyio.CapacityLimiter(_CLOSING_AT_ONCE)

        async def close(run: WatchedRun) -> None:
            async with limiter:
                await run.close("interrupted", "the supervisor ended")

        async with anyio.create_task_group() as group:
            for run in self._opened.values():
                group.start_soon(close, run)
