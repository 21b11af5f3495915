"""What everything above works with: one bundle instead of eight arguments each."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.journal import Notebook
from tinker_recovery.outlets import Outlets
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.spares import Spares, Spawn
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.telemetry import EventSink
from tinker_recovery.telemetry.greeting import Greeting


def nothing_in_background(start: Callable[[], Coroutine[object, object, None]]) -> None:
    """Refuse to start anything: outside a Supervisor there is no background to run it in."""
    raise RuntimeError(f"{start!r} needs a Supervisor to run in")


@dataclass(frozen=True, slots=True, eq=False)
class Collaborators:
    """What a Supervisor's parts share, from its entry to its exit; a command has the first four.

    Attributes:
        policy: The user's policy.
        backend: Creates and closes clients.
        reader: Reads statuses and listings.
        notebook: The journal's notes on checkpoints.
        events: Where progress is reported.
        clock: Time and chance.
        spawn: Runs something in the background.
        spares: The spare clients of the runs; None where there are none.
        outlets: Who else is to know of events, metrics and the ends of runs.
        greeting: Says that a run starts and how it ended; nothing where there is no Supervisor.
    """

    policy: RecoveryPolicy
    backend: TinkerBackend
    reader: StatusReader
    notebook: Notebook
    events: EventSink = field(default_factory=EventSink)
    clock: Clock = SYSTEM_CLOCK
    spawn: Spawn = nothing_in_background
    spares: Spares | None = None
    outlets: Outlets = field(default_factory=Outlets)
    greeting: Greeting = field(default_factory=Greeting)

    def load_spare(self, run: str, path: str | None) -> None:
        """Have the spare client of a run loaded from a checkpoint, if it is to have one."""
        if self.spares is not None and path is not None:
            self.spares.load(run, path)

    def distrust_spare(self, run: str) -> None:
        """Use the spare client of a run for nothing any more; callable outside any task."""
        if self.spares is not None:
            self.spares.distrust(run)

    def drop_spare(self, run: str) -> None:
        """A run is over, and needs no spare client any more."""
        if self.spares is not None:
            self.spares.drop(run)
