"""What the Executor needs of a run, supervised or watched, and what a recovery leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.faults import Fault
from tinker_recovery.policy import Callback
from tinker_recovery.recovery import words
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.recovery.restore import Restore, Restored
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import Patience
from tinker_recovery.telemetry import RunTelemetry
from tinker_recovery.telemetry.html import table


@dataclass(frozen=True, slots=True)
class Recovery:
    """One recovery that succeeded, for reports.

    Attributes:
        fault: What it recovered from.
        checkpoint: The checkpoint restored; None if the run started over.
        replayed_steps: Optimizer steps submitted before the fault that have to be done again.
        attempt: Number of the attempt that took over.
        handed_over_at: Monotonic seconds at which the new attempt was ready.
        service_s: Seconds of it spent waiting for the service.
    """

    fault: Fault
    checkpoint: CheckpointRecord | None
    replayed_steps: int
    attempt: int
    handed_over_at: float
    service_s: float

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        fault, path = self.fault, None if self.checkpoint is None else self.checkpoint.path
        return table(
            f"Recovery of run {fault.run}",
            (),
            [
                ("fault", words.detected(fault)),
                ("detected by", fault.detected_by.value),
                ("error", None if fault.error is None else repr(fault.error)),
                ("checkpoint", path or "none: the run started over"),
                ("steps done again", self.replayed_steps),
                ("attempt that took over", self.attempt),
                ("seconds waiting for the service", self.service_s),
            ],
        )

    @property
    def continued(self) -> bool:
        """Whether a run only went on that had been stopped: that counts as no recovery."""
        return self.fault.orderly and not self.replayed_steps


@dataclass(frozen=True, slots=True)
class HandOver:
    """A new client that is held ready.

    Attributes:
        callback: The user's callback, called before anything runs on the client.
        arguments: What it is called with.
        step: Optimizer steps in its weights; None if its checkpoint does not say.
        progress: A number that is larger for a newer checkpoint of the same run.
        is_wanted: Whether it is still to be handed over once the callback has been called: its run
            may have ended meanwhile, which closes it.
    """

    callback: Callback | None
    arguments: tuple[object, ...]
    step: int | None
    progress: int
    is_wanted: Callable[[], bool] = lambda: True


class Recoverable(Protocol):
    """A run as the Executor sees it. In the order of use."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def telemetry(self) -> RunTelemetry:
        """Its spans and figures."""
        ...

    @property
    def budget(self) -> AttemptBudget:
        """Recovery attempts left."""
        ...

    def awaits(self, fault: Fault) -> bool:
        """Whether this fault still has to be recovered from."""
        ...

    def restoration(
        self, waiting: ServiceTime, *, ahead: bool = False, patience: Patience | None = None
    ) -> Restore:
        """One try to bring its state back; see :class:`Restore`."""
        ...

    def hold_ready(self, restored: Restored) -> HandOver:
        """Hold the new client ready. Nothing runs yet.

        A client held ready before, by a recovery that died, is closed.
        """
        ...

    def step_to_skip(self) -> int | None:
        """The step to leave out from now on, if the policy skips one that faults again."""
        ...

    def hand_over(self, recovery: Recovery) -> None:
        """Make the client held ready the current one, and let the loop run again."""
        ...

    def give_up(self, error: BaseException) -> None:
        """End the run with this error."""
        ...
