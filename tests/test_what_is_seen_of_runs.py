"""What a user, a tracker and a schedule see of a run: with a run made up here."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from made import record, segment
from pydantic import SecretStr

from tinker_recovery import Recovery, Run, ServiceUnusable, UsageError
from tinker_recovery.checkpoints import SaveLedger
from tinker_recovery.errors import StatusRefused
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.run import view
from tinker_recovery.run.boundary import ASK_AGAIN_S, Asked, Boundary
from tinker_recovery.run.reporting import note_metrics
from tinker_recovery.run.rounds import Rounds, first_attempt
from tinker_recovery.run.view import runs_table
from tinker_recovery.service import Endpoint

FAULT = Fault("r", 1, "a", RULES[Kind.CORRUPTED], DetectedBy.POLL, 7)


def made(name: str = "r", **facts: Any) -> Any:
    known: dict[str, Any] = {
        "name": name, "lineage": "one", "state": "training", "current": None, "start_step": 3,
        "metrics": {"loss": 0.5}, "attempts": [], "segments": (segment("a"),), "recoveries": [],
        "failure": None, "incident": None,
    }  # fmt: skip
    return SimpleNamespace(**known | facts)


def seen(name: str = "r", **facts: Any) -> Run:
    return Run(made(name, **facts))


# -- a run, to look at ---------------------------------------------------------------------------


def test_a_run_is_read_afresh_and_its_copies_change_nothing() -> None:
    run = made()
    shown = Run(run)
    assert repr(shown) == "<Run 'r', training, attempt 0>"
    assert (shown.name, shown.lineage, shown.state, shown.step) == ("r", "one", "training", 3)
    assert (shown.metrics, shown.recoveries, shown.error) == ({"loss": 0.5}, [], None)
    assert shown.metrics is not run.metrics
    assert shown.recoveries is not run.recoveries
    assert shown.segments is run.segments
    error = ValueError("no")
    run.current = SimpleNamespace(client=SimpleNamespace(step=8), number=1, start_step=3)
    run.current.run = run
    run.attempts, run.failure = [run.current], error
    assert (shown.step, shown.error) == (8, error)
    assert [each.number for each in shown.attempts] == [1]
    assert repr(shown) == "<Run 'r', training, attempt 1>"


def cells(html: str) -> list[str]:
    return [each.partition("<")[0] for each in html.split('<td style="text-align:left">')[1:]]


def test_a_notebook_shows_a_run_with_its_recoveries_numbered_from_one() -> None:
    over = Recovery(FAULT, None, 7, 2, 1.0, 0.0)
    back = Recovery(replace(FAULT, step=9), record(4), 5, 3, 2.0, 0.0)
    html = seen(recoveries=[over, back])._repr_html_()
    assert html.count("<table>") == 2
    assert "<b>Run r</b>" in html
    assert "<b>Recoveries</b>" in html
    assert cells(html) == [
        *("r", "training", "3", "0.5", "1", "2", "corrupted at step 9", "-"),
        *("1", "corrupted", "7", "poll", "-", "7"),
        *("2", "corrupted", "9", "poll", "4", "5"),
    ]
    html = seen(metrics={}, incident=FAULT, failure=ValueError("no"))._repr_html_()
    assert html.count("<table>") == 1
    last = ("corrupted at step 7", "ValueError: no")
    assert cells(html) == ["r", "training", "3", "-", "1", "0", *last]


def test_the_fault_under_way_is_shown_before_the_one_that_was_recovered_from() -> None:
    run = seen(recoveries=[Recovery(FAULT, None, 0, 2, 1.0, 0.0)], incident=replace(FAULT, step=11))
    assert "corrupted at step 11" in runs_table("Runs", [run])


@pytest.mark.parametrize(("number", "title"), [(2, "Runs"), (3, "Runs, the newest 2 of 3 runs")])
def test_of_very_many_runs_the_newest_are_shown_and_all_counted(
    monkeypatch: pytest.MonkeyPatch, number: int, title: str
) -> None:
    assert view._MOST == 100
    monkeypatch.setattr(view, "_MOST", 2)
    html = runs_table("Runs", [seen(f"r{at}") for at in range(number)])
    assert f"<b>{title}</b>" in html
    assert cells(html)[::8] == [f"r{number - 2}", f"r{number - 1}"]


# -- what is reported of a step ------------------------------------------------------------------


@pytest.mark.parametrize(("reported", "step"), [(0, 4), (4, 4), (6, 6)])
def test_metrics_are_of_the_step_whose_results_the_loop_has_seen(reported: int, step: int) -> None:
    log: list[Any] = []
    run: Any = SimpleNamespace(
        name="r",
        metrics={},
        recoveries=["one"],
        journal=SimpleNamespace(metrics=lambda *given: log.append(given)),
        collaborators=SimpleNamespace(
            outlets=SimpleNamespace(reported=lambda *given, **more: log.append((given, more)))
        ),
    )
    attempt: Any = SimpleNamespace(
        run=run, start_step=4, number=2, client=SimpleNamespace(reported_step=reported)
    )
    metrics = {"loss": 0.5}
    note_metrics(attempt, metrics)
    facts = {"attempt": 2, "start_step": 4, "recoveries": 1}
    assert log == [(step, metrics), (("r", step, metrics), facts)]
    assert run.metrics == metrics
    assert run.metrics is not metrics, "the loop may change it"


# -- what a schedule was asked -------------------------------------------------------------------


def test_a_schedule_that_said_no_says_it_again_until_anything_but_the_clock_has_changed() -> None:
    assert ASK_AGAIN_S == 0.1
    ledger, metrics = SaveLedger(0, 0.0), {"loss": 1.0}
    asked = Asked(4, False, 100.0, Boundary(1, None, metrics), ledger)  # noqa: FBT003 - in order
    assert asked.answers(asked._replace(now_s=100.05))
    assert asked.answers(asked._replace(standing=Boundary(1, "another state", metrics)))
    for other in (
        asked._replace(step=5),
        asked._replace(end=True),
        asked._replace(now_s=100.0 + ASK_AGAIN_S),
        asked._replace(now_s=101.0),
        asked._replace(standing=Boundary(2, None, metrics)),
        asked._replace(standing=Boundary(1, None, dict(metrics))),
        asked._replace(ledger=SaveLedger(0, 0.0)),
    ):
        assert not asked.answers(other), other


def test_two_ends_of_a_step_are_alike_whatever_was_reported_by_then() -> None:
    assert Boundary(1, "state", {"loss": 1.0}) == Boundary(1, "state", {})
    assert Boundary(1, "state", {}) != Boundary(1, "another", {})


# -- the rounds of its attempts ------------------------------------------------------------------


class Attempts:
    """A run whose attempts are asked for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.error: BaseException | None = None
        self.opened: Any = None
        endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
        self.run: Any = SimpleNamespace(
            recovering=False,
            current=None,
            attempts=SimpleNamespace(begun=anyio.Event()),
            collaborators=SimpleNamespace(
                reader=SimpleNamespace(http=SimpleNamespace(endpoint=endpoint))
            ),
            first_attempt=lambda: self._begin("first"),
            next_attempt=lambda: self._begin("next"),
        )
        self.rounds = Rounds(self._open)

    async def _open(self) -> Any:
        self.log.append("open")
        if self.opened is not None:
            raise self.opened
        return self.run

    async def _begin(self, what: str) -> Any:
        self.log.append(what)
        if self.error is not None:
            raise self.error
        self.run.recovering = False
        number = len(self.log)
        self.run.current = SimpleNamespace(entered=False, number=number, start_step=0, run=self.run)
        return self.run.current


async def test_a_run_is_opened_once_and_has_a_round_after_each_fault() -> None:
    world = Attempts()
    assert aiter(world.rounds) is world.rounds
    first = await anext(world.rounds)
    assert (first.number, world.log) == (2, ["open", "first"])
    assert world.run.attempts.begun.is_set()
    with pytest.raises(UsageError, match="never entered"):
        await anext(world.rounds)
    world.run.current.entered = True
    world.run.recovering = True
    second = await anext(world.rounds)
    assert (second.number, world.log) == (3, ["open", "first", "next"])
    with pytest.raises(UsageError, match="never entered"):
        await anext(world.rounds)
    world.run.current.entered = True
    world.run.current = SimpleNamespace(entered=False)  # it was recovered before the body was left
    await anext(world.rounds)
    world.run.current.entered = True
    with pytest.raises(StopAsyncIteration):
        await anext(world.rounds)
    assert world.log == ["open", "first", "next", "next"]


async def test_a_run_that_could_not_be_opened_is_opened_again_and_one_that_failed_is_not() -> None:
    world = Attempts()
    world.opened = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await anext(world.rounds)
    world.opened, world.error = None, ValueError("no client")
    with pytest.raises(ValueError, match="no client"):
        await anext(world.rounds)
    assert world.run.attempts.begun.is_set(), "nobody waits for it"
    with pytest.raises(UsageError, match="never entered"):
        await anext(world.rounds)
    assert world.log == ["open", "open", "first"]


async def test_the_first_client_of_a_run_says_what_is_wrong_with_the_credential() -> None:
    world = Attempts()
    world.error = StatusRefused("HTTP 401", status_code=401)
    with pytest.raises(ServiceUnusable, match="refuses the credential"):
        await first_attempt(cast("Any", world.run))
    assert world.run.attempts.begun.is_set()
