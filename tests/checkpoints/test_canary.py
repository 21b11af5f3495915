"""The canary's arithmetic: what can be told of weights on a service whose answers are noisy."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.checkpoints.canary import (
    ASKED,
    DIFFERENT_BEYOND,
    MOVED,
    Answer,
    Canary,
    CanaryBook,
    Match,
    fingerprint_of,
)

TOKENS = 48
NOISE = st.one_of(st.just(0.0), st.floats(1e-6, 0.2))


class Service:
    """Answers with noise, evenly spread or normal, for weights that move at every step."""

    def __init__(self, noise: float, seed: int, *, normal: bool, step: float) -> None:
        self._random = random.Random(seed)
        self._noise = noise
        self._normal = normal
        self._step = step
        self._true = [[self._random.uniform(-8, 0) for _ in range(TOKENS)]]

    def _draw(self) -> float:
        if self._normal:
            return self._random.gauss(0.0, self._noise)
        return self._random.uniform(-self._noise, self._noise)

    def ask(self, step: int) -> Answer:
        """The answer of the weights at a step."""
        while len(self._true) <= step:
            # All in one direction, each token by its own part of the step.
            self._true.append(
                [value - self._step * (1 + place % 3) for place, value in enumerate(self._true[-1])]
            )
        return tuple(value + self._draw() for value in self._true[step])


SERVICES = st.builds(
    Service,
    NOISE,
    st.integers(0, 2**32),
    normal=st.booleans(),
    step=st.floats(1e-3, 1.0),
)


def begun(service: Service, tolerance: float = 1e-4) -> CanaryBook:
    """A book at the start of a run: asked more than once on the weights it begins with."""
    book = CanaryBook(tolerance)
    for _ in range(ASKED):
        book.record("a", 0, service.ask(0))
    return book


def restored(book: CanaryBook, service: Service, really: int, at: tuple[str, int]) -> Match:
    """What a restore finds: asked again before weights are said to be others."""
    answers = [service.ask(really)]
    while (match := book.compare(answers, *at)[0]) is Match.DIFFERENT and len(answers) < ASKED:
        answers.append(service.ask(really))
        book.measure(*answers[-2:])
    return match


@given(service=SERVICES, steps=st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True))
def test_no_sound_checkpoint_is_ever_condemned_whatever_the_noise(
    service: Service, steps: list[int]
) -> None:
    book = begun(service)
    for step in steps:
        book.record("a", step, service.ask(step))
    for step in steps * 3:
        assert restored(book, service, step, ("a", step)) is not Match.DIFFERENT


@given(service=SERVICES, step=st.integers(1, 40), noise_known=st.booleans())
def test_nor_by_a_later_process_that_has_the_fingerprint_alone_with_the_noise_or_without(
    service: Service, step: int, *, noise_known: bool
) -> None:
    earlier, later = begun(service), CanaryBook(1e-4)
    assert earlier.measured
    if noise_known:
        later.know_noise(earlier.noise)
    assert later.measured is noise_known
    later.learn("a", step, str(fingerprint_of(service.ask(step))))
    for _ in range(3):
        assert restored(later, service, step, ("a", step)) is not Match.DIFFERENT


@given(noise=NOISE, seed=st.integers(0, 2**32), normal=st.booleans(), save=st.integers(1, 20))
def test_weights_well_apart_from_the_noise_are_told_apart(
    noise: float, seed: int, save: int, *, normal: bool
) -> None:
    """Each step moves the answers by ten times as much as the noise may, or by 1e-3."""
    service = Service(noise, seed, normal=normal, step=max(1e-3, 50 * noise))
    book = begun(service)
    for step in (save, 2 * save):
        book.record("a", step, service.ask(step))
    branch = book.known("a")
    for older in (0, save, 2 * save):
        assert restored(book, service, older, ("a", older)) is Match.SAME
        assert restored(book, service, older + 1, ("a", older)) is Match.DIFFERENT
        assert book.older(service.ask(older), 2 * save + 1, branch) == (Match.SAME, older)
    now = 2 * save + 1
    assert book.older(service.ask(now), now, branch) == (Match.DIFFERENT, None)


@given(noise=st.floats(1e-3, 0.2), seed=st.integers(0, 2**32), save=st.integers(1, 20))
def test_steps_that_the_noise_hides_are_never_called_a_return_to_older_weights(
    noise: float, seed: int, save: int
) -> None:
    service = Service(noise, seed, normal=False, step=noise / 1000)
    book = begun(service)
    book.record("a", save, service.ask(save))
    now = save + 1
    assert book.older(service.ask(now), now, book.known("a")) == (Match.UNCLEAR, None)


@given(
    tolerance=st.sampled_from([0.0, 1e-4]),
    values=st.lists(st.floats(-8, 0, width=32), min_size=1, max_size=40),
    by=st.floats(2**-10, 1.0, width=32),
)
def test_where_answers_are_equal_to_the_bit_the_tolerance_alone_decides(
    tolerance: float, values: list[float], by: float
) -> None:
    book = CanaryBook(tolerance)
    answer, other = tuple(values), tuple(value - by for value in values)
    for _ in range(ASKED):
        book.record("a", 0, answer)
    assert book.compare([answer], "a", 0) == (Match.SAME, 0.0)
    assert book.compare([other], "a", 0)[0] is Match.DIFFERENT
    assert book.older(answer, 1, [("a", 0)]) == (Match.SAME, 0)
    assert book.older(other, 1, [("a", 0)]) == (Match.DIFFERENT, None)
    assert book.noise == 0.0


@pytest.mark.parametrize(
    ("apart", "match"),
    [
        (0.0, Match.SAME),
        (0.02, Match.SAME),
        (0.021, Match.UNCLEAR),
        (0.04, Match.UNCLEAR),
        (0.041, Match.DIFFERENT),
    ],
)
def test_between_twice_and_four_times_the_noise_nothing_can_be_told(
    apart: float, match: Match
) -> None:
    book = CanaryBook(1e-4)
    book.know_noise(0.01)
    book.record("a", 5, (0.0,))
    assert book.compare([(apart,)], "a", 5) == (match, apart)
    # What is confirmed is noise; what is not is none.
    assert book.noise == (apart if apart == 0.02 else 0.01)


def test_before_the_noise_is_measured_only_an_equal_answer_tells_anything_of_older_weights() -> (
    None
):
    book = CanaryBook(1e-4)
    for step, answer in enumerate((0.0, 0.1)):
        book.record("a", 4 * step, (answer,))
    branch = book.known("a")
    assert book.older((0.102,), 7, branch) == (Match.UNCLEAR, None)
    assert book.older((0.1,), 7, branch) == (Match.SAME, 4)
    assert book.older((0.102,), 0, branch) == (Match.DIFFERENT, None), "there are no older ones"
    book.know_noise(0.001)
    assert book.older((0.102,), 7, branch) == (Match.SAME, 4)
    assert book.older((0.2,), 7, branch) == (Match.DIFFERENT, None)


def test_a_step_whose_answer_is_not_known_is_never_an_objection() -> None:
    book = CanaryBook(0.0)
    assert book.compare([(1.0,)], "a", 5) == (Match.UNCLEAR, 0.0)
    assert book.older((1.0,), 5, [("a", 1)]) == (Match.DIFFERENT, None)


def test_one_answer_far_off_is_not_yet_noise_and_a_second_one_is() -> None:
    """The weights may have been lost between two questions."""
    book = CanaryBook(1e-4)
    for answer in [(0.0,), (0.01,), (0.0,)]:
        book.record("a", 0, answer)
    book.measure((0.0,), (3.0,))
    assert book.noise == 0.01
    book.measure((0.0,), (2.0,))
    assert book.noise == 2.0
    book.measure((0.0,), (float("nan"),))
    assert book.noise == 2.0


def test_an_answer_near_two_older_steps_says_neither() -> None:
    book = CanaryBook(1e-4)
    book.record("a", 1, (0.0,))
    book.record("a", 2, (1e-5,))
    assert book.older((5e-6,), 3, book.known("a")) == (Match.UNCLEAR, None)
    # A step that is not older is no answer to the question.
    assert book.older((0.0,), 2, book.known("a")) == (Match.SAME, 1)


@given(
    moves=st.lists(st.floats(2 * MOVED, 1e-5), min_size=1, max_size=8),
    back_to=st.integers(0, 7),
)
def test_without_noise_a_step_is_known_again_however_little_the_steps_move_the_answers(
    moves: list[float], back_to: int
) -> None:
    """As those of reinforcement learning do: several of them together less than the tolerance."""
    book = CanaryBook(1e-4)
    answers = [1.0]
    for move in moves:
        answers.append(answers[-1] + move)
    for step, answer in enumerate(answers):
        book.record("a", step, (answer,))
    back_to = min(back_to, len(moves))
    branch, now = book.known("a"), len(answers)
    assert book.older((answers[back_to],), now, branch) == (Match.SAME, back_to)
    assert book.older((answers[-1] + 1e-9,), now, branch)[0] is Match.UNCLEAR
    # With noise, so small a step is not.
    book.know_noise(1e-6)
    assert book.older((answers[back_to],), now, branch)[0] is not Match.DIFFERENT


@given(
    ulps=st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=3, max_size=9),
    at=st.integers(0, 8),
)
def test_a_model_that_has_converged_comes_to_the_same_numbers_and_has_lost_nothing(
    ulps: list[list[int]], at: int
) -> None:
    """Its logprobs are zero, but for what single precision rounds."""
    book = CanaryBook(1e-4)
    answers = [tuple(-each * 2.0**-23 for each in row) for row in ulps]
    for step, answer in enumerate(answers):
        book.record("a", 100 * step, answer)
    now = 100 * len(answers)
    assert book.older(answers[min(at, len(answers) - 1)], now, book.known("a"))[0] is Match.UNCLEAR


def test_what_is_forgotten_is_no_answer_to_anything_any_more() -> None:
    book = CanaryBook(1e-4)
    book.record("a", 1, (0.5,))
    book.learn("a", 1, str(fingerprint_of((0.5,))))
    book.forget("a", 1)
    book.forget("a", 7)
    assert not book.expects("a", 1)
    assert book.known("a") == []


def test_how_far_the_steps_led_is_taken_from_the_nearest_step_known() -> None:
    book = CanaryBook(1e-4)
    book.know_noise(0.1)
    book.record("a", 10, (1.0,))
    assert book.older((1.0,), 11, book.known("a")) == (Match.UNCLEAR, None), "nothing to go by"
    book.record("a", 0, (0.0,))
    book.record("a", 8, (0.9,))
    reach = DIFFERENT_BEYOND * 0.1
    # Two steps moved it by 0.1, so nine move it by 0.45, and eight by exactly what the noise hides.
    branch = [("a", 0), ("a", 10)]
    assert book.older((1.0,), 10 + 5, branch) == (Match.SAME, 10)
    assert book.older((1.0,), 10 + int(reach * 10), branch) == (Match.UNCLEAR, None)


STORED = (
    "40:a02dbe9703b7c3804490755451ed367a:AAAAAAAAgL4AAAC/AABAvwAAoL8AAMC/AADgvwAAAMAAACDAAAAwwAAAQMAAA"
    "FDAAABwwAAAgMAAAIjAAACQwAAAoMAAAKjAAACwwAAAuMAAAMjAAADQwAAA2MAAAODAAADwwAAA+MAAAADBAAAEwQAADMEAA"
    "BDBAAAUwQAAGME="
)


def test_what_an_earlier_version_stored_of_an_answer_is_what_is_made_of_it_today() -> None:
    """Else no checkpoint of a run begun before an upgrade would be known for its weights."""
    answer = tuple(-number / 4 for number in range(40))
    assert fingerprint_of(answer) == STORED
    moved = (*answer[:5], answer[5] - 0.5, *answer[6:])
    stored, asked = Canary.parse(STORED), Canary.of(moved)
    assert len(stored.sample) == 32
    assert stored.distance_to(asked) == 0.5
