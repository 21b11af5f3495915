"""Runs on a service whose answers to the same request differ a little each time."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from inspection import internals_of, rejected
from loops import MODEL, SEED, batch, loop, quick, train, undisturbed_state, until

from tinker_recovery import Attempt, CheckpointPolicy, Supervisor
from tinker_recovery.checkpoints.canary import NOISE_MISTAKEN
from tinker_recovery.journal import Journal
from tinker_recovery.testing import LocalTinker

STEPS = 12
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}


@pytest_asyncio.fixture
async def noisy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """Trains exactly, and answers with noise."""
    async with LocalTinker(dialect="noisy") as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server


@pytest.mark.parametrize("canary", ["auto", tuple(batch(3))], ids=["auto", "the user's"])
async def test_a_poisoned_run_ends_with_the_bits_of_the_undisturbed_one(
    noisy: LocalTinker, canary: object
) -> None:
    expected = await undisturbed_state(noisy, steps=STEPS)
    noisy.poison(at_step=8)
    async with Supervisor(quick(canary=canary)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert not rejected(run)
    assert noisy.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize("left", ["the journal", "the checkpoints"])
async def test_so_does_a_process_that_finds_the_noise_an_earlier_one_measured(
    noisy: LocalTinker, tmp_path: Path, left: str
) -> None:
    expected = await undisturbed_state(noisy, steps=STEPS)
    file = tmp_path / "journal"

    async def stopped(attempt: Attempt) -> None:
        await train(attempt, steps=11)
        await attempt.client.drain()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with Supervisor(quick(canary="auto"), journal=file) as supervisor:
            await supervisor.run(stopped, name="same", **START)
    if left == "the checkpoints":
        with Journal(file, service=noisy.base_url).database.transaction() as database:
            database.execute("DELETE FROM notes WHERE kind = 'prompt'")
    async with Supervisor(quick(canary="auto"), journal=file) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), name="same", **START)
    (run,) = supervisor.runs
    assert not rejected(run)
    assert internals_of(run).checkpoints.canaries.noise > 1e-4
    assert noisy.run_state(run.segments[-1].run_id) == expected


async def test_a_process_that_finds_no_noise_measured_measures_it_on_what_it_has_restored(
    noisy: LocalTinker, tmp_path: Path
) -> None:
    """The journal and the checkpoints are those of a version without a canary."""
    file = tmp_path / "journal"

    async def stopped(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with Supervisor(quick(), journal=file) as supervisor:
            await supervisor.run(stopped, name="same", **START)
    given = quick(canary=tuple(batch(3)))
    async with Supervisor(given, journal=file) as supervisor:
        await supervisor.run(functools.partial(train, steps=8), name="same", **START)
        canaries = internals_of(supervisor.runs[0]).checkpoints.canaries
    assert len(noisy.runs()) == 2
    assert canaries.measured
    assert canaries.noise > 1e-4


async def test_a_checkpoint_of_another_prompt_is_not_compared_with(
    local: LocalTinker, tmp_path: Path
) -> None:
    """The user changes the canary, and runs the same command again after a kill."""
    expected = await undisturbed_state(local, steps=STEPS)
    file = tmp_path / "journal"

    async def killed(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with Supervisor(quick(canary=tuple(batch(3))), journal=file) as supervisor:
            await supervisor.run(killed, name="same", **START)
    async with Supervisor(quick(canary=tuple(batch(4))), journal=file) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), name="same", **START)
    (run,) = supervisor.runs
    assert run.attempts[0].start_step >= 5, "from a checkpoint, and not from the beginning"
    assert not rejected(run)
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_what_an_earlier_version_took_for_other_weights_is_tried_again(
    local: LocalTinker, tmp_path: Path
) -> None:
    file = tmp_path / "journal"
    given = quick(canary=tuple(batch(3)))
    async with Supervisor(given, journal=file) as supervisor:
        await supervisor.run(functools.partial(train, steps=5), **START)
        (stored,) = local.checkpoints(supervisor.runs[0].segments[0].run_id)
    with Journal(file, service=local.base_url) as journal:
        journal.mark_bad(stored.path, f"{NOISE_MISTAKEN} to 0.0021")
        assert not journal.notes().bad
        journal.mark_bad(stored.path, "a person's reason")
        assert list(journal.notes().bad) == [stored.path]


@pytest.mark.parametrize("canary", ["auto", tuple(batch(3))], ids=["auto", "the user's"])
async def test_weights_lost_in_an_outage_that_met_no_request_of_the_loop_are_noticed(
    noisy: LocalTinker, canary: object
) -> None:
    """The noise is known by then, also where the run began with a save."""
    expected = await undisturbed_state(noisy, steps=STEPS)

    async def body(attempt: Attempt) -> None:
        if attempt.number == 1:
            await train(attempt, steps=8)
            await attempt.client.drain()
            noisy.begin_outage(status=503, rollback=True)
            asked = noisy.stats.by_route["training_run"]
            await until(lambda: noisy.stats.by_route["training_run"] > asked + 1)
            noisy.end_outage()
            await loop(attempt.client, 8, STEPS, 0)
        else:
            await train(attempt, steps=STEPS)

    given = quick(canary=canary, poll_interval_s=0.1, checkpoints=CheckpointPolicy(save_every=5))
    async with Supervisor(given) as supervisor:
        await supervisor.run(body, **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert noisy.run_state(run.segments[-1].run_id) == expected
