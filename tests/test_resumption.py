"""How far a checkpoint of a process that was killed can be trusted: a pure decision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from made import record
from tinker.types import RequestErrorCategory

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.forks import HomeProcess
from tinker_recovery.journal import StoredAttempt
from tinker_recovery.recovery.resume import trusted_limit
from tinker_recovery.service import SaveRequest, SupervisedClient
from tinker_recovery.service.future import SupervisedFuture


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


def _saved(*steps: int, sound: int | None = None) -> list[CheckpointRecord]:
    """Checkpoints of these steps; the newest with what was known when it was submitted."""
    records = [record(step, "r", attempt="a") for step in steps]
    return [*records[:-1], records[-1].model_copy(update={"sound_step": sound})] if steps else []


@pytest.mark.parametrize(
    ("attempt", "saved", "word", "limit"),
    [
        pytest.param(_attempt(sound=10), (5, 10), 4, 10, id="what the journal calls sound"),
        pytest.param(_attempt(sound=5), (5, 10), 3, 5, id="the newest, of which nothing is known"),
        pytest.param(_attempt(sound=0), (5, 10, 15), 12, 12, id="a later one vouches for it"),
        pytest.param(_attempt(sound=0), (5, 10), 10, 10, id="it vouches for itself"),
        pytest.param(_attempt(sound=0), (5, 10, 15), None, 0, id="saved by an earlier version"),
        pytest.param(_attempt(sound=14), (5, 10), None, 14, id="no save since"),
        pytest.param(_attempt(), (), None, 0, id="nothing saved"),
    ],
)
def test_of_a_process_that_was_killed_what_is_known_to_be_sound_counts(
    attempt: StoredAttempt, saved: tuple[int, ...], word: int | None, limit: float
) -> None:
    assert trusted_limit(attempt, _saved(*saved, sound=word), corrupted=False) == limit


def test_a_run_found_corrupted_is_trusted_to_the_last_poll_that_called_it_sound() -> None:
    saved = _saved(5, 10, 15)
    assert trusted_limit(_attempt(sound=15, polled=5), saved, corrupted=True) == 5


def test_a_fault_that_was_noticed_says_itself_what_it_casts_doubt_on() -> None:
    saved = _saved(5, 10, 15)
    noticed = _attempt(sound=10, polled=0, faulty=True, trusted_to=13.0)
    assert trusted_limit(noticed, saved, corrupted=True) == 13
    harmless = _attempt(sound=10, polled=5, faulty=True)
    assert trusted_limit(harmless, saved, corrupted=False) == math.inf


def test_an_attempt_that_ended_without_a_fault_is_trusted_as_far_as_is_known_of_it() -> None:
    """One that was found at the service: nobody has written how it ended."""
    found = dataclasses.replace(_attempt(sound=5), ended=True)
    assert trusted_limit(found, _saved(5, 10, sound=7), corrupted=False) == 7


def test_found_corrupted_after_a_harmless_fault_it_is_trusted_to_the_last_good_poll() -> None:
    """One of a group that went back with another, and whose process died before it was asked."""
    harmless = _attempt(sound=10, polled=5, faulty=True)
    assert trusted_limit(harmless, _saved(5, 10, 15), corrupted=True) == 5


def test_a_save_of_the_users_own_vouches_for_what_was_known_when_it_was_submitted() -> None:
    first, second = _saved(5, 10, sound=7)
    second = second.model_copy(update={"saved_by": "user"})
    assert trusted_limit(_attempt(sound=0), [first, second], corrupted=False) == 7


_FAILED = tinker.RequestFailedError("lost", "1", RequestErrorCategory.Server)


class _Sdk:
    """A training client whose requests are answered when, and as, the test says."""

    model_id = "r"
    _queue_state_logger = SimpleNamespace(on_queue_state_change=print)

    def __init__(self) -> None:
        self.submitted: list[Future[Any]] = []

    def _submit(self, *_: object, **__: object) -> SupervisedFuture[Any]:
        future: Future[Any] = Future()
        self.submitted.append(future)
        return SupervisedFuture(future, lambda: False, lambda _: None, HomeProcess())

    forward_backward = optim_step = save_state = _submit


class _Run:
    """What a run writes of its checkpoints, and knows of them; in place of its hooks."""

    def __init__(self) -> None:
        self.sdk = _Sdk()
        self.client = SupervisedClient(self.sdk, self, start_step=0)  # type: ignore[arg-type]  # what of them is used
        self.saves: list[CheckpointRecord] = []
        self.journal = 0
        self.save_next = False

    def save_due(self, step: int) -> SaveRequest | None:
        """A save wherever the test wants one, whatever is in flight: more than a run submits."""
        if not self.save_next:
            return None
        sound = int(min(step, self.client.first_doubtful_step))
        self.saves += [record(step, "r", attempt="a").model_copy(update={"sound_step": sound})]
        return SaveRequest(f"step-{step}", {})

    def saved(self, step: int, path: str) -> None:
        """As it is written to the journal; a kill may come before that."""
        del path
        if step <= self.client.first_doubtful_step:
            self.journal = max(self.journal, step)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@given(data=st.data(), journal_lost=st.booleans())
def test_nothing_above_the_first_failed_step_is_restored_in_whatever_order_the_answers_come(
    data: st.DataObject, *, journal_lost: bool
) -> None:
    run = _Run()
    wrong: dict[Future[Any], int] = {}
    unanswered: list[Future[Any]] = []
    for _ in range(data.draw(st.integers(1, 30), label="moves")):
        move = data.draw(st.sampled_from(["pass", "step", "step and save", "answer", "answer"]))
        if move == "answer":
            if unanswered:
                place = data.draw(st.integers(0, len(unanswered) - 1), label="which")
                future = unanswered.pop(place)
                if future in wrong:
                    future.set_exception(_FAILED)
                else:
                    future.set_result(SimpleNamespace(path="p", metrics={}))
            continue
        step, before = run.client.step, len(run.sdk.submitted)
        run.save_next = move == "step and save"
        if move == "pass":
            run.client.forward_backward([], "cross_entropy")
        else:
            run.client.optim_step(None)
        submitted = run.sdk.submitted[before:]
        if data.draw(st.integers(0, 9), label="fails") == 0:
            wrong[submitted[-1]] = step
        unanswered += submitted
    first_failed = min(wrong.values(), default=math.inf)
    attempt = _attempt(sound=0 if journal_lost else run.journal)
    limit = trusted_limit(attempt, run.saves, corrupted=False)
    assert max((each.step for each in run.saves if each.step <= limit), default=0) <= first_failed
    assert limit >= attempt.sound_step
