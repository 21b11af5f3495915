"""What is said of a run at its end: in a line, at the service, and in the journal."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from made import segment

from tinker_recovery.run.ending import end_of, say_the_end
from tinker_recovery.telemetry.greeting import RunEnd

OWN = LookupError("the loop's own")


class Run:
    """A run whose checkpoints are stored at steps 4 and 8; the newest is asked for up to a step."""

    def __init__(self, **facts: Any) -> None:
        self.name, self.step = "r", 9
        self.segments = [segment("a", 0)]
        self.recoveries = [SimpleNamespace(replayed_steps=steps) for steps in (3, 2)]
        self.telemetry = SimpleNamespace(
            figures=SimpleNamespace(read=lambda: SimpleNamespace(lost_s=6.5))
        )
        steps = facts.get("steps", [(0, 9)])
        self.attempts = [
            SimpleNamespace(start_step=start, client=SimpleNamespace(step=step))
            for start, step in steps
        ]
        self.current: Any = None
        if facts.get("current", True):
            self.current = SimpleNamespace(faulty=facts.get("faulty", False))
        self.rollbacks = SimpleNamespace(
            in_doubt=facts.get("in_doubt", False), polled_step=facts.get("polled", 5)
        )
        self.journal = SimpleNamespace(sound_step=lambda _: facts.get("sound", 9))
        self.checkpoints = SimpleNamespace(newest_trusted=self._newest_trusted)

    def _newest_trusted(self, segments: object, *, newest_to: float = 100) -> str | None:
        assert segments is self.segments
        return max((f"at {step}" for step in (4, 8) if step <= newest_to), default=None)


def ended(error: BaseException | None = None, **facts: Any) -> RunEnd:
    run: Any = Run(**facts)
    return end_of(run, error)


def test_the_end_of_a_run_is_told_with_all_that_it_has_cost() -> None:
    assert ended() == RunEnd(
        "r", "finished", step=9, recoveries=2, replayed=5, lost_s=6.5, checkpoint="at 8"
    )


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "finished"),
        (OWN, "failed (LookupError)"),
        (KeyboardInterrupt(), "stopped"),
        (asyncio.CancelledError(), "stopped"),
    ],
)
def test_a_run_finishes_fails_or_is_stopped(error: BaseException | None, how: str) -> None:
    assert ended(error).how == how


@pytest.mark.parametrize(
    ("steps", "trained"),
    [([], False), ([(4, 4)], False), ([(4, 5)], True), ([(0, 3), (2, 2)], True)],
)
def test_a_run_has_trained_here_if_any_of_its_attempts_has_done_a_step(
    steps: list[tuple[int, int]], *, trained: bool
) -> None:
    assert ended(steps=steps).trained is trained


@pytest.mark.parametrize(
    ("facts", "checkpoint", "waiting"),
    [
        ({}, "at 8", None),
        ({"sound": 7}, "at 4", None),
        ({"sound": 3}, None, None),
        ({"current": False, "sound": 3}, "at 8", None),
        ({"faulty": True, "sound": 3, "in_doubt": True}, "at 8", None),
        ({"in_doubt": True}, "at 4", "at 8"),
        ({"in_doubt": True, "polled": 3}, None, "at 8"),
        ({"in_doubt": True, "polled": 8}, "at 8", None),
        ({"in_doubt": True, "polled": 9, "sound": 7}, "at 4", None),
    ],
)
def test_a_run_that_is_stopped_in_doubt_says_what_is_sure_and_what_waits_for_the_service(
    facts: dict[str, Any], checkpoint: str | None, waiting: str | None
) -> None:
    """Of a run in an outage, the saves since the last good poll count only if it is sound."""
    end = ended(OWN, **facts)
    assert (end.checkpoint, end.waiting) == (checkpoint, waiting)
    assert ended(**facts).waiting is None, "one that has finished is asked for no more"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, ("success", "tinker_recovery: the run has come to its end")),
        (OWN, ("errored", "LookupError")),
        (KeyboardInterrupt(), ("interrupted", "KeyboardInterrupt")),
        (asyncio.CancelledError(), ("interrupted", "CancelledError")),
    ],
)
async def test_the_end_is_said_at_the_service_and_in_the_journal(
    error: BaseException | None, said: tuple[str, str]
) -> None:
    log: list[Any] = []

    async def close(*how: str) -> None:
        log.append(how)

    async def run_ends(error: BaseException | None) -> None:
        log.append(error)

    journal = SimpleNamespace(run_ends=run_ends)
    attempt: Any = SimpleNamespace(close=close, run=SimpleNamespace(journal=journal))
    await say_the_end(attempt, error)
    assert log == [said, error]
