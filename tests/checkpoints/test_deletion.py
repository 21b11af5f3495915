from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import NOW, path, record

from tinker_recovery import UsageError
from tinker_recovery.checkpoints import (
    Command,
    Delete,
    Deletion,
    DeletionLedger,
    DeletionPlan,
    TokenBucket,
    Write,
    outcome,
    renewals,
)
from tinker_recovery.checkpoints.deletion_plan import PlannedCheckpoint

P = path("a", 1)
GONE = DeletionPlan(
    (PlannedCheckpoint(P, delete=True, reason="no rule keeps it", step=1, size_bytes=10),)
)
KEPT = DeletionPlan((PlannedCheckpoint(P, delete=False, reason="pinned", step=1, size_bytes=10),))
NOTHING = DeletionPlan(())


def _ledger(state: str, *, at_s: float = 0.0, failures: int = 0) -> DeletionLedger:
    entry = Deletion(P, state, "why", at_s, 10, failures)  # type: ignore[arg-type]  # the table's own words
    return DeletionLedger({P: entry})


def _said(commands: list[Command]) -> list[str]:
    return [
        f"delete {command.path}" if isinstance(command, Delete) else command.entry.state
        for command in commands
    ]


@pytest.mark.parametrize(
    ("state", "plan", "said"),
    [
        (None, GONE, ["intended"]),
        (None, KEPT, []),
        ("intended", GONE, ["deleting"]),
        ("intended", KEPT, ["withdrawn"]),
        ("intended", NOTHING, ["deleted"]),
        ("deleting", GONE, [f"delete {P}"]),
        ("deleting", KEPT, ["withdrawn"]),
        ("deleting", NOTHING, ["deleted"]),
        ("failed", GONE, ["intended"]),
        ("failed", KEPT, ["withdrawn"]),
        ("failed", NOTHING, ["deleted"]),
        ("deleted", NOTHING, []),
        ("deleted", KEPT, []),
        ("deleted", GONE, ["intended"]),
        ("withdrawn", GONE, ["intended"]),
        ("withdrawn", KEPT, []),
    ],
)
def test_from_every_state_a_fresh_plan_says_what_comes_next(
    state: str | None, plan: DeletionPlan, said: list[str]
) -> None:
    ledger = _ledger(state, failures=1) if state else DeletionLedger()
    assert _said(ledger.commands(plan, now_s=1000)) == said


def test_a_deletion_is_written_twice_before_it_is_done() -> None:
    ledger, seen = DeletionLedger(), []
    for now_s in range(5):
        for command in ledger.commands(GONE, now_s=now_s):
            seen += _said([command])
            if isinstance(command, Delete):
                command = outcome(command, 200, now_s=now_s)  # noqa: PLW2901 - the answer takes its place
                seen += _said([command])
            ledger = ledger.applied(command.entry)
        if seen[-1] == "deleted":
            break
    assert seen == ["intended", "deleting", f"delete {P}", "deleted"]


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (200, "deleted", "why"),
        (204, "deleted", "why"),
        (299, "deleted", "why"),
        (300, "failed", "answered HTTP 300"),
        (404, "deleted", "gone already"),
        (500, "failed", "answered HTTP 500"),
        (429, "failed", "answered HTTP 429"),
        (403, "failed", "answered HTTP 403"),
        (None, "failed", "no answer"),
    ],
)
def test_gone_already_is_success_and_any_other_refusal_is_tried_again(
    status: int | None, state: str, reason: str
) -> None:
    (command,) = _ledger("deleting", failures=2).commands(GONE, now_s=0)
    assert isinstance(command, Delete)
    entry = outcome(command, status, now_s=5).entry
    assert (entry.state, entry.failures) == (state, 3 if state == "failed" else 2)
    assert reason in entry.reason


def test_a_failed_one_waits_longer_each_time_and_never_for_a_clock_set_back() -> None:
    def due(failures: int, now_s: float) -> bool:
        return bool(_ledger("failed", at_s=1000, failures=failures).commands(GONE, now_s=now_s))

    assert [due(1, 1029), due(1, 1030)] == [False, True]
    assert [due(3, 1119), due(3, 1120)] == [False, True]
    assert [due(99, 4599), due(99, 4600)] == [False, True]
    assert due(1, 900)


def test_what_a_request_may_still_delete_is_not_relied_on_until_it_must_have_been_carried_out() -> (
    None
):
    ledger, being_deleted = DeletionLedger(), []
    for now_s in range(3):
        for command in ledger.commands(GONE, now_s=now_s):
            entry = outcome(command, None, now_s=now_s) if isinstance(command, Delete) else command
            ledger = ledger.applied(entry.entry)
            being_deleted.append((ledger.entries[P].state, bool(ledger.being_deleted(now_s=now_s))))
    assert being_deleted == [("intended", False), ("deleting", True), ("failed", True)]
    (withdrawn,) = ledger.commands(KEPT, now_s=100)
    ledger = ledger.applied(withdrawn.entry)
    assert [bool(ledger.being_deleted(now_s=at)) for at in (0, 100, 699, 700)] == [
        True,
        True,
        True,
        False,
    ]
    # Missing from a listing is no proof either.
    (missing,) = DeletionLedger({P: Deletion(P, "deleting", "", 0.0, sent=True)}).commands(
        NOTHING, now_s=1000
    )
    ledger = ledger.applied(missing.entry)
    assert [bool(ledger.being_deleted(now_s=at)) for at in (1000, 1599, 1600)] == [
        True,
        True,
        False,
    ]


def test_an_intent_withdrawn_before_any_request_is_not_being_deleted() -> None:
    ledger = DeletionLedger()
    for plan in (GONE, KEPT):
        (command,) = ledger.commands(plan, now_s=0)
        ledger = ledger.applied(command.entry)
    assert ledger.entries[P].state == "withdrawn"
    assert not ledger.being_deleted(now_s=0)


@pytest.mark.parametrize("state", ["deleting", "failed"])
def test_a_request_whose_outcome_is_not_known_may_still_delete_however_long_ago_it_was(
    state: str,
) -> None:
    entry = Deletion(P, state, "", 0.0, failures=1, sent=True)  # type: ignore[arg-type]  # the table's own words
    assert DeletionLedger({P: entry}).being_deleted(now_s=1e9) == {P}


def test_what_was_kept_meanwhile_begins_its_tries_afresh() -> None:
    (withdrawn,) = _ledger("failed", failures=7).commands(KEPT, now_s=0)
    (intended,) = DeletionLedger({P: withdrawn.entry}).commands(GONE, now_s=1)
    assert (withdrawn.entry.failures, intended.entry.failures) == (0, 0)


@given(
    state=st.sampled_from(["intended", "deleting", "deleted", "failed", "withdrawn"]),
    reason=st.text(),
    at_s=st.floats(0, 1e12),
    size=st.none() | st.integers(0),
)
def test_a_journal_line_is_read_back(
    state: str, reason: str, at_s: float, size: int | None
) -> None:
    entry = Deletion(P, state, reason, at_s, size)  # type: ignore[arg-type]  # drawn from its own words
    line = entry.to_line()
    assert "\n" not in line
    assert DeletionLedger.from_lines([line]).entries == {P: entry}


def test_the_last_line_of_a_path_counts() -> None:
    lines = [Write(_ledger(state).entries[P]).entry.to_line() for state in ("intended", "deleted")]
    assert DeletionLedger.from_lines(lines).entries[P].state == "deleted"


@pytest.mark.parametrize(
    "line", ["", "{}", "[1]", '{"path":"p","state":"odd","reason":"","at_s":1}']
)
def test_a_line_of_something_else_is_refused(line: str) -> None:
    with pytest.raises(UsageError):
        Deletion.from_line(line)


# -- pacing --------------------------------------------------------------------------------------


@given(
    rate=st.floats(0.01, 100),
    burst=st.integers(1, 5),
    waits=st.lists(st.floats(-5, 20), max_size=40),
)
def test_no_more_pass_than_the_rate_and_one_burst_allow(
    rate: float, burst: int, waits: list[float]
) -> None:
    bucket, now_s, passed = TokenBucket(rate, burst), 0.0, 0
    latest = 0.0
    for wait in waits:
        now_s += wait
        latest = max(latest, now_s)
        bucket, wait_s = bucket.take(now_s)
        passed += wait_s == 0.0
        if wait_s and now_s >= latest:
            assert bucket.take(now_s + wait_s)[1] == 0.0
    assert passed <= burst + latest * rate + 1e-6


def test_a_full_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    bucket = TokenBucket(2.0, burst=2)
    waits = []
    for now_s in (10.0, 10.0, 10.0, 10.25, 10.5):
        bucket, wait_s = bucket.take(now_s)
        waits.append(wait_s)
    assert waits == [0.0, 0.0, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (float("nan"), 1), (1.0, 0)])
def test_a_bucket_that_lets_nothing_through_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(UsageError):
        TokenBucket(rate, burst)


# -- renewal -------------------------------------------------------------------------------------

DAY = 86_400.0


def test_only_what_is_needed_and_ends_is_renewed_the_most_urgent_first() -> None:
    records = [
        record(1, expires_in_s=9 * DAY),
        record(2, expires_in_s=2 * DAY),
        record(3, expires_in_s=DAY / 2),
        record(4),
        record(5, expires_in_s=DAY),
        record(6, expires_in_s=-1),
        record(8, expires_in_s=0),
    ]
    needed = {path("a", step): "the recovery point" for step in (1, 3, 4, 6, 7, 8)}
    due = renewals(reversed(records), needed, ttl_s=7 * DAY, now=NOW)
    assert [(each.path, each.at - NOW, each.ttl_s) for each in due] == [
        (path("a", 3), timedelta(days=-0.5), 604_800),
        (path("a", 1), timedelta(days=8), 604_800),
    ]
    assert due[0].reason == "the recovery point"


def test_of_those_that_end_at_once_the_order_is_that_of_their_paths() -> None:
    records = [record(step, expires_in_s=DAY) for step in (2, 1, 3)]
    needed = {path("a", step): "x" for step in (1, 2, 3)}
    for order in (records, records[::-1]):
        found = [each.path for each in renewals(order, needed, ttl_s=None, now=NOW)]
        assert found == [path("a", step) for step in (1, 2, 3)]


def test_a_short_lifetime_is_renewed_at_its_half_and_none_is_for_ever() -> None:
    records = [record(1, expires_in_s=7200)]
    assert renewals(records, {P: "x"}, ttl_s=7200, now=NOW)[0].at == NOW + timedelta(hours=1)
    assert renewals(records, {P: "x"}, ttl_s=None, now=NOW)[0].ttl_s is None


TEN_YEARS_S = 315_360_000.0


@pytest.mark.parametrize("ttl_s", [3600.0, TEN_YEARS_S])
def test_the_shortest_and_the_longest_lifetime_the_service_accepts_are_taken(ttl_s: float) -> None:
    (renewal,) = renewals([record(1, expires_in_s=60)], {P: "x"}, ttl_s=ttl_s, now=NOW)
    assert renewal.ttl_s == ttl_s


@pytest.mark.parametrize("ttl_s", [3599.0, TEN_YEARS_S + 1.0, 1e10, float("nan")])
def test_a_lifetime_the_service_refuses_is_refused_here(ttl_s: float) -> None:
    with pytest.raises(UsageError, match="ttl_s"):
        renewals([], {}, ttl_s=ttl_s, now=NOW)
