"""GroupMember: a run that goes back together with the others of its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinker_recovery.checkpoints.alignment import common_steps
from tinker_recovery.errors import FaultError, StatusRefused
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.recovery.aligned import AlignedOrder
from tinker_recovery.recovery.restore import Restore
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.run.saves_together import SavesTogether
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.service import Patience, RunStatus

WHY = Kind.GROUP_REWOUND


class RunGroup:
    """The runs of one ``supervisor.group(...)``, and what they share."""

    def __init__(self) -> None:
        self.members: list[GroupMember] = []
        self.saves = SavesTogether()
        self.skipped: set[int] = set()
        """Steps that the loop leaves out."""
        self.in_body = False
        """Whether the body that they share is under way, and no fault has ended it."""

    def rewind(self, run: SupervisedRun, fault: Fault) -> None:
        """A run has a fault: if they were training, all others go back as well."""
        if self.in_body:
            self.in_body = False
            why = f"run {run.name!r} of the same group is recovered: {fault.as_error()!r}"
            for each in self.members:
                if each is not run:
                    each.follow(why)

    def give_up(self, error: BaseException) -> None:
        """A run is given up, and so are the others."""
        for each in self.members:
            if each.failure is None and not each.ended:
                each.give_up(error)

    async def look_at_the_others(self) -> None:
        """Ask the service whether it has marked a run that had no fault of its own.

        What has struck one may have struck another, which was stopped before it was noticed.

        Raises:
            StatusUnavailable: It did not answer.
        """
        for each in self.members:
            await each.look()


class GroupMember(SupervisedRun):
    """As :class:`SupervisedRun`, in a group: a fault of one is an incident of each.

    Args:
        group: The group.
        given: As of SupervisedRun.
    """

    def __init__(self, group: RunGroup, *given: Any) -> None:
        super().__init__(*given)
        self.group = group
        self.history.saves = group.saves
        self.skipped = group.skipped
        group.members.append(self)

    def follow(self, why: str) -> None:
        """Go back with the group, though there is no fault of its own."""
        if self.current is not None:
            error = FaultError(why, kind=WHY.value)
            self.current.declare_fault(RULES[WHY], DetectedBy.GROUP, error)

    def report_fault(self, fault: Fault) -> None:
        """As of a single run; the others of the group follow."""
        super().report_fault(fault)
        if self.incident is fault:
            self.group.rewind(self, fault)

    def give_up(self, error: BaseException) -> None:
        """End the run, and the group with it."""
        super().give_up(error)
        self.group.give_up(error)

    def waits(self, held: AttemptScope | None) -> bool:
        """Whether another attempt than this one is to come, or the error it was given up with."""
        return self.recovering or self.failure is not None or self.current is not held

    async def end(self, error: BaseException) -> None:
        """The run is over by this error, unless it is over already."""
        if not self.ended:
            await self._over(error)

    def step_to_skip(self) -> int | None:
        """As of a single run; it is the run with the fault that says which."""
        if self.incident is None or self.incident.kind is WHY:
            return None
        return super().step_to_skip()

    async def look(self) -> None:
        """See whether the service has marked the run, if it has no fault of its own."""
        incident, current = self.incident, self.current
        if incident is None or incident.kind is not WHY or current is None:
            return
        try:
            status = RunStatus.of(await self.collaborators.reader.run(current.run_id))
        except StatusRefused:
            return
        if status.corrupted:
            corrupted = Fault(
                self.name,
                incident.attempt,
                current.run_id,
                RULES[Kind.CORRUPTED],
                DetectedBy.POLL,
                incident.step,
            )
            self.rollbacks.distrust_since(corrupted, current)

    def restoration(
        self, waiting: ServiceTime, *, ahead: bool = False, patience: Patience | None = None
    ) -> Restore:
        """One try to bring its state back, to a step that each run of the group has."""
        group, reader = self.group, self.collaborators.reader
        order = AlignedOrder(self, group.members, reader, waiting, group.look_at_the_others)
        return Restore(
            self,
            self.collaborators,
            waiting=waiting,
            ahead=ahead,
            order=order,
            patience=patience,
            guard=self.guard,
        )

    @property
    def protected(self) -> Mapping[str, str]:
        """What must not be deleted: of the group's newest common step as well."""
        step = next(iter(common_steps(each.trusted for each in self.group.members)), None)
        paths = () if step is None else self.trusted.get(step, ())
        return {
            **dict.fromkeys(paths, "it is of the newest step that each run of the group has"),
            **super().protected,
        }

    @property
    def trusted(self) -> Mapping[int, Sequence[str]]:
        """The checkpoints known to be stored that stay trusted whatever is found next, by step."""
        return self.checkpoints.settled_on(self.segments)
