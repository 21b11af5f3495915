"""The cookbook's recipes, unchanged: poisoned, they end as if nothing had happened."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from loops import until

from tinker_recovery import (
    CheckpointPolicy,
    RecoveryPolicy,
    RunFinished,
    Supervisor,
    UsageError,
)
from tinker_recovery.faults import Kind
from tinker_recovery.testing import FaultRule, LocalTinker, RunState

pytest.importorskip(
    "tinker_cookbook",
    reason="tinker-cookbook is not installed: docs/cookbook.md says how, its own way needs a "
    "package that not every index has",
)

from recipes_world import (
    MODEL,
    RECIPES,
    RL_STEPS,
    STEPS,
    records,
    steps_logged,
    supervised,
    use,
)
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.supervised import train as sl_train

pytestmark = [
    pytest.mark.timeout(120),
    # The recipes' own calls; ours are held not to make any.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SEED = 7


def policy(**changes: Any) -> RecoveryPolicy:
    given: dict[str, Any] = {
        "enabled": True,
        "backoff_s": 0.0,
        "max_backoff_s": 0.0,
        "poll_interval_s": 0.1,
        "stall_after_s": 3.0,
        "checkpoints": CheckpointPolicy(save_every=3),
    }
    return RecoveryPolicy(**(given | changes))


async def trained(
    folder: Path,
    recipe: str = "supervised",
    *rules: FaultRule,
    changes: dict[str, Any] | None = None,
    **policy_changes: Any,
) -> tuple[RunState, list[Kind]]:
    """Train by a recipe on a server of its own; the end, and the faults recovered from."""
    main, config = RECIPES[recipe]
    async with LocalTinker(sampling_seed=1) as local:
        use(local)
        for rule in rules:
            local.inject(rule)
        async with Supervisor(
            policy(**policy_changes), journal=folder / "journal.db"
        ) as supervisor:
            await supervisor.run_cookbook(main, config(folder, **(changes or {})), seed=SEED)
        (run,) = supervisor.runs
        state = local.run_state(run.segments[-1].run_id)
        assert state.weights_digest != await _untrained(local), "it has nothing to lose"
    return state, [recovery.fault.kind for recovery in run.recoveries]


async def _untrained(local: LocalTinker) -> str:
    """The weights that every run here begins with."""
    service = local.service()
    making = await anyio.to_thread.run_sync(
        functools.partial(service.create_lora_training_client, MODEL, rank=8, seed=SEED)
    )
    client = await making
    digest = local.run_state(client.model_id).weights_digest
    await service.close("success")
    return digest


FAULTS = {
    "poisoned": FaultRule("poison", 5, "optim_step"),
    "poisoned in silence": FaultRule("poison", 5, quiet=True),
    "gone": FaultRule("gone", 5, "optim_step"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("recipe", RECIPES)
async def test_a_recipe_ends_as_if_nothing_had_happened(
    recipe: str, fault: str, tmp_path: Path
) -> None:
    undisturbed, _ = await trained(tmp_path / "undisturbed", recipe)
    ended, kinds = await trained(tmp_path / "disturbed", recipe, FAULTS[fault])
    assert len(kinds) == 1
    assert ended == undisturbed
    assert steps_logged(tmp_path / "disturbed") == steps_logged(tmp_path / "undisturbed")


@pytest.mark.parametrize("ahead", [0, 1, 3])
async def test_a_recipe_that_submits_ahead_repeats_and_leaves_out_nothing(
    ahead: int, tmp_path: Path
) -> None:
    changes = {"submit_ahead": ahead}
    undisturbed, _ = await trained(tmp_path / "undisturbed", changes=changes)
    rule = FaultRule("poison", 12, "optim_step")
    ended, kinds = await trained(tmp_path / "disturbed", "supervised", rule, changes=changes)
    assert len(kinds) == 1
    assert ended == undisturbed


@pytest.mark.parametrize(
    "changes",
    [
        {"stream_minibatch_config": {"groups_per_batch": 2, "num_minibatches": 1}},
        {"async_config": {"max_steps_off_policy": 1, "groups_per_batch": 2, "loss_fn": "ppo"}},
    ],
    ids=["stream", "async"],
)
async def test_other_ways_of_rl_lose_and_repeat_no_update(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """What is sampled depends on when, so the weights are not compared."""
    kinds = {
        "stream_minibatch_config": rl_train.StreamMinibatchConfig,
        "async_config": rl_train.AsyncConfig,
    }
    made = {name: kinds[name](**given) for name, given in changes.items()}
    rule = FaultRule("poison", 8, "optim_step")
    ended, faults = await trained(tmp_path, "rl", rule, changes=made)
    assert len(faults) == 1
    assert ended.steps == RL_STEPS
    logged = steps_logged(tmp_path)
    assert [logged[step] for step in range(RL_STEPS)] == [1] * RL_STEPS


@pytest.mark.parametrize("at", [8, 9])
@pytest.mark.parametrize("recipe", ["rl", "on_policy"])
async def test_a_recipe_of_several_substeps_recovers_between_two_iterations(
    recipe: str, at: int, tmp_path: Path
) -> None:
    changes = {"num_substeps": 2}
    undisturbed, _ = await trained(tmp_path / "undisturbed", recipe, changes=changes)
    rule = FaultRule("poison", at, "optim_step")
    ended, kinds = await trained(tmp_path / "disturbed", recipe, rule, changes=changes)
    assert len(kinds) == 1
    assert ended == undisturbed
    assert ended.steps == 2 * RL_STEPS
    assert steps_logged(tmp_path / "disturbed") == steps_logged(tmp_path / "undisturbed")


async def test_an_iteration_with_fewer_substeps_than_the_recipe_says_ends_with_its_metrics(
    tmp_path: Path,
) -> None:
    """It makes no more than it has examples, which are six."""
    changes = {"num_substeps": 8}
    undisturbed, _ = await trained(tmp_path / "undisturbed", "rl", changes=changes)
    rule = FaultRule("poison", undisturbed.steps // 2 + 1, "optim_step")
    ended, kinds = await trained(tmp_path / "disturbed", "rl", rule, changes=changes)
    assert len(kinds) == 1
    assert ended == undisturbed
    assert ended.steps < 8 * RL_STEPS
    assert steps_logged(tmp_path / "disturbed") == steps_logged(tmp_path / "undisturbed")


@pytest.mark.parametrize("action", ["hang", "fail"])
async def test_a_rollout_that_hangs_or_fails_is_asked_for_again(
    action: Any, tmp_path: Path
) -> None:
    undisturbed, _ = await trained(tmp_path / "undisturbed", "rl")
    rule = FaultRule(action, 5, request="asample")
    ended, kinds = await trained(tmp_path / "disturbed", "rl", rule)
    assert kinds == []
    assert ended.steps == undisturbed.steps == RL_STEPS


async def test_a_recipe_starts_over_where_no_checkpoint_is_there(tmp_path: Path) -> None:
    """Its records and metrics begin anew, and what was abandoned is kept beside."""
    no_saves: dict[str, Any] = {
        "checkpoints": CheckpointPolicy(save_every=1000, save_at_start=False)
    }
    changes = {"save_every": 0}
    undisturbed, _ = await trained(tmp_path / "a", changes=changes, **no_saves)
    rule = FaultRule("poison", 8, "optim_step")
    folder = tmp_path / "b"
    ended, kinds = await trained(folder, "supervised", rule, changes=changes, **no_saves)
    assert len(kinds) == 1
    assert ended == undisturbed
    assert steps_logged(folder) == dict.fromkeys(range(STEPS), 1)
    abandoned = (folder / "metrics.jsonl.abandoned-2").read_text().splitlines()
    assert [json.loads(line)["step"] for line in abandoned] == list(range(len(abandoned)))


@pytest.mark.parametrize("recipe", RECIPES)
async def test_the_same_call_continues_a_recipe_that_was_left(recipe: str, tmp_path: Path) -> None:
    undisturbed, _ = await trained(tmp_path / "undisturbed", recipe)
    main, config = RECIPES[recipe]
    folder = tmp_path / "left"
    async with LocalTinker(sampling_seed=1) as local:
        use(local)

        async def process(leaves_at: int | None) -> Supervisor:
            async with (
                Supervisor(policy(), journal=tmp_path / "j.db") as supervisor,
                anyio.create_task_group() as group,
            ):

                async def leave(step: int) -> None:
                    await until(lambda: any(run.step >= step for run in supervisor.runs))
                    group.cancel_scope.cancel()

                if leaves_at is not None:
                    group.start_soon(leave, leaves_at)
                await supervisor.run_cookbook(main, config(folder), seed=SEED)
            return supervisor

        first = await process(7)
        second = await process(None)
        (run,) = second.runs
        assert run.name == first.runs[0].name
        assert run.attempts[0].start_step > 0
        assert local.run_state(run.segments[-1].run_id) == undisturbed
        async with Supervisor(policy(), journal=tmp_path / "j.db") as supervisor:
            with pytest.raises(RunFinished):
                await supervisor.run_cookbook(main, config(folder))
    assert steps_logged(folder) == steps_logged(tmp_path / "undisturbed")


async def test_a_recipe_that_was_stopped_in_order_goes_on_by_the_same_call(tmp_path: Path) -> None:
    undisturbed, _ = await trained(tmp_path / "undisturbed")
    folder = tmp_path / "stopped"
    async with LocalTinker(sampling_seed=1) as local:
        use(local)

        async def process(*, stops: bool) -> Supervisor:
            async with (
                Supervisor(policy(), journal=tmp_path / "j.db") as supervisor,
                anyio.create_task_group() as group,
            ):

                async def stop() -> None:
                    await until(lambda: any(run.step >= 7 for run in supervisor.runs))
                    await supervisor.stop()

                if stops:
                    group.start_soon(stop)
                await supervisor.run_cookbook(sl_train.main, supervised(folder), seed=SEED)
            return supervisor

        with pytest.raises(asyncio.CancelledError):
            await process(stops=True)
        second = await process(stops=False)
        (run,) = second.runs
        assert run.attempts[0].start_step >= 7
        assert run.recoveries == []
        assert local.run_state(run.segments[-1].run_id) == undisturbed
    assert steps_logged(folder) == steps_logged(tmp_path / "undisturbed")


async def test_the_reference_of_dpo_stays_that_of_the_first_weights(tmp_path: Path) -> None:
    """Its own resume makes the trained policy its reference, and the loss hardly shows it."""
    undisturbed, _ = await trained(tmp_path / "undisturbed", "dpo")
    rule = FaultRule("poison", 12, "optim_step")
    ended, _ = await trained(tmp_path / "disturbed", "dpo", rule)
    assert ended == undisturbed

    def losses(folder: Path) -> list[float]:
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [row["dpo_loss"] for row in rows]

    assert losses(tmp_path / "disturbed") == losses(tmp_path / "undisturbed")


async def test_its_totals_go_on_where_they_were(tmp_path: Path) -> None:
    changes = {"submit_ahead": 0}
    await trained(tmp_path / "undisturbed", changes=changes)
    rule = FaultRule("poison", 12, "optim_step")
    await trained(tmp_path / "disturbed", "supervised", rule, changes=changes)
    ends = [records(tmp_path / each)[-1] for each in ("undisturbed", "disturbed")]
    assert ends[0]["elapsed_tokens"] == ends[1]["elapsed_tokens"]


async def test_of_two_at_once_the_one_that_trains_on_alone_is_still_supervised(
    tmp_path: Path,
) -> None:
    """Its fault comes once the other has ended."""
    undisturbed, _ = await trained(tmp_path / "undisturbed")
    async with LocalTinker(sampling_seed=1) as local:
        use(local)
        local.inject(FaultRule("poison", STEPS - 1, "optim_step"))
        async with (
            Supervisor(policy(), journal=tmp_path / "j.db") as supervisor,
            anyio.create_task_group() as group,
        ):
            for epochs in 1, 2:
                config = supervised(tmp_path / f"{epochs}", num_epochs=epochs)
                train = functools.partial(supervisor.run_cookbook, sl_train.main, seed=SEED)
                group.start_soon(train, config)
        (run,) = [each for each in supervisor.runs if each.recoveries]
        assert local.run_state(run.segments[-1].run_id) == undisturbed


async def test_a_recipe_starts_from_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    """With a fresh optimizer, as it says; and starts from them again where it starts over."""
    async with LocalTinker(sampling_seed=1) as local:
        use(local)
        main, _ = RECIPES["supervised"]
        async with Supervisor(policy(), journal=tmp_path / "j.db") as supervisor:
            await supervisor.run_cookbook(main, supervised(tmp_path / "first"), seed=SEED)
        path = records(tmp_path / "first")[-1]["state_path"]
        ends = []
        for name in ("undisturbed", "disturbed"):
            folder = tmp_path / name
            if name == "disturbed":
                local.inject(FaultRule("poison", STEPS + 8, "optim_step"))
            async with Supervisor(policy(), journal=tmp_path / "j.db") as supervisor:
                config = supervised(folder, load_checkpoint_path=path)
                await supervisor.run_cookbook(main, config)
            run = supervisor.runs[0]
            state = local.run_state(run.segments[-1].run_id)
            ends.append((state.weights_digest, state.optimizer_digest))
        assert len(run.recoveries) == 1
    assert ends[0] == ends[1]


async def _refused(main: Callable[..., Any], config: Any) -> str:
    async with LocalTinker() as local:
        use(local)
        async with Supervisor(policy(), journal=None) as supervisor:
            with pytest.raises(UsageError) as refused:
                await supervisor.run_cookbook(main, config)
        assert local.runs() == []
    return str(refused.value)


async def test_what_it_does_not_know_is_refused_before_anything_starts(tmp_path: Path) -> None:
    async def main(config: Any) -> None:
        del config

    assert "no recipe" in await _refused(main, supervised(tmp_path))
    (tmp_path / "checkpoints.jsonl").write_text('{"name": "1", "state_path": "tinker://a/b/c"}\n')
    said = await _refused(sl_train.main, supervised(tmp_path))
    assert "not supervised" in said
    assert (tmp_path / "checkpoints.jsonl").exists()


async def test_a_main_outside_a_supervisor_is_left_as_it_was(tmp_path: Path) -> None:
    before = vars(sl_train)["tinker"]
    await trained(tmp_path)
    assert vars(sl_train)["tinker"] is before
