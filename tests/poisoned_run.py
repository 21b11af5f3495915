"""A real run, poisoned twice on its way, at a real server; it leaves a journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from loops import ADAM, MODEL, SEED, batch, policy

from tinker_recovery import Attempt, CheckpointPolicy, Supervisor
from tinker_recovery.journal.journal import JOURNAL_FILE
from tinker_recovery.journal.reading import EventView, RunView, read_events, read_run
from tinker_recovery.telemetry import json_line
from tinker_recovery.testing import FaultRule, LocalTinker

NAME = "<script>alert('sft')</script> & 42"
"""Nobody's idea of a name, and allowed."""

STEPS = 22
EVENTS = "events.jsonl"


async def _train(attempt: Attempt) -> None:
    for step in range(attempt.start_step, STEPS):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        attempt.report(loss=float((await forward).metrics["loss:sum"]))
        await update


async def leave_a_journal(folder: Path) -> None:
    """Train, with the journal in a folder, and the events as lines of ``events.jsonl`` there."""
    async with LocalTinker() as server:
        with pytest.MonkeyPatch.context() as patch, (folder / EVENTS).open("w") as log:
            patch.setenv("TINKER_BASE_URL", server.base_url)
            patch.setenv("TINKER_API_KEY", server.api_key)
            patch.setenv("TINKER_TELEMETRY", "0")
            for step in (8, 14):
                server.inject(FaultRule("poison", at_step=step))
            async with Supervisor(
                policy(
                    checkpoints=CheckpointPolicy(save_at_start=False, save_every=5, keep_last=2)
                ),
                journal=folder / JOURNAL_FILE,
                on_event=lambda event: print(json_line(event), file=log, flush=True),
            ) as supervisor:
                await supervisor.run(_train, base_model=MODEL, rank=8, seed=SEED, name=NAME)


def read_back(folder: Path) -> tuple[RunView, list[EventView]]:
    """The run and its events, as its journal tells them."""
    run = read_run(folder / JOURNAL_FILE, NAME)
    assert run is not None
    return run, read_events(folder / JOURNAL_FILE, NAME)
