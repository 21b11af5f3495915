"""Exactness: one case of the matrix, and what became of it.

A case is a service (a dialect of the local server), a fault, how far the loop submits ahead, and
whether there is a canary. The supervised run has to end with the bits of a run that nothing
disturbed; if that cannot be known, it has to say so; and where a bare loop on the SDK would have
ended well, so must it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import anyio
import anyio.to_thread
import tinker
from tinker import types

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    RecoveryEvent,
    RecoveryPolicy,
    StartOptions,
    Supervisor,
)
from tinker_recovery.telemetry import names
from tinker_recovery.testing import Dialect, FaultRule, LocalTinker, RunState

STEPS = 12
SAVE_EVERY = 2
LIMIT_S = 90.0
"""A case that has not ended by then counts as one that hangs."""
DOWN_S = 0.4
"""How long the server is down when it is killed, or out of reach."""
STEP_S, SAVE_S = 0.004, 0.01
ADAM = types.AdamParams(learning_rate=5e-2)

Fault = Literal[
    "none",
    "killed early",
    "killed in the middle",
    "killed late",
    "damaged newest",
    "late failure",
    "overwritten saves",
    "process killed",
    "process killed after a late failure",
    "outage while idle",
    "failed save",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
KILLED_AT: dict[Fault, int] = {"killed early": 3, "killed in the middle": 6, "killed late": 10}
PROCESS_KILLED: frozenset[Fault] = frozenset(
    {"process killed", "process killed after a late failure"}
)
BARE_MAY_END: frozenset[Fault] = frozenset({"none", "outage while idle", "failed save"})
"""What a bare loop survives; the others take its weights or its client from it."""
IDLE_AT, FAILED_AT, OVERWRITTEN_AT, DIES_AT = 6, 7, 6, 10

Verdict = Literal[
    "exact", "loudly inexact", "silently wrong", "given up", "given up, nothing there", "hung"
]


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the matrix."""

    dialect: Dialect
    fault: Fault
    depth: int
    canary: bool

    def __str__(self) -> str:
        canary = "canary auto" if self.canary else "no canary"
        return f"{self.dialect}, {self.fault}, depth {self.depth}, {canary}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: The case.
        verdict: How it ended.
        said: The error, or what was said where it is loudly inexact.
        recoveries: How often the run was recovered.
        worse_than_bare: Whether a bare loop ended well where this did not.
        wall_s: Seconds it took.
        events: What the run reported, where that is another than expected.
    """

    case: Case
    verdict: Verdict
    said: str
    recoveries: int
    worse_than_bare: bool
    wall_s: float
    events: str = ""


def batch(step: int) -> list[types.Datum]:
    """One step's batch, a function of the step alone; with weights, as some services demand."""
    tokens = [(step * 7 + offset * offset) % 50 for offset in range(17)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[16]),
                "weights": types.TensorData(data=[1.0] * 16, dtype="float32", shape=[16]),
            },
        )
    ]


def policy(*, canary: bool) -> RecoveryPolicy:
    """The defaults, but for a save every two steps and backoffs that do not take all day."""
    changes: dict[str, Any] = {} if canary else {"canary": None}
    return RecoveryPolicy(
        enabled=True,
        backoff_s=0.05,
        max_backoff_s=0.5,
        close_timeout_s=5.0,
        checkpoints=CheckpointPolicy(save_every=SAVE_EVERY),
        **changes,
    )


async def loop(
    client: Any,
    start: int,
    depth: int,
    reached: Callable[[int], object],
    *,
    overwrites: bool = False,
    idle: Callable[[], Any] | None = None,
) -> None:
    """The training loop, on any client with TrainingClient's surface.

    Args:
        client: The client.
        start: The first step.
        depth: Batches submitted ahead.
        reached: Called with each step before it is submitted.
        overwrites: Whether it keeps a save of its own, in place, every second step.
        idle: Awaited once at :data:`IDLE_AT`, with nothing under way.
    """
    pending: deque[Any] = deque()

    async def drained(left: int) -> None:
        while len(pending) > left:
            await pending.popleft()

    for step in range(start, STEPS):
        if idle is not None and step == IDLE_AT:
            await drained(0)
            await idle()
        reached(step)
        pending.append(client.forward_backward(batch(step), "cross_entropy"))
        pending.append(client.optim_step(ADAM))
        if overwrites and step % 2:
            # Not awaited: the loop trains on while its own save is written.
            client.save_state("latest", overwrite=True)
        await drained(2 * depth)
    await drained(0)


def rules(fault: Fault) -> list[FaultRule]:
    """What strikes at the server."""
    late = [
        FaultRule("fail", FAILED_AT, "forward_backward"),
        FaultRule(
            "slow",
            FAILED_AT,
            "retrieve_future",
            polled="forward_backward",
            delay_s=0.4,
        ),
    ]
    match fault:
        case "damaged newest":
            return [FaultRule("poison", STEPS - 3, "optim_step")]
        case "late failure" | "process killed after a late failure":
            return late
        case "overwritten saves":
            return [FaultRule("poison", OVERWRITTEN_AT, "optim_step")]
        case "failed save":
            return [FaultRule("fail", 2 * SAVE_EVERY, "save_weights")]
        case _:
            return []


def restart_of(case: Case) -> Literal["corrupted", "unloaded", "rollback"]:
    """What becomes of the runs when the server is killed and started again."""
    if case.dialect == "rolls_back":
        return "rollback"
    return "unloaded" if case.dialect == "bare" else "corrupted"


async def play(case: Case, *, bare: bool) -> Outcome:
    """Play one case on a server of its own.

    Args:
        case: The case.
        bare: Whether to see as well what a bare loop comes to.
    """
    began = time.monotonic()
    with TemporaryDirectory(prefix="exactness-") as folder:
        options: dict[str, Any] = {"dialect": case.dialect, "restart": restart_of(case)}
        async with LocalTinker(
            Path(folder, "service"),
            long_poll_s=0.5,
            step_s=STEP_S,
            save_s=0.06 if case.fault == "overwritten saves" else SAVE_S,
            **options,
        ) as server:
            for rule in rules(case.fault):
                server.inject(rule)
            player = _InProcesses if case.fault in PROCESS_KILLED else _InProcess
            played = player(case, server, Path(folder))
            error: BaseException | None = None
            hung = False
            try:
                with anyio.fail_after(LIMIT_S):
                    await played.train()
            except TimeoutError as late:
                error, hung = late, True
            except Exception as raised:  # noqa: BLE001 - whatever it is, it is what is looked for
                error = raised
            server.release()
            if hung:
                verdict: Verdict = "hung"
            elif error is not None:
                there = any(server.checkpoints(run_id) for run_id in server.runs())
                verdict = "given up" if there else "given up, nothing there"
            elif await _exact(case, server):
                verdict = "exact"
            else:
                verdict = "loudly inexact" if played.not_exact else "silently wrong"
            worse = False
            if bare and verdict != "exact":
                worse = await _bare_ends_well(case)
            said = played.not_exact if error is None else repr(error)
            bad = verdict not in {"exact", "loudly inexact"}
            return Outcome(
                case,
                verdict,
                said,
                played.recoveries,
                worse,
                time.monotonic() - began,
                "\n    ".join(played.events) if bad else "",
            )


class _InProcess:
    """A supervised run in this process."""

    def __init__(self, case: Case, server: LocalTinker, folder: Path) -> None:
        self._case = case
        self._server = server
        self.not_exact = ""
        self._waiting = KILLED_AT.get(case.fault)
        self._damaged = False
        self._journal = folder / "journal.sqlite3"
        self.recoveries = 0
        self.events: list[str] = []

    async def train(self) -> None:
        """Train to the end."""
        async with Supervisor(
            policy(canary=self._case.canary),
            service=self._server.service,
            on_event=self._event,
            journal=self._journal,
        ) as supervisor:
            try:
                await supervisor.run(self._attempt, **START)
            finally:
                self.recoveries = sum(len(run.recoveries) for run in supervisor.runs)

    async def _attempt(self, attempt: Attempt) -> None:
        await loop(
            attempt.client,
            attempt.start_step,
            self._case.depth,
            self._reached,
            overwrites=self._case.fault == "overwritten saves",
            idle=self._idle if self._case.fault == "outage while idle" else None,
        )

    async def _idle(self) -> None:
        if self._waiting is None:
            self._waiting = -1
            self._server.crash(DOWN_S)
            await anyio.sleep(3 * DOWN_S)

    def _reached(self, step: int) -> None:
        if self._waiting is not None and self._waiting == step:
            self._waiting = None
            self._server.crash(DOWN_S)

    def _event(self, event: RecoveryEvent) -> None:
        self.events.append(f"{event.name} {event.message}")
        if _says_inexact(event):
            self.not_exact = event.message
        if (
            event.name == names.EVENT_DETECTED
            and self._case.fault == "damaged newest"
            and not self._damaged
        ):
            self._damaged = True
            stored = [each for run in self._server.runs() for each in self._server.checkpoints(run)]
            newest = max(stored, key=lambda each: each.steps, default=None)
            if newest is not None:
                self._server.damage(newest.path, "truncated")


INEXACT = "inexact:"


def _says_inexact(event: RecoveryEvent) -> bool:
    """Whether it says that the weights may be others; here, every restore is of what was saved."""
    restored = names.CHECKPOINT_PATH in event.fields
    return event.name == names.EVENT_WEIGHTS_UNKNOWN and not restored


START: StartOptions = {"base_model": "m", "rank": 8, "seed": 7, "name": "exact"}


class _InProcesses:
    """A supervised run in a process that is killed, and run again by the same command."""

    def __init__(self, case: Case, server: LocalTinker, folder: Path) -> None:
        self._case = case
        self._server = server
        self._folder = folder
        self._said = ""
        self.recoveries = 0

    @property
    def events(self) -> list[str]:
        """All that its processes printed."""
        return self._said.splitlines()

    @property
    def not_exact(self) -> str:
        """What it said if it could not know."""
        said = self._said.splitlines()
        return next((line for line in said if line.startswith(INEXACT)), "")

    async def train(self) -> None:
        """Run it, which kills itself, and run it again to the end."""
        died = await self._process(die=True)
        if died != -signal.SIGKILL:
            raise RuntimeError(f"it was to die of SIGKILL, and ended with {died}: {self._said}")
        ended = await self._process(die=False)
        if ended != 0:
            raise RuntimeError(f"it ended with {ended}: {self._said[-2000:]}")
        self.recoveries = 1

    async def _process(self, *, die: bool) -> int:
        environment = {
            **os.environ,
            "TINKER_BASE_URL": self._server.base_url,
            "TINKER_API_KEY": self._server.api_key,
            "TINKER_TELEMETRY": "0",
            "TINKER_RECOVERY_STATE_DIR": str(self._folder),
        }
        command = [sys.executable, __file__, json.dumps({**asdict(self._case), "die": die})]
        process = await anyio.open_process(command, env=environment, stdout=None, stderr=-1)
        try:
            said = bytearray()
            if process.stderr is not None:
                async for chunk in process.stderr:
                    said += chunk
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                with anyio.CancelScope(shield=True):
                    await process.wait()
        self._said += said.decode(errors="replace")
        return process.returncode or 0


async def _in_child(case: Case, *, die: bool) -> None:
    """What the process does: train, and die of SIGKILL on the way if it is to."""

    async def attempt_(attempt: Attempt) -> None:
        def reached(step: int) -> None:
            if die and step == DIES_AT:
                os.kill(os.getpid(), signal.SIGKILL)

        await loop(attempt.client, attempt.start_step, case.depth, reached)

    def event(said: RecoveryEvent) -> None:
        print(INEXACT if _says_inexact(said) else "", said.name, said.message, file=sys.stderr)

    async with Supervisor(policy(canary=case.canary), on_event=event) as supervisor:
        await supervisor.run(attempt_, **START)


_undisturbed: dict[Dialect, RunState] = {}


async def undisturbed(dialect: Dialect) -> RunState:
    """What a bare run ends with at such a service if nothing disturbs it."""
    if dialect not in _undisturbed:
        options: dict[str, Any] = {"dialect": dialect}
        async with LocalTinker(**options) as server:
            _undisturbed[dialect] = await _bare(server)
    return _undisturbed[dialect]


async def _bare(server: LocalTinker, *, case: Case | None = None) -> RunState:
    service = server.service()
    make = functools.partial(service.create_lora_training_client, "m", rank=8, seed=7)
    client = await (await anyio.to_thread.run_sync(make))
    try:

        async def idle() -> None:
            server.crash(DOWN_S)
            await anyio.sleep(3 * DOWN_S)

        await loop(
            client,
            0,
            0 if case is None else case.depth,
            lambda step: _save(client, step) if case is not None else None,
            idle=idle if case is not None and case.fault == "outage while idle" else None,
        )
        return server.run_state(str(client.model_id))
    finally:
        await _close(service)


async def _close(service: tinker.ServiceClient) -> None:
    # A service may have no such route.
    with contextlib.suppress(tinker.TinkerError):
        await service.close("success")


def _save(client: tinker.TrainingClient, step: int) -> None:
    if step and step % SAVE_EVERY == 0:
        client.save_state(f"step-{step}")


async def _exact(case: Case, server: LocalTinker) -> bool:
    """Whether the run ended with the bits it would have had undisturbed."""
    final = max(
        (server.run_state(run_id) for run_id in server.runs()), key=lambda state: state.steps
    )
    return final == await undisturbed(case.dialect)


async def _bare_ends_well(case: Case) -> bool:
    """Whether a bare loop ends with the bits of an undisturbed one in spite of the fault."""
    if case.fault not in BARE_MAY_END:
        return False
    options: dict[str, Any] = {"dialect": case.dialect, "restart": restart_of(case)}
    async with LocalTinker(long_poll_s=0.5, step_s=STEP_S, save_s=SAVE_S, **options) as server:
        for rule in rules(case.fault):
            server.inject(rule)
        try:
            with anyio.fail_after(15.0):
                state = await _bare(server, case=case)
        except Exception:  # noqa: BLE001 - it does not end well, however
            return False
        return state == await undisturbed(case.dialect)


async def play_all(
    cases: Sequence[Case], *, at_once: int, ended: Callable[[Outcome], object] = lambda _: None
) -> list[Outcome]:
    """Play cases, several at once: each mostly waits."""
    outcomes: list[Outcome] = []
    free = anyio.Semaphore(at_once)

    async def one(case: Case) -> None:
        async with free:
            outcome = await play(case, bare=True)
        outcomes.append(outcome)
        ended(outcome)

    for case in cases:
        await undisturbed(case.dialect)
    async with anyio.create_task_group() as group:
        for case in cases:
            group.start_soon(one, case)
    return outcomes


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given = json.loads(sys.argv[1])
    dies = given.pop("die")
    asyncio.run(_in_child(Case(**given), die=dies))
