"""Chaos: random faults in random loops, and the result that each must have.

A schedule is a service (a dialect of the local server), a loop (its depth, sync or async) and its
faults. The run has to end with exactly the
weights of an undisturbed one; or, only if the schedule contains a fault that cannot be recovered
from, with an error that says why. It must not hang, end with other weights, or leave anything
behind.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from unittest import mock

import anyio
import tinker
from _hang import chain, noted, watched
from hypothesis import strategies as st
from tinker import types
from tinker.lib.internal_client_holder import _internal_client_holder_thread_singleton as sdk

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    NoUsableCheckpoint,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryPolicy,
    RecoveryRefused,
    ServiceUnusable,
    Supervisor,
)
from tinker_recovery.service import backend
from tinker_recovery.telemetry import names
from tinker_recovery.testing import Dialect, FaultRule, LocalTinker
from tinker_recovery.testing.strategies import schedules

STEPS = 12
SAVE_EVERY = 4
LIMIT_S = 120.0
ADAM = types.AdamParams(learning_rate=5e-2)

Action = Literal[
    "poison",
    "fail",
    "hang",
    "gone",
    "fail_session",
    "pause",
    "nan_loss",
    "wrong_restore",
    "status",
    "drop",
    "slow",
    "truncate",
    "malformed",
    "lost_save",
]
ACTIONS: tuple[Action, ...] = get_args(Action)
"""All that can be noticed. A cold optimizer cannot, from here, and neither can weights that are
replaced in the middle of a healthy service; an outage that comes back with older ones can."""

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

_REFUSALS = {400, 401, 403, 404, 422}


@dataclass(frozen=True, slots=True)
class Outage:
    """The service is down for a while when a step is reached.

    Attributes:
        at_step: The loop's step.
        rollback: Whether it comes back at its last checkpoint.
        status: The status of its replies meanwhile; None refuses connections.
    """

    at_step: int
    rollback: bool
    status: int | None


CONDEMNED_BY = 2
"""Answers of NaN that have a checkpoint never used again."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A loop and its faults. Its ``repr`` is the call that makes it.

    Attributes:
        depth: Batches submitted ahead.
        blocking: Whether the loop is a plain function.
        faults: Injected before it starts.
        outage: If there is one.
        standby: Whether a session is held open for the next recovery.
        dialect: How the service differs from the hosted one.
    """

    depth: int
    blocking: bool
    faults: tuple[FaultRule, ...]
    outage: Outage | None = None
    standby: bool = False
    dialect: Dialect = "hosted"

    def hides_weights(self, events: Iterable[RecoveryEvent]) -> bool:
        """Whether weights are replaced by others where nothing shows it, and the run says so.

        A wrong restore moves each weight by 1e-3, and so the answers by what their noise does at a
        noisy service. Elsewhere it cannot be seen only where the canary has no answer to compare
        with, as where the service was silent from the first request on.
        """
        said = any(
            event.name == names.EVENT_WEIGHTS_UNKNOWN and names.CHECKPOINT_PATH in event.fields
            for event in events
        )
        return (said or self.dialect == "noisy") and any(
            rule.action == "wrong_restore" for rule in self.faults
        )

    def may_be_given_up(self, *, started: bool) -> bool:
        """Whether it contains a fault that trying again cannot change.

        A malformed reply to the very first start is raised, because nothing is lost yet. A canary
        that answers NaN twice rejects a checkpoint, as a wrong restore does.
        """
        return (
            any(
                (rule.action == "status" and rule.status in _REFUSALS)
                or rule.action == "wrong_restore"
                or (rule.action == "malformed" and not started)
                for rule in self.faults
            )
            or sum(rule.times or 1 for rule in self.faults if rule.action == "nan_loss")
            >= 1 + CONDEMNED_BY
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a schedule.

    Attributes:
        schedule: The schedule.
        recoveries: How often the run was recovered.
        fired: How many faults struck.
        gave_up: The error it was given up with, if it was.
        violation: The promise that was broken; empty if none.
        wall_s: Seconds it took.
    """

    schedule: Schedule
    recoveries: int
    fired: int
    gave_up: BaseException | None
    violation: str
    wall_s: float


_outages = st.builds(
    Outage,
    at_step=st.integers(0, STEPS - 1),
    rollback=st.booleans(),
    status=st.sampled_from([503, None]),
)


def _ends(rules: list[FaultRule]) -> tuple[FaultRule, ...]:
    """All but a creation without an end: while the service is at work on it, it is waited for."""
    return tuple(
        rule
        for rule in rules
        if rule.request not in {"create_model", "load_weights"}
        or not (rule.action in {"hang", "pause"} or (rule.action == "poison" and rule.quiet))
    )


cases: st.SearchStrategy[Schedule] = st.builds(
    Schedule,
    depth=st.integers(0, 3),
    blocking=st.booleans(),
    faults=schedules(steps=range(STEPS), actions=ACTIONS, min_faults=0, max_faults=3).map(_ends),
    outage=st.one_of(st.none(), st.none(), st.none(), _outages),
    standby=st.booleans(),
    dialect=st.one_of(st.just("hosted"), st.sampled_from(DIALECTS)),
)
"""Random schedules."""


def batch(step: int) -> list[types.Datum]:
    """One step's batch, a function of the step alone; with weights, as some services demand."""
    tokens = [(step * 7 + offset * offset) % 50 for offset in range(9)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[8]),
                "weights": types.TensorData(data=[1.0] * 8, dtype="float32", shape=[8]),
            },
        )
    ]


POLICY = RecoveryPolicy(
    enabled=True,
    max_attempts=20,
    backoff_s=0.02,
    max_backoff_s=0.2,
    poll_interval_s=0.05,
    stall_after_s=1.5,
    guard_loss=True,
    canary=tuple(batch(3)),
    create_timeout_s=2.0,
    close_timeout_s=5.0,
    max_wait_s=60.0,
    checkpoints=CheckpointPolicy(save_every=SAVE_EVERY),
)


def _submit(client: Any, step: int) -> tuple[Any, Any]:
    return client.forward_backward(batch(step), "cross_entropy"), client.optim_step(ADAM)


async def _awaiting(attempt: Attempt, depth: int, reached: Callable[[int], None]) -> None:
    pending: deque[tuple[Any, Any]] = deque()
    for step in range(attempt.start_step, STEPS):
        reached(step)
        pending.append(_submit(attempt.client, step))
        while len(pending) > depth:
            forward, update = pending.popleft()
            await forward
            await update
    for forward, update in pending:
        await forward
        await update


def _blocking(attempt: Attempt, depth: int, reached: Callable[[int], None]) -> None:
    pending: deque[tuple[Any, Any]] = deque()
    for step in range(attempt.start_step, STEPS):
        reached(step)
        pending.append(_submit(attempt.client, step))
        while len(pending) > depth:
            forward, update = pending.popleft()
            forward.result()
            update.result()
    for forward, update in pending:
        forward.result()
        update.result()


async def play(schedule: Schedule, *, limit_s: float = LIMIT_S) -> Outcome:
    """Play one schedule on a server of its own.

    Args:
        schedule: What to play.
        limit_s: How long it may take before it counts as hung, and says what it waits for.
    """
    began = time.monotonic()
    async with LocalTinker(long_poll_s=0.2, dialect=schedule.dialect) as server:
        os.environ.update(
            TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key, TINKER_TELEMETRY="0"
        )
        for rule in schedule.faults:
            server.inject(rule)
        policy = POLICY.model_copy(update={"standby": "session" if schedule.standby else "none"})
        made: list[tinker.ServiceClient] = []

        def service() -> tinker.ServiceClient:
            made.append(tinker.ServiceClient())
            return made[-1]

        events: list[RecoveryEvent] = []
        supervisor = Supervisor(policy, journal=None, service=service, on_event=events.append)
        gave_up, violation = await _played(supervisor, schedule, server, limit_s)
        server.release()
        wall_s = time.monotonic() - began
        run = supervisor.runs[0] if supervisor.runs else None
        started = run is not None and bool(run.attempts)
        if gave_up is not None and not schedule.may_be_given_up(started=started):
            violation = f"given up without need: {gave_up!r}"
        if run is not None and gave_up is None and not violation:
            final = server.run_state(run.segments[-1].run_id)
            begun = server.runs()[::-1].index(run.segments[0].run_id)
            hidden = schedule.hides_weights(events)
            if not hidden and final != await _undisturbed(schedule.dialect, begun):
                violation = f"other weights: {final}"
        violation = violation or await _left_behind(server, schedule, made)
        return Outcome(
            schedule,
            len(run.recoveries) if run is not None else 0,
            len(server.fired),
            gave_up,
            violation,
            wall_s,
        )


async def _played(
    supervisor: Supervisor, schedule: Schedule, server: LocalTinker, limit_s: float
) -> tuple[BaseException | None, str]:
    """What the run was given up with, and the promise that was broken while it lasted."""
    loop, scope = asyncio.get_running_loop(), anyio.CancelScope()

    def facts() -> str:
        struck = [f"{each.rule!r} at step {each.step}" for each in server.fired]
        return f"struck: {struck}; sessions: {server.sessions()}; runs: {supervisor.runs!r}"

    gave_up: BaseException | None = None
    violation = ""
    try:
        with (
            watched(
                limit_s,
                {"event loop of the run": loop, "event loop of the SDK": sdk.get_loop()},
                over=lambda: loop.call_soon_threadsafe(scope.cancel),
                facts=facts,
            ) as watch,
            scope,
            noted(watch),
            mock.patch.object(backend, "STANDBY_AFTER_S", 0.03),
        ):
            async with supervisor:
                await _train(supervisor, schedule, server)
    except (RecoveryExhausted, RecoveryRefused, NoUsableCheckpoint, ServiceUnusable) as error:
        gave_up = error
    except (tinker.TinkerError, ValueError) as error:
        gave_up = error
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        violation = f"an error nobody can make sense of: {error!r}"
    if scope.cancel_called:
        return None, f"it hung {watch.report}"
    return gave_up, violation


async def _train(supervisor: Supervisor, schedule: Schedule, server: LocalTinker) -> None:
    waiting = [schedule.outage] if schedule.outage is not None else []

    def reached(step: int) -> None:
        if waiting and waiting[0].at_step == step:
            outage = waiting.pop()
            server.outage(0.4, status=outage.status, rollback=outage.rollback)

    async def awaiting(attempt: Attempt) -> None:
        await _awaiting(attempt, schedule.depth, reached)

    def blocking(attempt: Attempt) -> None:
        _blocking(attempt, schedule.depth, reached)

    train: Any = blocking if schedule.blocking else awaiting
    await supervisor.run(train, base_model="m", rank=8, seed=7)


_known: dict[tuple[Dialect, int], object] = {}


async def _undisturbed(dialect: Dialect, begun: int) -> object:
    """The final state of a run without faults at such a service.

    Args:
        dialect: The service.
        begun: How many runs it had begun before, as where the reply to a creation was lost: where
            it ignores the seed, the weights that a run begins with depend on that.
    """
    begun = begun if dialect == "ignores_seed" else 0
    if (dialect, begun) not in _known:
        async with LocalTinker(dialect=dialect) as server:
            os.environ.update(TINKER_BASE_URL=server.base_url)
            for _ in range(begun):
                service = tinker.ServiceClient()
                await service.create_lora_training_client_async("m", rank=8, seed=7)
                await service.close("success")
            async with Supervisor(POLICY, journal=None) as supervisor:
                await _train(supervisor, Schedule(0, blocking=False, faults=()), server)
            _known[dialect, begun] = server.run_state(supervisor.runs[0].segments[-1].run_id)
    return _known[dialect, begun]


async def _left_behind(
    server: LocalTinker,
    schedule: Schedule,
    made: Sequence[tinker.ServiceClient],
    limit_s: float = 8.0,
) -> str:
    """What was left behind; empty if nothing."""
    # A session whose first reply was lost is known only to the service, which times it out: by a
    # fault, or because the service went down right then. So are all where none can be finished.
    holders = [each._session_holder for each in made]  # noqa: SLF001 - a closed client does not say
    known = {str(holder.get_session_id()) for holder in holders if holder is not None}
    deadline = time.monotonic() + limit_s
    while True:
        left = []
        active = [name for name, state in server.sessions().items() if state == "active"]
        ours_active = [name for name in active if name in known]
        if ours_active and schedule.dialect != "bare":
            left.append(f"sessions {ours_active}")
        if tasks := _sdk_tasks():
            left.append(f"tasks on the SDK's loop {tasks}")
        ours = [
            thread.name
            for thread in threading.enumerate()
            if "tinker_recovery" in thread.name.lower()
        ]
        if ours:
            left.append(f"threads {ours}")
        if not left:
            return ""
        if time.monotonic() > deadline:
            return f"left behind: {'; '.join(left)}"
        await anyio.sleep(0.02)


def _sdk_tasks() -> list[str]:
    async def look() -> list[str]:
        me = asyncio.current_task()
        return [
            f"{task.get_coro()!r}, which is at {' > '.join(chain(task.get_coro()))}"
            for task in asyncio.all_tasks()
            if task is not me
        ]

    return asyncio.run_coroutine_threadsafe(look(), sdk.get_loop()).result(LIMIT_S)
