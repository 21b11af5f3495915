"""How a run ended, and where the next process goes on: in words, at the service, in the journal."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tinker_recovery.run.ending import end_of, say_the_end
from tinker_recovery.service.base import RUN_FINISHED


def _attempt(*, start: int = 2, step: int = 5, faulty: bool = False) -> Any:
    return SimpleNamespace(start_step=start, client=SimpleNamespace(step=step), faulty=faulty)


class World:
    """A run with checkpoints at the steps 2, 4, 6 and 8 of its newest attempt."""

    def __init__(self, *attempts: Any, in_doubt: bool = False, sound: int = 8) -> None:
        self.asked: list[float | None] = []
        self.run: Any = SimpleNamespace(
            name="r",
            step=9,
            recoveries=[SimpleNamespace(replayed_steps=3), SimpleNamespace(replayed_steps=4)],
            telemetry=SimpleNamespace(
                figures=SimpleNamespace(read=lambda: SimpleNamespace(lost_s=1.5))
            ),
            attempts=attempts,
            current=attempts[-1] if attempts else None,
            segments="the segments",
            checkpoints=SimpleNamespace(newest_trusted=self._newest),
            journal=SimpleNamespace(sound_step=lambda _: sound),
            rollbacks=SimpleNamespace(in_doubt=in_doubt, polled_step=4),
        )

    def _newest(self, segments: object, *, newest_to: float | None = None) -> str | None:
        assert segments == "the segments"
        self.asked.append(newest_to)
        limit = 8 if newest_to is None else newest_to
        return max((f"at {step}" for step in (2, 4, 6, 8) if step <= limit), default=None)


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "finished"),
        (ValueError("no"), "failed (ValueError)"),
        (KeyboardInterrupt(), "stopped"),
        (asyncio.CancelledError(), "stopped"),
    ],
)
def test_a_run_has_finished_failed_or_was_stopped_with_what_was_lost_on_the_way(
    error: BaseException | None, how: str
) -> None:
    end = end_of(World(_attempt()).run, error)
    assert (end.run, end.how, end.step) == ("r", how, 9)
    assert (end.recoveries, end.replayed, end.lost_s) == (2, 7, 1.5)
    assert (end.checkpoint, end.waiting, end.trained) == ("at 8", None, True)


@pytest.mark.parametrize(
    ("attempts", "trained"),
    [
        ((), False),
        ((_attempt(start=2, step=2),), False),
        ((_attempt(start=2, step=3),), True),
        ((_attempt(start=2, step=3), _attempt(start=3, step=3)), True),
    ],
)
def test_a_run_is_said_to_have_trained_if_any_attempt_did_a_step(
    attempts: Any, *, trained: bool
) -> None:
    assert end_of(World(*attempts).run, None).trained == trained


@pytest.mark.parametrize("attempts", [(), (_attempt(faulty=True),)])
def test_after_a_fault_or_before_an_attempt_all_that_is_trusted_counts(attempts: Any) -> None:
    world = World(*attempts, in_doubt=True, sound=4)
    end = end_of(world.run, ValueError())
    assert (end.checkpoint, end.waiting, world.asked) == ("at 8", None, [None])


def test_of_an_attempt_under_way_what_is_known_to_be_sound_counts() -> None:
    world = World(_attempt(), sound=6)
    assert end_of(world.run, ValueError()).checkpoint == "at 6"
    assert world.asked == [6]


@pytest.mark.parametrize(
    ("sound", "checkpoint", "waiting"),
    [(8, "at 4", "at 8"), (4, "at 4", None), (3, "at 2", None), (1, None, None)],
)
def test_in_doubt_a_run_is_trusted_to_its_last_good_poll_and_the_newer_one_waits_for_an_answer(
    sound: int, checkpoint: str | None, waiting: str | None
) -> None:
    end = end_of(World(_attempt(), in_doubt=True, sound=sound).run, ValueError())
    assert (end.checkpoint, end.waiting) == (checkpoint, waiting)
    finished = end_of(World(_attempt(), in_doubt=True, sound=sound).run, None)
    assert (finished.checkpoint, finished.waiting) == (checkpoint, None)


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (None, "success", RUN_FINISHED),
        (ValueError("secret"), "errored", "ValueError"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
async def test_the_service_and_the_journal_are_told_the_same_end(
    error: BaseException | None, status: str, detail: str
) -> None:
    told: list[Any] = []

    async def close(*given: object) -> None:
        told.append(given)

    async def run_ends(given: BaseException | None) -> None:
        told.append(given)

    attempt: Any = SimpleNamespace(
        close=close, run=SimpleNamespace(journal=SimpleNamespace(run_ends=run_ends))
    )
    await say_the_end(attempt, error)
    assert told == [(status, detail), error]
