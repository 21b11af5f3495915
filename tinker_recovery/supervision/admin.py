"""Administration of a running supervisor: OTP's calls, with OTP's outcomes as typed errors.

Each call concerns one child and waits for that child alone: a sibling that is slow to stop, or in
a backoff, delays nothing here.
"""

from __future__ import annotations

from tinker_recovery.supervision.engine import Engine
from tinker_recovery.supervision.errors import (
    ChildAlreadyPresent,
    ChildAlreadyStarted,
    ChildNotFound,
    ChildRestarting,
    ChildRunning,
    ChildTerminated,
)
from tinker_recovery.supervision.life import ChildCounts, ChildInfo, Record
from tinker_recovery.supervision.specs import ChildSpec, check_significant


def find(engine: Engine, child: str) -> Record:
    """The record of a child."""
    record = engine.records.get(child)
    if record is None:
        known = ", ".join(map(repr, engine.records)) or "none"
        raise ChildNotFound(
            child,
            f"supervisor {engine.settings.name!r} has no child {child!r}; its children: {known}",
        )
    return record


async def start(engine: Engine, spec: ChildSpec) -> ChildInfo:
    """Add a child and start it."""
    check_significant(spec, engine.settings.auto_shutdown)
    known = engine.records.get(spec.id)
    if known is not None and known.up:
        raise ChildAlreadyStarted(spec.id, f"child {spec.id!r} is {known.state}: choose another id")
    if known is not None:
        raise ChildAlreadyPresent(
            spec.id, f"child {spec.id!r} exists and is down: restart_child or delete_child it"
        )
    return await _up(engine, engine.add(spec))


async def restart(engine: Engine, child: str) -> ChildInfo:
    """Start a child that is down."""
    record = find(engine, child)
    if record.life is not None and record.life.stopping and not record.restarting:
        await record.life.wait_gone()
        if engine.closing is not None:
            raise engine.stopped()
        record = find(engine, child)
    _refuse_if_up(record)
    record.terminated = False
    return await _up(engine, record)


async def terminate(engine: Engine, child: str) -> None:
    """Stop a child and keep it down."""
    record = find(engine, child)
    record.terminated = True
    record.stay_down()
    life = record.life
    if life is None:
        engine.down(record)
        return
    # In a task of the supervisor's, so that the stop continues if the caller is cancelled, or is
    # this very child.
    engine.background(engine.stopper.stop(life), f"stop of {child}")
    await life.wait_gone()


async def delete(engine: Engine, child: str) -> None:
    """Forget a child that is down."""
    record = find(engine, child)
    _refuse_if_up(record)
    del engine.records[child]


def counts(engine: Engine) -> ChildCounts:
    """The number of children."""
    records = engine.records.values()
    supervisors = sum(record.spec.type == "supervisor" for record in records)
    return ChildCounts(
        specs=len(records),
        active=sum(record.life is not None for record in records),
        supervisors=supervisors,
        workers=len(records) - supervisors,
    )


async def _up(engine: Engine, record: Record) -> ChildInfo:
    life = await engine.start_first(record)
    if not life.is_ready and not life.ignored:
        raise ChildTerminated(life.id, f"child {life.id!r} was stopped before it was ready")
    return record.info()


def _refuse_if_up(record: Record) -> None:
    child = record.spec.id
    if record.restarting:
        raise ChildRestarting(
            child,
            f"child {child!r} is being restarted: wait for it, or terminate_child it first",
        )
    if record.life is not None:
        raise ChildRunning(child, f"child {child!r} is {record.state}: terminate_child it first")
