"""Whatever the service lags and the machines do, two never train one run."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import Fate, Weather, overlaps, race

from tinker_recovery.service.claim_line import (
    Alone,
    Behind,
    Claimant,
    SeenClaim,
    State,
    Unclear,
    Unlisted,
    place_of,
)

SECONDS = st.floats(0.0, 90.0)

FATES = st.builds(
    Fate,
    starts_s=st.one_of(st.just(0.0), st.floats(0.0, 3.0), SECONDS),
    pauses=st.lists(st.tuples(SECONDS, st.floats(0.1, 120.0)), max_size=3).map(
        lambda pauses: tuple(sorted(pauses))
    ),
    killed_s=st.one_of(st.none(), st.none(), SECONDS),
)

WEATHER = st.builds(
    Weather,
    skew_s=st.sampled_from([0.0, 2.0, 1000.0]),
    limit_s=st.sampled_from([30.0, 120.0]),
    latency_s=st.sampled_from([0.0, 0.3, 4.0]),
    loss=st.sampled_from([0.0, 0.2]),
    revives=st.booleans(),
)
CLAIMS = st.lists(
    st.builds(
        SeenClaim,
        session_id=st.uuids().map(str),
        created_s=st.sampled_from([0.0, 1.0, 2.0]),
        state=st.sampled_from(get_args(State)),
        entry=st.uuids().map(str),
        claimant=st.just(Claimant("host", 1, "", "", "")),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda claim: claim.session_id,
)
SEEDS = st.integers(0, 2**32)
RACERS = st.lists(FATES, min_size=2, max_size=4)


@given(CLAIMS)
def test_of_those_who_see_each_other_all_but_one_withdraw(claims: list[SeenClaim]) -> None:
    places = {
        each.session_id: place_of(claims, each.session_id, each.entry, lambda _: False)
        for each in claims
        if each.state == "active"
    }
    stay = [
        each for each, place in places.items() if not (isinstance(place, Behind) and place.withdraw)
    ]
    assert len(stay) == min(len(places), 1)
    assert all(isinstance(each, Alone) for each in places.values()) == (len(places) <= 1)


@given(CLAIMS)
def test_nothing_active_is_finished_but_what_a_dead_process_or_we_ourselves_left(
    claims: list[SeenClaim],
) -> None:
    mine = claims[0]
    place = place_of(claims, mine.session_id, mine.entry, lambda claim: claim.claimant.pid != 1)
    if isinstance(place, Alone):
        states = {each.session_id: each.state for each in claims}
        assert {states[each] for each in place.finish} <= {"silent"}
        assert mine.session_id not in place.finish
    assert isinstance(place, Unclear) == (mine.state != "active")
    assert isinstance(place_of(claims[1:], mine.session_id, mine.entry, lambda _: True), Unlisted)


@settings(max_examples=40)
@given(WEATHER, RACERS, SEEDS)
def test_two_never_train_where_each_session_is_listed_within_the_time_allowed(
    weather: Weather, fates: list[Fate], seed: int
) -> None:
    service = race(weather, fates, seed)
    assert not overlaps(service)
    assert weather.revives or not service.wronged


@settings(max_examples=40)
@given(WEATHER, st.sampled_from([5.0, 25.0]), RACERS, SEEDS)
def test_two_never_train_where_lists_lag_in_order_by_any_time(
    weather: Weather, delay_s: float, fates: list[Fate], seed: int
) -> None:
    weather = dataclasses.replace(weather, in_order=True, delay_s=delay_s)
    service = race(weather, fates, seed)
    assert not overlaps(service)
    assert weather.revives or not service.wronged


@pytest.mark.parametrize("seed", range(10))
def test_of_three_that_start_together_each_gets_its_turn(seed: int) -> None:
    service = race(Weather(), [Fate(), Fate(), Fate()], seed)
    assert len({write.entry for write in service.writes}) == 6
    assert not overlaps(service)


def test_the_property_finds_what_a_shorter_wait_would_break() -> None:
    hasty = Weather(settle_s=0.0, delay_s=5.0)
    assert any(overlaps(race(hasty, [Fate()] * 3, seed)) for seed in range(30))
