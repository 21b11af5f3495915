"""Runs that no journal here knows: whose checkpoints those of a name are, and what is refused."""

from __future__ import annotations

import functools
import sqlite3
from contextlib import closing
from typing import Any

import anyio.to_thread
import pytest
import tinker
from loops import ADAM, MODEL, SEED, batch, loop, policy, train, undisturbed_state

from tinker_recovery import (
    AmbiguousRun,
    Attempt,
    ContradictoryCheckpoints,
    Supervisor,
    UsageError,
)
from tinker_recovery.journal import default_path
from tinker_recovery.testing import LocalTinker, StoredCheckpoint

STEPS = 14
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED, "name": "sft-42"}


class _Died(Exception):
    """The loop ends by an error of its own, as a crash of its process would end it."""


async def _left_at(step: int, **start: Any) -> str:
    """A run that was left when so many steps were done; its lineage."""

    async def dying(attempt: Attempt) -> None:
        await train(attempt, steps=step)
        raise _Died

    with pytest.raises(_Died):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(dying, **{**START, **start})
    return supervisor.runs[0].lineage


async def _go_on(**start: Any) -> Supervisor:
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **{**START, **start})
    return supervisor


def _began(supervisor: Supervisor) -> list[int]:
    return [attempt.start_step for attempt in supervisor.runs[0].attempts]


def _abandon() -> None:
    """As ``tinker-recovery abandon`` does it."""
    with closing(sqlite3.connect(default_path())) as database, database:
        database.execute("UPDATE runs SET state = 'abandoned'")


def _lose_the_journal() -> None:
    """Another machine, or a container without a disk."""
    for each in default_path().parent.iterdir():
        each.unlink()


async def _two_of_one_name() -> tuple[str, str]:
    """Two runs of one name that were left, at steps 7 and 12, and no journal; their lineages."""
    first = await _left_at(7)
    _abandon()
    second = await _left_at(12)
    _lose_the_journal()
    return first, second


async def test_of_several_runs_of_a_name_none_is_guessed_and_each_is_listed(
    local: LocalTinker,
) -> None:
    lineages = await _two_of_one_name()
    sessions = len(local.sessions())
    with pytest.raises(AmbiguousRun) as caught:
        await _go_on()
    assert set(caught.value.lineages) == set(lineages)
    said = str(caught.value)
    assert "run 'sft-42' is not in this journal, and the service has 2 runs of that name" in said
    assert 'lineage="new"' in said
    for lineage, step in zip(lineages, (5, 10), strict=True):
        (line,) = [each for each in said.splitlines() if f'lineage="{lineage}"' in each]
        assert f"{MODEL}, step {step}, saved 20" in line
        assert "not finished" in line
    assert len(local.sessions()) == sessions, "nothing was opened for it"


@pytest.mark.parametrize(("which", "step"), [(0, 5), (1, 10)])
async def test_the_one_that_is_chosen_is_continued_to_the_same_weights(
    local: LocalTinker, which: int, step: int
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    lineages = await _two_of_one_name()
    supervisor = await _go_on(lineage=lineages[which][:6])
    assert supervisor.runs[0].lineage == lineages[which]
    assert _began(supervisor) == [step]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_a_new_run_may_be_begun_beside_those_of_its_name_and_is_resumed_by_the_same_command(
    local: LocalTinker,
) -> None:
    del local
    lineages = await _two_of_one_name()
    third = await _left_at(7, lineage="new")
    assert third not in lineages
    supervisor = await _go_on(lineage="new")
    assert supervisor.runs[0].lineage == third
    assert _began(supervisor) == [5]


async def test_a_lineage_that_is_not_there_is_refused_and_those_that_are_there_are_listed(
    local: LocalTinker,
) -> None:
    del local
    lineages = await _two_of_one_name()
    with pytest.raises(AmbiguousRun, match="no run of the name 'sft-42' has the lineage") as caught:
        await _go_on(lineage="0123456789abcdef0")
    assert set(caught.value.lineages) == set(lineages)
    with pytest.raises(AmbiguousRun, match="no run of the name 'nobody' has the lineage 'ab'"):
        await _go_on(name="nobody", lineage="ab")


async def test_another_lineage_than_the_journals_is_refused_with_both(local: LocalTinker) -> None:
    del local
    lineage = await _left_at(7)
    with pytest.raises(UsageError, match=f"lineage='ffff' is not .* 'sft-42' .* {lineage}"):
        await _go_on(lineage="ffff")
    assert _began(await _go_on(lineage=lineage)) == [5]


async def test_a_lineage_needs_a_name_and_a_journal_to_look_it_up_for(local: LocalTinker) -> None:
    del local
    with pytest.raises(UsageError, match="lineage='ab' goes with name="):
        await _go_on(name=None, lineage="ab")
    with pytest.raises(UsageError, match="lineage='' is not allowed"):
        await _go_on(lineage="")
    with pytest.raises(UsageError, match="lineage='ab' chooses a run to resume"):
        async with Supervisor(policy(), journal=None) as supervisor:
            await supervisor.run(functools.partial(train, steps=1), **START, lineage="ab")


def _newest(local: LocalTinker) -> StoredCheckpoint:
    return local.checkpoints(local.runs()[0])[-1]


async def _bare_script(saved: StoredCheckpoint, *, steps: int, **changes: str) -> str:
    """Continue from a checkpoint without us, and save with its metadata, changed; the new path."""
    service = tinker.ServiceClient()
    pending = await anyio.to_thread.run_sync(
        lambda: service.create_training_client_from_state_with_optimizer(saved.path)
    )
    client = await pending
    await loop(client, saved.steps, saved.steps + steps, 0)
    changed = {f"tinker_recovery.{key}": value for key, value in changes.items()}
    metadata = {**(saved.user_metadata or {}), **changed}
    path = (await client.save_state("mine", user_metadata=metadata)).path
    await service.close("success")
    return str(path)


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        pytest.param(3, {}, id="a bare script that passed metadata on"),
        pytest.param(0, {"step": "12"}, id="a copy with its step raised"),
        pytest.param(3, {"saved_by": "user", "step": "13", "sound_step": "13"}, id="a forgery"),
    ],
)
async def test_a_checkpoint_that_another_tinker_run_saved_with_our_metadata_is_refused_by_name(
    local: LocalTinker, steps: int, changes: dict[str, str]
) -> None:
    await _left_at(12)
    ours = _newest(local)
    theirs = await _bare_script(ours, steps=steps, **changes)
    _lose_the_journal()
    sessions = len(local.sessions())
    with pytest.raises(ContradictoryCheckpoints, match="one Tinker run") as caught:
        await _go_on()
    assert theirs in caught.value.paths
    assert len(caught.value.paths) == 2
    assert all(path in str(caught.value) for path in caught.value.paths)
    assert len(local.sessions()) == sessions, "nothing was opened for it"
    # Once it is not there any more, the run is resumed.
    local.list_as(theirs, user_metadata=None)
    assert _began(await _go_on()) == [10]


async def test_a_save_past_our_client_with_copied_metadata_is_refused(local: LocalTinker) -> None:
    """In the same Tinker run, of which the metadata then says a step that it does not have."""

    async def passing_by(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        await attempt.client.drain()
        metadata = _newest(local).user_metadata or {}
        attempt.client.forward_backward(batch(7), "cross_entropy")
        await attempt.client.optim_step(ADAM)
        await attempt.client.training.save_state("mine", user_metadata=dict(metadata))
        raise _Died

    with pytest.raises(_Died):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(passing_by, **START)
    _lose_the_journal()
    with pytest.raises(ContradictoryCheckpoints, match="gives no such name") as caught:
        await _go_on()
    assert caught.value.paths == (_newest(local).path,)


async def test_a_step_that_was_changed_is_refused_with_the_name_and_the_metadata(
    local: LocalTinker,
) -> None:
    await _left_at(12)
    ours = _newest(local)
    changed = {**(ours.user_metadata or {}), "tinker_recovery.step": "12"}
    local.list_as(ours.path, user_metadata=changed)
    _lose_the_journal()
    with pytest.raises(ContradictoryCheckpoints, match="its step is 10, and by its metadata 12"):
        await _go_on()
