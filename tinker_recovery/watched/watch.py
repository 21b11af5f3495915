"""Watches: runs that are trained elsewhere, watched by their status alone.

Nothing of such a run goes through here, so neither its calls nor its silence are heard; what is
known of it is what the service says. A watch is a few slots and no task, so that thousands are
cheap; what a recovery needs is made when the first fault is found.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace

import anyio
import tinker
from tinker import types

from tinker_recovery.checkpoints import WeightsFacts
from tinker_recovery.errors import UsageError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.policy import Callback
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.executor import HandOver, Recovery
from tinker_recovery.recovery.restore import Restore, Restored
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import Connection, RunStatus
from tinker_recovery.service.base import CloseStatus
from tinker_recovery.telemetry import RunTelemetry
from tinker_recovery.watched.restore import NewestStored, progress_of

_CLOSING_AT_ONCE = 32

REPLACED: tuple[CloseStatus, str] = ("errored", "replaced by a recovery")


class Watch:
    """One run trained elsewhere: what :meth:`Supervisor.watch` returns.

    Watching goes on with the run that a recovery has made, until :meth:`cancel` or the end of the
    Supervisor.
    """

    __slots__ = ("_fleet", "_last_good", "_on_recovery", "_run", "_run_id")

    def __init__(self, fleet: Watches, run_id: str, on_recovery: Callback) -> None:
        self._fleet = fleet
        self._run_id = run_id
        self._last_good: float | None = None
        self._on_recovery = on_recovery
        self._run: WatchedRun | None = None

    def __repr__(self) -> str:
        return f"<Watch {self.name!r}, {self.state}>"

    @property
    def name(self) -> str:
        """The Tinker run id that was asked to be watched."""
        return self._run_id

    @property
    def run_id(self) -> str:
        """The Tinker run id it is now: another after each recovery."""
        return self._run_id if self._run is None else self._run.run_ids[-1]

    @property
    def state(self) -> str:
        """``watching``, ``recovering``, ``failed`` (given up, or recovery is off) or ``over``."""
        if self._fleet.get(self._run_id) is not self:
            return "over"
        if self._run is None or self._run.incident is None:
            return "watching"
        return "recovering" if self._run.error is None else "failed"

    @property
    def recoveries(self) -> int:
        """How often it was recovered."""
        return 0 if self._run is None else self._run.recoveries

    @property
    def client(self) -> tinker.TrainingClient | None:
        """The client that the last recovery handed over, if it is still open."""
        held = None if self._run is None else self._run.connection
        return None if held is None else held.training

    @property
    def error(self) -> BaseException | None:
        """What it was given up with, if it was."""
        return None if self._run is None else self._run.error

    def cancel(self) -> None:
        """Watch it no longer; a recovery under way is called off. Its client stays open."""
        self._fleet.forget(self)

    async def aclose(self) -> None:
        """:meth:`cancel`, and finish the session of the client handed over, if there is one."""
        self.cancel()
        if self._run is not None:
            await self._run.close("success", "")

    # For the Monitor

    @property
    def watched_run_id(self) -> str | None:
        """The Tinker run to ask about; None during a recovery and after it was given up."""
        if self._run is None:
            return self._run_id
        return None if self._run.incident is not None else self._run.run_ids[-1]

    def note_status(self, status: RunStatus) -> None:
        """What the service says of the run."""
        if status.run_id != self.watched_run_id:
            return
        if status.corrupted:
            self._declare(Kind.CORRUPTED)
        else:
            self._last_good = self._fleet.clock.wall()

    def note_session_failed(self, run_id: str, message: str) -> None:
        """The service has failed the session of the run."""
        del message
        if run_id == self.watched_run_id:
            self._declare(Kind.SESSION_FAILED)

    def note_unreachable(self) -> None:
        """The service could not be reached; nobody here has the weights to ask."""

    def check_silence(self) -> None:
        """Its work is not ours to hear."""

    def _declare(self, kind: Kind) -> None:
        if self._run is None:
            self._run = self._fleet.open(self)
        fault = Fault(
            self.name, len(self._run.run_ids), self.run_id, RULES[kind], DetectedBy.POLL, step=0
        )
        self._run.incident = fault
        self._fleet.report(fault)

    # For its recovery

    @property
    def last_good(self) -> float | None:
        """When its status was last seen to be good, in seconds since the epoch."""
        return self._last_good

    @property
    def on_recovery(self) -> Callback:
        """Who gets the new client."""
        return self._on_recovery


class WatchedRun:
    """A watched run that had a fault: its recoveries, as the Executor sees them."""

    def __init__(self, watch: Watch, fleet: Watches) -> None:
        self._watch = watch
        self._fleet = fleet
        self.name = watch.name
        self.run_ids = [watch.name]
        """Every Tinker run it has been, oldest first."""
        self.budget = AttemptBudget(fleet.policy.max_attempts)
        self.telemetry = RunTelemetry(self.name, secrets.token_hex(8), fleet.clock.monotonic)
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

    @property
    def trusted_until(self) -> float | None:
        """What was stored later may hold the fault's damage; None if that is not known."""
        return self._watch.last_good

    def restoration(self, waiting: ServiceTime, *, ahead: bool) -> Restore:
        """One try to bring it back."""
        collaborators = self._fleet.collaborators
        order = NewestStored(self, collaborators.reader, waiting)
        return Restore(self, collaborators, waiting=waiting, ahead=ahead, order=order)

    def step_to_skip(self) -> int | None:
        """Its steps are not ours to skip."""
        return None

    def awaits(self, fault: Fault) -> bool:
        """Whether this fault still has to be dealt with."""
        return self.incident is fault and self._fleet.get(self.name) is self._watch

    def take_over(self, restored: Restored) -> HandOver:
        """Hold the new client ready."""
        if restored.listed is None:
            raise UsageError("a run trained elsewhere is restored from a checkpoint")
        if self._ready is not None:
            self._fleet.spawn(functools.partial(self._fleet.close, self._ready[0], *REPLACED))
        self._ready = restored.connection, restored.listed
        return HandOver(
            callback=self._watch.on_recovery,
            told=(self.run_ids[-1], restored.connection.training, restored.listed),
            step=None if restored.checkpoint is None else restored.checkpoint.step,
            progress=progress_of(restored.listed),
        )

    def resume(self, recovery: Recovery) -> None:
        """Watch the new run from now on, and close the client of the one before."""
        del recovery
        if self._ready is None:
            raise UsageError("take_over() comes before resume()")
        old, (self.connection, _) = self.connection, self._ready
        self._ready = None
        self.run_ids.append(self.connection.run_id)
        self.incident = None
        self.recoveries += 1
        if old is not None:
            self._fleet.spawn(functools.partial(self._fleet.close, old, *REPLACED))

    def give_up(self, error: BaseException) -> None:
        """It is not watched any more."""
        self.error = error

    async def close(self, status: CloseStatus, detail: str) -> None:
        """Finish the sessions it holds; never raises an Exception."""
        held = [self.connection, None if self._ready is None else self._ready[0]]
        self.connection = self._ready = None
        for connection in held:
            if connection is not None:
                await self._fleet.close(connection, status, detail)


class Watches:
    """Every watch of a Supervisor.

    Args:
        collaborators: What recoveries are done with.
        report: Where faults go.
    """

    def __init__(self, collaborators: Collaborators, *, report: Callable[[Fault], None]) -> None:
        # A canary and a strategy are for runs whose steps and weights are known here.
        policy = collaborators.policy.model_copy(
            update={"canary": None, "checkpoint_strategy": "latest"}
        )
        self.collaborators = replace(collaborators, policy=policy)
        self.policy = policy
        self.clock = collaborators.clock
        self.spawn = collaborators.spawn
        self.report = report
        self._watches: dict[str, Watch] = {}
        self._opened: dict[str, WatchedRun] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def __iter__(self) -> Iterator[Watch]:
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
        watch = self._watches[run_id] = Watch(self, run_id, on_recovery)
        return watch

    def get(self, run_id: str) -> Watch | None:
        """The watch of a run, by the id that was asked for."""
        return self._watches.get(run_id)

    def forget(self, watch: Watch) -> None:
        """Watch this one no longer."""
        if self._watches.get(watch.name) is watch:
            del self._watches[watch.name]

    def open(self, watch: Watch) -> WatchedRun:
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
        with anyio.CancelScope(shield=True):
            await self.collaborators.backend.close(
                connection, status, detail, deadline_s=self.policy.close_timeout_s
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
