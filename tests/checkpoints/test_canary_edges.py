"""What a CanaryBook says at the edges of what it knows, by answers of a few numbers."""

from __future__ import annotations

import math

import pytest

from tinker_recovery import UsageError
from tinker_recovery.checkpoints.canary import (
    MOVED,
    Answer,
    Canary,
    CanaryBook,
    Match,
    distance,
    fingerprint_of,
)

BASE = (1.0, 2.0, 3.0, 4.0)


def _moved(*, numbers: int, by: float = 0.1, of: Answer = BASE) -> Answer:
    return tuple(value + by if place < numbers else value for place, value in enumerate(of))


def _book(answers: dict[int, Answer], *, tolerance: float = 0.5, noise: float = 0.0) -> CanaryBook:
    book = CanaryBook(tolerance)
    for step, answer in answers.items():
        book.record("a", step, answer)
    book.know_noise(noise)
    return book


def _older(book: CanaryBook, answer: Answer, step: int) -> tuple[Match, int | None]:
    return book.older(answer, step, [("a", at) for at in range(200)])


def test_answers_of_no_numbers_do_not_differ() -> None:
    assert distance((), ()) == 0.0
    assert distance((), (1.0,)) == math.inf


@pytest.mark.parametrize("numbers", [(), (1.0, math.nan), (math.inf, 1.0), (1e300,)])
def test_nothing_is_compared_with_what_is_no_number(numbers: Answer) -> None:
    with pytest.raises(UsageError):
        Canary.of(numbers)
    assert fingerprint_of(numbers) is None


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_an_answer_that_is_no_number_is_not_remembered(number: float) -> None:
    """Sound weights would answer otherwise, and be condemned for it."""
    book = CanaryBook(1e-6)
    book.record("a", 0, (-1.0, number))
    assert not book.expects("a", 0)
    book.record("a", 0, (-1.0, -2.0))
    assert book.compare([(-1.0, -2.0)], "a", 0)[0] is Match.SAME


@pytest.mark.parametrize(
    "text", ["", "1:d", "1:d:AACA!Pw==", "1:d:AAAA", "x:d:AACAPw==", "1:d:e:f"]
)
def test_a_text_that_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a canary's fingerprint"):
        Canary.parse(text)


# -- the noise -----------------------------------------------------------------------------------


def test_the_noise_is_measured_after_two_differences() -> None:
    book = CanaryBook(0.0)
    measured = []
    for _ in range(4):
        book.record("a", 0, BASE)
        measured.append(book.measured)
    assert measured == [False, False, True, True]


@pytest.mark.parametrize(
    ("third", "noise"), [(20.0, 20.0), (40.0, 40.0), (40.5, 10.0), (math.inf, 10.0)]
)
def test_two_differences_count_as_they_are_and_later_ones_up_to_four_times_as_far(
    third: float, noise: float
) -> None:
    book = CanaryBook(0.0)
    for apart in (1.0, 10.0, third):
        book.measure((0.0,), (apart,))
    assert book.noise == noise


def test_one_that_is_farther_counts_once_it_was_seen_twice_and_then_as_the_lesser_of_the_two() -> (
    None
):
    book = CanaryBook(0.0)
    for apart in (1.0, 1.0, 50.0, 60.0):
        book.measure((0.0,), (apart,))
    assert book.noise == 50.0


# -- whether it is the step that is expected -----------------------------------------------------


def test_the_nearest_of_several_answers_decides() -> None:
    book = _book({5: BASE})
    far = _moved(numbers=4, by=9.0)
    assert book.compare([far, BASE, far], "a", 5) == (Match.SAME, 0.0)
    assert book.compare([far], "a", 5)[0] == Match.DIFFERENT


def test_a_difference_up_to_the_tolerance_is_no_noise() -> None:
    book = _book({5: (0.0,)})
    assert book.compare([(0.5,)], "a", 5) == (Match.SAME, 0.5)
    assert book.noise == 0.0


def test_of_what_a_fingerprint_alone_is_known_an_answer_is_expected() -> None:
    book = CanaryBook(0.0)
    assert not book.expects("a", 5)
    book.learn("a", 5, str(Canary.of(BASE)))
    assert book.expects("a", 5)
    assert book.compare([BASE], "a", 5) == (Match.SAME, 0.0)
    assert book.compare([(math.nan,)], "a", 5) == (Match.DIFFERENT, math.inf)


# -- whether it is an older one ------------------------------------------------------------------


def test_an_equal_answer_is_of_its_step_if_most_of_it_is_another_at_the_nearest_step_known() -> (
    None
):
    few, all_ = _moved(numbers=1), _moved(numbers=4)
    assert _older(_book({1: few, 5: BASE, 6: all_}), BASE, 9) == (Match.SAME, 5)
    assert _older(_book({1: all_, 5: BASE, 6: few}), BASE, 9) == (Match.UNCLEAR, None)


@pytest.mark.parametrize(
    ("nearest", "match"),
    [
        (_moved(numbers=2), Match.SAME),
        (_moved(numbers=1), Match.UNCLEAR),
        (_moved(numbers=4, by=1e-7), Match.UNCLEAR),
        ((1.1, 2.1), Match.SAME),
    ],
)
def test_half_of_an_answer_has_to_be_another_by_more_than_rounding(
    nearest: Answer, match: Match
) -> None:
    assert _older(_book({5: BASE, 6: nearest}), BASE, 9)[0] == match


def test_a_third_is_not_most_and_rounding_itself_is_not_more_than_that() -> None:
    zero = (0.0, 0.0, 0.0)
    third = _book({5: zero, 6: _moved(numbers=1, of=zero)})
    assert _older(third, zero, 9)[0] == Match.UNCLEAR
    rounded = _book({5: zero, 6: _moved(numbers=3, by=MOVED, of=zero)})
    assert _older(rounded, zero, 9)[0] == Match.UNCLEAR


def test_the_step_that_should_be_there_is_no_older_one() -> None:
    book = _book({5: BASE})
    assert _older(book, BASE, 5) == (Match.DIFFERENT, None)
    assert _older(book, BASE, 6) == (Match.SAME, 5)


def test_within_the_tolerance_of_a_single_one_it_is_of_that() -> None:
    assert _older(_book({5: (0.0,)}), (0.3,), 9) == (Match.SAME, 5)


@pytest.mark.parametrize(
    ("apart", "found"),
    [
        (2.0, (Match.SAME, 1)),
        (3.0, (Match.UNCLEAR, None)),
        (4.0, (Match.UNCLEAR, None)),
        (4.5, (Match.DIFFERENT, None)),
    ],
)
def test_up_to_twice_the_noise_it_is_the_older_one_and_beyond_four_times_none(
    apart: float, found: tuple[Match, int | None]
) -> None:
    book = _book({1: (0.0,), 5: (100.0,)}, noise=1.0)
    assert _older(book, (-apart,), 9) == found


def test_how_far_the_steps_have_led_is_as_far_as_to_the_nearest_step_known() -> None:
    book = _book({10: (0.0,), 11: (5.0,), 110: (-5.0,)}, noise=1.0)
    assert _older(book, (0.5,), 12) == (Match.SAME, 10)
    slow = _book({10: (0.0,), 11: (-5.0,), 12: (0.0,)}, noise=0.0)
    slow.know_noise(1.0)
    assert _older(slow, (0.5,), 13) == (Match.UNCLEAR, None), "two are as near"


def test_the_steps_of_an_attempt_that_an_answer_is_certainly_not_of() -> None:
    book = _book({1: (0.0,), 5: (4.0,), 9: (4.5,)})
    book.record("b", 7, (100.0,))
    branch = [("a", 1), ("a", 5), ("a", 9), ("a", 11), ("b", 7)]
    assert book.others((0.0,), "a", branch) == [5, 9]
    assert book.others((0.0,), "b", branch) == [7]
    assert book.others((0.3,), "a", branch[:1]) == [1], "without noise any difference counts"
    book.know_noise(1.0)
    assert book.others((0.0,), "a", branch) == [9], "beyond four times the noise"
