"""When a run goes on without a canary: a decision, with an attempt made up here."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tinker_recovery.checkpoints.prompt import CanaryPrompt, prompt_of
from tinker_recovery.faults import RULES, Kind
from tinker_recovery.forks import HomeProcess
from tinker_recovery.run.canary_loss import OFF_AFTER, OFF_AT_LAST, CanaryLoss
from tinker_recovery.service.client import SupervisedClient
from tinker_recovery.service.future import SupervisedFuture

REFUSED = {Kind.USER_ERROR, Kind.INVALID_REQUEST, Kind.FORBIDDEN}
OF_ALL = {Kind.UNAUTHORIZED, Kind.UNPAID, Kind.GONE, Kind.CORRUPTED, Kind.SESSION_FAILED}


class World:
    """A run with a canary, and what became of it."""

    def __init__(self, *, auto: bool = True, lost: int = 0, out_of_reach: bool = False) -> None:
        self.dropped: list[str] = []
        self.asked_no_more = 0
        self.refunds = 0
        self.prompt: Any = SimpleNamespace(
            batch=[1], auto=auto, lost=lost, lost_in_all=lost, drop=self._drop
        )
        run = SimpleNamespace(
            checkpoints=SimpleNamespace(prompt=self.prompt),
            rollbacks=SimpleNamespace(is_out_of_reach=out_of_reach),
            budget=SimpleNamespace(refund=self._refund),
        )
        scope: Any = SimpleNamespace(
            run=run,
            post=lambda work: work(),
            hooks=SimpleNamespace(no_canary=self._no_canary),
        )
        self.scope = scope
        self.loss = CanaryLoss(scope)

    def _drop(self, why: str) -> None:
        self.dropped.append(why)
        self.prompt.batch = None

    def _refund(self) -> None:
        self.refunds += 1

    def _no_canary(self) -> None:
        self.asked_no_more += 1


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("auto", [True, False])
def test_one_that_we_chose_and_the_service_refuses_is_dropped_at_once(
    kind: Kind, *, auto: bool
) -> None:
    """One that the user chose is theirs to hear of."""
    if (rule := RULES.get(kind)) is None:
        return
    world = World(auto=auto)
    dropped = world.loss.drops(rule, ValueError("no such loss"))
    assert dropped == (auto and kind in REFUSED)
    assert world.dropped == (["the service refuses it: no such loss"] if dropped else [])
    assert world.asked_no_more == dropped
    counts = kind not in REFUSED | OF_ALL
    assert (world.prompt.lost, world.refunds) == (counts, counts), "it costs no attempt"


@pytest.mark.parametrize("error", [None, ValueError("too late")])
def test_one_that_two_attempts_in_a_row_have_lost_is_dropped(error: Exception | None) -> None:
    silent = RULES[Kind.SILENCE]
    first = World()
    assert not first.loss.drops(silent, error)
    assert not first.loss.drops(silent, error), "it is counted once in an attempt"
    assert (first.prompt.lost, first.refunds) == (1, 1)
    second = World(auto=False, lost=OFF_AFTER - 1)
    assert second.loss.drops(silent, error)
    (why,) = second.dropped
    assert why.startswith("2 times in a row the service has not answered it")
    assert ("too late" in why) == (error is not None)
    assert second.loss.drops(silent, error), "of several, another was the first to fail"
    assert len(second.dropped) == 1


def test_it_is_the_second_attempt_in_a_row_that_drops_it() -> None:
    world = World(auto=False)
    outcomes = [world.loss.drops(RULES[Kind.SILENCE], None) for _ in range(2)]
    world.loss = CanaryLoss(world.scope)
    outcomes += [world.loss.drops(RULES[Kind.SILENCE], None) for _ in range(2)]
    assert outcomes == [False, False, True, True]
    assert (world.prompt.lost, world.refunds, len(world.dropped)) == (2, 2, 1)


def test_where_it_is_answered_as_the_run_is_restored_it_takes_more_to_be_dropped() -> None:
    world = World(auto=False)
    for time in range(1, OFF_AT_LAST + 1):
        world.loss = CanaryLoss(world.scope)
        assert world.loss.drops(RULES[Kind.SESSION_FAILED], None) is False
        assert world.loss.drops(RULES[Kind.SILENCE], None) == (time == OFF_AT_LAST)
        world.prompt.lost = 0  # a restored client has answered it
    assert world.dropped[0].startswith("6 times in a row")


def test_one_that_is_answered_is_lost_no_more() -> None:
    world = World(lost=OFF_AFTER - 1)
    world.loss.answered()
    assert world.prompt.lost_in_all == 0
    assert not world.loss.drops(RULES[Kind.SILENCE], None)
    assert world.prompt.lost == 1


def test_in_an_outage_it_is_no_canary_that_is_to_blame() -> None:
    world = World(lost=OFF_AFTER - 1, out_of_reach=True)
    assert not world.loss.drops(RULES[Kind.SILENCE], None)
    assert (world.prompt.lost, world.refunds) == (OFF_AFTER - 1, 0)


class _DroppedWhenSeen(CanaryPrompt):
    """Whoever has looked at its batch once finds none any more."""

    _given: list[Any] | None

    @property
    def batch(self) -> list[Any] | None:
        given, self._given = self._given, None
        return given

    @batch.setter
    def batch(self, given: list[Any] | None) -> None:
        self._given = given


def test_a_prompt_that_is_dropped_while_it_is_asked_is_asked_as_it_was() -> None:
    """By the SDK's thread, in which another canary has failed."""
    prompt, asked = _DroppedWhenSeen(None), list[object]()
    prompt.batch = whole = list(prompt_of([1, 2]))

    def forward(batch: object, _: str) -> SupervisedFuture[Any]:
        asked.append(batch)
        return SupervisedFuture(Future(), lambda: False, lambda _: None, HomeProcess())

    logger = SimpleNamespace(on_queue_state_change=print)
    training: Any = SimpleNamespace(model_id="r", forward=forward, _queue_state_logger=logger)
    client = SupervisedClient(training, cast("Any", None), start_step=0, canary=prompt)
    assert client.run_canary() is not None
    assert asked == [whole]
    assert client.run_canary() is None
