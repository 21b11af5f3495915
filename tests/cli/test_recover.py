"""``tinker-recovery recover``, on a real service: what restores, and how to resume from it."""

from __future__ import annotations

import functools
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import tinker
from click.testing import CliRunner, Result
from loops import MODEL, SEED, loop, policy, train
from named_runs import NAMED, left_at, trained_to

from tinker_recovery import Attempt, CheckpointPolicy, Supervisor
from tinker_recovery.cli import main
from tinker_recovery.journal import default_path
from tinker_recovery.testing import LocalTinker


async def _recover(*arguments: str) -> Result:
    def call() -> Result:
        return CliRunner().invoke(main, ["recover", *arguments], catch_exceptions=False)

    return await anyio.to_thread.run_sync(call)


async def _json(*arguments: str, expect: int = 0) -> Any:
    result = await _recover(*arguments, "--json")
    assert result.exit_code == expect, result.output
    return json.loads(result.stdout)


async def _crashes(attempt: Attempt) -> None:
    await train(attempt, steps=5)
    raise ValueError("a bug of the loop's own")


async def _left_run() -> str:
    """A run with checkpoints at 2 and 4 that ended by an error of its own; its Tinker run id."""
    given = policy(checkpoints=CheckpointPolicy(save_at_start=False, save_every=2, keep_last=9))
    with pytest.raises(ValueError, match="a bug"):
        async with Supervisor(given) as supervisor:
            await supervisor.run(_crashes, base_model=MODEL, rank=8, seed=SEED, name="sft-42")
    return supervisor.runs[0].segments[0].run_id


async def test_without_a_key_it_says_what_it_asks_the_service_for(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del local
    monkeypatch.delenv("TINKER_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = await _recover("sft-42")
    assert done.exit_code == 2
    assert "recover has the service load the checkpoint, so it needs what training " in done.stderr
    assert "there is no API key for the service: set TINKER_API_KEY" in done.stderr


def _paths(local: LocalTinker, run_id: str) -> dict[int, str]:
    return {each.steps: each.path for each in local.checkpoints(run_id)}


def _written() -> list[str]:
    """The contents of the journal."""
    with closing(sqlite3.connect(default_path())) as database:
        return list(database.iterdump())


async def test_the_newest_valid_checkpoint_is_restored_and_nothing_else_changes(
    local: LocalTinker,
) -> None:
    run_id = await _left_run()
    paths, before = _paths(local, run_id), _written()
    newest = max(paths)
    result = await _json("sft-42")
    assert (result["restored"], result["checkpoint"], result["step"]) == (
        True,
        paths[newest],
        newest,
    )
    assert (result["base_model"], result["lora_rank"], result["optimizer"]) == (MODEL, 8, True)
    assert result["run_id"] not in ("", run_id)
    assert result["resumes"]
    assert result["resume_with"] == f'supervisor.attempts(from_checkpoint="{paths[newest]}")'
    # It was a session of its own, and is over; the fixture looks at all of them.
    session = result["run_id"].partition(":train:")[0]
    assert local.sessions()[session] not in ("active", "interrupted")
    shown = (await _recover(run_id)).stdout
    assert f"checkpoint   {paths[newest]}, step {newest}" in shown
    assert "run the command of 'sft-42' again: it starts from this checkpoint" in shown
    assert (_written(), _paths(local, run_id)) == (before, paths)


async def test_what_is_tried_is_chosen_by_the_strategy_that_the_run_was_trained_under(
    local: LocalTinker,
) -> None:
    given = policy(
        checkpoint_strategy="step:2",
        checkpoints=CheckpointPolicy(save_at_start=False, save_every=2, keep_last=9),
    )
    with pytest.raises(ValueError, match="a bug"):
        async with Supervisor(given) as supervisor:
            await supervisor.run(_crashes, base_model=MODEL, rank=8, seed=SEED, name="sft-42")
    paths = _paths(local, supervisor.runs[0].segments[0].run_id)
    assert max(paths) > 2
    assert (await _json("sft-42"))["step"] == 2
    newest = paths[max(paths)]
    assert (await _json("sft-42", "--checkpoint", newest))["checkpoint"] == newest


async def test_one_that_does_not_load_is_skipped_and_if_none_does_it_is_status_1(
    local: LocalTinker,
) -> None:
    run_id = await _left_run()
    paths, before = _paths(local, run_id), _written()
    *older, newest = sorted(paths)
    local.damage(paths[newest], "truncated")
    result = await _json("sft-42")
    assert result["step"] == older[-1]
    (passed,) = result["passed_over"]
    assert passed.startswith(f"{paths[newest]}: ")
    assert "the service does not load it" in passed
    named = await _json("sft-42", "--checkpoint", paths[newest], expect=1)
    assert not named["restored"]
    assert "the service does not load it" in named["reason"]
    for step in older:
        local.damage(paths[step], "truncated")
    none = await _recover("sft-42")
    assert none.exit_code == 1
    assert "has checkpoints, and none can be used" in none.stderr
    # Only a recovery marks a checkpoint as bad.
    assert _written() == before


async def test_a_checkpoint_can_be_named_and_the_optimizer_left_out(local: LocalTinker) -> None:
    run_id = await _left_run()
    paths = _paths(local, run_id)
    result = await _json("sft-42", "--checkpoint", paths[2], "--weights-only")
    assert (result["step"], result["optimizer"], result["resumes"]) == (2, False, False)
    assert (
        result["resume_with"]
        == f'await recover_from_checkpoint("{paths[2]}", restore_optimizer=False)'
    )
    whole = local.run_state((await _json("sft-42", "--checkpoint", paths[2]))["run_id"])
    alone = local.run_state(result["run_id"])
    assert (whole.steps, whole.parent, alone.parent) == (2, paths[2], paths[2])
    assert whole.weights_digest == alone.weights_digest
    assert whole.optimizer_digest != alone.optimizer_digest


async def test_what_the_loop_has_saved_past_the_supervisor_is_tried_as_well(
    local: LocalTinker,
) -> None:
    """It bears no word of the run's, but is in one of its Tinker runs."""
    path = _paths(local, await _left_run())[2]
    local.damage(path, "no_metadata")
    result = await _json("sft-42", "--checkpoint", path)
    assert (result["restored"], result["step"], result["resumes"]) == (True, None, False)


async def test_a_run_the_journal_does_not_know_is_found_at_the_service(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_id = await _left_run()
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "another"))
    by_name, by_id = await _json("sft-42"), await _json(run_id)
    assert by_name["checkpoint"] == by_id["checkpoint"] == _paths(local, run_id)[by_name["step"]]
    assert (by_name["resumes"], by_id["resumes"]) == (True, False)
    assert not (tmp_path / "another").exists()


async def test_what_another_machine_has_trained_since_is_gone_back_to(
    local: LocalTinker, tmp_path: Path
) -> None:
    del local
    await left_at(7)
    assert (await _json(NAMED["name"]))["step"] == 5
    second = await left_at(12, journal=tmp_path / "another machine.sqlite3")
    found = await _json(NAMED["name"])
    assert (found["step"], found["resumes"]) == (10, True)
    assert found["checkpoint"].startswith(f"tinker://{second.runs[0].segments[-1].run_id}/")
    await trained_to(14, journal=tmp_path / "another machine.sqlite3")
    ended = await _json(NAMED["name"])
    assert (ended["step"], ended["resumes"]) == (14, False)


async def test_of_several_runs_of_a_name_at_the_service_one_is_chosen_by_its_lineage(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    newest = {}
    for folder in ("one", "two"):
        monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / folder))
        given = policy(checkpoints=CheckpointPolicy(save_at_start=False, save_every=2))
        with pytest.raises(ValueError, match="a bug"):
            async with Supervisor(given) as supervisor:
                await supervisor.run(
                    _crashes, base_model=MODEL, rank=8, seed=SEED, name="sft-42", lineage="new"
                )
        (run,) = supervisor.runs
        paths = _paths(local, run.segments[0].run_id)
        newest[run.lineage] = paths[max(paths)]
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "three"))
    unchosen = await _recover("sft-42")
    assert unchosen.exit_code == 2
    for lineage, path in newest.items():
        assert f'lineage="{lineage}"' in unchosen.stderr
        assert (await _json("sft-42", "--lineage", lineage[:8]))["checkpoint"] == path


async def test_of_a_run_that_was_not_supervised_a_checkpoint_has_to_be_named(
    local: LocalTinker,
) -> None:
    del local
    service = tinker.ServiceClient()
    pending = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client(MODEL, rank=8, seed=SEED)
    )
    client = await pending
    await loop(client, 0, 1, 0)
    path = (await client.save_state("mine")).path
    run_id = str(client.model_id)
    await service.close("success")
    unnamed = await _json(run_id, expect=1)
    assert "give one (--checkpoint PATH)" in unnamed["reason"]
    result = await _json(run_id, "--checkpoint", path)
    assert (result["checkpoint"], result["step"]) == (path, None)
    assert "start_step=" in result["resume_with"]
    assert not result["resumes"], "no command of a supervised run goes on from it"


async def test_a_run_that_is_being_trained_is_refused_unless_a_checkpoint_is_named(
    local: LocalTinker,
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8, name="sft-42"):
            async with attempt:
                await train(attempt, steps=1)
                path = (await attempt.client.save_state("mine")).path
                held = await _json("sft-42", expect=1)
                assert "is being trained by process" in held["reason"]
                assert (await _json("sft-42", "--checkpoint", path))["step"] == 1
    assert "active" not in local.sessions().values()


async def test_what_is_wrong_is_status_2_and_what_cannot_be_read_is_status_3(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Supervisor(policy()) as supervisor:
        loop_ = functools.partial(train, steps=1)
        for name in ("one", "other"):
            await supervisor.run(loop_, base_model=MODEL, rank=8, name=name)
    path = local.checkpoints(supervisor.runs[0].segments[0].run_id)[0].path
    for arguments, status, said in (
        (["unknown"], 1, "there is no run 'unknown'"),
        (["unknown:train:0"], 1, "does not know a Tinker run"),
        (["one", "--checkpoint", "step-1"], 2, "is not of the form"),
        (["other", "--checkpoint", path], 2, "is no checkpoint of run 'other'"),
        (["one", "--journal", "nowhere.sqlite"], 3, "there is no journal at nowhere.sqlite"),
    ):
        done = await _recover(*arguments)
        assert (done.exit_code, done.stdout) == (status, "")
        assert said in done.stderr
    monkeypatch.setenv("TINKER_RECOVERY_STATUS_TIMEOUT_S", "0")
    refused = await _recover("one")
    assert refused.exit_code == 2
    assert "from variable TINKER_RECOVERY_STATUS_TIMEOUT_S" in refused.stderr
    monkeypatch.setenv("TINKER_RECOVERY_STATUS_TIMEOUT_S", "0.3")
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    away = await _recover("unknown:train:0")
    assert away.exit_code == 3
