"""The name of a run that has none: its own, or the one that a restart finds again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tinker_recovery import UsageError
from tinker_recovery.run import unnamed
from tinker_recovery.run.options import StartPlan, plan_start
from tinker_recovery.run.unnamed import VARIABLE, named


@pytest.fixture(autouse=True)
def _begins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a program that has just begun, of a runner that has named it."""
    monkeypatch.setenv(VARIABLE, f"{os.getppid()}:train-abc")
    unnamed._begun.clear()
    yield
    unnamed._begun.clear()


def plan(**given: Any) -> StartPlan:
    return plan_start(cast("Any", {"base_model": "m", **given}), restore_optimizer=True)


def of(plan_: StartPlan, *, resumes: bool = True) -> str:
    """The name that it is given."""
    made, name = named(plan_, resumes=resumes)
    assert made.name in (None, name)
    return name


@pytest.mark.parametrize("resumes", [True, False])
def test_a_name_that_was_given_stays_and_is_not_trained_on_unless_that_is_said(
    *, resumes: bool
) -> None:
    given = plan(name="mine")
    assert named(given, resumes=resumes) == (given, "mine")
    assert not given.extend


def test_a_run_is_trained_on_only_where_it_is_found_again() -> None:
    extended = plan(name="mine", extend=True)
    assert named(extended, resumes=True) == (extended, "mine")
    with pytest.raises(UsageError, match="extend=True trains a finished run on, and none is found"):
        named(extended, resumes=False)


@pytest.mark.parametrize("variable", [None, "", "7:", f"{os.getppid()}:"])
def test_without_a_runner_each_run_has_a_name_of_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str | None
) -> None:
    if variable is None:
        monkeypatch.delenv(VARIABLE)
    else:
        monkeypatch.setenv(VARIABLE, variable)
    given = plan()
    made, name = named(given, resumes=True)
    assert made is given
    assert name.startswith("run-")
    assert len(bytes.fromhex(name.removeprefix("run-"))) == 3
    assert of(given) != name
    assert caplog.messages == []


def test_where_nothing_is_found_again_the_runners_name_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert of(plan(), resumes=False).startswith("run-")
    assert caplog.messages == []


def test_below_another_process_a_run_has_its_own_name_and_says_that_it_needs_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, f"{os.getppid() + 1}:train-abc")
    given = plan()
    with caplog.at_level(logging.WARNING):
        made, name = named(given, resumes=True)
    assert made is given
    assert name.startswith("run-")
    (said,) = caplog.messages
    assert said.startswith(f"run {name}: it has no name=, and its process is not the one that")


def test_a_restart_finds_a_run_by_how_it_starts_and_goes_on_though_it_has_finished() -> None:
    made, name = named(plan(), resumes=True)
    assert (made.name, made.extend) == (name, True)
    assert name.startswith("train-abc-")
    assert len(name) == len("train-abc-") + 6
    unnamed._begun.clear()
    assert of(plan()) == name, "though another seed was drawn"


def test_runs_that_start_differently_have_names_of_their_own_and_others_count() -> None:
    starts: tuple[dict[str, Any], ...] = (
        {}, {"rank": 4}, {"seed": 1}, {"seed": 2}, {"start_step": 0}, {"start_step": 1},
    )  # fmt: skip
    names = [of(plan(**given)) for given in starts]
    assert len(set(names)) == len(starts)
    assert [of(plan(**given)) for given in starts] == [f"{name}-2" for name in names]
    assert of(plan()) == f"{names[0]}-3"
