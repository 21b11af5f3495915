"""How a body is left: of one attempt, or of one of each run of a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.errors import causes
from tinker_recovery.faults import Kind, Verdict
from tinker_recovery.run.settling import save_before_leaving
from tinker_recovery.shielding import to_the_end

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope


async def leave_body(scopes: Sequence[AttemptScope], error: BaseException | None) -> bool:
    """The body of these attempts ends; whether its error is swallowed, because they are recovered.

    Args:
        scopes: The attempts, one of each run; they share the body.
        error: What it was left with.

    Raises:
        BaseException: What a request failed with that was still open, unless it is recovered from;
            or the fault that a run is given up with.
    """
    drained: BaseException | None = None
    owner = scopes[0]
    # What a request failed with was posted before the body could see it, with its step.
    owner.run.mailbox.deliver()
    for scope in scopes:
        scope.ending = True
    # Of a group, none is finished before each has settled: then all of them would go back.
    for scope in scopes if error is None else ():
        drained = await scope.settle()
        if drained is not None:
            owner = scope
            break
    seen = error or drained
    ours = scopes[0].close_body(seen)
    swallow = ours or seen is None or await _is_recovered_from(scopes, seen, owner)
    enabled = owner.run.policy.enabled
    faults = [scope.fault for scope in scopes if scope.fault is not None and enabled]
    final = next((fault for fault in faults if fault.verdict is Verdict.GIVE_UP), None)
    for scope in scopes:
        scope.finished = seen is None and not faults
        scope.left.set()
    if not (swallow and faults and final is None):
        await _over(scopes, seen if seen or final is None else final.as_error())
    if final is not None and swallow:
        # The body was cancelled for it, or has ended without having looked.
        raise final.as_error()
    if drained is not None and not swallow:
        raise drained
    return swallow


async def _is_recovered_from(
    scopes: Sequence[AttemptScope], error: BaseException, owner: AttemptScope
) -> bool:
    """Save the last step in a stop, and see whether the error belongs to an incident."""
    try:
        for scope in scopes:
            await save_before_leaving(scope)
        return await _owner(scopes, error, owner).belongs_to_incident(error)
    except BaseException as other:
        # Cancelled: no other attempt is asked for, so the runs are over all the same.
        for scope in scopes:
            scope.left.set()
        await _over(scopes, other)
        raise


async def _over(scopes: Sequence[AttemptScope], error: BaseException | None) -> None:
    """The runs are over; those of a group at once, so that hardly a crash finds one without."""
    if len(scopes) == 1:
        await scopes[0].run.attempt_over(scopes[0], error)
        return
    problems: list[Exception] = []

    async def end(scope: AttemptScope) -> None:
        try:
            await scope.run.attempt_over(scope, error)
        except Exception as problem:  # noqa: BLE001 - raised below, once all of them have ended
            problems.append(problem)

    async def end_all() -> None:
        async with anyio.create_task_group() as group:
            for scope in scopes:
                group.start_soon(end, scope)

    await to_the_end(end_all())  # what it waits for has deadlines
    if problems:
        raise problems[0]


def _owner(
    scopes: Sequence[AttemptScope], error: BaseException, default: AttemptScope
) -> AttemptScope:
    """The attempt whose fault an error is, as far as that can be seen."""
    for scope in scopes:
        if scope.fault is not None and scope.fault.kind is not Kind.GROUP_REWOUND:
            return scope
    parts = list(_parts(error))
    for scope in scopes:
        client = scope.client
        failed = [each for _, each in client.failed]
        failed += [*client.failed_saves, *scope.sampling.failed]
        if any(part is each for part in parts for each in failed):
            return scope
    return default


def _parts(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _parts(each)
    yield from causes(error)
