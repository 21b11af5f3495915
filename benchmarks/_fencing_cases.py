"""The cases of the fencing benchmark with whole Supervisors.

Each is a function of a :class:`Case`. What is random in it, which moment, which variant, is drawn
from the case's number, so that many of a kind are not the same.
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Awaitable, Callable

from _fencing import Outcome
from _fencing_case import Case, OtherwiseError, StuckError, case
from _fencing_machine import LIMIT_S
from _fencing_processes import Process, progress
from _fencing_supervisor import ENDS

from tinker_recovery.telemetry import names
from tinker_recovery.testing import RunState

PHASES = (
    "waiting",
    "claim",
    "fenced",
    "take-over",
    "note",
    names.EVENT_CHECKPOINT_SELECTED,
    names.EVENT_CLIENT_CREATED,
    "attempt",
    "step",
)
"""Where a successor dies, in the order in which it comes to them."""


async def started_together(on: Case) -> None:
    """Three at once: some wait, some refuse to."""
    policies = [on.chance.choice(("wait", "refuse")) for _ in range(3)]
    all_of = [
        await on.begin(f"machine-{number}", on_lease=each) for number, each in enumerate(policies)
    ]
    ends = [
        await on.end(one, "done", "finished" if each == "wait" else "refused")
        for one, each in zip(all_of, policies, strict=True)
    ]
    if ends.count("done") != 1:
        # All may have refused, each for another that withdrew; then somebody tries again.
        if "done" in ends or "wait" in policies:
            on.otherwise.append(f"ended: {ends}")
        await on.finish()


async def started_later(on: Case) -> None:
    """The second starts while the first trains; the first ends well, or its loop raises."""
    crashes_at = on.chance.choice((None, 5, 7))
    first = await on.begin("alpha", pace_s=0.15, crashes_at=crashes_at)
    await on.until(first, "step")
    await on.pause(0.0, 0.5)
    second = await on.begin("beta")
    await on.end(first, "crashed" if crashes_at else "done")
    await on.end(second, "done" if crashes_at else "finished")


async def long_gap(on: Case) -> None:
    """The holder makes no training request for longer than the service's limit; one waits."""
    rests_at, blocks = on.chance.choice((0, 6, 11)), on.chance.random() < 0.5
    first = await on.begin("alpha", rests_at=rests_at, blocks=blocks)
    await on.until(first, "rests")
    second = await on.begin("beta")
    await on.pause(1.3 * LIMIT_S, 1.6 * LIMIT_S)
    if second.count("attempt") or second.over:
        on.otherwise.append("beta has not waited")
    third = await on.begin("gamma", on_lease="refuse")
    await on.end(third, "refused")
    first.tell("go")
    await on.end(first, "done")
    await on.end(second, "finished")


async def suspended(on: Case) -> None:
    """The holder is stopped past the service's limit, taken over, and wakes."""
    first = await _holder(on, rests_at=on.chance.choice((None, None, 6)))
    first.send(signal.SIGSTOP)
    on.died_s = time.monotonic()
    wakes = on.chance.choice(("early", "beside", "late"))
    second = await on.begin("beta", rests_at=10 if wakes == "beside" else None, pace_s=0.05)
    if wakes == "late":
        await on.end(second, "done")
    elif wakes == "beside":
        await on.until(second, "rests", *ENDS)
    else:
        await on.until(second, "attempt", "step", *ENDS)
        await on.pause(0.0, 0.2)
    first.send(signal.SIGCONT)
    first.tell("go")
    await on.end(first, "lost")
    second.tell("go")
    await on.end(second, "done")


async def suspended_for_about_the_limit(on: Case) -> None:
    """The holder is stopped for about as long as the service waits: it keeps the run, or not."""
    first = await _holder(on)
    second = await on.begin("beta")
    await on.until(second, "waiting", *ENDS)
    first.send(signal.SIGSTOP)
    await on.pause(0.8 * LIMIT_S, 1.3 * LIMIT_S)
    first.send(signal.SIGCONT)
    end = await on.end(first, "done", "lost")
    await on.end(second, "finished" if end == "done" else "done")


async def claim_ended(on: Case) -> None:
    """The service ends the holder's claim, and not the session that it trains in."""
    first = await _holder(on, rests_at=on.chance.choice((None, None, 6)))
    second = await on.begin("beta", pace_s=0.05)
    await on.until(second, "waiting", *ENDS)
    claim = first.when("claim")
    if claim is not None and not first.over:
        on.server.fail_session(claim["session"])
        on.died_s = time.monotonic()
    first.tell("go")
    end = await on.end(first, "lost", "done")
    await on.end(second, "finished" if end == "done" else "done")


async def suspended_in_take_over(on: Case, phase: str) -> None:
    """A successor is stopped in one phase of taking over, a third takes over, and it wakes."""
    first = await _holder(on, rests_at=9)
    waits = phase == "waiting"
    second = await on.begin("beta", at=phase, by=signal.SIGSTOP) if waits else None
    if second is not None:
        await on.until(second, "strikes")
    _kill(on, first)
    if second is None:
        second = await on.begin("beta", at=phase, by=signal.SIGSTOP)
        await on.until(second, "strikes", *ENDS)
    wakes = on.chance.choice(("early", "beside", "late"))
    third = await on.begin("gamma", pace_s=0.05, rests_at=11 if wakes == "beside" else None)
    if wakes == "late":
        await on.end(third, "done", "finished")
    else:
        await on.until(third, "rests" if wakes == "beside" else "claim", *ENDS)
        await on.pause(0.0, 0.5)
    second.send(signal.SIGCONT)
    await on.pause(0.0, 0.5)
    third.tell("go")
    # Before it had the run it waits again; with it, it has lost it.
    end = await on.end(second, "done", "finished", "lost")
    await on.end(third, "finished" if end == "done" else "done")


async def holder_killed(on: Case) -> None:
    """The holder is killed, which one on another machine, that waits already, cannot see."""
    first = await _holder(on, rests_at=9)
    second = await on.begin("beta")
    await on.until(second, "waiting")
    _kill(on, first)
    await on.end(second, "done")
    await on.end(await on.begin("alpha"), "finished")


async def old_journal(on: Case) -> None:
    """A machine's journal comes back while another trains, and after that."""
    killed = on.chance.random() < 0.5
    first = await on.begin("alpha", **({"at": "step:5"} if killed else {"crashes_at": 5}))
    if killed:
        await on.dead(first)
    else:
        await on.end(first, "crashed")
    dies = on.chance.random() < 0.5
    second = await on.begin("beta", rests_at=8, crashes_at=10 if dies else None)
    await on.until(second, "rests")
    refused = await on.begin("alpha", on_lease="refuse")
    await on.end(refused, "refused")
    waits = await on.begin("alpha") if on.chance.random() < 0.5 else None
    if waits is not None:
        await on.until(waits, "waiting")
    second.tell("go")
    await on.end(second, "crashed" if dies else "done")
    back = waits or await on.begin("alpha")
    await on.end(back, "done" if dies else "finished")
    again = await on.begin("beta", on_lease="refuse")
    await on.end(again, "finished")


async def killed_in_take_over(on: Case, phase: str) -> None:
    """The holder is killed, and so is its successor, in one phase of taking over."""
    first = await _holder(on, rests_at=9)
    second = await on.begin("beta", at=phase) if phase == "waiting" else None
    if second is not None:
        await on.dead(second)
    _kill(on, first)
    if second is None:
        second = await on.begin("beta", at=phase)
        if not await on.dead(second) and phase not in _MAY_BE_PASSED:
            on.otherwise.append(
                f"beta has not come to {phase}: {[s['event'] for s in second.said]}"
            )
    # On its own machine it is seen to be dead; on another it is not.
    await on.end(await on.begin(on.chance.choice(("beta", "gamma"))), "done", "finished")


_MAY_BE_PASSED = frozenset({names.EVENT_CHECKPOINT_SELECTED, names.EVENT_CLIENT_CREATED})
"""A run that had no checkpoint yet begins anew."""


async def killed_at_random(on: Case) -> None:
    """The holder is killed, and its successors at random moments while they take over."""
    first = await _holder(on, rests_at=9)
    second = await on.begin("beta")
    third = await on.begin("gamma")
    await on.pause(0.0, 1.0)
    _kill(on, first)
    await on.pause(0.3 * LIMIT_S, 2.0 * LIMIT_S)
    on.chance.choice((second, third)).send(signal.SIGKILL)
    await on.pause(0.0, LIMIT_S)
    for one in (second, third):
        if not one.over:
            await one.until(*ENDS, within_s=60.0)
            if not await one.gone(60.0):
                raise StuckError(f"{one.host} has not ended")
    for one in (second, third):
        failed = one.when("failed") or one.when("lost")
        if failed is not None:
            on.otherwise.append(f"{one.host}: {failed}")
    await on.finish()


async def service_restarts(on: Case) -> None:
    """The service is killed, or out of reach, for a while in which two wait."""
    first = await _holder(on, rests_at=9)
    others = [await on.begin("beta"), await on.begin("gamma")]
    for one in others:
        await on.until(one, "waiting", "claim")
    dies = on.chance.random() < 0.3
    if dies:
        _kill(on, first)
    away_s = on.chance.uniform(0.2, 1.5 * LIMIT_S)
    if on.chance.random() < 0.5:
        on.server.crash(away_s)
    else:
        on.server.outage(away_s, status=on.chance.choice((None, 503)))
    first.tell("go")
    if not dies:
        await on.end(first, "done")
    ends = [await on.end(one, "done", "finished") for one in others]
    if ends.count("done") != dies:
        on.otherwise.append(f"ended: {ends}")


async def _holder(on: Case, *, rests_at: int | None = None) -> Process:
    """A process that trains, at a random step."""
    first = await on.begin("alpha", pace_s=0.1, rests_at=rests_at)
    await on.until(first, "step", times=on.chance.randint(1, 6))
    await on.pause(0.0, 0.1)
    if rests_at is not None and on.chance.random() < 0.5:
        await on.until(first, "rests")
    return first


def _kill(on: Case, one: Process) -> None:
    one.send(signal.SIGKILL)
    on.died_s = time.monotonic()


HOLDER_KILLED = "holder killed"

KINDS: dict[str, Callable[[Case], Awaitable[None]]] = {
    "started together": started_together,
    "started later": started_later,
    "long gap": long_gap,
    "suspended and woken": suspended,
    HOLDER_KILLED: holder_killed,
    "claim ended alone": claim_ended,
    "suspended for about the limit": suspended_for_about_the_limit,
    "old journal returns": old_journal,
    "service restarts": service_restarts,
    "killed at random": killed_at_random,
    **{
        f"{title} in take-over: {phase}": functools.partial(played, phase=phase)
        for phase in PHASES
        for title, played in (
            ("killed", killed_in_take_over),
            ("suspended", suspended_in_take_over),
        )
    },
}


async def play(kind: str, number: int, expected: RunState, *, unkind: bool) -> Outcome:
    """Play one case, on a server of its own."""
    title = f"{kind.partition(':')[0]}{', unkind' if unkind else ''}"
    async with case(f"{kind} {number} {unkind}", unkind=unkind) as on:
        stuck = ""
        try:
            try:
                await KINDS[kind](on)
            except OtherwiseError as error:
                on.otherwise.append(str(error))
                on.kill_all()
                await on.finish()
        except StuckError as error:
            stuck = str(error)
        outcome = on.verdict(title, expected, stuck)
        if not outcome.as_made:
            progress(f"{kind} {number}\n{on.story()}")
        return outcome
