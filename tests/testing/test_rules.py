"""Rules, the fault book, and the strategies that draw them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inspection import newest_rule
from virtual import ManualClock
from wire import NO_TLS

from tinker_recovery.testing import FaultRule, LocalTinker, Options
from tinker_recovery.testing._fault_book import FaultBook
from tinker_recovery.testing._options import ServerOptions
from tinker_recovery.testing.actions import RUNLESS, SPECS
from tinker_recovery.testing.strategies import fault_rules, schedules


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def book(clock: ManualClock) -> FaultBook:
    return FaultBook(clock)


def strikes(book: FaultBook, request: str = "optim_step", step: int = 0) -> bool:
    layer = "wire" if request == "retrieve_future" else "engine"
    return book.strike(layer, request, "run", step) is not None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"action": "explode"}, "action='explode' is not allowed: poison"),
    ({"action": "fail", "request": "sample"}, "request='sample'"),
    ({"action": "fail", "request": "retrieve_future"}, "request='retrieve_future'"),
    ({"action": "nan_loss", "request": "optim_step"}, "allowed: forward_backward"),
    ({"action": "cold_optimizer", "request": "save_weights"}, "allowed: load_weights"),
    ({"action": "lost_save", "request": "optim_step"}, "allowed: save_weights"),
    ({"action": "fail", "category": "other"}, "category='other' is not allowed: server"),
    ({"action": "fail", "at_step": -1}, "at_step=-1 is not allowed: 0 or more"),
    ({"action": "fail", "at_step": 1.5}, "at_step=1.5"),
    ({"action": "fail", "at_step": True}, "at_step=True"),
    ({"action": "fail", "times": 0}, "times=0 is not allowed: 1 or more"),
    ({"action": "fail", "for_s": 0}, "for_s=0 is not allowed: seconds, more than 0"),
    ({"action": "fail", "for_s": float("nan")}, "for_s=nan"),
    ({"action": "fail", "after_s": -0.1}, "after_s=-0.1 is not allowed: 0 or more"),
    ({"action": "hang", "quiet": True}, "quiet=True does not go with action='hang': only 'po"),
    ({"action": "fail", "status": 404}, "status=404 does not go with action='fail': only 'st"),
    ({"action": "status", "status": 200}, "status=200 is not allowed: 400"),
    ({"action": "status", "status": 499}, "status=499 is not allowed: 400"),
    ({"action": "status", "retry_after_s": 0}, "retry_after_s=0"),
    ({"action": "slow", "delay_s": None}, "delay_s=None"),
    ({"action": "malformed", "body": "xml"}, "body='xml' is not allowed: text, shape, garbage"),
    ({"action": "pause", "queue_state": "active"}, "queue_state='active' is not allowed: pau"),
    ({"action": "nan_loss", "loss": "0"}, "loss='0' is not allowed: nan, inf"),
    ({"action": "drop", "polled": "optim_step"}, "polled='optim_step' does not go with req"),
    (
        {"action": "drop", "request": "training_runs", "at_step": 1},
        "at_step=1 does not go with",
    ),
    ({"action": "drop", "request": "session_heartbeat", "run": "r"}, "run='r' does not go"),
]


def test_an_invalid_rule_is_refused_by_field_value_and_what_is_allowed() -> None:
    for fields, named in REFUSED:
        with pytest.raises(ValueError, match=re.escape(named)):
            FaultRule(**fields)


def test_a_rule_strikes_once_unless_it_says_how_often(book: FaultBook) -> None:
    book.add(FaultRule("fail"))
    book.add(FaultRule("fail", times=2))
    assert [strikes(book) for _ in range(4)] == [True, True, True, False]


def test_a_rule_with_a_duration_strikes_everything_from_its_first_strike_on(
    book: FaultBook, clock: ManualClock
) -> None:
    book.add(FaultRule("fail", at_step=3, for_s=10))
    clock.now += 100
    assert not strikes(book, step=2)
    assert strikes(book, step=3)
    clock.now += 9.9
    assert strikes(book, step=4)
    assert strikes(book, step=5)
    clock.now += 0.1
    assert not strikes(book, step=3)


def test_a_duration_and_a_count_end_with_whichever_is_first(book: FaultBook) -> None:
    book.add(FaultRule("fail", for_s=10, times=2))
    assert [strikes(book) for _ in range(3)] == [True, True, False]


def test_a_rule_for_later_does_not_strike_now(book: FaultBook, clock: ManualClock) -> None:
    book.add(FaultRule("fail", after_s=5))
    clock.now += 4.9
    assert not strikes(book)
    clock.now += 0.1
    assert strikes(book)


def test_a_released_rule_strikes_no_more_and_the_others_do(book: FaultBook) -> None:
    book.add(FaultRule("fail", message="one", times=9))
    book.add(FaultRule("fail", message="two"))
    book.release(FaultRule("fail", message="one", times=9))
    assert [strikes(book) for _ in range(2)] == [True, False]
    assert [fired.rule.message for fired in book.fired()] == ["two"]


async def test_a_strike_is_over_when_its_time_is_or_its_rule_is_released(
    book: FaultBook, clock: ManualClock
) -> None:
    book.add(FaultRule("pause", for_s=10))
    book.add(FaultRule("pause", request="load_weights"))
    timed = book.strike("engine", "optim_step", "run", 0)
    open_ended = book.strike("engine", "load_weights", "run", 0)
    assert timed is not None
    assert open_ended is not None
    over = []

    async def wait(name: str, strike: Any) -> None:
        await book.wait_over(strike)
        over.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, "timed", timed)
        group.start_soon(wait, "open-ended", open_ended)
        await anyio.sleep(0.02)
        assert over == []
        clock.now += 10
        await anyio.sleep(0.02)
        assert over == ["timed"]
        book.release()
    assert over == ["timed", "open-ended"]


@given(fault_rules())
def test_a_rule_drawn_comes_back_from_its_repr_and_from_json(rule: FaultRule) -> None:
    assert eval(repr(rule), {"FaultRule": FaultRule}) == rule  # noqa: S307 - what it is for
    assert FaultRule(**json.loads(json.dumps(asdict(rule)))) == rule


@given(st.data())
def test_only_what_was_asked_for_is_drawn(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(SPECS)), min_size=1, unique=True))
    rules = data.draw(
        schedules(steps=[4], actions=chosen, parameters={"status": [402]}, max_faults=5)  # type: ignore[arg-type]  # the keys are the actions
    )
    assert 1 <= len(rules) <= 5
    for rule in rules:
        assert rule.action in chosen
        assert rule.at_step in ({None} if rule.request in RUNLESS else {0, 4})
        assert rule.action != "status" or rule.status == 402
        assert rule.for_s is not None or rule.action != "pause"


def test_a_strategy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="actions='explode' is not allowed: poison"):
        fault_rules(actions=["explode"])  # type: ignore[list-item]  # on purpose
    with pytest.raises(ValueError, match="no action of"):
        fault_rules(actions=["cold_optimizer"], requests=["optim_step"])
    with pytest.raises(ValueError, match="at least one"):
        fault_rules(actions=[])


async def test_the_server_takes_every_rule_that_can_be_drawn() -> None:
    async with LocalTinker() as server:
        headers = {"X-API-Key": server.api_key}

        def check() -> None:
            with httpx.Client(base_url=server.base_url, headers=headers, verify=NO_TLS) as http:

                @settings(max_examples=60, deadline=None)
                @given(fault_rules())
                def inject(rule: FaultRule) -> None:
                    reply = http.post("/testing/faults", json=asdict(rule))
                    assert reply.status_code == 200, reply.text
                    assert newest_rule(server) == rule

                inject()
                refused = http.post("/testing/faults", json={"action": "explode"})
                assert refused.status_code == 422
                assert "action='explode'" in refused.json()["detail"]

        await anyio.to_thread.run_sync(check)


def test_the_options_have_one_list_of_names() -> None:
    assert set(Options.__annotations__) == {*ServerOptions.__dataclass_fields__, "dialect"}


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"restart": "never"}, "restart='never' is not allowed: corrupted, unloaded, rollback"),
        ({"step_s": -1}, "step_s=-1 is not allowed: 0 or more"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: Any, named: str) -> None:
    with pytest.raises(ValueError, match="is not allowed") as caught:
        LocalTinker(**option)
    assert named in str(caught.value)
