"""What is kept of the errors of a client's requests."""

from __future__ import annotations

import pytest
import tinker
from tinker.types import RequestErrorCategory

from tinker_recovery.errors import drop_frames
from tinker_recovery.service.request_errors import RequestErrors


def _refused() -> tinker.RequestFailedError:
    category = RequestErrorCategory.User
    return tinker.RequestFailedError("invalid", request_id="1", category=category)


def test_a_loop_that_lives_with_refused_requests_for_weeks_does_not_pile_up_their_errors() -> None:
    errors = RequestErrors()
    for step in range(1000):
        error = _refused()
        errors.doubt(step, error)
        errors.note("forward_backward", error)
        errors.has_seen(error)
    assert errors.unseen == []
    assert errors.first_step == float("inf")
    assert len(errors.every) <= 40


def test_an_error_that_was_seen_stays_seen_however_many_follow() -> None:
    errors, broken = RequestErrors(), [ValueError(str(step)) for step in range(40)]
    for step, error in enumerate(broken):
        errors.doubt(step, error)
    for error in reversed(broken[1:]):
        errors.has_seen(error)
    assert errors.unseen == [broken[0]]
    assert errors.first_step == 0


def test_an_error_that_is_seen_before_its_request_counts_as_failed_is_no_unseen_one() -> None:
    errors, error = RequestErrors(), ValueError("late")
    errors.has_seen(error)
    errors.doubt(3, error)
    assert errors.unseen == []
    assert errors.first_step == 3


def test_dropping_frames_reaches_causes_contexts_and_parts_and_survives_a_circle() -> None:
    def raised(text: str) -> ValueError:
        with pytest.raises(ValueError, match=text) as caught:
            int(text)
        return caught.value

    first, second, third, part = map(raised, ("first", "second", "third", "part"))
    first.__cause__, second.__context__ = second, third
    third.__context__ = first
    group = ExceptionGroup("both", [first, part])
    drop_frames([group])
    for error in (first, second, third, part):
        assert error.__traceback__ is None
    assert first.__cause__ is second


@pytest.mark.parametrize("errors", [[], [ValueError("never raised")]])
def test_dropping_frames_of_what_has_none_changes_nothing(errors: list[BaseException]) -> None:
    drop_frames(errors)
    assert all(error.__traceback__ is None for error in errors)
