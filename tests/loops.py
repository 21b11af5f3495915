"""The training loops that the lifecycle tests run, supervised and bare."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import tinker
from tinker import types

from tinker_recovery import Attempt, CheckpointPolicy, Clock, RecoveryEvent, RecoveryPolicy
from tinker_recovery.telemetry import names
from tinker_recovery.testing import LocalTinker, RunState

ADAM = types.AdamParams(learning_rate=5e-2)
MODEL = "Qwen/Qwen3-8B"
SEED = 7
POLL_S = 0.05
"""Between two polls, where a test waits for what they find."""


def batch(step: int) -> list[types.Datum]:
    """One step's batch, a function of the step alone."""
    tokens = [(step * 7 + offset * offset) % 50 for offset in range(9)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[8])
            },
        )
    ]


async def train(attempt: Attempt, *, steps: int, depth: int = 0) -> None:
    """Train to ``steps``, keeping ``depth`` batches submitted ahead."""
    await loop(attempt.client, attempt.start_step, steps, depth)


async def loop(
    client: object, start: int, steps: int, depth: int, done: Callable[[int], None] | None = None
) -> None:
    """The loop itself, on any client with TrainingClient's surface."""
    training: tinker.TrainingClient = client  # type: ignore[assignment]  # a SupervisedClient has the same surface
    pending: deque[tuple[int, object, object]] = deque()
    for step in range(start, steps + depth):
        if step < steps:
            forward = training.forward_backward(batch(step), "cross_entropy")
            pending.append((step, forward, training.optim_step(ADAM)))
        if pending and pending[0][0] <= step - depth:
            at, forward_, update = pending.popleft()
            await forward_  # type: ignore[misc]  # an APIFuture
            await update  # type: ignore[misc]  # an APIFuture
            if done is not None:
                done(at)


async def bare_run(server_service: tinker.ServiceClient, *, steps: int) -> str:
    """An undisturbed run on the bare SDK; returns its Tinker run id."""
    service = server_service
    pending = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client(MODEL, rank=8, seed=SEED)
    )
    client = await pending
    try:
        await loop(client, 0, steps, 0)
    finally:
        await service.close("success")
    return str(client.model_id)


_UNDISTURBED: dict[int, RunState] = {}


async def undisturbed_state(local: LocalTinker, *, steps: int) -> RunState:
    """What a run of so many steps ends with on the bare SDK if nothing goes wrong.

    The same on every server, so it is trained once for each number of steps.
    """
    if steps not in _UNDISTURBED:
        run_id = await bare_run(local.service(), steps=steps)
        _UNDISTURBED[steps] = local.run_state(run_id)
    return _UNDISTURBED[steps]


class InstantClock:
    """A clock whose sleeps end at once, and are written down.

    The Monitor's of ``poll_interval_s`` never end, nor do those of the watch over its heartbeat,
    and of what says that a run takes long to begin.
    Between two polls of another interval it really sleeps a moment, and between two rounds of the
    retention loop for as long as asked, and writes nothing down: they would be all that the
    processor does.
    """

    def __init__(self, *, poll_interval_s: float) -> None:
        self.slept: list[float] = []
        self._poll_interval_s = poll_interval_s

    async def _sleep(self, seconds: float) -> None:
        task = asyncio.current_task()
        never = "heartbeat", "first contact"
        if seconds == self._poll_interval_s or (
            task and any(each in task.get_name() for each in never)
        ):
            await anyio.sleep_forever()
        if task and "retention" in task.get_name():
            return await anyio.sleep(seconds)
        if task and "/monitor" in task.get_name():
            return await anyio.sleep(POLL_S)
        self.slept.append(seconds)
        return await anyio.lowlevel.checkpoint()

    @property
    def clock(self) -> Clock:
        """To be given to a Supervisor."""
        return Clock(sleep=self._sleep, random=lambda: 0.0)


class CrashAtDetection:
    """Has the Executor raise as soon as it has detected a fault: the clock it reads next raises.

    Args:
        errors: What it raises, one for each time.
    """

    def __init__(self, *errors: BaseException) -> None:
        self._errors = list(errors)
        self._due = False

    def note(self, event: RecoveryEvent) -> None:
        """To be the Supervisor's ``on_event``."""
        if event.name == names.EVENT_DETECTED:
            self._due = bool(self._errors)

    def monotonic(self) -> float:
        """To be that of the Supervisor's clock."""
        if self._due:
            self._due = False
            raise self._errors.pop(0)
        return time.monotonic()


def policy(**changes: object) -> RecoveryPolicy:
    """An enabled policy that saves every five steps, changed as given."""
    defaults: dict[str, object] = {
        "enabled": True,
        "backoff_jitter": 0.0,
        # What an instant clock would make a busy loop of; the tests of silence turn it on.
        "stall_after_s": "off",
        # Its requests would be among those that the tests count and disturb; its own turn it on.
        "canary": None,
        # So would its session; its own tests turn it on.
        "standby": "none",
        # Most tests count checkpoints, or look at starting over; test_metadata.py has the default.
        "checkpoints": CheckpointPolicy(save_every=5, save_at_start=False),
    }
    return RecoveryPolicy.model_validate(defaults | changes)


def quick(**changes: object) -> RecoveryPolicy:
    """As :func:`policy`, without backoff."""
    return policy(**({"backoff_s": 0.0, "max_backoff_s": 0.0} | changes))


def most_steps(local: LocalTinker) -> int:
    """Optimizer steps of the run at the server that has the most; 0 if there is none."""
    return max((local.run_state(run).steps for run in local.runs()), default=0)


def script(folder: Path, code: str) -> str:
    """The path of this code as a file: a process of it need not import the SDK itself."""
    file = folder / "script.py"
    # A process of the same code may be about to read it, and would do nothing if it were empty.
    whole = file.with_suffix(".part")
    whole.write_text(code, encoding="utf-8")
    whole.replace(file)
    return str(file)


@contextmanager
def process(
    arguments: Sequence[str], *, stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[str]]:
    """A Python process of our own, killed in the end whatever happens."""
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    ) as running:
        try:
            yield running
        finally:
            running.kill()


async def interrupted(running: subprocess.Popen[str]) -> str:
    """Send it Ctrl-C; returns what it wrote to stderr on its way out."""
    running.send_signal(signal.SIGINT)
    _, errors = await anyio.to_thread.run_sync(lambda: running.communicate(timeout=10))
    # Python's own way to die of Ctrl-C, which the shell and `make` understand.
    assert running.returncode == -signal.SIGINT, errors
    return errors


STARTED_WITHIN_S = 30.0
"""Time for a process to start and import the SDK on a machine under load."""


async def until(true: Callable[[], bool], limit_s: float = 30.0) -> None:
    """Wait for something that another thread or process brings about."""
    with anyio.fail_after(limit_s):
        while not true():  # noqa: ASYNC110 - what is waited for cannot set an event of this loop
            await anyio.sleep(0.001)


async def cancelled_in(phase: str, work: Callable[..., Coroutine[Any, Any, object]]) -> None:
    """Cancel what reports its progress, a moment after it has reached this phase."""
    there = anyio.Event()

    def progress(current: str) -> None:
        if phase in current:
            there.set()

    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(work, progress=progress))
        await there.wait()
        await anyio.sleep(0.03)
        group.cancel_scope.cancel()
    assert group.cancel_scope.cancelled_caught
