"""The states of a run as ``runs`` and ``watch`` show them: their order, styles and choice."""

from __future__ import annotations

from collections.abc import Sequence

import click

STYLES = {
    "failed": "bold red",
    "dead": "bold red",
    "stalled": "bold magenta",
    "recovering": "bold yellow",
    "resuming": "yellow",
    "training": "green",
    "stopped": "yellow",
    "finished": "cyan",
    "abandoned": "dim",
}
"""The style of each state, trouble first."""

_PLACES = {state: place for place, state in enumerate(STYLES)}

state_option = click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(list(STYLES)),
    help="Only runs in this state; may be given several times.",
)
named_option = click.option("--named", is_flag=True, help="Only runs with a name of their own.")


def with_quiet(state: str, quiet_since: float | None, now: float) -> str:
    """A state, with how long the run has done no step if that is more than usual for it."""
    from tinker_recovery.report.words import age

    return state if quiet_since is None else f"{state} (no step for {age(now - quiet_since)})"


def trouble(state: str) -> int:
    """Where a state comes in the order: the most urgent has 0."""
    return _PLACES.get(state, len(_PLACES))


def totals(states: Sequence[str]) -> list[tuple[str, int]]:
    """How many are in which state, trouble first; without those that none is in."""
    return [(each, states.count(each)) for each in sorted(set(states), key=trouble)]
