"""Runs that no journal here knows: whose checkpoints those of a name are, and what is refused."""

from __future__ import annotations

import asyncio
import functools
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
import tinker
from inspection import internals_of, set_quiet_s, training_sessions
from loops import ADAM, MODEL, batch, loop, policy, train, undisturbed_state
from named_runs import NAMED, Died, begun_at, left_at, trained_to

from tinker_recovery import (
    AmbiguousRun,
    Attempt,
    ContradictoryCheckpoints,
    DeadlineExceeded,
    RunFinished,
    Supervisor,
    UsageError,
)
from tinker_recovery.journal import default_path
from tinker_recovery.journal.recalled import FOLDER
from tinker_recovery.run import open as open_
from tinker_recovery.run.claiming import Lease
from tinker_recovery.service import FromBaseModel
from tinker_recovery.testing import LocalTinker, StoredCheckpoint

STEPS = 14


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
    first = (await left_at(7)).runs[0].lineage
    _abandon()
    second = (await left_at(12)).runs[0].lineage
    _lose_the_journal()
    return first, second


async def test_of_several_runs_of_a_name_none_is_guessed_and_each_is_listed(
    local: LocalTinker,
) -> None:
    lineages = await _two_of_one_name()
    sessions = len(training_sessions(local))
    with pytest.raises(AmbiguousRun) as caught:
        await trained_to(STEPS)
    assert set(caught.value.lineages) == set(lineages)
    said = str(caught.value)
    assert "run 'sft-42' is not in this journal, and the service has 2 runs of that name" in said
    assert 'lineage="new"' in said
    for lineage, step in zip(lineages, (5, 10), strict=True):
        (line,) = [each for each in said.splitlines() if f'lineage="{lineage}"' in each]
        assert f"{MODEL}, step {step}, saved 20" in line
        assert "not finished" in line
    assert len(training_sessions(local)) == sessions, "nothing was opened for it"


async def test_where_the_service_does_not_say_how_sessions_ended_a_run_is_not_called_unfinished(
    serving: Callable[..., Any],
) -> None:
    async with serving(dialect="bare"):
        await _two_of_one_name()
        with pytest.raises(AmbiguousRun) as caught:
            await trained_to(STEPS)
        lines = [each for each in str(caught.value).splitlines() if f"{MODEL}, step" in each]
        assert [line.rpartition(", ")[2] for line in lines] == ["not known to be finished"] * 2


@pytest.mark.parametrize(("which", "step"), [(0, 5), (1, 10)])
async def test_the_one_that_is_chosen_is_continued_to_the_same_weights(
    local: LocalTinker, which: int, step: int
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    lineages = await _two_of_one_name()
    supervisor = await trained_to(STEPS, lineage=lineages[which][:6])
    assert supervisor.runs[0].lineage == lineages[which]
    assert begun_at(supervisor) == [step]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_a_new_run_may_be_begun_beside_those_of_its_name_and_is_resumed_by_the_same_command(
    local: LocalTinker,
) -> None:
    del local
    lineages = await _two_of_one_name()
    third = (await left_at(7, lineage="new")).runs[0].lineage
    assert third not in lineages
    supervisor = await trained_to(STEPS, lineage="new")
    assert supervisor.runs[0].lineage == third
    assert begun_at(supervisor) == [5]


async def test_a_lineage_that_is_not_there_is_refused_and_those_that_are_there_are_listed(
    local: LocalTinker,
) -> None:
    del local
    lineages = await _two_of_one_name()
    with pytest.raises(AmbiguousRun, match="no run of the name 'sft-42' has the lineage") as caught:
        await trained_to(STEPS, lineage="0123456789abcdef0")
    assert set(caught.value.lineages) == set(lineages)
    with pytest.raises(AmbiguousRun, match="no run of the name 'nobody' has the lineage 'ab'"):
        await trained_to(STEPS, name="nobody", lineage="ab")


async def test_another_lineage_than_the_journals_is_refused_with_both(local: LocalTinker) -> None:
    del local
    lineage = (await left_at(7)).runs[0].lineage
    with pytest.raises(UsageError, match=f"lineage='ffff' is not .* 'sft-42' .* {lineage}"):
        await trained_to(STEPS, lineage="ffff")
    assert begun_at(await trained_to(STEPS, lineage=lineage)) == [5]


async def test_a_lineage_needs_a_name_and_a_journal_to_look_it_up_for(local: LocalTinker) -> None:
    del local
    with pytest.raises(UsageError, match="lineage='ab' goes with name="):
        await trained_to(STEPS, name=None, lineage="ab")
    with pytest.raises(UsageError, match="lineage='' is not allowed"):
        await trained_to(STEPS, lineage="")
    with pytest.raises(UsageError, match="lineage='ab' chooses a run to resume"):
        async with Supervisor(policy(), journal=None) as supervisor:
            await supervisor.run(functools.partial(train, steps=1), **NAMED, lineage="ab")


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
    await left_at(12)
    ours = _newest(local)
    theirs = await _bare_script(ours, steps=steps, **changes)
    _lose_the_journal()
    sessions = len(training_sessions(local))
    with pytest.raises(ContradictoryCheckpoints, match="one Tinker run") as caught:
        await trained_to(STEPS)
    assert theirs in caught.value.paths
    assert len(caught.value.paths) == 2
    assert all(path in str(caught.value) for path in caught.value.paths)
    assert len(training_sessions(local)) == sessions, "nothing was opened for it"
    # Once it is not there any more, the run is resumed.
    local.list_as(theirs, user_metadata=None)
    assert begun_at(await trained_to(STEPS)) == [10]


async def test_a_save_past_our_client_with_copied_metadata_is_refused(local: LocalTinker) -> None:
    """In the same Tinker run, of which the metadata then says a step that it does not have."""

    async def passing_by(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        await attempt.client.drain()
        metadata = _newest(local).user_metadata or {}
        attempt.client.forward_backward(batch(7), "cross_entropy")
        await attempt.client.optim_step(ADAM)
        await attempt.client.training.save_state("mine", user_metadata=dict(metadata))
        raise Died

    with pytest.raises(Died):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(passing_by, **NAMED)
    _lose_the_journal()
    with pytest.raises(ContradictoryCheckpoints, match="gives no such name") as caught:
        await trained_to(STEPS)
    assert caught.value.paths == (_newest(local).path,)


async def test_a_step_that_was_changed_is_refused_with_the_name_and_the_metadata(
    local: LocalTinker,
) -> None:
    await left_at(12)
    ours = _newest(local)
    changed = {**(ours.user_metadata or {}), "tinker_recovery.step": "12"}
    local.list_as(ours.path, user_metadata=changed)
    _lose_the_journal()
    with pytest.raises(ContradictoryCheckpoints, match="its step is 10, and by its metadata 12"):
        await trained_to(STEPS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 8}, "seed=8 is not how run 'sft-42' was begun, which is seed=7"),
        ({"rank": 16}, "rank=16 .* rank=8"),
        ({"base_model": "other"}, "base_model='other' .* base_model='Qwen/Qwen3-8B'"),
        ({"train_mlp": False}, "train_mlp=False .* train_mlp=None"),
        ({"start_step": 4}, "start_step=4 .* start_step=0"),
    ],
)
async def test_a_run_that_was_begun_otherwise_is_not_taken_for_ours(
    local: LocalTinker, given: dict[str, Any], said: str
) -> None:
    await left_at(12)
    _lose_the_journal()
    sessions = len(training_sessions(local))
    with pytest.raises(UsageError, match=said):
        await trained_to(STEPS, **given)
    assert len(training_sessions(local)) == sessions, "nothing was opened for it"
    assert begun_at(await trained_to(STEPS)) == [10]


async def test_the_seed_that_was_drawn_is_taken_over_with_the_run(local: LocalTinker) -> None:
    first = (await left_at(7, seed=None)).runs[0].lineage
    _lose_the_journal()
    supervisor = await trained_to(STEPS, seed=None)
    (run,) = supervisor.runs
    assert run.lineage == first
    seeds = {
        json.loads((saved.user_metadata or {})["tinker_recovery.origin"])["seed"]
        for run_id in local.runs()
        for saved in local.checkpoints(run_id)
    }
    origin = internals_of(run).origin
    assert isinstance(origin, FromBaseModel)
    assert seeds == {origin.options["seed"]}


async def test_a_run_of_an_earlier_version_is_compared_with_what_the_service_says(
    local: LocalTinker,
) -> None:
    await left_at(12)
    for saved in local.checkpoints(local.runs()[0]):
        known = dict(saved.user_metadata or {})
        del known["tinker_recovery.origin"]
        local.list_as(saved.path, user_metadata=known)
    _lose_the_journal()
    with pytest.raises(UsageError, match="rank=16 is not how run 'sft-42' was begun"):
        await trained_to(STEPS, rank=16)
    assert begun_at(await trained_to(STEPS, seed=8)) == [10]


@pytest.mark.parametrize("dialect", ["hosted", "bare", "forgets_metadata"])
async def test_a_run_that_has_finished_says_so_where_only_the_service_knows_it(
    serving: Callable[..., Any], dialect: str
) -> None:
    async with serving(dialect=dialect) as local:
        await trained_to(STEPS)
        _lose_the_journal()
        sessions = len(training_sessions(local))
        with pytest.raises(RunFinished, match=r'at step 14.*lineage="new"') as caught:
            await trained_to(STEPS)
        assert (caught.value.run, caught.value.step) == ("sft-42", STEPS)
        assert caught.value.checkpoint == _newest(local).path
        assert len(training_sessions(local)) == sessions, "nothing was opened for it"
        assert begun_at(await trained_to(STEPS, lineage="new")) == [0]


@pytest.mark.parametrize("dialect", ["hosted", "bare"])
async def test_a_run_that_was_left_at_its_last_step_has_not_finished(
    serving: Callable[..., Any], dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_quiet_s(monkeypatch, 0.1)
    async with serving(dialect=dialect):
        await left_at(STEPS + 1)
        _lose_the_journal()
        assert begun_at(await trained_to(STEPS)) == [10]


async def _trains_there(journal: Path, busy: anyio.Event, lease: Lease = "both") -> None:
    """Another machine, which trains the run to its end."""

    async def slowly(attempt: Attempt) -> None:
        for step in range(60):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await anyio.sleep(0.02)
            if step == 6:
                busy.set()

    async with Supervisor(policy(), journal=journal, lease=lease) as supervisor:
        await supervisor.run(slowly, **NAMED)


async def test_a_run_that_another_machine_finishes_meanwhile_is_seen_to_be_finished(
    local: LocalTinker, tmp_path: Path
) -> None:
    busy = anyio.Event()
    running = asyncio.create_task(_trains_there(tmp_path / "there.db", busy))
    await busy.wait()
    with pytest.raises(RunFinished) as caught:
        await trained_to(STEPS)
    assert caught.value.step == 60
    assert caught.value.checkpoint == _newest(local).path
    await running


async def test_a_run_that_another_machine_keeps_training_is_not_waited_for_without_end(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a claim: with one, it is waited for as for any other process."""
    del local
    set_quiet_s(monkeypatch, 1.0)
    busy = anyio.Event()
    running = asyncio.create_task(_trains_there(tmp_path / "there.db", busy, "journal"))
    await busy.wait()
    with pytest.raises(DeadlineExceeded, match=r'end that process.*lineage="new"'):
        async with Supervisor(policy(max_wait_s=0.2), lease="journal") as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), **NAMED)
    assert not running.done()
    await running


async def test_a_save_past_our_client_with_copied_metadata_is_not_recovered_from(
    local: LocalTinker,
) -> None:
    """Its step is that of an older save, and it has what was trained since."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=10)

    async def passing_by(attempt: Attempt) -> None:
        if attempt.number == 1:
            await train(attempt, steps=8)
            await attempt.client.drain()
            metadata = _newest(local).user_metadata or {}
            await attempt.client.training.save_state("mine", user_metadata=dict(metadata))
        await loop(attempt.client, attempt.client.step, STEPS, 0)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(passing_by, **NAMED)
    assert begun_at(supervisor) == [0, 5]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


@pytest.mark.parametrize("lineage", ["{}/own", "../own"])
async def test_what_the_service_calls_a_run_is_no_way_out_of_the_folder_beside_the_journal(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lineage: str
) -> None:
    """A run that is over drops what it kept to be recalled, with its folder."""
    del local
    own = (tmp_path if "{}" in lineage else default_path().parent) / "own"
    own.mkdir(parents=True)
    (own / "precious").write_text("mine")
    (default_path().parent / FOLDER).mkdir(parents=True)  # of another run
    named = SimpleNamespace(token_hex=lambda _: lineage.format(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(open_, "secrets", named)  # as whoever writes to the account may name it
        await left_at(7)
    for each in default_path().parent.iterdir():
        if each.is_file():
            each.unlink()
    supervisor = await trained_to(STEPS)
    assert begun_at(supervisor) == [5]
    assert supervisor.runs[0].lineage == lineage.format(tmp_path)
    assert (own / "precious").read_text() == "mine"
