"""The time from a poisoned backend to the new attempt's first completed step, and its parts.

**A service that is far away**: a round trip of 100 ms, with the handshakes of TCP and TLS for each
new connection, and loads that take 2 s. The time from the poisoning to the first completed step
after it, against a loop of ``while: try/except`` in one process, not ours, that makes a new client
from its checkpoint. The SDK's telemetry is on, as it is by default; a bare SDK holds an error back
until that has noted it, for three round trips. There the load dominates, and then the number of
round trips, of which the SDK makes 14 for a new client. ``standby="session"``, the default, has
seven of them behind it, and loads while it asks for the list of checkpoints; ``standby="loaded"``
has the others behind it as well, and the load. The fault strikes when what is on standby is ready,
as it is after the first seconds of a run.

**A service on the same machine**, in a process of its own: each round trains a short run that is
poisoned at a random step, at pipeline depth 0, 1 or 2, and separates four parts. There the SDK's
reading of certificates and its requests dominate.

- detection: from the server's poisoning to its detection by a failed call;
- service: waiting for the service (list checkpoints, open a session, load);
- own: everything else between detection and the first call of the new attempt;
- first step: from that call to its result.

Then the time from each kind of fault to the first call of the
new attempt, that is, detection plus hand-over, beside the ways that start ``main()`` again. Of
these, the 30-second poll with a fixed 5-second backoff is a footnote: all its time is waiting.

    python benchmarks/recovery_latency.py [--quick] [--json]
"""

from __future__ import annotations

import functools
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import tinker
from _alternatives import STRIKE, WAYS, in_process_loop, poll_and_backoff
from _plain_loop import ADAM, batch
from _report import Bar, arguments, bars, rounds, table
from tinker import APIFuture, types

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, Supervisor
from tinker_recovery.checkpoints import AtSteps
from tinker_recovery.service.backend import STANDBY_AFTER_S
from tinker_recovery.testing import FaultRule, LocalTinkerProcess, Network

STEPS = 20
READY_S = STANDBY_AFTER_S + 0.3
"""Until the standby session is open, as it would be after hours."""
LIMIT_MS = 12.0
FAR: dict[Literal["session", "loaded"], float] = {"session": 0.85, "loaded": 0.30}
"""What each standby may take over the loop in the same process, at the service far away."""
RTT_S, LOAD_S = 0.1, 2.0
FAR_FAULT, FAR_SAVE = 22, 2
"""The step that is poisoned at the service far away, and the one saved before it: 5 s, by when what
is on standby is ready, and in which no connection has been idle."""

IN_BAND = ("poison", "fail", "gone")
STALL_S = 1.0
POLL_S = 0.5
POLLS = 4
"""Rounds of the 30 s poll."""
QUICK_S = 2.0
"""Seconds after which --quick begins no further round of our own parts."""
QUICK_KINDS = ("poison", "silence")
"""The faults that --quick plays: one that a call reports, and one that none does."""


@dataclass(frozen=True, slots=True)
class Round:
    """Milliseconds of one recovery."""

    detection: float
    service: float
    own: float
    first_step: float
    handover: float
    total: float


async def train(attempt: Attempt, depth: int, completed: list[float]) -> None:
    """Train, and record when the first step of each attempt was completed."""
    pending: deque[
        tuple[int, APIFuture[types.ForwardBackwardOutput], APIFuture[types.OptimStepResponse]]
    ] = deque()
    first = True
    if attempt.number == 1:
        await anyio.sleep(READY_S)
    for step in range(attempt.start_step, STEPS + depth):
        if step < STEPS:
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            pending.append((step, forward, attempt.client.optim_step(ADAM)))
        if pending and pending[0][0] <= step - depth:
            _, forward, update = pending.popleft()
            await forward
            await update
            if first:
                completed.append(time.monotonic())
                first = False


async def one_round(server: LocalTinkerProcess, depth: int) -> Round:
    """One poisoned run."""
    policy = RecoveryPolicy(
        enabled=True, poll_interval_s=60, checkpoints=CheckpointPolicy(save_every=5)
    )
    await server.inject(FaultRule("poison", at_step=random.randrange(1, STEPS)))
    completed: list[float] = []
    async with Supervisor(policy) as supervisor:
        await supervisor.run(
            functools.partial(train, depth=depth, completed=completed), base_model="b", rank=8
        )
    (run,) = supervisor.runs
    (recovery,) = run.recoveries
    struck = (await server.fired())[-1].monotonic
    noticed = recovery.fault.detected_at
    called = run.attempts[-1].client.first_call_at or 0.0
    return Round(
        detection=(noticed - struck) * 1e3,
        service=recovery.service_s * 1e3,
        own=(called - noticed - recovery.service_s) * 1e3,
        first_step=(completed[-1] - called) * 1e3,
        handover=(called - noticed) * 1e3,
        total=(completed[-1] - struck) * 1e3,
    )


RULES = {
    "poison": FaultRule("poison", STRIKE, "optim_step"),
    "fail": FaultRule("fail", STRIKE, "forward_backward"),
    "gone": FaultRule("gone", STRIKE, "optim_step"),
    "session failed": FaultRule("fail_session", STRIKE, "optim_step"),
    "NaN loss": FaultRule("nan_loss", STRIKE),
    "poison, quiet": FaultRule("poison", STRIKE, "optim_step", quiet=True),
    "silence": FaultRule("hang", STRIKE, "optim_step"),
}


async def ours(server: LocalTinkerProcess, kind: str) -> float:
    """Seconds from one fault to the first call of the new attempt."""
    rule = RULES[kind]
    policy = RecoveryPolicy(
        enabled=True,
        poll_interval_s=POLL_S if kind == "poison, quiet" else 60,
        stall_after_s=STALL_S,
        guard_loss=True,
        checkpoints=CheckpointPolicy(save_every=5),
    )
    await server.inject(rule)
    async with Supervisor(policy) as supervisor:
        await supervisor.run(
            functools.partial(train, depth=0, completed=[]), base_model="b", rank=8
        )
    (run,) = supervisor.runs
    struck = [fault.monotonic for fault in await server.fired() if fault.rule == rule]
    return (run.attempts[-1].client.first_call_at or 0.0) - struck[-1]


async def polling(times: int, measured: list[float]) -> None:
    """The 30-second poll; nearly all of it is waiting, so it runs beside the others."""
    for _ in range(times):
        with tempfile.TemporaryDirectory(prefix="recovery-latency-") as folder:
            async with LocalTinkerProcess(Path(folder)) as server:
                # This poll reads only the flag `corrupted`, so it detects no other fault.
                measured.append(await poll_and_backoff(server, RULES["poison"]))


_Times = dict[str, list[float]]


async def _measured(*, quick: bool) -> tuple[_Times, _Times]:
    """Every fault with ours, and those that a call reports with the quicker alternatives."""
    ours_s: _Times = {kind: [] for kind in (QUICK_KINDS if quick else RULES)}
    theirs_s: _Times = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(prefix="recovery-latency-") as folder:
        async with LocalTinkerProcess(Path(folder)) as server:
            os.environ.update(TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key)
            await ours(server, "poison")  # pays for the connections
            for _ in range(1 if quick else 15):
                for kind, measured in ours_s.items():
                    measured.append(await ours(server, kind))
                for name, way in WAYS.items():
                    for kind in IN_BAND[: 1 if quick else None]:
                        theirs_s[name].append(await way(server, RULES[kind]))
    return ours_s, theirs_s


async def against_the_alternatives(*, quick: bool) -> None:
    """The table of a service on the same machine; the 30 s poll is measured meanwhile."""
    polled_s: list[float] = []
    async with anyio.create_task_group() as group:
        if not quick:
            group.start_soon(polling, POLLS, polled_s)
        ours_s, theirs_s = await _measured(quick=quick)
    in_band = statistics.median(one for kind in IN_BAND for one in ours_s.get(kind, []))
    print("\non the same machine: seconds from the fault to the first call after it, median\n")
    rows = [[f"ours: {kind}", f"{statistics.median(each):.3f}"] for kind, each in ours_s.items()]
    if polled_s:
        theirs_s["30 s poll, 5 s backoff"] = polled_s
    for name, measured in theirs_s.items():
        median = statistics.median(measured)
        rows.append([name, f"{median:.3f}", f"{median / in_band:.1f} times"])
    table(["", "seconds", "over ours"], [[*row, ""][:3] for row in rows])
    print(
        f"\nstall_after_s={STALL_S:g}, poll_interval_s={POLL_S:g} where detection depends on them"
    )


async def far_ours(
    server: LocalTinkerProcess, base_url: str, standby: Literal["session", "loaded"]
) -> float:
    """When the first step after a fault was completed at the service far away."""
    completed: list[float] = []

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, FAR_FAULT + 1):
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            update = attempt.client.optim_step(ADAM)
            await forward
            await update
            completed.append(time.monotonic())
            if attempt.number > 1:
                return

    saves = CheckpointPolicy(schedule=AtSteps([FAR_SAVE]))
    policy = RecoveryPolicy(poll_interval_s=60, standby=standby, checkpoints=saves)
    connect = functools.partial(tinker.ServiceClient, base_url=base_url, api_key=server.api_key)
    async with Supervisor(policy, service=connect) as supervisor:
        await supervisor.run(loop, base_model="b", rank=8)
    return completed[-1]


async def far(*, quick: bool) -> list[Bar]:
    """The table of a service far away, and its bars.

    A round has the loop and both of ours at the same time, each with a service of its own: nearly
    all of it is waiting, and what else the machine does meanwhile strikes them alike.
    """
    loop_s: list[float] = []
    ours_s: dict[Literal["session", "loaded"], list[float]] = {each: [] for each in FAR}
    rule = FaultRule("poison", FAR_FAULT, "optim_step")

    async def note(
        measured: list[float], train: Callable[[LocalTinkerProcess, str], Awaitable[float]]
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="recovery-latency-") as folder:
            async with (
                LocalTinkerProcess(Path(folder), load_s=LOAD_S) as server,
                Network(server.base_url, rtt_s=RTT_S) as network,
            ):
                await server.inject(rule)
                completed = await train(server, network.base_url)
                (struck,) = [each.monotonic for each in await server.fired() if each.rule == rule]
                measured.append(completed - struck)

    async def loop(server: LocalTinkerProcess, base_url: str) -> float:
        return await in_process_loop(server.api_key, base_url, FAR_SAVE)

    for _ in range(1 if quick else 9):
        async with anyio.create_task_group() as group:
            group.start_soon(note, loop_s, loop)
            for standby, measured in ours_s.items():
                group.start_soon(note, measured, functools.partial(far_ours, standby=standby))
    theirs = statistics.median(loop_s)
    print(
        f"a service {RTT_S * 1e3:g} ms away, loads take {LOAD_S:g} s: seconds from the poisoning "
        f"to the first completed step, median of {len(loop_s)}\n"
    )
    rows = [["while: try/except in one process", f"{theirs:.2f}", ""]]
    made: list[Bar] = []
    for standby, measured in ours_s.items():
        median = statistics.median(measured)
        rows.append([f'standby="{standby}"', f"{median:.2f}", f"{median / theirs:.2f}"])
        name = f"poison to first step over an in-process loop, RTT 100 ms, standby={standby}"
        made.append(Bar(name, median / theirs, FAR[standby]))
    table(["", "seconds", "over the loop"], rows)
    print()
    return made


async def parts(*, quick: bool) -> Bar:
    """The first table, and our own part."""
    measured: dict[int, list[Round]] = {0: [], 1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="recovery-latency-") as folder:
        async with LocalTinkerProcess(Path(folder)) as server:
            os.environ.update(TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key)
            await one_round(server, 0)  # the first one pays for imports and connections
            for _ in rounds(3 if quick else 40, within_s=QUICK_S if quick else None, least=1):
                for depth, recoveries in measured.items():
                    recoveries.append(await one_round(server, depth))
    names = [field.name for field in fields(Round)]
    rows = []
    for depth, recoveries in measured.items():
        medians = [statistics.median(getattr(one, name) for one in recoveries) for name in names]
        rows.append([f"depth {depth}", *(f"{median:.1f}" for median in medians)])
    every = [one for recoveries in measured.values() for one in recoveries]
    worst = [f"{max(getattr(one, name) for one in every):.1f}" for name in names]
    print(f"milliseconds, median of {len(every)} recoveries from a failed call\n")
    table(["", *names], [*rows, ["worst", *worst]])
    return Bar("own hand-over ms", statistics.median(one.own for one in every), LIMIT_MS)


async def main(*, quick: bool) -> list[Bar]:
    """Measure, print the tables, return the bars."""
    os.environ.pop("TINKER_TELEMETRY", None)
    far_away = await far(quick=quick)
    os.environ["TINKER_TELEMETRY"] = "0"
    own = await parts(quick=quick)
    await against_the_alternatives(quick=quick)
    return [*far_away, own]


if __name__ == "__main__":
    given = arguments(__doc__)
    bars("recovery_latency", anyio.run(lambda: main(quick=given.quick)), as_json=given.json)
