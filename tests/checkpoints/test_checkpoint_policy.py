from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import LINEAGE, NOW, listed, record
from pydantic import ValidationError

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, policy_from_settings
from tinker_recovery.checkpoints import (
    EverySteps,
    Evidence,
    KeepLast,
    SaveLedger,
    Situation,
    plan_deletions,
    renewals,
    retention_of,
    schedule_of,
)

OWN = EverySteps(3)
RULE = KeepLast(3)
STRATEGIES = ["steps", "epoch", "best", "last", "all", "auto"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strategy": "often"}, "'auto'"),
        ({"save_every": 0}, "save_every"),
        ({"save_every_s": 0}, "save_every_s"),
        ({"keep_last": -1}, "keep_last"),
        ({"keep_best": 0}, "keep_best"),
        ({"keep_every": 0}, "keep_every"),
        ({"ttl_s": 60}, "greater than or equal to 3600"),
        ({"ttl_s": 1e10}, "less than or equal to 315360000"),
        ({"max_deletes_per_s": 0}, "max_deletes_per_s"),
        ({"auto_mtbf_s": -1}, "auto_mtbf_s"),
        (
            {"strategy": "auto", "auto_min_steps": 9, "auto_max_steps": 8},
            "auto_max_steps=8 is below auto_min_steps=9",
        ),
        ({"keep_last": 0, "save_best": False}, "keep_last=0 with save_best=False"),
        ({"keep_last": 0, "strategy": "last"}, "keep_last=0 has no effect with strategy='last'"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_with_what_is_allowed(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        CheckpointPolicy.model_validate(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strategy": "auto", "save_every": 5}, "save_every=5 has no effect with strategy='auto'"),
        ({"strategy": "auto", "save_every": 100}, "save_every=100 has no effect"),
        ({"strategy": "best", "save_every": 5}, "save_every=5 has no effect with strategy='best'"),
        ({"strategy": "all", "keep_last": 3}, "keep_last=3 has no effect with strategy='all'"),
        ({"strategy": "all", "keep_best": 3}, "keep_best=3"),
        ({"strategy": "all", "keep_every": 3}, "keep_every=3"),
        ({"strategy": "all", "keep_if": bool}, "keep_if=<class 'bool'>"),
        ({"strategy": "all", "save_best": False}, "save_best=False"),
        ({"strategy": "all", "delete_user_saves": True}, "delete_user_saves=True"),
        ({"strategy": "last", "keep_last": 3}, "keep_last=3 has no effect with strategy='last'"),
        (
            {"save_every": 9, "auto_min_steps": 3},
            "auto_min_steps=3 has no effect with strategy='steps'",
        ),
        ({"strategy": "last", "auto_max_s": 60.0}, "auto_max_s=60.0 has no effect"),
        ({"schedule": OWN, "auto_max_s": 60.0}, "auto_max_s=60.0 has no effect with schedule="),
        ({"strategy": "epoch", "auto_mtbf_s": 60.0}, "auto_mtbf_s=60.0 has no effect"),
        ({"schedule": OWN, "save_every": 3}, "save_every=3 has no effect with schedule="),
        ({"schedule": OWN, "strategy": "best"}, "strategy='best' has no effect with schedule="),
        ({"schedule": OWN, "auto_max_steps": 9}, "auto_max_steps=9 has no effect"),
        ({"retention": RULE, "keep_last": 3}, "keep_last=3 has no effect with retention="),
        ({"retention": RULE, "save_best": True}, "save_best=True has no effect"),
        ({"retention": RULE, "strategy": "all"}, "strategy='all' has no effect with retention="),
        ({"save_best": False, "keep_best": 3}, "keep_best=3 has no effect with save_best=False"),
    ],
)
def test_what_a_strategy_ignores_is_refused_with_what_to_do(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        CheckpointPolicy.model_validate(given)
    assert said in str(caught.value)
    assert "omit" in str(caught.value)


@pytest.mark.parametrize("save_every", [1, 100])
def test_an_interval_that_is_set_is_obeyed_without_a_strategy(save_every: int) -> None:
    assert CheckpointPolicy().strategy == "auto"
    assert CheckpointPolicy(save_every=save_every, schedule=None).strategy == "steps"
    policy = CheckpointPolicy(save_every=save_every)
    assert (policy.strategy, policy.save_every) == ("steps", save_every)
    assert CheckpointPolicy.model_validate(policy.model_dump()) == policy


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_policy_can_be_written_and_read_back(strategy: str) -> None:
    for more in ({}, {"save_at_end": False, "save_at_steps": (3,)}):
        policy = CheckpointPolicy.model_validate({"strategy": strategy, **more})
        assert CheckpointPolicy.model_validate(policy.model_dump()) == policy
        whole = RecoveryPolicy(checkpoints=policy)
        assert RecoveryPolicy.model_validate(whole.model_dump()) == whole
        assert RecoveryPolicy.model_validate_json(whole.model_dump_json()) == whole
        assert policy_from_settings(checkpoints=policy).checkpoints == policy


def test_a_policy_may_have_its_own_schedule_and_rules() -> None:
    policy = CheckpointPolicy(schedule=OWN, retention=RULE)
    assert (policy.schedule, policy.retention) == (OWN, RULE)
    assert policy_from_settings(checkpoints=policy).checkpoints == policy
    assert CheckpointPolicy(schedule=OWN, strategy="last").strategy == "last"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schedule": 5}, "schedule=5 is not allowed: an object with decide(moment)"),
        ({"schedule": "steps"}, "schedule='steps'"),
        ({"schedule": EverySteps}, "is a class: make one"),
        ({"retention": KeepLast}, "is a class: make one"),
        ({"retention": OWN}, "an object with keep(newest_first)"),
    ],
)
def test_what_is_no_schedule_or_rule_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CheckpointPolicy.model_validate(given)
    assert said in str(caught.value)


def test_nothing_else_has_to_be_kept_where_another_rule_keeps() -> None:
    assert CheckpointPolicy(keep_last=0).keep_last == 0
    assert CheckpointPolicy(keep_last=0, save_best=False, keep_every=100).keep_every == 100


def test_epochs_are_saved_one_by_one_unless_said_otherwise() -> None:
    assert CheckpointPolicy(strategy="epoch").save_every == 1
    assert CheckpointPolicy(strategy="epoch", save_every=3).save_every == 3
    assert CheckpointPolicy().save_every == 100


def test_the_longest_lifetime_the_policy_takes_is_one_the_renewal_takes() -> None:
    for ttl_s in (3600.0, 315_360_000.0):
        assert CheckpointPolicy(ttl_s=ttl_s).ttl_s == ttl_s
        assert renewals([record(1)], {}, ttl_s=ttl_s, now=NOW) == []


@given(
    strategy=st.sampled_from(STRATEGIES),
    save_every=st.integers(1, 7),
    keep_last=st.integers(1, 4),
    save_best=st.booleans(),
    losses=st.lists(st.floats(), min_size=40, max_size=40),
)
def test_a_run_under_any_policy_ends_with_its_last_step_saved_and_never_without_a_checkpoint(
    *,
    strategy: Any,
    save_every: int,
    keep_last: int,
    save_best: bool,
    losses: list[float],
) -> None:
    given = {"save_every": save_every, "keep_last": keep_last, "save_best": save_best}
    ignored = {
        "auto": {"save_every"},
        "best": {"save_every"},
        "all": {"keep_last", "save_best"},
        "last": {"keep_last"},
    }.get(strategy, set())
    policy = CheckpointPolicy.model_validate(
        {"strategy": strategy, **{name: given[name] for name in given.keys() - ignored}}
    )
    schedule, retention = schedule_of(policy), retention_of(policy)
    ledger, evidence = SaveLedger(0, 0.0), Evidence()
    stored: set[int] = set()
    for step, loss in enumerate(losses, 1):
        evidence = evidence.stepped(60.0)
        moment: dict[str, Any] = {"step": step, "now_s": step * 60.0, "epoch": step // 5}
        moment["metrics"] = {"loss": loss}
        end = step == len(losses)
        if ledger.ask(schedule, **moment, evidence=evidence, end=end).due:
            ledger = ledger.began(**moment).stored(step)
            evidence = evidence.saved(1.0)
            stored.add(step)
        found = [listed(each, metrics={"loss": losses[each - 1]}) for each in stored]
        plan = plan_deletions(
            found, retention, Situation(LINEAGE, NOW, valid={each.path for each in found})
        )
        gone = {row.step for row in plan.deletions}
        assert not stored or max(stored) not in gone
        stored -= {each for each in stored if each in gone}
    assert len(losses) in stored
    if strategy == "last":
        assert len(stored) <= 1 + save_best
    elif strategy not in {"all", "best"}:
        assert len(stored) <= keep_last + save_best
