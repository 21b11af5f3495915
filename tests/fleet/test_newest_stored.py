"""In which order the checkpoints of a watched run are tried: a pure decision over its listing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from tinker import types

from tinker_recovery.checkpoints import Listed
from tinker_recovery.watched.restore import newest_stored

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def _listed(number: int, after_s: int) -> Listed:
    return Listed.read(
        types.Checkpoint(
            checkpoint_id=f"weights/{number}",
            checkpoint_type="training",
            time=BEGAN + timedelta(seconds=after_s),
            tinker_path=f"tinker://r/weights/{number}",
        )
    )


LISTINGS = st.lists(st.integers(0, 9), max_size=8).map(
    lambda times: [_listed(number, after_s) for number, after_s in enumerate(times)]
)


def _stored_s(listed: Listed) -> float:
    assert listed.stored_at is not None
    return listed.stored_at.timestamp()


@given(listed=LISTINGS, until=st.none() | st.integers(-1, 10).map(lambda s: BEGAN.timestamp() + s))
def test_the_newest_stored_while_the_run_was_well_comes_first_and_nothing_is_lost(
    listed: list[Listed], until: float | None
) -> None:
    found, late = newest_stored(listed, until)
    assert {each.path for each in [*found, *late]} == {each.path for each in listed}
    assert len(found) + len(late) == len(listed)
    times = [_stored_s(each) for each in found]
    assert times == sorted(times, reverse=True)
    assert until is not None or not late
    assert all(_stored_s(each) > (until or 0.0) for each in late)
    assert until is None or all(time <= until for time in times)


def test_a_time_without_a_zone_is_utc() -> None:
    naive = _listed(1, 5)
    assert naive.source is not None
    source = naive.source.model_copy(update={"time": naive.source.time.replace(tzinfo=None)})
    found, late = newest_stored([Listed.read(source)], BEGAN.timestamp() + 5)
    assert (len(found), late) == (1, [])
