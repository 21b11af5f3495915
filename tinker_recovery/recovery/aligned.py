"""The checkpoints of a run whose group goes back to one step: those of steps that each run has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from tinker_recovery.checkpoints import Latest, Listed
from tinker_recovery.checkpoints.alignment import common_steps
from tinker_recovery.errors import NoUsableCheckpoint
from tinker_recovery.recovery.selection import BranchOrder, RestorableRun, ServiceTime
from tinker_recovery.service import StatusReader


class AlignedOrder(BranchOrder):
    """As :class:`BranchOrder`, of steps that every run of the group can go back to.

    Args:
        run: The run.
        group: Every run of its group, itself as well.
        reader: The service.
        waiting: Adds up the time spent waiting for it.
        look: Awaited before: has what is known of the group's checkpoints looked at again.
    """

    def __init__(
        self,
        run: RestorableRun,
        group: Sequence[RestorableRun],
        reader: StatusReader,
        waiting: ServiceTime,
        look: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(run, Latest(), reader, waiting)
        self._group = group
        self._look = look

    async def lists(self, refused: dict[str, str]) -> AsyncGenerator[Sequence[Listed]]:
        """The newest segment first.

        Raises:
            NoUsableCheckpoint: There is no step that each of them can go back to.
            StatusError: A listing could not be read, or cannot be right.
        """
        await self._look()
        held = {run.name: await self._steps_of(run) for run in self._group}
        allowed = set(common_steps(held.values()))
        if not allowed:
            has = "; ".join(
                f"{name!r} has {', '.join(map(str, sorted(steps))) or 'none'}"
                for name, steps in held.items()
            )
            raise NoUsableCheckpoint(
                f"the runs of a group have no step in common that all of them can go back to: {has}"
            )
        async with aclosing(super().lists(refused)) as lists:
            async for candidates in lists:
                yield [each for each in candidates if each.record and each.record.step in allowed]

    async def _steps_of(self, run: RestorableRun) -> set[int]:
        refused: dict[str, str] = {}
        steps: set[int] = set()
        order = BranchOrder(run, Latest(), self._reader, self._waiting)
        async with aclosing(order.lists(refused)) as lists:
            async for candidates in lists:
                steps |= {each.record.step for each in candidates if each.record}
        # As choosing does: who has checkpoints that cannot be used does not start over.
        if run.origin is not None and not refused:
            steps.add(run.start_step)
        return steps
