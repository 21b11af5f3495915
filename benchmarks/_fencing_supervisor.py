"""A whole Supervisor in a process of its own, on a machine and with a journal of its own.

What it says: each point of ``Fate``, ``attempt`` (with the Tinker run and the first step), ``step``
once one is answered, ``rests``, and at last one of ``ENDS``.
"""

from __future__ import annotations

import logging
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import tinker
from _fencing_machine import Fate, be_on_machine, hurry
from _fencing_processes import Line
from _plain_loop import batch
from tinker import types

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    LeaseLost,
    RecoveryPolicy,
    RunFinished,
    RunHeld,
    Supervisor,
)

STEPS = 12
SAVE_EVERY = 3
ADAM = types.AdamParams(learning_rate=5e-2)
MODEL = "Qwen/Qwen3-8B"
NAME = "fenced"

ENDS = ("done", "finished", "refused", "lost", "crashed", "failed")
"""It trained to the end; the run had ended before; RunHeld; LeaseLost; its loop raised as it was
asked to; any other error."""

POLICY = RecoveryPolicy(
    enabled=True,
    max_attempts=20,
    backoff_s=0.02,
    max_backoff_s=0.2,
    poll_interval_s=0.2,
    checkpoints=CheckpointPolicy(save_every=SAVE_EVERY),
)


@dataclass(frozen=True)
class Script:
    """What a process is to do.

    Attributes:
        base_url: Of the server.
        api_key: For it.
        journal: Its file.
        settle_s: How long the service may take to list a new session.
        on_lease: What to do if another process holds the run.
        rests_at: The step before which it once makes no request until it hears ``go``; None for
            none.
        crashes_at: The step before which its loop raises; None for none.
        blocks: Whether it blocks its event loop while it rests.
        at: Where it kills or stops itself, as ``Fate`` says; empty for nowhere.
        by: SIGKILL or SIGSTOP.
        pace_s: Between two steps, in seconds.
        supervised: False for the bare SDK, whose weights the others have to end with.
    """

    base_url: str
    api_key: str
    journal: Path
    settle_s: float = 0.1
    on_lease: Literal["wait", "refuse"] = "wait"
    rests_at: int | None = None
    crashes_at: int | None = None
    blocks: bool = False
    at: str = ""
    by: signal.Signals = signal.SIGKILL
    pace_s: float = 0.02
    supervised: bool = True


class _CrashError(Exception):
    """The loop's own."""


def main(connection: Connection, host: str, script: Script) -> None:
    """A process's main."""
    be_on_machine(host)
    hurry(script.settle_s)
    line = Line(connection)
    fate = Fate(script.at, script.by, line.say)
    fate.watch_claims()
    logging.getLogger().addHandler(fate)
    anyio.run(_Player(line, script, fate).play)


class _Player:
    def __init__(self, line: Line, script: Script, fate: Fate) -> None:
        self._line = line
        self._script = script
        self._fate = fate
        self._rested = False

    def _service(self) -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self._script.base_url, api_key=self._script.api_key)

    async def play(self) -> None:
        """Train the run to its end, if it is ours."""
        try:
            if self._script.supervised:
                await self._supervised()
            else:
                await self._bare()
            self._line.say("done")
        except RunFinished:
            self._line.say("finished")
        except RunHeld as held:
            self._line.say("refused", host=held.host)
        except LeaseLost as lost:
            self._line.say("lost", why=str(lost))
        except _CrashError:
            self._line.say("crashed")
        except BaseException:  # noqa: BLE001 - all of it is reported
            why = [*self._fate.log[-5:], traceback.format_exc()[-2000:]]
            self._line.say("failed", why="\n".join(why))

    async def _supervised(self) -> None:
        script = self._script
        async with Supervisor(
            POLICY, journal=script.journal, service=self._service, on_event=self._fate.event
        ) as supervisor:
            await supervisor.run(
                self._attempt,
                base_model=MODEL,
                rank=8,
                seed=7,
                name=NAME,
                on_lease=script.on_lease,
            )

    async def _attempt(self, attempt: Attempt) -> None:
        self._fate.reached("attempt")
        client = attempt.client
        self._line.say("attempt", run=client.model_id, start=attempt.start_step)
        await self._train(client, attempt.start_step)

    async def _bare(self) -> None:
        service = self._service()
        pending = await anyio.to_thread.run_sync(
            lambda: service.create_lora_training_client(MODEL, rank=8, seed=7)
        )
        client = await pending
        self._line.say("attempt", run=client.model_id, start=0)
        await self._train(client, 0)
        await service.close("success")

    async def _train(self, client: object, start: int) -> None:
        training: tinker.TrainingClient = client  # type: ignore[assignment]  # a SupervisedClient has the same surface
        for step in range(start, STEPS):
            if step == self._script.crashes_at:
                raise _CrashError
            if step == self._script.rests_at and not self._rested:
                self._rested = True
                self._line.say("rests")
                await self._line.heard(blocks=self._script.blocks)
            forward: Any = training.forward_backward(batch(step), "cross_entropy")
            update: Any = training.optim_step(ADAM)
            await forward
            await update
            self._line.say("step", step=step)
            self._fate.reached("step")
            await anyio.sleep(self._script.pace_s)
