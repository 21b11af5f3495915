"""A run that has finished is trained on by one argument, to the weights of one that never did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inspection import training_sessions
from loops import policy, undisturbed_state
from named_runs import NAMED, Killed, begun_at, left_at, trained_to

from tinker_recovery import RunFinished, Supervisor, UsageError
from tinker_recovery.journal import STATE_FOLDER, default_path
from tinker_recovery.journal.reading import read_run
from tinker_recovery.testing import LocalTinker

STEPS = 22


async def test_extend_goes_on_from_the_last_step_to_the_weights_of_one_that_never_finished(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    await trained_to(12)
    supervisor = await trained_to(STEPS, extend=True)
    (run,) = supervisor.runs
    assert begun_at(supervisor) == [12]
    assert list(run.recoveries) == []
    assert local.run_state(run.segments[-1].run_id) == expected
    view = read_run(default_path(), "sft-42")
    assert view is not None
    assert (view.state, view.step, view.incidents) == ("finished", STEPS, ())
    assert [each.outcome for each in view.attempts] == ["finished", "finished"]


async def test_a_finished_run_says_how_to_train_on(local: LocalTinker) -> None:
    await trained_to(STEPS)
    with pytest.raises(RunFinished, match=r"at step 22.*To train on from there.*extend=True"):
        await trained_to(STEPS)
    assert len(training_sessions(local)) == 1


async def test_extend_changes_nothing_for_a_run_that_is_new_or_not_finished(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    await left_at(12, by=Killed, extend=True)
    supervisor = await trained_to(STEPS, extend=True)
    assert begun_at(supervisor) == [10]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_the_same_command_again_trains_nothing_and_ends_well(local: LocalTinker) -> None:
    await trained_to(STEPS, extend=True)
    supervisor = await trained_to(STEPS, extend=True)
    assert begun_at(supervisor) == [STEPS]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id).steps == STEPS


async def test_killed_while_it_trains_on_it_is_resumed_like_any_other(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    await trained_to(12)
    await left_at(18, by=Killed, extend=True)
    supervisor = await trained_to(STEPS)
    assert begun_at(supervisor) == [15]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def test_a_run_that_finished_on_another_machine_is_trained_on_as_well(
    local: LocalTinker, tmp_path: Path
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    await trained_to(12, journal=tmp_path / "there")
    supervisor = await trained_to(STEPS, journal=tmp_path / "here", extend=True)
    assert begun_at(supervisor) == [12]
    assert list(supervisor.runs[0].recoveries) == []
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected
    back = await trained_to(STEPS + 2, journal=tmp_path / "there", extend=True)
    assert begun_at(back) == [STEPS]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": None}, "extend=True goes with name="),
        ({"extend": "yes"}, r"extend='yes' is not allowed: True or False"),
    ],
)
async def test_what_does_not_go_together_is_refused(
    local: LocalTinker, given: dict[str, Any], said: str
) -> None:
    del local
    async with Supervisor(journal=STATE_FOLDER) as supervisor:
        with pytest.raises(UsageError, match=said):
            supervisor.attempts(**{**NAMED, "extend": True, **given})


@pytest.mark.parametrize("given", [{"journal": None}, {"policy": policy(enabled=False)}], ids=str)
async def test_where_nothing_is_found_again_it_is_refused_instead_of_begun_anew(
    local: LocalTinker, given: dict[str, Any]
) -> None:
    del local
    async with Supervisor(**given) as supervisor:
        with pytest.raises(UsageError, match="none is found again with journal=None or enabled"):
            supervisor.attempts(**NAMED, extend=True)
