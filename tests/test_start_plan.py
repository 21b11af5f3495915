"""How a run starts: what is made of the arguments of ``attempts``, and which are refused."""

from __future__ import annotations

from typing import Any, cast

import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from tinker import types

from tinker_recovery import StartOptions, UsageError
from tinker_recovery.run.options import StartPlan, plan_start
from tinker_recovery.service import FromBaseModel, FromCallable, FromCheckpoint

CHECKPOINT = "tinker://r/weights/c"


def _start(_: object) -> object:
    """A user's own way to make a client."""
    raise AssertionError("it is only described")


class _Starter:
    def __call__(self, _: object) -> object:
        raise AssertionError("it is only described")


WAYS: dict[str, dict[str, Any]] = {
    "base_model": {"base_model": "m", "seed": 3},
    "from_checkpoint": {"from_checkpoint": CHECKPOINT},
    "start": {"start": _start},
}


def plan(*, restore_optimizer: bool = True, **given: Any) -> StartPlan:
    return plan_start(cast("StartOptions", given), restore_optimizer=restore_optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_said_has_its_default(way: str) -> None:
    made = plan(**WAYS[way])
    assert (made.name, made.lineage, made.job, made.adopted) == (None, None, None, None)
    assert made.start_step is None
    assert made.on_lease == "wait"
    assert not made.extend
    assert "updates_per_step" not in made.described


@pytest.mark.parametrize("way", WAYS)
def test_what_goes_with_each_way_is_kept_as_it_was_given(way: str) -> None:
    made = plan(
        **WAYS[way],
        name="n",
        lineage="new",
        job="j",
        extend=True,
        start_step=0,
        updates_per_step=2,
        on_lease="refuse",
    )
    assert (made.name, made.lineage, made.job, made.extend) == ("n", "new", "j", True)
    assert made.start_step == 0
    assert made.on_lease == "refuse"
    assert made.described["updates_per_step"] == 2
    assert plan(**WAYS[way], updates_per_step=1).described == plan(**WAYS[way]).described


def test_the_journal_has_how_it_starts_and_nothing_of_the_users_metadata() -> None:
    optimizer = types.AdamParams(learning_rate=0.5)
    given: dict[str, Any] = {
        "rank": 8,
        "seed": 3,
        "train_mlp": False,
        "user_metadata": {"who": "me"},
    }
    made = plan(base_model="m", **given, optimizer=optimizer)
    assert made.described == {
        "way": "base_model",
        "base_model": "m",
        "rank": 8,
        "seed": 3,
        "train_mlp": False,
        "optimizer": optimizer.model_dump(mode="json"),
    }
    assert isinstance(made.origin, FromBaseModel)
    assert made.origin.base_model == "m"
    assert made.origin.options == {**given, "optimizer": optimizer}
    assert plan(from_checkpoint=CHECKPOINT).described == {
        "way": "from_checkpoint",
        "from_checkpoint": CHECKPOINT,
    }
    assert plan(start=_start).described == {"way": "start", "start": "_start"}
    assert plan(start=_Starter()).described == {"way": "start", "start": "_Starter"}


@pytest.mark.parametrize("restore_optimizer", [False, True])
def test_a_start_from_a_checkpoint_is_from_there_with_the_optimizer_as_the_policy_says(
    *, restore_optimizer: bool
) -> None:
    made = plan(from_checkpoint=CHECKPOINT, restore_optimizer=restore_optimizer)
    assert made.origin == FromCheckpoint(CHECKPOINT, optimizer=restore_optimizer)
    assert made.parent == CHECKPOINT
    assert plan(base_model="m").parent is None
    assert plan(start=_start).parent is None
    assert isinstance(plan(start=_start).origin, FromCallable)


class _Own(tinker.TrainingClient):
    """A client that the user has already."""

    def __init__(self) -> None:
        self.model_id = "a:train:0"


@pytest.mark.parametrize("service", [None, "the user's"])
def test_a_client_of_the_users_is_adopted_with_its_run_and_what_is_to_be_closed_with_it(
    service: Any,
) -> None:
    own = _Own()
    made = plan(adopt=own, **({} if service is None else {"adopt_service": service}))
    adopted = made.adopted
    assert adopted is not None
    assert adopted.training is own
    assert (adopted.run_id, adopted.service) == ("a:train:0", service)
    assert (made.origin, made.parent, dict(made.described)) == (None, None, {"way": "adopt"})
    assert made.with_seed(3) is made
    assert not made.seed_is_drawn


@given(seed=st.integers(0, 2**31 - 1))
def test_a_seed_that_was_drawn_is_replaced_by_that_of_the_run_and_one_that_was_given_stays(
    seed: int,
) -> None:
    drawn = plan(base_model="m", rank=8)
    assert drawn.seed_is_drawn
    assert plan(base_model="m", seed=None).seed_is_drawn
    assert 0 <= drawn.described["seed"] < 2**31
    made = drawn.with_seed(seed)
    assert made.described == {**drawn.described, "seed": seed}
    assert isinstance(made.origin, FromBaseModel)
    assert (made.origin.base_model, made.origin.options) == ("m", {"rank": 8, "seed": seed})
    given = plan(base_model="m", seed=seed)
    assert not given.seed_is_drawn
    assert given.described["seed"] == seed


@pytest.mark.parametrize("way", ["from_checkpoint", "start"])
def test_a_start_that_has_no_seed_is_the_same_with_any(way: str) -> None:
    made = plan(**WAYS[way])
    assert not made.seed_is_drawn
    assert made.with_seed(7) is made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "exactly one way, and none was given"),
        ({"base_model": None}, "exactly one way, and none was given"),
        ({"base_model": "m", "start": _start}, "base_model and start were given: choose one of"),
        (
            {"base_model": "m", "from_checkpoint": CHECKPOINT, "start": _start},
            "base_model, from_checkpoint and start were given: choose one of",
        ),
        ({"base_model": "m", "ranks": 8}, "unknown argument 'ranks'"),
        ({"base_model": "m", "zz": 1, "aa": 1}, "unknown argument 'aa'"),
        ({"start": _start, "seed": 3}, "seed=3 does not go with start="),
        ({"from_checkpoint": CHECKPOINT, "rank": 8}, "rank=8 does not go with from_checkpoint="),
        ({"start": _start, "adopt_service": None}, "adopt_service=None does not go with start="),
        ({"from_checkpoint": "r/weights/c"}, "r/weights/c"),
        ({"start": "text"}, "start='text' is not allowed"),
        ({"adopt": "text"}, "adopt='text' is not allowed"),
        ({"base_model": "m", "start_step": -1}, "start_step=-1 is not allowed"),
        ({"base_model": "m", "start_step": True}, "start_step=True is not allowed"),
        ({"base_model": "m", "start_step": 1.0}, "start_step=1.0 is not allowed"),
        ({"base_model": "m", "updates_per_step": 0}, "updates_per_step=0 is not allowed"),
        ({"base_model": "m", "updates_per_step": True}, "updates_per_step=True is not allowed"),
        ({"base_model": "m", "on_lease": "steal"}, "on_lease='steal' is not allowed"),
        ({"base_model": "m", "name": ""}, "name='' is not allowed"),
        ({"base_model": "m", "name": " \t"}, "is not allowed: a text that is not empty"),
        ({"base_model": "m", "name": 7}, "name=7 is not allowed"),
        ({"base_model": "m", "job": ""}, "job='' is not allowed"),
        ({"base_model": "m", "name": "n", "lineage": " "}, "lineage=' ' is not allowed"),
        ({"base_model": "m", "lineage": "ab"}, "lineage='ab' goes with name="),
        ({"base_model": "m", "name": "n", "extend": 1}, "extend=1 is not allowed"),
        ({"base_model": "m", "extend": None}, "extend=None is not allowed"),
        ({"base_model": "m", "extend": True}, "extend=True goes with name="),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_argument_and_its_value(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as raised:
        plan(**given)
    assert said in str(raised.value)
