"""How far a checkpoint of a process that was killed can be trusted: a pure decision."""

from __future__ import annotations

import math

import pytest
from made import record

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.journal import StoredAttempt
from tinker_recovery.recovery.resume import trusted_limit


def _attempt(
    *, sound: int = 0, polled: int = 0, faulty: bool = False, trusted_to: float | None = None
) -> StoredAttempt:
    return StoredAttempt(
        attempt="a",
        run_id="r",
        start_step=0,
        parent=None,
        ended=faulty,
        sound_step=sound,
        polled_step=polled,
        trusted_to=trusted_to,
        faulty=faulty,
    )


def _saved(*steps: int) -> list[CheckpointRecord]:
    return [record(step, "r", attempt="a") for step in steps]


@pytest.mark.parametrize(
    ("attempt", "saved", "limit"),
    [
        pytest.param(_attempt(sound=10), (5, 10), 10, id="what the journal calls sound"),
        pytest.param(_attempt(sound=5), (5, 10), 5, id="the newest, of which nothing is known"),
        pytest.param(_attempt(sound=0), (5, 10, 15), 10, id="saved again behind it"),
        pytest.param(_attempt(sound=14), (5, 10), 14, id="no save since"),
        pytest.param(_attempt(), (), 0, id="nothing saved"),
    ],
)
def test_of_a_process_that_was_killed_what_is_known_to_be_sound_counts(
    attempt: StoredAttempt, saved: tuple[int, ...], limit: float
) -> None:
    assert trusted_limit(attempt, _saved(*saved), corrupted=False) == limit


def test_a_run_found_corrupted_is_trusted_to_the_last_poll_that_called_it_sound() -> None:
    saved = _saved(5, 10, 15)
    assert trusted_limit(_attempt(sound=15, polled=5), saved, corrupted=True) == 5


def test_a_fault_that_was_noticed_says_itself_what_it_casts_doubt_on() -> None:
    saved = _saved(5, 10, 15)
    noticed = _attempt(sound=10, polled=0, faulty=True, trusted_to=13.0)
    assert trusted_limit(noticed, saved, corrupted=True) == 13
    harmless = _attempt(sound=10, faulty=True)
    assert trusted_limit(harmless, saved, corrupted=False) == math.inf


def test_a_save_of_the_users_own_vouches_for_none_before_it() -> None:
    """Several of them may be in flight at once, so nothing had to be answered."""
    first, second = _saved(5, 10)
    second = second.model_copy(update={"saved_by": "user"})
    assert trusted_limit(_attempt(sound=0), [first, second], corrupted=False) == 0
