"""Who is recovered first, how many at once, and what makes a mass failure: the decisions alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tinker_recovery import RecoveryPolicy
from tinker_recovery.recovery.admission import (
    MASS_RUNS,
    OLDEST_EVERY,
    Admission,
    MassIncidents,
    Ticket,
)


def asked(admission: Admission, *tickets: Ticket) -> list[Ticket]:
    for ticket in tickets:
        admission.ask(ticket)
    return admission.admit()


def all_succeed(admission: Admission, count: int) -> list[int]:
    """How many go at once, one round after the other, as each of so many succeeds."""
    current = asked(admission, *(Ticket(3, float(n), 1) for n in range(count)))
    sizes = []
    while current:
        sizes.append(len(current))
        following: list[Ticket] = []
        for ticket in current:
            admission.succeeded()
            admission.leave(ticket)
            following += admission.admit()
        current = following
    return sizes


def test_the_fewest_attempts_left_go_first_and_of_equals_the_oldest_fault() -> None:
    admission = Admission(1)
    (first,) = asked(admission, Ticket(3, 0.0, 1))
    late, early, last_chance = Ticket(2, 5.0, 1), Ticket(2, 4.0, 1), Ticket(1, 9.0, 1)
    assert asked(admission, late, early, last_chance) == []
    admission.leave(first)
    for expected in (last_chance, early):
        assert admission.admit() == [expected]
        admission.leave(expected)


def test_whoever_waits_longest_is_not_passed_over_for_ever() -> None:
    admission = Admission(1)
    (current,) = asked(admission, Ticket(1, 0.0, 1))
    patient = Ticket(3, 1.0, 1)
    admission.ask(patient)
    served = 0
    while patient.admitted == 0:
        admission.ask(Ticket(1, 2.0, 1))
        admission.leave(current)
        (current,) = admission.admit()
        served += 1
        assert served <= OLDEST_EVERY


def test_one_that_gave_up_waiting_takes_no_place() -> None:
    admission = Admission(1)
    (first,) = asked(admission, Ticket(1, 0.0, 1))
    gone, next_one = Ticket(1, 1.0, 1), Ticket(2, 2.0, 1)
    admission.ask(gone)
    admission.ask(next_one)
    admission.leave(gone)
    admission.leave(first)
    assert admission.admit() == [next_one]


def test_in_a_mass_failure_one_goes_ahead_and_the_others_follow_one_more_at_a_time() -> None:
    admission = Admission(4)
    admission.be_careful(careful=True)
    assert all_succeed(admission, 20) == [1, 2, 4, 4, 4, 4, 1]


def test_a_probe_that_fails_is_held_against_the_backend_and_closes_every_place() -> None:
    admission = Admission(4)
    admission.be_careful(careful=True)
    tired, fresh = Ticket(1, 0.0, 1), Ticket(3, 5.0, 1)
    assert asked(admission, tired, fresh) == [tired]
    assert admission.failed(tired) == 1
    admission.leave(tired)
    assert admission.admit() == []
    again = Ticket(1, 0.0, 2)
    admission.ask(again)
    admission.reopen()
    assert admission.admit() == [fresh], "another run's probe, not the same one again"
    assert admission.failed(fresh) == 2
    admission.leave(fresh)
    admission.reopen()
    assert admission.admit() == [again]
    admission.succeeded()
    assert admission.limit == 2


def test_a_failure_while_others_succeed_is_the_runs_own() -> None:
    admission = Admission(4)
    admission.be_careful(careful=True)
    (probe,) = asked(admission, *(Ticket(3, float(n), 1) for n in range(3)))
    admission.succeeded()
    admission.leave(probe)
    bad, good = admission.admit()
    admission.succeeded()
    admission.leave(good)
    assert admission.failed(bad) == 0
    assert Admission(1).failed(Ticket(1, 0.0, 1)) == 0, "outside a mass failure it always is"


def test_recoveries_begin_by_two_and_each_that_succeeds_lets_one_more_begin() -> None:
    admission = Admission(5)
    assert all_succeed(admission, 12) == [2, 4, 5, 1]
    # Hours later, another burst: what the service can take by then is tried anew.
    assert len(asked(admission, *(Ticket(3, float(n), 1) for n in range(9)))) == 2


def test_recoveries_that_fail_let_no_further_ones_begin_beside_them() -> None:
    admission = Admission(5)
    current = asked(admission, *(Ticket(3, float(n), 1) for n in range(9)))
    for _ in range(3):
        assert len(current) == 2
        for ticket in current:
            admission.failed(ticket)
            admission.leave(ticket)
        current = admission.admit()


def test_the_end_of_a_mass_failure_lets_two_go_and_keeps_what_the_probes_have_shown() -> None:
    admission = Admission(5)
    admission.be_careful(careful=True)
    (probe,) = asked(admission, *(Ticket(3, float(n), 1) for n in range(9)))
    admission.failed(probe)
    admission.be_careful(careful=False)
    assert admission.limit == 2
    admission.be_careful(careful=True)
    for _ in range(3):
        admission.succeeded()
    admission.be_careful(careful=False)
    assert admission.limit == 4


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[tuple[str, int]]]:
    kind = st.sampled_from(
        ["ask", "ask", "succeed", "succeed", "fail", "leave", "reopen", "care", "over"]
    )
    most = draw(st.integers(1, 5))
    return most, draw(st.lists(st.tuples(kind, st.integers(0, 9)), max_size=80))


@settings(max_examples=80)
@given(histories())
def test_never_more_than_allowed_at_once_and_nobody_is_lost(  # noqa: C901 - a branch for each move
    history: tuple[int, list[tuple[str, int]]],
) -> None:
    most, moves = history
    admission = Admission(most)
    waiting: set[Ticket] = set()
    flying: list[Ticket] = []

    def admit() -> None:
        for ticket in admission.admit():
            waiting.remove(ticket)
            flying.append(ticket)
        assert admission.in_flight == len(flying) <= most

    for kind, number in moves:
        if kind == "ask":
            ticket = Ticket(number % 3, float(number), number % 2)
            admission.ask(ticket)
            waiting.add(ticket)
        elif kind == "leave" and waiting:
            admission.leave(waiting.pop())
        elif kind in ("succeed", "fail") and flying:
            ticket = flying.pop(number % len(flying))
            if kind == "succeed":
                admission.succeeded()
            else:
                admission.failed(ticket)
            admission.leave(ticket)
        elif kind == "reopen":
            admission.reopen()
        elif kind in ("care", "over"):
            admission.be_careful(careful=kind == "care")
        admit()
    # However it went, once the service can do it everybody comes to their turn.
    admission.reopen()
    admit()
    while flying:
        admission.succeeded()
        admission.leave(flying.pop())
        admit()
    assert not waiting


def test_a_handful_of_runs_is_no_mass_failure_and_neither_are_failures_far_apart() -> None:
    failures = MassIncidents(10.0)
    for number in range(MASS_RUNS - 1):
        assert failures.began(f"r{number}", "corrupted", now=0.0, watched=20) is None
    assert failures.began("r0", "corrupted", now=1.0, watched=20) is None, "the same run again"
    assert failures.began("other", "silence", now=1.0, watched=20) is None, "not alike"
    assert failures.began("later", "corrupted", now=11.5, watched=20) is None


def test_in_a_large_fleet_a_few_failures_at_a_time_are_everyday_life() -> None:
    failures = MassIncidents(10.0)
    found = [
        failures.began(f"r{number}", "corrupted", now=0.0, watched=8000) is not None
        for number in range(25)
    ]
    assert found == [False] * 19 + [True] + [False] * 5


def test_a_mass_failure_is_told_once_counts_its_runs_and_ends_with_the_last() -> None:
    failures = MassIncidents(10.0)
    runs = [f"r{number}" for number in range(30)]
    told = [failures.began(run, "corrupted", now=n / 10, watched=30) for n, run in enumerate(runs)]
    (mass,) = [each for each in told if each is not None]
    assert (mass.count, mass.began_at) == (30, 0.0)
    assert all(failures.has(run, "corrupted") for run in runs)
    over = [failures.ended(run, "corrupted", recovered=run != "r3") for run in runs]
    assert over == [*[None] * 29, mass]
    assert (mass.count, mass.recovered, failures.members) == (30, 29, 0)
    assert failures.began("r1", "corrupted", now=5.0, watched=30) is None, "and the next is new"


def test_runs_dealt_with_before_it_was_recognised_are_not_waited_for() -> None:
    failures = MassIncidents(10.0)
    for number in range(9):
        failures.began(f"r{number}", "corrupted", now=0.0, watched=10)
        failures.ended(f"r{number}", "corrupted", recovered=True)
    mass = failures.began("r9", "corrupted", now=1.0, watched=10)
    assert mass is not None
    assert mass.members == {"r9"}
    assert failures.ended("r9", "corrupted", recovered=True) is mass


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_the_bound_is_checked(value: float) -> None:
    with pytest.raises(ValidationError, match="max_concurrent_recoveries"):
        RecoveryPolicy.model_validate({"max_concurrent_recoveries": value})


def test_equals_are_served_first_come_first_served() -> None:
    admission = Admission(1)
    (current,) = asked(admission, Ticket(2, 0.0, 1))
    first, second, third = (Ticket(2, 1.0, 1) for _ in range(3))
    for ticket in (first, second, third):
        admission.ask(ticket)
    for expected in (first, second, third):
        admission.leave(current)
        (current,) = admission.admit()
        assert current is expected


def test_an_older_probe_that_succeeds_opens_the_gate_that_a_younger_one_closed() -> None:
    admission = Admission(4)
    old, young = asked(admission, Ticket(3, 0.0, 1), Ticket(3, 1.0, 1))
    admission.be_careful(careful=True)
    assert admission.failed(young) == 1
    assert admission.limit == 0
    admission.succeeded()
    assert admission.limit == 2
    admission.leave(old)


def test_a_success_between_two_failures_makes_the_backoff_short_again() -> None:
    admission = Admission(4)
    admission.be_careful(careful=True)
    counted = []
    for outcome in (False, False, True, False):
        (probe,) = asked(admission, Ticket(3, 0.0, 1))
        if outcome:
            admission.succeeded()
        else:
            counted.append(admission.failed(probe))
        admission.leave(probe)
        admission.reopen()
    assert counted == [1, 2, 1]


def test_another_mass_incident_beside_the_first_takes_back_nothing_that_its_probes_have_shown() -> (
    None
):
    admission = Admission(5)
    admission.be_careful(careful=True)
    admission.succeeded()
    admission.be_careful(careful=True)
    assert admission.limit == 2


def test_that_there_is_no_mass_incident_takes_back_nothing_either() -> None:
    admission = Admission(5)
    for _ in range(2):
        admission.succeeded()
    admission.be_careful(careful=False)
    assert admission.limit == 4


@pytest.mark.parametrize("left", ["under way", "waiting", "nobody"])
def test_what_the_service_can_take_counts_while_anyone_is_left(left: str) -> None:
    admission = Admission(5)
    (first,) = asked(admission, Ticket(3, 0.0, 1))
    if left == "under way":
        asked(admission, Ticket(3, 1.0, 1))
    if left == "waiting":
        admission.ask(Ticket(3, 1.0, 1))
    admission.succeeded()
    admission.leave(first)
    assert admission.limit == (2 if left == "nobody" else 3)


def test_once_a_probe_has_succeeded_those_with_the_fewest_attempts_left_go_first_again() -> None:
    admission = Admission(5)
    admission.be_careful(careful=True)
    (probe,) = asked(admission, Ticket(3, 0.0, 1))
    fresh, tired = Ticket(3, 1.0, 1), Ticket(1, 2.0, 4)
    asked(admission, fresh, tired)
    admission.succeeded()
    assert admission.admit() == [tired]
    admission.leave(probe)


def test_among_probes_equally_often_tried_the_first_to_ask_goes_first() -> None:
    admission = Admission(5)
    admission.be_careful(careful=True)
    (probe,) = asked(admission, Ticket(3, 0.0, 1))
    first, urgent, tried = Ticket(3, 2.0, 1), Ticket(1, 1.0, 1), Ticket(1, 0.0, 2)
    asked(admission, tried, first, urgent)
    for expected in (first, urgent, tried):
        admission.leave(probe)
        (probe,) = admission.admit()
        assert probe is expected


def test_a_success_after_one_was_admitted_shows_that_its_failure_is_its_own() -> None:
    admission = Admission(5)
    _, second = asked(admission, Ticket(3, 0.0, 1), Ticket(3, 1.0, 1))
    admission.succeeded()
    admission.be_careful(careful=True)
    assert admission.failed(second) == 0


@pytest.mark.parametrize(("last", "alike"), [(10.0, True), (10.1, False)])
def test_runs_have_failed_together_up_to_the_end_of_the_window(
    last: float,
    alike: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    failures = MassIncidents(10.0)
    for number in range(MASS_RUNS - 1):
        failures.began(f"r{number}", "corrupted", now=0.0, watched=20)
    found = failures.began("last", "corrupted", now=last, watched=20)
    assert (found is not None) == alike


def test_a_run_that_failed_long_before_is_no_part_of_a_mass_incident() -> None:
    failures = MassIncidents(10.0)
    failures.began("before", "corrupted", now=0.0, watched=20)
    runs = [f"r{number}" for number in range(MASS_RUNS)]
    for run in runs:
        failures.began(run, "corrupted", now=100.0, watched=20)
    assert not failures.has("before", "corrupted")
    assert failures.ended("before", "corrupted", recovered=True) is None
    mass = [failures.ended(run, "corrupted", recovered=True) for run in runs][-1]
    assert mass is not None
    assert (mass.count, mass.recovered) == (MASS_RUNS, MASS_RUNS)
    again = [failures.began(run, "corrupted", now=200.0, watched=20) for run in runs]
    assert again[-1] is not None
    assert again[-1] is not mass, "it is over, and the next one is another"
