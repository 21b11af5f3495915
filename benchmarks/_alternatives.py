"""Recovery from the same faults on the same server, in ways people use without tinker_recovery.

Each returns the seconds from the fault to the first call after the restart. All clocks are the
machine's monotonic one, which its processes share.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import _plain_loop
import anyio
import anyio.to_thread
import stamina
import tinker
from dbos import DBOS
from tinker import types

from tinker_recovery.testing import FaultRule, LocalTinkerProcess

POLL_S = 30.0
BACKOFF_S = 5.0
"""The Elixir SDK's recovery layer: a poll every 30 s, and 5 s of backoff."""

STEPS = 14
STRIKE = 12

Way = Callable[[LocalTinkerProcess, FaultRule], Awaitable[float]]


async def _since_the_fault(server: LocalTinkerProcess, rule: FaultRule, called: float) -> float:
    struck = [fault.monotonic for fault in await server.fired() if fault.rule == rule]
    return called - struck[-1]


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="recovery-latency-")


async def in_process_loop(api_key: str, base_url: str, save_at: int) -> float:
    """``while: try/except`` in one process, which makes a new client from its checkpoint.

    The process is one of its own, since in this one the SDK is mended for ours. Returns when the
    first step after a fault was completed, by the monotonic clock.
    """
    printed = await _in_a_process(f"loop({api_key!r}, {base_url!r}, {save_at})")
    return float(printed[-1])


async def _in_a_process(call: str) -> list[bytes]:
    """The words that a function of this module prints in a process of its own."""
    paths = [str(Path(__file__).parent), *sys.path]
    done = await anyio.run_process(
        [sys.executable, "-c", f"import _alternatives; _alternatives.{call}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=None,
    )
    return done.stdout.split()


def loop(api_key: str, base_url: str, save_at: int) -> None:
    """The loop; prints the time."""
    print(_loop(api_key, base_url, save_at))


def _loop(api_key: str, base_url: str, save_at: int) -> float:
    state, step, faulted = "", 0, False
    while True:
        service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
        try:
            if state:
                made = service.create_training_client_from_state_with_optimizer(state)
            else:
                made = service.create_lora_training_client("b", rank=8)
            client = made.result()
            while True:
                forward = client.forward_backward(_plain_loop.batch(step), "cross_entropy")
                update = client.optim_step(_plain_loop.ADAM)
                forward.result()
                update.result()
                if faulted:
                    return time.monotonic()
                step += 1
                if step == save_at:
                    state = client.save_state(f"step-{step}").result().path
        except tinker.TinkerError:
            step, faulted = save_at, True


async def shell_loop(server: LocalTinkerProcess, rule: FaultRule) -> float:
    """``until python train.py; do :; done``, resuming from the last checkpoint."""
    await server.inject(rule)

    def run() -> str:
        with _folder() as folder:
            script = Path(_plain_loop.__file__)
            command = shlex.join([sys.executable, str(script), f"{folder}/state", str(STEPS)])
            return subprocess.run(  # noqa: S603 - our own script
                ["/bin/sh", "-c", f"until {command} 2>/dev/null; do :; done"],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            ).stdout

    printed = await anyio.to_thread.run_sync(run)
    calls = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("called")]
    return await _since_the_fault(server, rule, calls[-1])


async def stamina_around_main(server: LocalTinkerProcess, rule: FaultRule) -> float:
    """``@stamina.retry(on=Exception)`` around ``main()``, with stamina's own defaults.

    But for its first wait, which is anything between 0.1 and 1.1 s: here it is the mean of these.
    """
    await server.inject(rule)
    calls: list[float] = []

    def run() -> None:
        with _folder() as folder:
            retrying = stamina.retry(on=Exception, wait_initial=0.6, wait_jitter=0.0)
            main = retrying(_plain_loop.train)
            main(Path(folder) / "state", STEPS, lambda _: calls.append(time.monotonic()))

    await anyio.to_thread.run_sync(run)
    return await _since_the_fault(server, rule, calls[-1])


async def engine_step(server: LocalTinkerProcess, rule: FaultRule) -> float:
    """``main()`` as a step of a DBOS workflow, which is tried again after a second, as by default.

    In a process of its own: the engine is one for a whole process.
    """
    await server.inject(rule)
    with _folder() as folder:
        printed = await _in_a_process(f"engine({folder!r})")
    return await _since_the_fault(server, rule, float(printed[-1]))


def engine(folder: str) -> None:
    """The workflow; prints when each try made its first call."""
    DBOS(
        config={
            "name": "train",
            "system_database_url": f"sqlite:///{folder}/engine.sqlite3",
            "log_level": "CRITICAL",
        }
    )

    @DBOS.step(retries_allowed=True)
    def main() -> None:
        _plain_loop.train(Path(folder) / "state", STEPS, lambda _: print(time.monotonic()))

    @DBOS.workflow()
    def train() -> None:
        main()

    DBOS.launch()
    try:
        train()
    finally:
        DBOS.destroy()


async def poll_and_backoff(server: LocalTinkerProcess, rule: FaultRule) -> float:
    """Poll every 30 s whether the run is corrupted; if so, wait 5 s and restart it."""
    calls: list[float] = []
    runs: list[str] = []

    def called(run_id: str) -> None:
        calls.append(time.monotonic())
        runs.append(run_id)

    with _folder() as folder:
        state = Path(folder) / "state"
        # The fault falls anywhere between two polls.
        poll_at = time.monotonic() + random.uniform(0.2, 1.0) * POLL_S
        connect = partial(tinker.ServiceClient, base_url=server.base_url, api_key=server.api_key)
        train = partial(_plain_loop.train, state, STEPS, called, connect)
        await anyio.to_thread.run_sync(
            partial(_plain_loop.train, state, STRIKE - 1, called, connect)
        )
        await server.inject(rule)
        try:
            await anyio.to_thread.run_sync(train)
        except Exception:
            await anyio.sleep(max(0.0, poll_at - time.monotonic()))
            status = await anyio.to_thread.run_sync(_status, server, runs[-1])
            if not status.corrupted:
                raise
            await anyio.sleep(BACKOFF_S)
            await anyio.to_thread.run_sync(train)
    return await _since_the_fault(server, rule, calls[-1])


def _status(server: LocalTinkerProcess, run_id: str) -> types.TrainingRun:
    client = tinker.RestClient(base_url=server.base_url, api_key=server.api_key)
    return client.get_training_run(run_id).result()


WAYS: dict[str, Way] = {
    "shell loop": shell_loop,
    "stamina around main": stamina_around_main,
    "step of a DBOS workflow": engine_step,
}
