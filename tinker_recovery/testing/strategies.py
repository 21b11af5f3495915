"""Hypothesis strategies for faults; they need ``pip install hypothesis``.

Examples stay small and shrink towards one plain failure early in the run; their ``repr`` is the
code that makes them::

    @given(schedules(steps=range(20), actions=["poison", "rollback", "drop"]))
    def test_it_recovers(faults: list[FaultRule]) -> None: ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the strategies need hypothesis: pip install hypothesis", name="hypothesis"
    ) from error

from tinker_recovery.testing._faults import FaultRule
from tinker_recovery.testing.actions import RUNLESS, SPECS, Action, Request, Target

QUICK_STATUSES = (503, 500, 502, 429, 408, 410, 400, 401, 403, 404, 422)
"""Those that the SDK retries or raises within seconds; not 402, which it waits out for 5 s or more,
nor 409, which means that a name is taken."""

REACHED = (
    "optim_step",
    "forward_backward",
    "save_weights",
    "retrieve_future",
    "training_run",
    "training_runs",
    "checkpoints",
    "create_model",
    "load_weights",
    "session_heartbeat",
    "create_session",
)
"""The requests that a training loop and its monitor make, the commonest first."""

_SHORT_S = (0.02, 0.05)

_OWN: dict[str, Sequence[Any]] = {
    "category": ("server", "unknown"),
    "quiet": (False, True),
    "status": QUICK_STATUSES,
    "retry_after_s": (0.01, None),
    "delay_s": _SHORT_S,
    "body": ("text", "shape", "garbage"),
    "queue_state": ("paused_capacity", "paused_rate_limit"),
    "loss": ("nan", "inf"),
    "sticky": (False, True),
}


def _known(actions: Iterable[str] | None) -> tuple[Action, ...]:
    chosen = tuple(SPECS) if actions is None else tuple(actions)
    for action in chosen:
        if action not in SPECS:
            raise ValueError(f"actions={action!r} is not allowed: {', '.join(SPECS)}")
    if not chosen:
        raise ValueError("actions=() is not allowed: at least one, or None for all")
    return chosen  # type: ignore[return-value]  # each is a key of SPECS, which are the actions


def fault_rules(
    *,
    steps: Iterable[int] = range(20),
    actions: Iterable[Action] | None = None,
    requests: Iterable[Target] | None = None,
    parameters: Mapping[str, Sequence[Any]] | None = None,
) -> st.SearchStrategy[FaultRule]:
    """Valid rules, each striking at most three times, or for at most 50 ms.

    A ``pause`` always ends by itself. A ``truncate`` is never silent, because the SDK would wait
    for its own timeout.

    Args:
        steps: Values of ``at_step``; the first is the simplest.
        actions: Actions to draw; None for every action.
        requests: Requests to strike; None for those that a training loop makes. An action that
            cannot strike any of them is not drawn.
        parameters: Values for parameters of actions, by name, for example ``{"status": (402,)}``.

    Raises:
        ValueError: An unknown action, or nothing to draw.
    """
    at = tuple(steps)
    asked = tuple(REACHED if requests is None else requests)
    possible = {
        action: [request for request in asked if request in SPECS[action].requests]
        for action in _known(actions)
    }
    possible = {action: found for action, found in possible.items() if found}
    if not possible:
        raise ValueError(f"requests={asked!r} is not allowed: no action of {actions!r} strikes any")
    return _fault_rules(possible, at, {**_OWN, **(parameters or {})})


@st.composite
def _fault_rules(
    draw: st.DrawFn,
    possible: dict[Action, list[Any]],
    steps: tuple[int, ...],
    parameters: Mapping[str, Sequence[Any]],
) -> FaultRule:
    action = draw(st.sampled_from(list(possible)))
    request: Target = draw(st.sampled_from(possible[action]))
    given: dict[str, Any] = {
        name: draw(st.sampled_from(parameters[name]))
        for name in sorted(SPECS[action].takes & parameters.keys())
    }
    if request == "retrieve_future" and draw(st.booleans()):
        given["polled"] = draw(st.sampled_from(get_args(Request)))
    if request not in RUNLESS and steps:
        given["at_step"] = 0 if request == "create_model" else draw(st.sampled_from(steps))
    if action == "pause" or not draw(st.booleans()):
        given["for_s"] = draw(st.sampled_from(_SHORT_S))
    else:
        given["times"] = draw(st.integers(1, 3))
    if draw(st.booleans()):
        given["after_s"] = _SHORT_S[0]
    return FaultRule(action, request=request, **given)


def schedules(
    *,
    steps: Iterable[int] = range(20),
    actions: Iterable[Action] | None = None,
    requests: Iterable[Target] | None = None,
    parameters: Mapping[str, Sequence[Any]] | None = None,
    min_faults: int = 1,
    max_faults: int = 3,
) -> st.SearchStrategy[list[FaultRule]]:
    """Lists of ``min_faults`` to ``max_faults`` rules to inject before a run.

    The other arguments and the errors are those of :func:`fault_rules`.
    """
    rules = fault_rules(steps=steps, actions=actions, requests=requests, parameters=parameters)
    return st.lists(rules, min_size=min_faults, max_size=max_faults)
