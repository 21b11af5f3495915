"""Checkpoints that a loop saves under one name again and again, replacing the one before."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio
import saving_over
from loops import ADAM, MODEL, SEED, batch, process, quick, train, undisturbed_state, until

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    NoUsableCheckpoint,
    RecoveryPolicy,
    StartOptions,
    Supervisor,
    recover_from_checkpoint,
)
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 10
SCRIPT = str(Path(saving_over.__file__))


@asynccontextmanager
async def _server(monkeypatch: pytest.MonkeyPatch, **options: float) -> AsyncIterator[LocalTinker]:
    async with LocalTinker(save_s=options["save_s"], load_s=options["load_s"]) as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        await undisturbed_state(server, steps=STEPS)  # known from here on
        yield server


@pytest_asyncio.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """A server that takes longer to load a checkpoint than to save the next few."""
    async with _server(monkeypatch, save_s=0.2, load_s=1.0) as server:
        yield server


async def _ends_exactly(slow: LocalTinker, policy: RecoveryPolicy, *, every: int) -> list[int]:
    """Train to the end; the steps at which its attempts began."""
    expected = await undisturbed_state(slow, steps=STEPS)
    async with Supervisor(policy) as supervisor:
        await supervisor.run(
            functools.partial(saving_over.train, steps=STEPS, every=every),
            name=saving_over.NAME,
            base_model=MODEL,
            rank=8,
            seed=SEED,
        )
    (run,) = supervisor.runs
    began = [attempt.start_step for attempt in run.attempts]
    assert slow.run_state(run.segments[-1].run_id) == expected, f"attempts began at {began}"
    return began


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("save_every", [3, 100])
async def test_a_save_still_to_be_replaced_by_a_dead_attempt_is_never_restored_as_another_step(
    slow: LocalTinker, every: int, save_every: int
) -> None:
    """A pass fails; what is queued behind it is executed while the run is being recovered."""
    slow.inject(FaultRule("fail", 5, "forward_backward"))
    policy = quick(checkpoints=CheckpointPolicy(save_every=save_every, keep_last=9))
    began = await _ends_exactly(slow, policy, every=every)
    if save_every == 3:
        assert began == [0, 3], "one that nothing can replace any more is used instead"


@pytest.mark.timeout(120)
async def test_what_a_killed_process_had_queued_replaces_nothing_unnoticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Step 1 is listed, and step 2 is written in its place before the load has read it."""
    async with _server(monkeypatch, save_s=4.0, load_s=5.0) as server:
        with process([SCRIPT, "--steps", str(STEPS), "--die-at", "1"]) as killed:
            _, errors = await anyio.to_thread.run_sync(
                functools.partial(killed.communicate, timeout=60)
            )
            assert killed.returncode == -signal.SIGKILL, errors
        await _ends_exactly(server, quick(), every=STEPS + 1)
        assert "another save was written to its path while it was loaded" in caplog.text


class _Source:
    """A run that saves under one name whenever it is asked to, beside what starts from that."""

    def __init__(self) -> None:
        self.path = ""
        self._asked: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def step_and_save(self) -> None:
        """One step more, in the place of the one before."""
        done = asyncio.Event()
        self._asked.put_nowait(done)
        await done.wait()

    async def _train(self, attempt: Attempt) -> None:
        for step in range(100):
            done = await self._asked.get()
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            self.path = str((await attempt.client.save_state("latest", overwrite=True)).path)
            done.set()

    async def serve(self) -> None:
        """Until it is cancelled."""
        async with Supervisor(quick(), journal=None) as supervisor:
            await supervisor.run(self._train, base_model=MODEL, rank=8, seed=SEED)


@asynccontextmanager
async def _source() -> AsyncIterator[_Source]:
    source = _Source()
    serving = asyncio.create_task(source.serve())
    try:
        await source.step_and_save()
        yield source
    finally:
        serving.cancel()
        await asyncio.wait([serving])


def _loads(server: LocalTinker) -> int:
    return server.stats.by_route.get("load_weights", 0)


async def test_what_a_run_is_started_from_is_not_taken_for_what_was_saved_in_its_place_meanwhile(
    slow: LocalTinker,
) -> None:
    """Step 1 is listed, and step 2 is written in its place before the load has read it."""
    async with _source() as source:
        start: StartOptions = {"from_checkpoint": source.path, "name": "from-latest"}
        began: list[int] = []

        async def body(attempt: Attempt) -> None:
            began.append(attempt.start_step)

        async def run() -> None:
            async with Supervisor(quick()) as supervisor:
                await supervisor.run(body, **start)

        starting = asyncio.create_task(run())
        await until(lambda: _loads(slow) == 1)
        await source.step_and_save()
        with pytest.raises(NoUsableCheckpoint, match=r"was written again while .* run it again"):
            await starting
        assert not began
        await run()
        assert began == [2], "run again, it starts from what is there by then"


async def test_a_client_made_by_hand_is_not_given_the_step_of_what_was_there_before(
    slow: LocalTinker,
) -> None:
    async with _source() as source:
        making = asyncio.create_task(recover_from_checkpoint(source.path))
        await until(lambda: _loads(slow) == 1)
        await source.step_and_save()
        with pytest.raises(NoUsableCheckpoint, match="was written again while"):
            await making


async def test_a_run_that_has_saved_nothing_does_not_go_back_to_what_has_replaced_its_beginning(
    slow: LocalTinker,
) -> None:
    """A later process finds another step at the path that the run was started from."""
    del slow

    async def dying(attempt: Attempt) -> None:
        await train(attempt, steps=attempt.start_step + 1)
        raise LookupError

    async with _source() as source:
        start: StartOptions = {"from_checkpoint": source.path, "name": "from-latest"}
        for again in (False, True):
            expected = NoUsableCheckpoint if again else LookupError
            with pytest.raises(expected, match="step 2 now.* begun at step 1" if again else None):
                async with Supervisor(quick()) as supervisor:
                    await supervisor.run(dying, **start)
            await source.step_and_save()
