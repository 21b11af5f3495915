"""Groups: the rounds of ``async for attempts in supervisor.group(...)``, over several runs."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from tinker_recovery.checkpoints.alignment import ahead
from tinker_recovery.errors import UsageError
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.run.leaving import leave_body
from tinker_recovery.run.member import GroupMember, RunGroup
from tinker_recovery.run.options import StartOptions, StartPlan, plan_start
from tinker_recovery.run.rounds import first_attempt
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.run.unnamed import named
from tinker_recovery.shielding import to_the_end

MakeRun = Callable[..., SupervisedRun]
"""Makes a run of what SupervisedRun takes."""


class GroupAttempt:
    """One try of a group at the loop: an attempt of each run, all at the same step.

    Enter it with ``async with attempts:`` around the loop's body, instead of entering its attempts.
    It holds them in the order in which the runs were given, ``student, teacher = attempts``, and
    ``attempts["student"]`` finds one by its name. A recoverable fault of any ends the body, and all
    of them go back to the newest step that each can. Otherwise as :class:`Attempt`.
    """

    def __init__(self, group: RunGroup, scopes: Sequence[AttemptScope]) -> None:
        self._group = group
        self._scopes = scopes
        self._attempts = {scope.run.name: Attempt(scope) for scope in scopes}

    def __repr__(self) -> str:
        return f"<GroupAttempt of runs {', '.join(self._attempts)} from step {self.start_step}>"

    @property
    def start_step(self) -> int:
        """The step at which the loop has to begin; the same for each run."""
        return self._scopes[0].start_step

    def __len__(self) -> int:
        return len(self._scopes)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._attempts.values())

    def __getitem__(self, which: int | str) -> Attempt:
        """The attempt of one run, by its place or its name.

        Raises:
            KeyError: No run of the group has this name.
            IndexError: There are not that many.
        """
        if isinstance(which, str):
            return self._attempts[which]
        return list(self._attempts.values())[which]

    async def __aenter__(self) -> Self:
        first, *others = self._scopes
        for scope in self._scopes:
            if scope.entered:
                raise UsageError(
                    f"{self!r}: its body was entered before, or that of one of its attempts; write "
                    "`async with attempts:` once for all of them"
                )
        first.share_body(others)
        first.enter(repr(self))
        for scope in others:
            scope.entered = True
        self._group.in_body = True
        for scope in self._scopes:
            if scope.fault is not None and scope.run.policy.enabled:
                # Since they were handed over.
                self._group.rewind(scope.run, scope.fault)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            return await leave_body(self._scopes, error)
        finally:
            self._group.in_body = False

    @property
    def entered(self) -> bool:
        """Whether its body was entered."""
        return self._scopes[0].entered

    @property
    def is_newest(self) -> bool:
        """Whether no run of it is being recovered, or has been since."""
        return all(not each.run.recovering and each.run.current is each for each in self._scopes)


class GroupRounds:
    """The iterator behind ``supervisor.group(...)``.

    Args:
        plans: How each run starts, by its name.
        open_run: Opens one of them.
    """

    def __init__(
        self,
        plans: dict[str, StartPlan],
        open_run: Callable[[StartPlan, str, MakeRun], Awaitable[SupervisedRun]],
    ) -> None:
        self._plans = plans
        self._open_run = open_run
        self._group = RunGroup()
        self._last: GroupAttempt | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GroupAttempt:
        last, group = self._last, self._group
        if last is not None and not last.entered:
            raise UsageError(
                "attempts were asked for while those before were never entered: the loop's body is "
                "`async with attempts: ...`"
            )
        if last is not None and last.is_newest:
            raise StopAsyncIteration
        try:
            if last is None:
                await self._open()
            scopes = await self._aligned()
        except BaseException as error:
            await to_the_end(self._end(error))
            raise
        group.saves.begin([scope.saver for scope in scopes])
        self._last = GroupAttempt(group, scopes)
        return self._last

    async def _end(self, error: BaseException) -> None:
        for run in self._group.members:
            await run.end(error)

    async def _open(self) -> None:
        """Open the runs, in an order that two processes share: none waits for the other then."""
        members = self._group.members
        for name in sorted(self._plans):
            await self._open_run(
                self._plans[name], name, functools.partial(GroupMember, self._group)
            )
        places = list(self._plans)
        members.sort(key=lambda run: places.index(run.name))
        steps = {run.name: run.start_step for run in members}
        if ahead(steps):
            raise UsageError(
                f"start_step: the runs of a group begin at one step, and these at {steps}: say "
                "start_step= for those that begin at another"
            )

    async def _aligned(self) -> list[AttemptScope]:
        """An attempt of each, once all of them are at one step.

        What can be loaded is known only once it is: whoever is at a later step than another then
        goes back further.
        """
        members = self._group.members
        held: dict[str, AttemptScope] = {}
        while True:
            for run in members:
                if not run.attempts and not run.recovering:
                    held[run.name] = await first_attempt(run)
                elif run.waits(held.get(run.name)):
                    held[run.name] = await run.next_attempt()
            if any(run.waits(held.get(run.name)) for run in members):
                continue
            late = ahead({name: scope.start_step for name, scope in held.items()})
            if not late:
                return [held[run.name] for run in members]
            lowest = min(held.values(), key=lambda scope: scope.start_step)
            for run in members:
                if run.name in late:
                    run.budget.refund()  # of the same incident
                    run.follow(
                        f"run {lowest.run.name!r} of the same group was brought back to step "
                        f"{lowest.start_step}"
                    )


def plan_group(
    given: Sequence[StartOptions], policy: RecoveryPolicy, *, resumes: bool
) -> dict[str, StartPlan]:
    """Check the arguments of ``group``; how each run starts, by its name.

    ``resumes`` says whether a run is found again by its name.

    Raises:
        UsageError: As :func:`plan_start`, or they do not go together.
    """
    if len(given) < 2:  # noqa: PLR2004 - two belong together
        raise UsageError(f"group() takes two runs or more, and {len(given) or 'none'} was given")
    if policy.checkpoint_strategy != "latest":
        raise UsageError(
            f"checkpoint_strategy={policy.checkpoint_strategy!r} is not allowed with group(): "
            "'latest', the newest step that each of its runs has"
        )
    plans = [plan_start(each, restore_optimizer=policy.restore_optimizer) for each in given]
    if len({plan.name is None for plan in plans}) > 1:
        raise UsageError(
            "name: either each run of a group has one, so that a later process continues all of "
            "them, or none has"
        )
    by_name = {name: plan for plan, name in (named(each, resumes=resumes) for each in plans)}
    if len(by_name) < len(plans):
        raise UsageError("name: two runs of a group have the same; names are unique")
    return by_name
