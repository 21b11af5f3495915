"""Bad settings are refused when they are made, with the field, the value and what is allowed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from virtual import caught

from tinker_recovery.supervision import (
    Backoff,
    Child,
    ChildSpec,
    DynamicSupervisor,
    SpecError,
    SupervisionTree,
)


async def serve(child: Child) -> None:
    child.started()


def spec(**changes: Any) -> ChildSpec:
    return ChildSpec(**{"id": "a", "start": serve, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id='' is not possible: a non-empty string"),
        ({"id": 7}, "id=7 is not possible: a non-empty string"),
        ({"start": None}, "start=None is not possible: an async function that takes a Child"),
        ({"restart": "always"}, "one of 'permanent', 'transient', 'temporary'"),
        ({"type": "boss"}, "type='boss' is not possible: one of 'worker', 'supervisor'"),
        ({"shutdown": -1}, "shutdown=-1 is not possible: seconds above 0, 'brutal_kill' or"),
        ({"shutdown": 0}, "shutdown=0 is not possible"),
        ({"shutdown": "soon"}, "shutdown='soon' is not possible"),
        ({"shutdown": float("nan")}, "shutdown=nan is not possible"),
        ({"significant": 1, "restart": "transient"}, "significant=1 is not possible: True or"),
        ({"significant": True}, "child 'a' is permanent, so it never ends by itself"),
        ({"backoff": 3.0}, "backoff=3.0 is not possible: a Backoff, or None"),
        ({"heartbeat_s": 0}, "heartbeat_s=0 is not possible: more than 0 seconds"),
        ({"heartbeat_s": True}, "heartbeat_s=True is not possible"),
    ],
)
def test_a_child_spec_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    error = caught(lambda: spec(**changes))
    assert isinstance(error, SpecError)
    assert isinstance(error, ValueError)
    assert re.search(re.escape(message), str(error))
    assert error.field in changes
    assert error.value is changes[error.field]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "one_for_two"}, "one of 'one_for_one', 'one_for_all', 'rest_for_one'"),
        ({"auto_shutdown": True}, "one of 'never', 'any_significant', 'all_significant'"),
        ({"max_restarts": -1}, "max_restarts=-1 is not possible: a whole number, 0 or more"),
        ({"max_restarts": 1.5}, "max_restarts=1.5 is not possible"),
        ({"max_seconds": 0}, "max_seconds=0 is not possible: more than 0 seconds"),
        ({"max_seconds": float("inf")}, "max_seconds=inf is not possible"),
        ({"name": ""}, "name='' is not possible"),
        ({"backoff": 0.1}, "backoff=0.1 is not possible"),
        ({"healthy_after_s": -1}, "healthy_after_s=-1 is not possible: from 0 to less than"),
        ({"healthy_after_s": 5.0}, "healthy_after_s=5.0 is not possible: from 0 to less than"),
        ({"specs": [spec(), spec()]}, "id='a' is not possible: two children have it"),
        ({"specs": [serve]}, "every one has to be a ChildSpec"),
        (
            {"specs": [spec(restart="transient", significant=True)]},
            "child 'a' is significant: use 'any_significant' or 'all_significant'",
        ),
        (
            {"specs": [spec(backoff=Backoff(initial_s=9, max_s=9))]},
            "max_seconds=5.0 is not possible: 3 restarts with Backoff(initial_s=9",
        ),
    ],
)
def test_a_supervisor_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"specs": [], **changes}
    error = caught(lambda: SupervisionTree(**arguments))
    assert isinstance(error, SpecError)
    assert message in str(error)


def test_a_window_that_the_backoff_can_never_fill_is_refused_with_what_would_do() -> None:
    backoff = Backoff(initial_s=1, max_s=60, factor=2, jitter=0)
    message = caught(lambda: SupervisionTree(max_restarts=5, max_seconds=31, backoff=backoff))
    assert "5 restarts with Backoff" in str(message)
    assert "wait up to 31 s, so the limit could never be reached: allow more than 31 s" in str(
        message
    )
    SupervisionTree(max_restarts=5, max_seconds=31.5, backoff=backoff)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial_s": -1}, "initial_s=-1 is not possible"),
        ({"max_s": 0.05}, "max_s=0.05 is not possible: at least initial_s=0.1 s"),
        ({"factor": 0.5}, "factor=0.5 is not possible: 1 or more"),
        ({"jitter": 1.5}, "jitter=1.5 is not possible: from 0 to 1"),
        ({"jitter": -0.1}, "jitter=-0.1 is not possible: from 0 to 1"),
        ({"factor": "2"}, "factor='2' is not possible"),
    ],
)
def test_a_backoff_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    error = caught(lambda: Backoff(**changes))
    assert isinstance(error, SpecError)
    assert message in str(error)


@pytest.mark.parametrize("max_children", [-1, 2.5, True])
def test_a_dynamic_supervisor_that_cannot_work_is_refused(max_children: Any) -> None:
    error = caught(lambda: DynamicSupervisor(spec(), max_children=max_children))
    assert f"max_children={max_children!r} is not possible" in str(error)


def test_specs_cannot_be_changed_once_they_are_checked() -> None:
    with pytest.raises(AttributeError):
        spec().id = "b"  # type: ignore[misc]  # that it is refused is the point
